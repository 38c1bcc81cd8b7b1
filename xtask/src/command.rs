//! One outside program with its arguments: shown before it runs, named when it fails.
//!
//! Output goes straight to the terminal unless the caller asks to keep it. Standard input is
//! closed: no developer command may wait for a person who is not there.

use std::{
    ffi::OsString,
    fmt,
    io::{BufRead, BufReader},
    process::{self, ExitStatus, Stdio},
};

use anyhow::{Context, Result, bail};

#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Command {
    program: String,
    args: Vec<String>,
    variables: Vec<(String, String)>,
}

impl Command {
    pub(crate) fn new<I>(program: &str, args: I) -> Self
    where
        I: IntoIterator,
        I::Item: Into<String>,
    {
        Self {
            program: program.to_owned(),
            args: args.into_iter().map(Into::into).collect(),
            variables: Vec::new(),
        }
    }

    /// The cargo that started us, so that a toolchain chosen by the caller is kept.
    pub(crate) fn cargo<I>(args: I) -> Self
    where
        I: IntoIterator,
        I::Item: Into<String>,
    {
        Self::new("cargo", args)
    }

    pub(crate) fn args<I>(mut self, args: I) -> Self
    where
        I: IntoIterator,
        I::Item: Into<String>,
    {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Runs to the end; anything but exit code 0 is an error that names the command.
    pub(crate) fn run(&self) -> Result<()> {
        let status = self.status()?;
        self.expect_success(status)
    }

    /// Runs to the end and hands back how it ended, for callers who know what codes mean.
    pub(crate) fn status(&self) -> Result<ExitStatus> {
        self.show();
        self.process()
            .status()
            .with_context(|| format!("cannot start `{self}`"))
    }

    /// Runs to the end, shows the standard output line by line behind `label`, and keeps it too,
    /// without the label.
    pub(crate) fn run_keeping_output(&self, label: &str) -> Result<(ExitStatus, String)> {
        self.show();
        let cannot_read = || format!("cannot read the output of `{self}`");
        let mut child = self
            .process()
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start `{self}`"))?;
        let stdout = child.stdout.take().with_context(cannot_read)?;
        let mut kept = String::new();
        for line in BufReader::new(stdout).lines() {
            let line = line.with_context(cannot_read)?;
            println!("{label}{line}");
            kept.push_str(&line);
            kept.push('\n');
        }
        let status = child
            .wait()
            .with_context(|| format!("cannot wait for `{self}`"))?;
        Ok((status, kept))
    }

    /// Runs silently and returns the standard output.
    pub(crate) fn output(&self) -> Result<String> {
        let output = self
            .process()
            .stderr(Stdio::inherit())
            .output()
            .with_context(|| format!("cannot start `{self}`"))?;
        self.expect_success(output.status)?;
        String::from_utf8(output.stdout)
            .with_context(|| format!("the output of `{self}` is not UTF-8"))
    }

    /// The error for a command that ended with `status`, or `Ok` if that is success.
    pub(crate) fn expect_success(&self, status: ExitStatus) -> Result<()> {
        if !status.success() {
            bail!("command failed ({status}): `{self}`");
        }
        Ok(())
    }

    fn process(&self) -> process::Command {
        let program = match self.program.as_str() {
            "cargo" => std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()),
            other => OsString::from(other),
        };
        let mut process = process::Command::new(program);
        process
            .args(&self.args)
            .env("PATH", search_path())
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null());
        process
    }

    fn show(&self) {
        println!("$ {self}");
    }
}

/// Where programs are looked for: the search path, and where system tools live, which `su` and
/// some containers leave out. Everything that we start gets the same.
pub(crate) fn search_path() -> OsString {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories =
        std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(std::path::PathBuf::from));
    std::env::join_paths(directories).expect("parts of a split path hold no separator")
}

/// As a person would type it in a shell.
impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, value) in &self.variables {
            write!(f, "{name}={} ", quoted(value))?;
        }
        write!(f, "{}", quoted(&self.program))?;
        for arg in &self.args {
            write!(f, " {}", quoted(arg))?;
        }
        Ok(())
    }
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_can_be_pasted_into_a_shell() {
        let command = Command::new("env", ["a b", "it's", "", "--x=y"]).env("V", "-D warnings");

        assert_eq!(
            command.to_string(),
            r"V='-D warnings' env 'a b' 'it'\''s' '' --x=y"
        );
    }

    #[test]
    fn failure_names_the_command_and_its_exit_code() {
        let error = Command::new("sh", ["-c", "exit 7"]).run().unwrap_err();

        assert_eq!(
            error.to_string(),
            "command failed (exit status: 7): `sh -c 'exit 7'`"
        );
    }

    #[test]
    fn program_that_does_not_exist_is_named() {
        let error = Command::new("no-such-program", ["x"]).run().unwrap_err();

        assert_eq!(error.to_string(), "cannot start `no-such-program x`");
    }

    #[test]
    fn kept_output_and_exit_code_are_both_handed_back() {
        let command = Command::new("sh", ["-c", "echo one; echo $TWO; exit 3"]).env("TWO", "two");

        let (status, kept) = command.run_keeping_output("label | ").unwrap();

        assert_eq!(status.code(), Some(3));
        assert_eq!(kept, "one\ntwo\n");
    }

    #[test]
    fn standard_input_is_closed() {
        let read = Command::new("cat", std::iter::empty::<String>()).output();

        assert_eq!(read.unwrap(), "");
    }
}
