//! An image archive for one daemon, written file by file.
//!
//! Owns what is in the image and both forms of the list of contents: that of the OCI image layout,
//! for podman and containerd, and `manifest.json` beside it, for `docker load`. The one layer is
//! an uncompressed tar of GNU tar's, in fixed order and with fixed times and owners, so that equal
//! programs make equal images.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{context, path, sha256};
use crate::command::Command;

/// What is known of the commit that an image is made of.
#[derive(Clone, Debug)]
pub(super) struct Stamp {
    /// Seconds since 1970, of the commit.
    time: u64,
    /// `None` outside a checkout of git.
    revision: Option<String>,
}

/// One daemon's image.
#[derive(Debug)]
pub(super) struct Image<'a> {
    daemon: &'static str,
    stamp: &'a Stamp,
    root: &'a Path,
    /// As the OCI has it, `amd64` for example.
    architecture: &'static str,
    /// The time of the commit, as the OCI has it.
    created: String,
}

impl Stamp {
    /// The commit that is checked out at `root`. Without one everything is as old as can be.
    pub(super) fn of(root: &Path) -> Result<Self> {
        // With sudo the checkout belongs to somebody else, which git refuses by default.
        let trusted = format!("safe.directory={}", root.display());
        let git = ["-c", &trusted, "log", "-1", "--format=%ct %H"];
        let Ok(shown) = Command::new("git", git).output() else {
            return Ok(Self {
                time: 0,
                revision: None,
            });
        };
        let (time, revision) = shown.trim().split_once(' ').context("a commit of git")?;
        Ok(Self {
            time: time.parse().context("the time of a commit")?,
            revision: Some(revision.to_owned()),
        })
    }
}

impl<'a> Image<'a> {
    /// The image of a daemon; `root` is the root of the checkout.
    pub(super) fn of(daemon: &'static str, stamp: &'a Stamp, root: &'a Path) -> Result<Self> {
        let at = format!("--date=@{}", stamp.time);
        let created = Command::new("date", ["--utc", &at, "+%Y-%m-%dT%H:%M:%SZ"]);
        Ok(Self {
            daemon,
            stamp,
            root,
            architecture: match std::env::consts::ARCH {
                "x86_64" => "amd64",
                "aarch64" => "arm64",
                other => other,
            },
            created: created.output()?.trim().to_owned(),
        })
    }

    /// Writes the archive into `dist`, with this program in it, and says where it is.
    ///
    /// Beside it stands the layer alone, for `deploy/container/Dockerfile`.
    pub(super) fn write(&self, program: &Path, dist: &Path) -> Result<PathBuf> {
        let scratch = dist.join(format!("{}.image", self.daemon));
        let (tree, layout) = (scratch.join("tree"), scratch.join("layout"));
        self.plant(program, &tree)?;
        let layer = dist.join(format!("{}.layer.tar", self.daemon));
        self.pack_layer(&tree, &layer)?;
        self.lay_out(&layer, &layout)?;
        let archive = format!("{}-{VERSION}-{}.tar", self.daemon, self.architecture);
        let archive = dist.join(archive);
        let parts = ["blobs", "index.json", "manifest.json", "oci-layout"];
        self.pack(&layout, &archive, &parts, ROOT)?;
        fs::remove_dir_all(&scratch).with_context(context(&scratch))?;
        let bytes = fs::metadata(&archive)
            .with_context(context(&archive))?
            .len();
        ensure!(
            bytes <= MAX_BYTES,
            "{} has {bytes} bytes, expected at most {MAX_BYTES}",
            archive.display()
        );
        Ok(archive)
    }

    /// Everything that the image has.
    fn plant(&self, program: &Path, tree: &Path) -> Result<()> {
        let put = |at: &str, content: &[u8]| -> Result<()> {
            let file = tree.join(at);
            let parent = file.parent().context("a file is in a directory")?;
            fs::create_dir_all(parent).with_context(context(parent))?;
            fs::write(&file, content).with_context(context(&file))
        };
        let users = format!("root:x:0:0::/:\nproxymux:x:{USER}:{USER}::/:\n");
        put("etc/passwd", users.as_bytes())?;
        put(
            "etc/group",
            format!("root:x:0:\nproxymux:x:{USER}:\n").as_bytes(),
        )?;
        // Names are looked up as on any machine: in /etc/hosts first.
        put("etc/nsswitch.conf", b"hosts: files dns\n")?;
        for licence in ["LICENSE-APACHE", "LICENSE-MIT"] {
            let file = self.root.join(licence);
            let text = fs::read(&file).with_context(context(&file))?;
            put(&format!("usr/share/doc/proxymux/{licence}"), &text)?;
        }
        for directory in ["bin", RUN] {
            let directory = tree.join(directory);
            fs::create_dir_all(&directory).with_context(context(&directory))?;
        }
        let to = tree.join("bin").join(self.daemon);
        fs::copy(program, &to).with_context(context(&to))?;
        if self.daemon == AGENT {
            let link = tree.join("bin/proxymux.sh");
            symlink(self.daemon, &link).with_context(context(&link))?;
        }
        Ok(())
    }

    fn pack_layer(&self, tree: &Path, layer: &Path) -> Result<()> {
        self.pack(tree, layer, &["bin", "etc", "usr"], ROOT)?;
        let run = ["--append", "--no-recursion"];
        self.tar(&run, tree, layer, &["run"], ROOT)?;
        self.tar(&run, tree, layer, &[RUN], self.user())
    }

    fn pack(&self, from: &Path, to: &Path, what: &[&str], owner: u32) -> Result<()> {
        self.tar(&["--create"], from, to, what, owner)
    }

    fn tar(&self, how: &[&str], from: &Path, to: &Path, what: &[&str], owner: u32) -> Result<()> {
        Command::new("tar", how.iter().copied())
            .args(["--format=ustar", "--sort=name", "--numeric-owner"])
            .args([
                format!("--mtime=@{}", self.stamp.time),
                format!("--owner={owner}"),
                format!("--group={owner}"),
                // Whatever the umask was when the files were written.
                "--mode=u=rwX,go=rX".to_owned(),
            ])
            .args(["--file", path(to)?, "--directory", path(from)?])
            .args(what.iter().copied())
            .run()
    }

    /// Writes the OCI image layout, and Docker's list of what is in it.
    fn lay_out(&self, layer: &Path, layout: &Path) -> Result<()> {
        let blobs = layout.join("blobs/sha256");
        fs::create_dir_all(&blobs).with_context(context(&blobs))?;
        let add = |file: &Path| -> Result<Blob> {
            let blob = Blob {
                digest: sha256(file)?,
                size: fs::metadata(file).with_context(context(file))?.len(),
            };
            fs::copy(file, blobs.join(&blob.digest)).with_context(context(file))?;
            Ok(blob)
        };
        let add_json = |value: &Value| -> Result<Blob> {
            let file = layout.join("part.json");
            fs::write(&file, value.to_string()).with_context(context(&file))?;
            let blob = add(&file)?;
            fs::remove_file(&file).with_context(context(&file))?;
            Ok(blob)
        };
        let put = |name: &str, value: &Value| {
            let file = layout.join(name);
            fs::write(&file, value.to_string()).with_context(context(&file))
        };
        let layer = add(layer)?;
        let config = add_json(&self.config(&layer))?;
        let manifest = add_json(&manifest(&config, &layer))?;
        put("index.json", &self.index(&manifest))?;
        put("manifest.json", &self.for_docker(&config, &layer))?;
        put("oci-layout", &json!({ "imageLayoutVersion": "1.0.0" }))
    }

    /// The image's configuration.
    fn config(&self, layer: &Blob) -> Value {
        let entry = match self.daemon {
            // As `docker ps` shows the container of the original.
            AGENT => "/bin/proxymux.sh".to_owned(),
            daemon => format!("/bin/{daemon}"),
        };
        json!({
            "architecture": self.architecture,
            "os": "linux",
            "created": self.created,
            "config": {
                "Entrypoint": [entry],
                "User": format!("{0}:{0}", self.user()),
                "WorkingDir": "/",
                "Env": ["PATH=/bin"],
                "StopSignal": "SIGTERM",
                "Labels": self.labels(),
            },
            "rootfs": { "type": "layers", "diff_ids": [layer.name()] },
            "history": [{ "created": self.created, "created_by": "cargo xtask dist" }],
        })
    }

    fn labels(&self) -> Value {
        let about = match self.daemon {
            AGENT => "Connects a node's kubelet to the control plane",
            _ => "Leads kube-apiserver's connections to kubelets",
        };
        json!({
            "org.opencontainers.image.title": self.daemon,
            "org.opencontainers.image.description": about,
            "org.opencontainers.image.version": VERSION,
            "org.opencontainers.image.licenses": "MIT OR Apache-2.0",
            "org.opencontainers.image.source": env!("CARGO_PKG_REPOSITORY"),
            "org.opencontainers.image.created": self.created,
            "org.opencontainers.image.revision":
                self.stamp.revision.as_deref().unwrap_or("unknown"),
        })
    }

    /// The kubelet's key is for root alone; the master needs nothing of root's.
    fn user(&self) -> u32 {
        match self.daemon {
            AGENT => ROOT,
            _ => USER,
        }
    }

    fn reference(&self) -> String {
        format!("localhost/{}:{VERSION}", self.daemon)
    }

    fn index(&self, manifest: &Blob) -> Value {
        json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [{
                "mediaType": MANIFEST,
                "digest": manifest.name(),
                "size": manifest.size,
                "platform": { "architecture": self.architecture, "os": "linux" },
                // The first is what containerd goes by, the second podman and skopeo.
                "annotations": {
                    "io.containerd.image.name": self.reference(),
                    "org.opencontainers.image.ref.name": self.reference(),
                },
            }],
        })
    }

    fn for_docker(&self, config: &Blob, layer: &Blob) -> Value {
        json!([{
            "Config": config.file(),
            "RepoTags": [self.reference()],
            "Layers": [layer.file()],
        }])
    }
}

fn manifest(config: &Blob, layer: &Blob) -> Value {
    json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": config.describe("application/vnd.oci.image.config.v1+json"),
        "layers": [layer.describe("application/vnd.oci.image.layer.v1.tar")],
    })
}

/// A file that is named by its content.
#[derive(Clone, Debug)]
struct Blob {
    digest: String,
    size: u64,
}

impl Blob {
    fn name(&self) -> String {
        format!("sha256:{}", self.digest)
    }

    fn file(&self) -> String {
        format!("blobs/sha256/{}", self.digest)
    }

    fn describe(&self, kind: &str) -> Value {
        json!({ "mediaType": kind, "digest": self.name(), "size": self.size })
    }
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

const AGENT: &str = "proxymux-agent";

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Where both daemons have their sockets.
const RUN: &str = "run/proxymux";

const ROOT: u32 = 0;

/// Nobody in particular: the number that images without a distribution have agreed on.
const USER: u32 = 65532;

/// What an archive may have; the programs are a few megabytes.
const MAX_BYTES: u64 = 25 << 20;

#[cfg(test)]
mod tests {
    use super::{super::tests::Scratch, *};

    #[test]
    fn equal_programs_make_equal_archives_whenever_they_are_made() {
        let scratch = Scratch::new("equal");
        let stamp = Stamp {
            time: 1_600_000_000,
            revision: None,
        };
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let write = |name: &str, program: &str| {
            let dist = scratch.0.join(name);
            fs::create_dir_all(&dist).unwrap();
            fs::write(dist.join("program"), program).unwrap();
            let image = Image::of("proxymux-master", &stamp, &root).unwrap();
            let archive = image.write(&dist.join("program"), &dist).unwrap();
            sha256(&archive).unwrap()
        };

        let (one, other) = (write("one", "the program"), write("other", "the program"));
        let different = write("different", "another program");

        assert_eq!(one, other);
        assert_ne!(one, different);
    }

    #[test]
    fn the_time_of_the_commit_is_the_image_s() {
        let stamp = Stamp {
            time: 1_600_000_000,
            revision: Some("abc".to_owned()),
        };
        let image = Image::of(AGENT, &stamp, Path::new("/")).unwrap();
        let layer = Blob {
            digest: "0".repeat(64),
            size: 1,
        };

        let config = image.config(&layer);

        assert_eq!(config["created"], "2020-09-13T12:26:40Z");
        assert_eq!(config["config"]["Entrypoint"], json!(["/bin/proxymux.sh"]));
        assert_eq!(config["config"]["User"], "0:0");
        let labels = &config["config"]["Labels"];
        assert_eq!(labels["org.opencontainers.image.revision"], "abc");
        assert_eq!(labels["org.opencontainers.image.version"], VERSION);
    }
}
