//! What a program wrote, line by line, read by one thread per stream.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read, Write},
    process::{ChildStderr, ChildStdout},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

/// What to look for in a line: text it contains, or a test for it.
pub trait LinePattern {
    /// Whether the line is one of those looked for.
    fn matches(&self, line: &str) -> bool;

    /// The pattern as it appears in an error.
    fn describe(&self) -> String {
        "what the test looks for".to_owned()
    }
}

impl LinePattern for &str {
    fn matches(&self, line: &str) -> bool {
        line.contains(self)
    }

    fn describe(&self) -> String {
        format!("{self:?}")
    }
}

impl<F: Fn(&str) -> bool> LinePattern for F {
    fn matches(&self, line: &str) -> bool {
        self(line)
    }
}

/// The lines of one program. The reading threads end when the last writer closes its end; they
/// are not joined, because that may be a grandchild that outlives the program.
#[derive(Debug, Default)]
pub(super) struct Output {
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct State {
    lines: Vec<String>,
    open_streams: u8,
    /// Gets every line too.
    copy: Option<File>,
}

impl State {
    fn add(&mut self, line: String) {
        if let Some(copy) = &mut self.copy
            && let Err(error) = copy.write_all(format!("{line}\n").as_bytes())
        {
            self.copy = None;
            self.lines
                .push(format!("(cannot copy further lines to the file: {error})"));
        }
        self.lines.push(line);
    }
}

impl Output {
    pub(super) fn capture(
        name: &str,
        stdout: ChildStdout,
        stderr: ChildStderr,
        copy: Option<File>,
    ) -> Arc<Self> {
        let output = Arc::new(Self {
            state: Mutex::new(State {
                open_streams: 2,
                copy,
                ..State::default()
            }),
            ended: Condvar::new(),
        });
        output.read_on_thread(name, stdout);
        output.read_on_thread(name, stderr);
        output
    }

    /// The lines so far, held still until the guard is dropped.
    pub(super) fn lines(&self) -> LinesGuard<'_> {
        LinesGuard(self.lock())
    }

    /// Waits until both streams have ended, or the limit has passed.
    pub(super) fn wait_for_end(&self, limit: Duration) {
        let guard = self.lock();
        // Whether it ended or timed out, the lines that are there are all there will be.
        drop(
            self.ended
                .wait_timeout_while(guard, limit, |state| state.open_streams > 0),
        );
    }

    fn read_on_thread(self: &Arc<Self>, name: &str, stream: impl Read + Send + 'static) {
        let output = Arc::clone(self);
        thread::Builder::new()
            .name(format!("{name} output"))
            .spawn(move || output.read_lines(stream))
            .expect("the system has room for one more thread");
    }

    fn read_lines(&self, stream: impl Read) {
        let mut reader = BufReader::new(stream);
        let mut line = Vec::new();
        loop {
            line.clear();
            match reader.read_until(b'\n', &mut line) {
                Ok(0) => break,
                Ok(_) => {
                    let text = String::from_utf8_lossy(line.trim_ascii_end()).into_owned();
                    self.lock().add(text);
                }
                Err(error) => {
                    self.lock().add(format!("(cannot read further: {error})"));
                    break;
                }
            }
        }
        self.lock().open_streams -= 1;
        self.ended.notify_all();
    }

    /// Every change leaves the state whole, even if a thread panicked.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Dereferences to the lines.
pub(super) struct LinesGuard<'a>(MutexGuard<'a, State>);

impl std::ops::Deref for LinesGuard<'_> {
    type Target = Vec<String>;

    fn deref(&self) -> &Vec<String> {
        &self.0.lines
    }
}
