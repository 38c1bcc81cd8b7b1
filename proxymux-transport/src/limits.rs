//! What the operating system lets this process have.
//!
//! Owns raising the limit of open files to what the host allows: the usual soft limit of 1,024 is
//! made for programs that use `select`, and every relayed connection takes a descriptor or two.

use std::io;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Raises the soft limit of open files to the hard limit, and says what it is then.
///
/// A limit that cannot be raised is logged: the process works, with fewer connections.
pub fn raise_open_files() -> u64 {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
        Ok(hard)
    });
    match raised {
        Ok(limit) => limit,
        Err(error) => {
            tracing::warn!(%error, "cannot raise the limit of open files");
            getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft)
        }
    }
}

/// The soft and the hard limit of open files of this process.
///
/// # Errors
///
/// When the kernel does not tell.
pub fn open_files() -> io::Result<(u64, u64)> {
    Ok(getrlimit(Resource::RLIMIT_NOFILE)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, hard.min(512), hard).unwrap();

        assert_eq!(raise_open_files(), hard);

        assert_eq!(open_files().unwrap(), (hard, hard));
    }
}
