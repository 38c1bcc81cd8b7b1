//! An image archive, unpacked: both lists of its contents, its configuration, its root.
//!
//! Every blob's digest is checked, as container engines do.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;

/// An image that was unpacked; it goes when this does.
#[derive(Debug)]
pub(crate) struct Unpacked {
    dir: TempDir,
    /// The image's configuration.
    pub(crate) config: Value,
    /// What `docker load` calls it.
    pub(crate) docker_name: String,
    /// What containerd, and what podman call it.
    pub(crate) oci_names: [String; 2],
}

/// Where `cargo xtask dist` has put everything.
pub(crate) fn dist() -> Result<PathBuf> {
    let dir = env::var_os("PROXYMUX_DIST_DIR");
    let dir = dir.context("PROXYMUX_DIST_DIR is not set; run this with `cargo xtask test dist`")?;
    Ok(dir.into())
}

/// The archive of a daemon's image.
pub(crate) fn archive(daemon: &str) -> Result<PathBuf> {
    let architecture = match env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let version = env!("CARGO_PKG_VERSION");
    Ok(dist()?.join(format!("{daemon}-{version}-{architecture}.tar")))
}

impl Unpacked {
    /// Unpacks the image of a daemon.
    pub(crate) fn new(daemon: &str) -> Result<Self> {
        let dir = TempDir::with_prefix("proxymux-image-")?;
        let below = |path: &str| dir.path().join(path);
        fs::create_dir(below("layout"))?;
        untar(&archive(daemon)?, &below("layout"))?;
        let layout = read(&below("layout/oci-layout"))?;
        ensure!(at(&layout, "/imageLayoutVersion") == "1.0.0", "{layout}");

        let index = read(&below("layout/index.json"))?;
        let descriptor = only(at(&index, "/manifests"))?;
        let manifest = read(&blob(&below("layout"), descriptor)?)?;
        let config_file = blob(&below("layout"), at(&manifest, "/config"))?;
        let layer = blob(&below("layout"), only(at(&manifest, "/layers"))?)?;
        let docker = read(&below("layout/manifest.json"))?;
        let docker = only(&docker)?;
        for (named, file) in [
            (at(docker, "/Config"), &config_file),
            (only(at(docker, "/Layers"))?, &layer),
        ] {
            let named = below("layout").join(named.as_str().context("a path")?);
            ensure!(named == *file, "{} and {}", named.display(), file.display());
        }
        let config = read(&config_file)?;
        let sum = format!("sha256:{}", sha256(&layer)?);
        ensure!(*only(at(&config, "/rootfs/diff_ids"))? == *sum, "{config}");

        fs::create_dir(below("root"))?;
        untar(&layer, &below("root"))?;
        let annotations = at(descriptor, "/annotations");
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Ok(Self {
            config,
            docker_name: text(only(at(docker, "/RepoTags"))?),
            oci_names: [
                text(at(annotations, "/io.containerd.image.name")),
                text(at(annotations, "/org.opencontainers.image.ref.name")),
            ],
            dir,
        })
    }

    /// The image's root directory.
    pub(crate) fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// The entry point, a single program.
    pub(crate) fn entry_point(&self) -> Result<&str> {
        let entry = only(at(&self.config, "/config/Entrypoint"))?;
        entry.as_str().context("a program")
    }

    /// User and group, as `USER:GROUP`.
    pub(crate) fn user(&self) -> Result<&str> {
        at(&self.config, "/config/User").as_str().context("a user")
    }
}

/// The file of a descriptor, once its content is what its name says.
fn blob(layout: &Path, descriptor: &Value) -> Result<PathBuf> {
    let digest = at(descriptor, "/digest").as_str().context("a digest")?;
    let sum = digest.strip_prefix("sha256:").context("a SHA-256")?;
    let file = layout.join("blobs/sha256").join(sum);
    ensure!(sha256(&file)? == sum, "{digest}");
    let size = fs::metadata(&file)?.len();
    ensure!(
        at(descriptor, "/size") == size,
        "{descriptor} has {size} bytes"
    );
    Ok(file)
}

/// What stands at a place; null if nothing does.
fn at<'a>(value: &'a Value, place: &str) -> &'a Value {
    value.pointer(place).unwrap_or(&Value::Null)
}

fn only(list: &Value) -> Result<&Value> {
    match list.as_array().map(Vec::as_slice) {
        Some([one]) => Ok(one),
        _ => anyhow::bail!("expected a list of one: {list}"),
    }
}

fn read(file: &Path) -> Result<Value> {
    let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
    serde_json::from_str(&text).with_context(|| file.display().to_string())
}

fn untar(archive: &Path, into: &Path) -> Result<()> {
    let mut command = Command::new("tar");
    command.arg("--extract").arg("--file").arg(archive);
    let status = command.arg("--directory").arg(into).status()?;
    ensure!(status.success(), "{}: {status}", archive.display());
    Ok(())
}

/// The SHA-256 of a file.
pub(crate) fn sha256(file: &Path) -> Result<String> {
    let output = Command::new("sha256sum").arg(file).output()?;
    ensure!(output.status.success(), "{}", file.display());
    let text = String::from_utf8(output.stdout)?;
    let sum = text.split_whitespace().next().context("a sum")?;
    Ok(sum.to_owned())
}
