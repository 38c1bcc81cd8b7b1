//! The directory of one demo: certificates, configuration files, sockets, logs.
//!
//! In `/run`, where only root writes, and named after the process, so that a later demo knows
//! which directories nobody needs any more. Removed on drop.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process,
};

use anyhow::{Context, Result};

/// A directory that goes when its owner does.
#[derive(Debug)]
pub(super) struct Place {
    path: PathBuf,
}

impl Place {
    /// Makes the directory of this process.
    pub(super) fn make() -> Result<Self> {
        Self::make_in(Path::new(PARENT))
    }

    fn make_in(parent: &Path) -> Result<Self> {
        let path = own_path(parent);
        // Only a dead process can have had our number.
        remove(&path)?;
        fs::DirBuilder::new()
            .mode(FOR_ROOT)
            .create(&path)
            .with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self { path })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The directory that this process has or had, if it is there.
    pub(super) fn of_this_process() -> Vec<String> {
        let path = own_path(Path::new(PARENT));
        let there = path.exists().then(|| path.display().to_string());
        there.into_iter().collect()
    }

    /// Removes the directories of demos whose process is gone, and names them.
    pub(super) fn sweep() -> Result<Vec<String>> {
        sweep_in(Path::new(PARENT))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.path) {
            eprintln!("{error:#}");
        }
    }
}

fn own_path(parent: &Path) -> PathBuf {
    parent.join(format!("{PREFIX}{}", process::id()))
}

fn sweep_in(parent: &Path) -> Result<Vec<String>> {
    let cannot_list = || format!("cannot list {}", parent.display());
    let mut removed = Vec::new();
    for entry in fs::read_dir(parent).with_context(cannot_list)? {
        let path = entry.with_context(cannot_list)?.path();
        let owner = path
            .file_name()
            .and_then(|name| name.to_str()?.strip_prefix(PREFIX)?.parse::<u32>().ok());
        if owner.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            remove(&path)?;
            removed.push(path.display().to_string());
        }
    }
    removed.sort();
    Ok(removed)
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

const PARENT: &str = "/run";
const PREFIX: &str = "proxymux-demo-";
/// There are private keys inside.
const FOR_ROOT: u32 = 0o700;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_place_is_for_its_owner_alone_and_goes_with_it() {
        let parent = tempfile::tempdir().unwrap();

        let place = Place::make_in(parent.path()).unwrap();

        let path = place.path().to_owned();
        fs::write(path.join("key"), "secret").unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        drop(place);
        assert!(!path.exists());
    }

    #[test]
    fn only_places_of_dead_processes_are_swept() {
        let parent = tempfile::tempdir().unwrap();
        // Process numbers end far below this one.
        let dead = parent.path().join(format!("{PREFIX}4294967295"));
        let others = [
            own_path(parent.path()),
            parent.path().join("4294967295"),
            parent.path().join(format!("{PREFIX}notes")),
        ];
        fs::create_dir(&dead).unwrap();
        others.iter().for_each(|path| fs::create_dir(path).unwrap());

        let removed = sweep_in(parent.path()).unwrap();

        assert_eq!(removed, [dead.display().to_string()]);
        assert!(!dead.exists());
        assert!(others.iter().all(|path| path.exists()));
    }
}
