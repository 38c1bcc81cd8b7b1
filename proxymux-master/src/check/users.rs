//! Who may do what with a file, by its permission bits.
//!
//! Owns the kernel's rule for owner, group and others, for users that this process is not: the one
//! that kube-apiserver runs as. Leaves access lists and security modules out; where they are used
//! they only take away.

use std::{fs::Metadata, os::unix::fs::MetadataExt};

use nix::unistd::{getegid, geteuid, getgroups};

use super::pod::RunAs;

/// A user with groups, as a process has them.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct User {
    uid: u32,
    /// The first is the primary one.
    gids: Vec<u32>,
}

/// What the permission bits of a file are about.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Permissions {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Twelve bits.
    pub(super) mode: u32,
}

impl User {
    /// The user of this process.
    pub(super) fn ours() -> Self {
        let more = getgroups().unwrap_or_default();
        let gids = std::iter::once(getegid()).chain(more);
        Self {
            uid: geteuid().as_raw(),
            gids: gids.map(nix::unistd::Gid::as_raw).collect(),
        }
    }

    /// The user that a pod says, which is root where it says nothing.
    pub(super) fn of_pod(run_as: &RunAs) -> Self {
        let id = |id: u64| u32::try_from(id).unwrap_or(NOBODY);
        let group = run_as.group.unwrap_or_default();
        let gids = std::iter::once(group).chain(run_as.more_groups.iter().copied());
        Self {
            uid: id(run_as.user.unwrap_or_default()),
            gids: gids.map(id).collect(),
        }
    }

    /// The number.
    pub(super) fn uid(&self) -> u32 {
        self.uid
    }

    /// Whether these bits, of [`WRITE`] and [`ENTER`], are granted. Root has them all.
    pub(super) fn may(&self, bits: u32, file: Permissions) -> bool {
        // Only one class counts, the first that fits: an owner without a right does not get it as
        // one of the others.
        let shift = if self.uid == file.uid {
            6
        } else if self.gids.contains(&file.gid) {
            3
        } else {
            0
        };
        self.uid == 0 || (file.mode >> shift) & bits == bits
    }

    /// Whether a file may be removed from a directory: one that is sticky lets only owners do so.
    pub(super) fn may_remove(&self, file: Permissions, directory: Permissions) -> bool {
        let owns = self.uid == 0 || [file.uid, directory.uid].contains(&self.uid);
        self.may(WRITE | ENTER, directory) && (directory.mode & STICKY == 0 || owns)
    }
}

/// Root, as which kube-apiserver runs where nothing else is said.
impl Default for User {
    fn default() -> Self {
        Self::of_pod(&RunAs::default())
    }
}

impl From<&Metadata> for Permissions {
    fn from(metadata: &Metadata) -> Self {
        Self {
            uid: metadata.uid(),
            gid: metadata.gid(),
            mode: metadata.mode() & 0o7777,
        }
    }
}

/// To connect to a socket takes this.
pub(super) const WRITE: u32 = 0o2;
/// To use what is in a directory takes this.
pub(super) const ENTER: u32 = 0o1;
/// In a directory with it, nobody but its owner and root removes a file.
pub(super) const STICKY: u32 = 0o1000;

/// What the kernel shows for a number that it cannot.
const NOBODY: u32 = 65_534;

#[cfg(test)]
mod tests {
    use super::*;

    fn user(uid: u32, gids: &[u32]) -> User {
        let gids = gids.to_vec();
        User { uid, gids }
    }

    fn file(uid: u32, gid: u32, mode: u32) -> Permissions {
        Permissions { uid, gid, mode }
    }

    #[test]
    fn the_first_class_that_fits_decides() {
        for (user, file, expected) in [
            (user(0, &[0]), file(5, 5, 0o000), true),
            (user(5, &[6]), file(5, 7, 0o200), true),
            (user(5, &[7]), file(5, 7, 0o022), false),
            (user(6, &[1, 7]), file(5, 7, 0o020), true),
            (user(6, &[7]), file(5, 7, 0o602), false),
            (user(6, &[8]), file(5, 7, 0o602), true),
            (user(6, &[8]), file(5, 7, 0o660), false),
        ] {
            assert_eq!(user.may(WRITE, file), expected, "{user:?} {file:?}");
        }
    }

    #[test]
    fn a_sticky_directory_keeps_a_file_for_its_owner() {
        let sticky = file(0, 7, 0o1775);
        for (user, theirs, expected) in [
            (user(5, &[7]), file(5, 7, 0o660), true),
            (user(5, &[7]), file(0, 0, 0o660), false),
            (user(0, &[0]), file(5, 7, 0o660), true),
            (user(5, &[8]), file(5, 7, 0o660), false),
        ] {
            assert_eq!(user.may_remove(theirs, sticky), expected, "{user:?}");
        }
        let plain = file(0, 7, 0o775);
        assert!(user(5, &[7]).may_remove(file(0, 0, 0o600), plain));
    }

    #[test]
    fn a_pod_that_says_nothing_is_root() {
        assert_eq!(User::of_pod(&RunAs::default()), user(0, &[0]));
        let run_as = RunAs {
            user: Some(5),
            group: None,
            more_groups: vec![7, u64::MAX],
        };
        assert_eq!(User::of_pod(&run_as), user(5, &[0, 7, NOBODY]));
    }
}
