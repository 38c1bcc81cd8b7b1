//! What the command lines of both daemons have alike.
//!
//! Owns the words and exit codes for what goes wrong before a daemon runs ([`Program`]), what a
//! daemon leaves behind when it ends ([`Daemon`]), and the commands that ask a running one
//! ([`Question`]): once, as JSON, or again and again.
//! Leaves to the daemons what a status looks like as a table. Answers go to stdout, the rest to
//! stderr.

use std::{
    io::{self, IsTerminal, Write},
    process::ExitCode,
    time::Duration,
};

use serde_json::Value;

pub use self::{
    check::{Finding, Level, Report},
    daemon::{Daemon, TerminationLog},
    table::{Table, age, lines, number, reasons, rtt, text},
};
use crate::{
    admin::{FetchError, Reply, fetch, order},
    config_file::{
        ConfigError,
        values::{AdminAddr, admin_addr},
    },
    telemetry::chain,
};

mod check;
mod daemon;
mod table;

/// A program by its name.
#[derive(Clone, Copy, Debug)]
pub struct Program(pub &'static str);

/// What every command that asks a running daemon takes.
#[derive(Clone, Debug, clap::Args)]
pub struct Question {
    /// Where to ask; without it, at the `admin` address in the configuration file.
    #[arg(long, value_name = "ADDR", value_parser = admin_addr)]
    pub admin: Option<AdminAddr>,
    /// Print everything there is, as JSON.
    #[arg(long)]
    pub json: bool,
    /// Ask again every so many seconds, until it is interrupted.
    #[arg(
        long,
        value_name = "SECONDS",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "2",
        value_parser = clap::value_parser!(u64).range(1..=3600)
    )]
    pub watch: Option<u64>,
}

impl Program {
    /// Says all that is wrong with the configuration, each mistake on a line that stands for
    /// itself.
    #[must_use]
    pub fn refuse(self, error: &ConfigError) -> ExitCode {
        for line in error.lines() {
            eprintln!("{}: config {line}", self.0);
        }
        ExitCode::from(2)
    }

    /// Says why it failed.
    #[must_use]
    pub fn fail(self, message: &str) -> ExitCode {
        eprintln!("{}: {message}", self.0);
        ExitCode::from(1)
    }

    /// Asks the daemon for its status and prints it: as a table that `show` makes, or as JSON.
    #[must_use]
    pub fn ask(self, at: &AdminAddr, question: &Question, show: fn(&Value) -> String) -> ExitCode {
        let answered = in_runtime(async {
            loop {
                let status = self.status(at).await;
                let Some(pause) = question.watch else {
                    return print(&form(&status?, question.json, show)).map(|_| ());
                };
                // A daemon that restarts is what one may want to watch.
                let screen = match &status {
                    Ok(status) => form(status, question.json, show),
                    Err(problem) => format!("{}: {problem}\n", self.0),
                };
                if print(&next_screen(&screen))? == Reader::Gone {
                    return Ok(());
                }
                tokio::time::sleep(Duration::from_secs(pause)).await;
            }
        });
        match answered {
            Ok(()) => ExitCode::SUCCESS,
            Err(problem) => self.fail(&problem),
        }
    }

    /// Asks the daemon whether it is ready: one line, and exit code 0 only if it is.
    #[must_use]
    pub fn ask_ready(self, at: &AdminAddr) -> ExitCode {
        let answered = in_runtime(async {
            let reply = fetch(at, self.0, "/readyz").await;
            Ok(reply)
        });
        let (line, code) = match answered {
            Ok(Ok(Reply { status: 200, .. })) => ("ready\n".to_owned(), ExitCode::SUCCESS),
            Ok(Ok(reply)) => (one_line(&reply.body), ExitCode::FAILURE),
            Ok(Err(error)) => (one_line(&chain(&error)), ExitCode::FAILURE),
            Err(problem) => return self.fail(&problem),
        };
        match print(&line) {
            Ok(_) => code,
            Err(problem) => self.fail(&problem),
        }
    }

    /// Asks the daemon once for what only it answers, and prints that: as text that `show` makes,
    /// or as JSON.
    #[must_use]
    pub fn ask_for(
        self,
        at: &AdminAddr,
        path: &str,
        json: bool,
        show: fn(&Value) -> String,
    ) -> ExitCode {
        let answered = in_runtime(async {
            let answer = self.answer(at, path).await?;
            print(&form(&answer, json, show)).map(|_| ())
        });
        match answered {
            Ok(()) => ExitCode::SUCCESS,
            Err(problem) => self.fail(&problem),
        }
    }

    /// Gives the daemon an order that takes a while, and looks at what has come of it until `over`
    /// says that it is done, with the problem if there was one. Prints what `show` makes of it at
    /// the end, or the JSON; meanwhile, on stderr, what `progress` says whenever that changes.
    #[must_use]
    pub fn order(
        self,
        at: &AdminAddr,
        path: &str,
        json: bool,
        (show, progress, over): Views,
    ) -> ExitCode {
        let obeyed = in_runtime(async {
            let reply = order(at, self.0, path).await;
            let mut state = self.read(at, path, reply)?;
            let mut said = String::new();
            let looked_at = path.split('?').next().unwrap_or(path);
            while !over(&state) {
                let now = progress(&state);
                if now != said {
                    eprintln!("{now}");
                    said = now;
                }
                tokio::time::sleep(LOOK_AGAIN).await;
                state = self.answer(at, looked_at).await?;
            }
            print(&form(&state, json, show)).map(|_| state)
        });
        match obeyed {
            Ok(state) => match state.get("problem").and_then(Value::as_str) {
                None => ExitCode::SUCCESS,
                Some(problem) => self.fail(problem),
            },
            Err(problem) => self.fail(&problem),
        }
    }

    async fn status(self, at: &AdminAddr) -> Result<Value, String> {
        self.answer(at, "/status").await
    }

    async fn answer(self, at: &AdminAddr, path: &str) -> Result<Value, String> {
        let reply = fetch(at, self.0, path).await;
        self.read(at, path, reply)
    }

    fn read(
        self,
        at: &AdminAddr,
        path: &str,
        reply: Result<Reply, FetchError>,
    ) -> Result<Value, String> {
        let Reply { status, body } = reply.map_err(|error: FetchError| chain(&error))?;
        match status {
            200 => {}
            400 => return Err(body.trim().to_owned()),
            405 => {
                return Err(format!(
                    "{at} is for reading only; give {}'s Unix socket with --admin",
                    self.0
                ));
            }
            404 => {
                return Err(format!(
                    "{at} knows no {path}; is it {} of this version?",
                    self.0
                ));
            }
            _ => {
                let reason = body.trim();
                return Err(format!("{at} answered with status {status}: {reason}"));
            }
        }
        serde_json::from_str(&body).map_err(|error| {
            format!(
                "{at} gave an answer that is no JSON: {error}; is it {}?",
                self.0
            )
        })
    }
}

/// How the state of an order is shown: at the end, on the way, and whether it is over.
pub type Views = (
    fn(&Value) -> String,
    fn(&Value) -> String,
    fn(&Value) -> bool,
);

/// How often it is looked at what has come of an order.
const LOOK_AGAIN: Duration = Duration::from_millis(300);

fn in_runtime<T>(asked: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start the runtime: {error}"))?;
    runtime.block_on(asked)
}

/// What a probe shows: it says itself that this is why the daemon is not ready.
fn one_line(reasons: &str) -> String {
    format!("{}\n", reasons.trim().replace('\n', "; "))
}

fn form(status: &Value, json: bool, show: fn(&Value) -> String) -> String {
    if json {
        format!("{status:#}\n")
    } else {
        show(status)
    }
}

/// On a terminal it takes the place of the last one; in a file there is a line between them.
fn next_screen(screen: &str) -> String {
    if io::stdout().is_terminal() {
        format!("\x1b[H\x1b[2J{screen}")
    } else {
        format!("{screen}\n")
    }
}

/// Whether somebody still reads what is printed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Reader {
    There,
    Gone,
}

/// A reader that has seen enough, such as `head`, is no failure.
fn print(text: &str) -> Result<Reader, String> {
    let mut stdout = io::stdout().lock();
    let written = stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush());
    match written {
        Ok(()) => Ok(Reader::There),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Reader::Gone),
        Err(error) => Err(format!("cannot write the answer: {error}")),
    }
}
