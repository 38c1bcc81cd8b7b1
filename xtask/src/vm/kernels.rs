//! Debian's kernels, from the mirror that this machine's apt uses.
//!
//! apt runs with directories of its own under the target directory, so that the suites of other
//! releases never become known to the machine. What is unpacked is kept: a second run asks
//! nobody. The cloud flavour is a third of the size and has every module that we need.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use crate::command::Command;

/// A kernel to test on, and which of Debian's packages it is.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Release {
    /// As people write it, and as `--kernel` takes it.
    pub(super) name: &'static str,
    /// What the package's name holds before and behind the number that counts up.
    prefix: &'static str,
    suffix: &'static str,
}

pub(super) const RELEASES: [Release; 3] = [
    Release {
        name: "5.10",
        prefix: "linux-image-5.10.0-",
        suffix: "-cloud-amd64",
    },
    Release {
        name: "6.1",
        prefix: "linux-image-6.1.0-",
        suffix: "-cloud-amd64",
    },
    Release {
        name: "6.12",
        prefix: "linux-image-6.12.",
        suffix: "+deb12-cloud-amd64",
    },
];

/// An unpacked kernel.
#[derive(Debug)]
pub(super) struct Kernel {
    pub(super) image: PathBuf,
    pub(super) modules: PathBuf,
}

/// The kernel of a release, downloaded if it is not here yet.
///
/// # Errors
///
/// There is no apt, or no mirror that has the package.
pub(super) fn kernel(release: &Release, directory: &Path) -> Result<Kernel> {
    let unpacked = directory.join(release.name);
    if !unpacked.is_dir() {
        download(release, directory, &unpacked).with_context(|| {
            format!(
                "cannot get Debian's kernel {}; it needs apt with a mirror of Debian, and lists \
                 that are fresh: type `apt-get update` and try again, or unpack a package \
                 linux-image-*-cloud-amd64 of that version with `dpkg-deb -x` to {}",
                release.name,
                unpacked.display()
            )
        })?;
    }
    Ok(Kernel {
        image: only_entry(&unpacked.join("boot"), "vmlinuz-")?,
        modules: modules_directory(&unpacked)?,
    })
}

fn download(release: &Release, directory: &Path, unpacked: &Path) -> Result<()> {
    let apt = Apt::new(&directory.join("apt"))?;
    let package = match apt.newest(release)? {
        Some(package) => package,
        None => {
            apt.update()?;
            apt.newest(release)?
                .with_context(|| format!("no package {}NUMBER{}", release.prefix, release.suffix))?
        }
    };
    let file = apt.download(&package)?;
    // Under its final name only when it is complete.
    let partial = directory.join(format!("{}.partial", release.name));
    if partial.exists() {
        fs::remove_dir_all(&partial)
            .with_context(|| format!("cannot remove {}", partial.display()))?;
    }
    Command::new("dpkg-deb", ["-x", text(&file)?, text(&partial)?]).run()?;
    fs::rename(&partial, unpacked)
        .with_context(|| format!("cannot rename {} to the final name", partial.display()))?;
    fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))
}

/// An apt that knows Debian's releases and nothing of this machine.
struct Apt {
    directory: PathBuf,
}

impl Apt {
    fn new(directory: &Path) -> Result<Self> {
        if !Path::new(KEYRING).is_file() {
            bail!("no {KEYRING}; type: apt-get install -y debian-archive-keyring");
        }
        for part in ["lists/partial", "archives/partial"] {
            let path = directory.join(part);
            fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        }
        let known =
            Command::new("apt-get", ["indextargets", "--format", "$(REPO_URI)"]).output()?;
        let sources = sources(&known)?;
        let path = directory.join("debian.sources");
        fs::write(&path, sources).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self {
            directory: directory.to_owned(),
        })
    }

    fn command(&self, program: &str) -> Command {
        let directory = self.directory.display();
        let settings = [
            format!("Dir::Etc::sourcelist={directory}/debian.sources"),
            "Dir::Etc::sourceparts=/dev/null".to_owned(),
            format!("Dir::State::lists={directory}/lists"),
            format!("Dir::Cache={directory}"),
            // apt's own user need not be able to enter this directory.
            "APT::Sandbox::User=".to_owned(),
            "Acquire::Retries=3".to_owned(),
        ];
        let options = settings
            .into_iter()
            .flat_map(|setting| ["-o".to_owned(), setting]);
        Command::new(program, options)
    }

    fn update(&self) -> Result<()> {
        self.command("apt-get").args(["update"]).run()
    }

    fn newest(&self, release: &Release) -> Result<Option<String>> {
        let names = self
            .command("apt-cache")
            .args(["pkgnames", release.prefix])
            .output()?;
        Ok(release.newest_of(&names))
    }

    /// The file of the package, which lies beside the lists.
    fn download(&self, package: &str) -> Result<PathBuf> {
        let archives = self.directory.join("archives");
        let download = self.command("apt-get").args(["download", package]);
        // apt-get downloads to the current directory.
        let fetch = format!("cd '{}' && exec {download}", archives.display());
        let attempt = Command::new("sh", ["-c", &fetch]);
        if attempt.run().is_err() {
            // Lists that are too old name files that the mirror no longer has.
            self.update()?;
            attempt.run()?;
        }
        only_entry(&archives, &format!("{package}_"))
    }
}

impl Release {
    /// The name with the highest number among the lines.
    fn newest_of(&self, names: &str) -> Option<String> {
        let number = |name: &str| -> Option<u32> {
            name.strip_prefix(self.prefix)?
                .strip_suffix(self.suffix)?
                .parse()
                .ok()
        };
        names
            .lines()
            .filter_map(|name| Some((number(name)?, name)))
            .max()
            .map(|(_, name)| name.to_owned())
    }
}

/// The sources of the releases, at the mirrors that this machine's apt uses for its own release.
fn sources(known: &str) -> Result<String> {
    let mirror = |name: &str| {
        known
            .lines()
            .map(|address| address.trim_end_matches('/'))
            .find(|address| address.rsplit('/').next() == Some(name))
            .with_context(|| format!("apt knows no mirror of Debian whose address ends in /{name}"))
    };
    let stanza = |address: &str, suites: &str| {
        format!(
            "Types: deb\nURIs: {address}\nSuites: {suites}\nComponents: main\n\
             Architectures: amd64\nTargets: Packages\nSigned-By: {KEYRING}\n"
        )
    };
    Ok(format!(
        "{}\n{}",
        stanza(mirror("debian")?, "bullseye bookworm"),
        stanza(
            mirror("debian-security")?,
            "bullseye-security bookworm-security"
        )
    ))
}

/// The one entry of a directory whose name starts so.
fn only_entry(directory: &Path, start: &str) -> Result<PathBuf> {
    let mut found = entries(directory)?.into_iter().filter(|path| {
        path.file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with(start))
    });
    match (found.next(), found.next()) {
        (Some(path), None) => Ok(path),
        (None, _) => bail!("no {start}* in {}", directory.display()),
        _ => bail!("more than one {start}* in {}", directory.display()),
    }
}

/// Releases from 2024 on have `usr/lib` where others have `lib`.
fn modules_directory(unpacked: &Path) -> Result<PathBuf> {
    ["lib/modules", "usr/lib/modules"]
        .into_iter()
        .map(|path| unpacked.join(path))
        .find(|path| path.is_dir())
        .with_context(|| format!("no modules in {}", unpacked.display()))
}

pub(super) fn entries(directory: &Path) -> Result<Vec<PathBuf>> {
    let cannot_read = || format!("cannot read {}", directory.display());
    fs::read_dir(directory)
        .with_context(cannot_read)?
        .map(|entry| Ok(entry.with_context(cannot_read)?.path()))
        .collect()
}

pub(super) fn text(path: &Path) -> Result<&str> {
    path.to_str()
        .with_context(|| format!("not UTF-8: {}", path.display()))
}

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newest_package_has_the_highest_number_and_no_other_flavour() {
        let names = "linux-image-6.12.95+deb12-cloud-amd64\n\
                     linux-image-6.12.117+deb12-cloud-amd64\n\
                     linux-image-6.12.200+deb12-amd64\n\
                     linux-image-6.12.200+deb12-cloud-amd64-unsigned\n\
                     linux-image-6.12-cloud-amd64\n";

        assert_eq!(
            RELEASES[2].newest_of(names).as_deref(),
            Some("linux-image-6.12.117+deb12-cloud-amd64")
        );
        assert_eq!(RELEASES[0].newest_of(names), None);
    }

    #[test]
    fn other_releases_come_from_the_mirrors_of_this_one() {
        let known = "https://other.example/tools/\nhttp://mirror.example/debian/\n\
                     http://mirror.example/debian-security/\n";

        let sources = sources(known).unwrap();

        assert!(
            sources.contains("URIs: http://mirror.example/debian\nSuites: bullseye bookworm\n"),
            "{sources}"
        );
        assert!(
            sources.contains("URIs: http://mirror.example/debian-security\nSuites: bullseye-sec"),
            "{sources}"
        );
    }

    #[test]
    fn machine_without_a_mirror_of_debian_is_told_which_is_missing() {
        let error = sources("http://mirror.example/ubuntu/\n").unwrap_err();

        assert!(error.to_string().contains("ends in /debian"), "{error}");
    }
}
