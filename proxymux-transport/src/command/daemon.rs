//! A daemon's last words, where a person finds them.
//!
//! Owns where it is written why a daemon ended or did not start: on stderr, and in the file that
//! Kubernetes shows with a container that has ended. Leaves exit codes to [`Program`].
//! The commands that only ask a running daemon have no last words: in a container they run beside
//! it, and must not write into its file.

use std::{
    fs::OpenOptions,
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use super::Program;
use crate::config_file::ConfigError;

/// Where a container's last words go.
#[derive(Clone, Debug, clap::Args)]
pub struct TerminationLog {
    /// The file for the reason why it ended; only written if it is there, as in a Kubernetes pod.
    #[arg(long, value_name = "PATH", default_value = "/dev/termination-log")]
    termination_log: PathBuf,
}

/// A program while it is the daemon and not one of the commands that ask it.
#[derive(Clone, Copy, Debug)]
pub struct Daemon<'a> {
    program: Program,
    log: &'a TerminationLog,
}

impl Program {
    /// The program as the daemon.
    #[must_use]
    pub fn daemon(self, log: &TerminationLog) -> Daemon<'_> {
        Daemon { program: self, log }
    }
}

impl Daemon<'_> {
    /// Says all that is wrong with the configuration, each mistake on a line of its own.
    #[must_use]
    pub fn refuse(self, error: &ConfigError) -> ExitCode {
        let lines: Vec<_> = error
            .lines()
            .iter()
            .map(|line| format!("config {line}"))
            .collect();
        self.leave(&lines.join("\n"));
        self.program.refuse(error)
    }

    /// Says why it failed.
    #[must_use]
    pub fn fail(self, message: &str) -> ExitCode {
        self.leave(message);
        self.program.fail(message)
    }

    fn leave(self, message: &str) {
        let path = &self.log.termination_log;
        if let Err(error) = write_if_there(path, message) {
            let (program, path) = (self.program.0, path.display());
            eprintln!("{program}: cannot write the reason to {path}: {error}");
        }
    }
}

/// A host has no such file; a container's runtime made it.
fn write_if_there(path: &Path, message: &str) -> io::Result<()> {
    let opened = OpenOptions::new().write(true).truncate(true).open(path);
    let mut file = match opened {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened?,
    };
    file.write_all(beginning(message).as_bytes())
}

/// As much as is shown, so that of many mistakes the first are.
fn beginning(message: &str) -> &str {
    let end = message.floor_char_boundary(MAX_SHOWN);
    message.get(..end).unwrap_or_default()
}

/// Of a longer file Kubernetes shows the end.
const MAX_SHOWN: usize = 4096;

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_last_word_replaces_what_an_earlier_run_has_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("termination-log");
        fs::write(&path, "a longer reason of an earlier run").unwrap();

        write_if_there(&path, "no way").unwrap();

        assert_eq!(fs::read_to_string(&path).unwrap(), "no way");
    }

    #[test]
    fn where_nobody_waits_for_a_last_word_no_file_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("termination-log");

        write_if_there(&path, "no way").unwrap();

        assert!(!path.exists());
    }

    #[test]
    fn a_file_that_cannot_be_written_is_an_error() {
        let dir = tempfile::tempdir().unwrap();

        assert!(write_if_there(dir.path(), "no way").is_err());
    }

    #[test]
    fn of_a_long_reason_the_beginning_is_kept_in_whole_characters() {
        let long = format!("x{}", "é".repeat(4096));

        let kept = beginning(&long);

        assert_eq!(kept.len(), 4095);
        assert!(long.starts_with(kept));
        assert_eq!(beginning("short"), "short");
    }
}
