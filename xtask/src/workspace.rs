//! Where things are: the root of the checkout, the target directory, the fuzz targets.
//!
//! Asked of cargo, never guessed, so that `CARGO_TARGET_DIR` and other checkouts work.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::command::Command;

#[derive(Debug)]
pub(crate) struct Workspace {
    pub(crate) root: PathBuf,
    pub(crate) target: PathBuf,
    metadata: Value,
}

impl Workspace {
    /// Asks cargo, and makes the root of the checkout the current directory, so that the
    /// commands that are printed can be typed as they stand.
    pub(crate) fn enter() -> Result<Self> {
        let manifest_directory = std::env::var_os("CARGO_MANIFEST_DIR")
            .context("CARGO_MANIFEST_DIR is not set; start it as `cargo xtask`")?;
        let root = Path::new(&manifest_directory)
            .parent()
            .context("xtask is not inside a workspace")?
            .to_owned();
        std::env::set_current_dir(&root)
            .with_context(|| format!("cannot enter {}", root.display()))?;
        let command = Command::cargo(["metadata", "--no-deps", "--format-version", "1"]);
        let metadata: Value = serde_json::from_str(&command.output()?)
            .with_context(|| format!("cannot read the output of `{command}`"))?;
        let target = metadata
            .get("target_directory")
            .and_then(Value::as_str)
            .with_context(|| format!("no target_directory in the output of `{command}`"))?
            .into();
        Ok(Self {
            root,
            target,
            metadata,
        })
    }

    /// The names of a package's binaries, sorted.
    pub(crate) fn binaries(&self, package: &str) -> Vec<String> {
        binaries(&self.metadata, package)
    }
}

fn binaries(metadata: &Value, package: &str) -> Vec<String> {
    let mut names: Vec<String> = list(&metadata["packages"])
        .iter()
        .filter(|entry| entry["name"] == package)
        .flat_map(|entry| list(&entry["targets"]))
        .filter(|target| list(&target["kind"]).iter().any(|kind| kind == "bin"))
        .filter_map(|target| target["name"].as_str().map(str::to_owned))
        .collect();
    names.sort();
    names
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binaries_are_those_of_the_package_and_no_other_kind_of_target() {
        let metadata = serde_json::json!({ "packages": [
            { "name": "fuzz", "targets": [
                { "name": "open", "kind": ["bin"] },
                { "name": "fuzz", "kind": ["lib"] },
                { "name": "chunk", "kind": ["bin"] },
            ]},
            { "name": "other", "targets": [{ "name": "daemon", "kind": ["bin"] }] },
        ]});

        assert_eq!(binaries(&metadata, "fuzz"), ["chunk", "open"]);
        assert_eq!(binaries(&metadata, "absent"), Vec::<String>::new());
    }

    #[test]
    fn the_running_workspace_is_found() {
        let workspace = Workspace::enter().unwrap();

        assert!(workspace.root.join("Cargo.lock").is_file());
        assert!(workspace.target.is_absolute());
        assert_eq!(workspace.binaries("xtask"), ["xtask"]);
    }
}
