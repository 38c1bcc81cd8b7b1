//! Daemons under test: started, listened to, signalled, and gone when the test is.
//!
//! A [`Daemon`] holds a child process and every line it wrote. Where it runs is decided by the
//! command it is given ([`Host::command`](crate::netns::Host::command)); what its JSON log lines
//! say is read by [`LogEvent`]. Standard input is empty.
//! Lines are kept until the daemon is dropped, which a soak test should know.

mod log;
mod output;
mod usage;

use std::{
    fs::File,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use nix::{
    sys::signal::{self, Signal},
    unistd::Pid,
};

use self::output::Output;
pub use self::{log::LogEvent, output::LinePattern, usage::Usage};
use crate::wait::poll_until;

/// A running program whose output is captured.
///
/// On drop it is killed and reaped, and all it wrote is printed: a test may fail by a panic or by
/// an error, and test runners show what was printed for tests that failed only. What is in a file
/// anyway ([`Daemon::spawn_logging_to`]) is not printed.
///
/// ```
/// use std::{process::Command, time::Duration};
/// use proxymux_testkit::process::Daemon;
///
/// # fn main() -> anyhow::Result<()> {
/// let mut command = Command::new("sh");
/// command.args(["-c", "echo listening; read forever"]);
/// let mut daemon = Daemon::spawn("shell", command)?;
/// daemon.wait_for_line("listening", Duration::from_secs(5))?;
/// assert!(!daemon.wait(Duration::from_secs(5))?.success(), "there was nothing to read");
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Daemon {
    name: String,
    child: Child,
    ended: Option<ExitStatus>,
    output: Arc<Output>,
    /// Its lines are in a file too.
    logged: bool,
}

impl Daemon {
    /// Starts `command`; `name` is what its lines are marked with when they are printed.
    ///
    /// # Errors
    ///
    /// It could not be started. A program that is missing *inside* a host is noticed by its exit
    /// status only, because `ip netns exec` is what was started.
    pub fn spawn(name: impl Into<String>, command: Command) -> Result<Self> {
        Self::spawn_with_copy(name, command, None)
    }

    /// Like [`Daemon::spawn`]; every line is also written to the end of the file at `log`, where
    /// it outlives the daemon.
    ///
    /// # Errors
    ///
    /// As [`Daemon::spawn`], or the file could not be opened.
    pub fn spawn_logging_to(name: impl Into<String>, command: Command, log: &Path) -> Result<Self> {
        let file = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("cannot open {}", log.display()))?;
        Self::spawn_with_copy(name, command, Some(file))
    }

    fn spawn_with_copy(
        name: impl Into<String>,
        mut command: Command,
        copy: Option<File>,
    ) -> Result<Self> {
        let (name, logged) = (name.into(), copy.is_some());
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {name}: {command:?}"))?;
        let output = Output::capture(
            &name,
            child.stdout.take().expect("stdout is piped above"),
            child.stderr.take().expect("stderr is piped above"),
            copy,
        );
        Ok(Self {
            name,
            child,
            ended: None,
            output,
            logged,
        })
    }

    /// What it was called when it was started.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Waits until it has written a line that matches, and returns the line. Lines written
    /// before the call count too; [`Daemon::wait_for_line_after`] is for those to come.
    ///
    /// # Errors
    ///
    /// No such line within `limit`, or it ended without writing one.
    pub fn wait_for_line(&mut self, pattern: impl LinePattern, limit: Duration) -> Result<String> {
        self.wait_for_line_after(0, pattern, limit)
    }

    /// Like [`Daemon::wait_for_line`], leaving out the first `mark` lines. The mark for "from
    /// now on" is [`Daemon::mark`].
    ///
    /// # Errors
    ///
    /// No such line within `limit`, or it ended without writing one.
    pub fn wait_for_line_after(
        &mut self,
        mark: usize,
        pattern: impl LinePattern,
        limit: Duration,
    ) -> Result<String> {
        self.wait_for(limit, |lines| {
            let mut fresh = lines.iter().skip(mark);
            fresh.find(|line| pattern.matches(line)).cloned()
        })
        .with_context(|| format!("no line with {}", pattern.describe()))
    }

    /// Waits until it has logged an event (JSON log format) for which `wanted` is true.
    ///
    /// # Errors
    ///
    /// No such event within `limit`, or it ended without one.
    pub fn wait_for_event(
        &mut self,
        limit: Duration,
        wanted: impl Fn(&LogEvent) -> bool,
    ) -> Result<LogEvent> {
        self.wait_for(limit, |lines| {
            lines
                .iter()
                .filter_map(|line| LogEvent::parse(line))
                .find(&wanted)
        })
        .context("no such log event")
    }

    /// How many lines there are; see [`Daemon::wait_for_line_after`].
    pub fn mark(&self) -> usize {
        self.output.lines().len()
    }

    /// All lines so far, of both streams, in the order in which they were read.
    pub fn lines(&self) -> Vec<String> {
        self.output.lines().clone()
    }

    /// How many lines so far match.
    pub fn count_lines(&self, pattern: impl LinePattern) -> usize {
        self.output
            .lines()
            .iter()
            .filter(|line| pattern.matches(line))
            .count()
    }

    /// All log events so far; lines that are no JSON object are left out.
    pub fn events(&self) -> Vec<LogEvent> {
        self.output
            .lines()
            .iter()
            .filter_map(|line| LogEvent::parse(line))
            .collect()
    }

    /// The events with this target and message, `access` and `connection closed` for example.
    pub fn events_of(&self, target: &str, message: &str) -> Vec<LogEvent> {
        let mut events = self.events();
        events.retain(|event| event.target == target && event.message == message);
        events
    }

    /// What it uses of the machine at this moment.
    ///
    /// # Errors
    ///
    /// It has ended.
    pub fn usage(&self) -> Result<Usage> {
        Usage::of(self.pid()).with_context(|| format!("usage of {}", self.name))
    }

    /// Sends it a signal.
    ///
    /// # Errors
    ///
    /// It has ended.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if let Some(status) = self.poll_ended()? {
            bail!(
                "cannot send {signal} to {}: it has ended: {status}",
                self.name
            );
        }
        // Not reaped yet, so the number cannot be another process's by now.
        signal::kill(self.pid(), signal)
            .with_context(|| format!("cannot send {signal} to {}", self.name))
    }

    /// Kills it with SIGKILL and reaps it. One that has ended already is no error.
    ///
    /// # Errors
    ///
    /// It could not be waited for.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        if let Some(status) = self.poll_ended()? {
            return Ok(status);
        }
        let context = || format!("cannot kill {}", self.name);
        self.child.kill().with_context(context)?;
        let status = self.child.wait().with_context(context)?;
        self.ended = Some(status);
        Ok(status)
    }

    /// Waits until it has ended by itself and all its lines have been read.
    ///
    /// # Errors
    ///
    /// It still runs when `limit` has passed; it is then left running.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let ended = poll_until(limit, || self.poll_ended().transpose());
        let status = ended.ok_or_else(|| anyhow!("{} still runs after {limit:?}", self.name))??;
        self.output.wait_for_end(OUTPUT_LIMIT);
        Ok(status)
    }

    /// Whether it still runs.
    ///
    /// # Errors
    ///
    /// It could not be asked.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.poll_ended()?.is_none())
    }

    /// Tries `find` on the lines each time some were added, until the limit.
    fn wait_for<T>(&mut self, limit: Duration, find: impl Fn(&[String]) -> Option<T>) -> Result<T> {
        let found = poll_until(limit, || {
            // The order matters: after the end no line is added, so a last look is a sure one.
            let ended = match self.poll_ended() {
                Ok(ended) => ended,
                Err(error) => return Some(Err(error)),
            };
            if ended.is_some() {
                self.output.wait_for_end(OUTPUT_LIMIT);
            }
            match (find(&self.output.lines()), ended) {
                (Some(value), _) => Some(Ok(value)),
                (None, Some(status)) => Some(Err(anyhow!("{} has ended: {status}", self.name))),
                (None, None) => None,
            }
        });
        found.unwrap_or_else(|| Err(anyhow!("{}: waited for {limit:?}", self.name)))
    }

    fn poll_ended(&mut self) -> Result<Option<ExitStatus>> {
        if self.ended.is_none() {
            self.ended = self
                .child
                .try_wait()
                .with_context(|| format!("cannot wait for {}", self.name))?;
        }
        Ok(self.ended)
    }

    fn echo(&self, state: &str) {
        eprintln!("--- {}: {state}; it wrote:", self.name);
        for line in self.output.lines().iter() {
            eprintln!("{}: {line}", self.name);
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let state = match self.poll_ended() {
            Ok(None) => "was still running".to_owned(),
            Ok(Some(status)) => status.to_string(),
            Err(error) => format!("{error:#}"),
        };
        if let Err(error) = self.kill() {
            eprintln!("{error:#}");
        }
        self.output.wait_for_end(OUTPUT_LIMIT);
        if !self.logged {
            self.echo(&state);
        }
    }
}

/// How long output may lag behind the end of the process: pipes hold 64 KiB. A grandchild that
/// keeps a pipe open is why there is a limit at all.
const OUTPUT_LIMIT: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests;
