//! What the demo writes: paragraphs, verbatim lines, headings, at most [`WIDTH`] columns wide.
//!
//! Owns the setting of text and whether it is coloured, which it is on a terminal only; leaves to
//! the steps what is said. Nothing here fails: [`Screen::trouble`] tells once what went wrong with
//! the output, so that a sentence is one line in a step.

use std::{
    env, fmt,
    io::{self, IsTerminal, Write},
    time::Duration,
};

/// No line is wider, whatever a daemon has logged.
pub(super) const WIDTH: usize = 100;

/// Where the demo speaks.
pub(super) struct Screen {
    out: Box<dyn Write + Send>,
    styled: bool,
    trouble: Option<io::Error>,
}

/// How text looks on a terminal.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Style {
    Plain,
    Heading,
    Good,
    Bad,
    Quiet,
}

impl Screen {
    /// Standard output.
    pub(super) fn stdout() -> Self {
        // Both variables are conventions that other programs keep to.
        let wanted = env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
            && env::var_os("TERM").is_none_or(|term| term != "dumb");
        let stdout = io::stdout();
        let styled = wanted && stdout.is_terminal();
        Self::new(Box::new(stdout), styled)
    }

    fn new(out: Box<dyn Write + Send>, styled: bool) -> Self {
        Self {
            out,
            styled,
            trouble: None,
        }
    }

    /// What went wrong with the output, once.
    pub(super) fn trouble(&mut self) -> Option<io::Error> {
        self.trouble.take()
    }

    /// The line above everything.
    pub(super) fn title(&mut self, text: &str) {
        self.line(Style::Heading, text);
    }

    /// The beginning of a part.
    pub(super) fn heading(&mut self, text: &str) {
        self.line(Style::Plain, "");
        self.line(Style::Heading, text);
        self.line(Style::Plain, "");
    }

    /// A paragraph.
    pub(super) fn say(&mut self, text: &str) {
        for line in wrapped(text, WIDTH - TEXT.len()) {
            self.line(Style::Plain, &format!("{TEXT}{line}"));
        }
    }

    /// An empty line.
    pub(super) fn gap(&mut self) {
        self.line(Style::Plain, "");
    }

    /// What a person would type.
    pub(super) fn typed(&mut self, command: &str) {
        self.hanging(Style::Heading, "$ ", command);
    }

    /// Lines of others as they are; what is too long goes on in the next line.
    pub(super) fn verbatim(&mut self, text: &str) {
        for line in text.lines() {
            self.hanging(Style::Plain, "", line);
        }
    }

    /// Lines for a shell, to be pasted: never cut, and not set in. Their author minds the width.
    pub(super) fn for_a_shell(&mut self, text: &str) {
        for line in text.lines() {
            self.line(Style::Heading, line);
        }
    }

    /// As [`Screen::verbatim`], for what need not be read in full.
    pub(super) fn quietly(&mut self, text: &str) {
        for line in text.lines() {
            self.hanging(Style::Quiet, "", line);
        }
    }

    /// A check that passed.
    pub(super) fn passed(&mut self, expected: &str, seen: &str) {
        self.marked(Style::Good, "ok", &format!("{expected} ({seen})"));
    }

    /// A check that did not.
    pub(super) fn failed(&mut self, expected: &str, seen: &str) {
        self.gap();
        self.marked(Style::Bad, "FAILED", "");
        self.marked(Style::Bad, "    expected  ", expected);
        self.marked(Style::Bad, "    seen      ", seen);
    }

    /// One line of the summary.
    pub(super) fn summed_up(&mut self, number: usize, expected: &str, seen: &str) {
        self.marked(Style::Good, &format!("{number:>2}"), expected);
        self.marked(Style::Quiet, "", &format!("seen: {seen}"));
    }

    /// The last word.
    pub(super) fn verdict(&mut self, good: bool, text: &str) {
        self.gap();
        for line in wrapped(text, WIDTH) {
            self.line(if good { Style::Good } else { Style::Bad }, &line);
        }
    }

    /// Text behind a mark, its further lines below its first.
    fn marked(&mut self, style: Style, mark: &str, text: &str) {
        let mark = format!("{mark:<MARK$}");
        let indent = TEXT.len() + mark.len();
        let mut lines = wrapped(text, WIDTH - indent).into_iter();
        let first = lines.next().unwrap_or_default();
        let painted = self.painted(style, &mark);
        self.write(&format!("{TEXT}{painted}{first}"));
        for line in lines {
            self.write(&format!("{:indent$}{line}", ""));
        }
    }

    /// A line of somebody else, its further lines set in.
    fn hanging(&mut self, style: Style, mark: &str, line: &str) {
        let first = WIDTH - VERBATIM.len() - mark.len();
        let further = WIDTH - VERBATIM.len() - CONTINUED.len();
        for (number, piece) in cut(line, first, further).into_iter().enumerate() {
            let start = if number == 0 { mark } else { CONTINUED };
            self.line(style, &format!("{VERBATIM}{start}{piece}"));
        }
    }

    fn line(&mut self, style: Style, text: &str) {
        let painted = self.painted(style, text);
        self.write(&painted);
    }

    fn painted(&self, style: Style, text: &str) -> String {
        let code = match style {
            Style::Heading => "1",
            Style::Good => "32",
            Style::Bad => "1;31",
            Style::Quiet => "2",
            Style::Plain => return text.to_owned(),
        };
        if self.styled && !text.is_empty() {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    /// A line at a time, so that it is seen when it happens.
    fn write(&mut self, line: &str) {
        let line = format!("{}\n", line.trim_end());
        let written = self.out.write_all(line.as_bytes());
        if let Err(error) = written.and_then(|()| self.out.flush()) {
            self.trouble.get_or_insert(error);
        }
    }
}

impl fmt::Debug for Screen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Screen")
            .field("styled", &self.styled)
            .finish_non_exhaustive()
    }
}

/// A time as people say it.
pub(super) fn span(time: Duration) -> String {
    let milliseconds = time.as_secs_f64() * 1000.0;
    match milliseconds {
        tiny if tiny < 0.095 => format!("{tiny:.2} ms"),
        short if short < 9.95 => format!("{short:.1} ms"),
        medium if medium < 999.5 => format!("{medium:.0} ms"),
        _ => format!("{:.1} s", time.as_secs_f64()),
    }
}

/// A number of bytes as people say it.
pub(super) fn size(bytes: u64) -> String {
    match bytes {
        0..10_000 => format!("{bytes} bytes"),
        10_000..1_048_576 => format!("{} KiB", bytes / 1024),
        _ => format!("{}.{} MiB", bytes >> 20, ((bytes & 0xf_ffff) * 10) >> 20),
    }
}

/// Breaks text at spaces; a word that is wider than a line is cut.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in text
        .split_whitespace()
        .flat_map(|word| cut(word, width, width))
    {
        if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > width {
            lines.push(std::mem::take(&mut line));
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(&word);
    }
    if !line.is_empty() {
        lines.push(line);
    }
    lines
}

/// Cuts a line into a piece of the first width and pieces of the second, at a space where there is
/// one in the last third.
fn cut(line: &str, first: usize, further: usize) -> Vec<String> {
    let mut rest: Vec<char> = line.chars().collect();
    let mut pieces = Vec::new();
    let mut width = first;
    while rest.len() > width {
        let space = rest
            .iter()
            .take(width + 1)
            .rposition(|character| *character == ' ')
            .filter(|position| *position > width * 2 / 3);
        let next = rest.split_off(space.unwrap_or(width));
        pieces.push(rest.into_iter().collect());
        rest = next
            .into_iter()
            .skip(usize::from(space.is_some()))
            .collect();
        width = further;
    }
    pieces.push(rest.into_iter().collect());
    pieces
}

/// What stands in front of a paragraph.
const TEXT: &str = "   ";
/// What stands in front of others' lines.
const VERBATIM: &str = "     ";
/// What more stands in front of the rest of a line that was too long.
const CONTINUED: &str = "    ";
/// Columns of a mark such as `ok`, with the space behind it.
const MARK: usize = 4;

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Paper(Arc<Mutex<Vec<u8>>>);

    impl Paper {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    impl Write for Paper {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn said(styled: bool, speak: impl FnOnce(&mut Screen)) -> String {
        let paper = Paper::default();
        speak(&mut Screen::new(Box::new(paper.clone()), styled));
        paper.text()
    }

    #[test]
    fn no_line_is_wider_than_the_limit() {
        let long = "a line with words ".repeat(20) + &"x".repeat(250);

        let text = said(false, |screen| {
            screen.say(&long);
            screen.verbatim(&long);
            screen.typed(&long);
            screen.passed(&long, &long);
            screen.failed(&long, &long);
            screen.summed_up(12, &long, &long);
            screen.verdict(true, &long);
        });

        let widest = text.lines().map(|line| line.chars().count()).max();
        assert!(widest > Some(90) && widest <= Some(WIDTH), "{text}");
    }

    #[test]
    fn nothing_is_lost_where_lines_are_broken() {
        let line = "key=value ".repeat(40) + &"0123456789".repeat(20);

        let text = said(false, |screen| screen.verbatim(&line));

        let bare = |text: &str| text.replace([' ', '\n'], "");
        assert_eq!(bare(&text), bare(&line));
    }

    #[test]
    fn colour_is_for_terminals_only() {
        let speak = |screen: &mut Screen| screen.passed("it works", "42");

        assert_eq!(said(false, speak), "   ok  it works (42)\n");
        assert_eq!(said(true, speak), "   \x1b[32mok  \x1b[0mit works (42)\n");
    }

    #[test]
    fn output_that_fails_is_told_once() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut screen = Screen::new(Box::new(Closed), false);

        screen.say("hello");
        screen.say("is anybody there");

        let error = screen.trouble().expect("writing failed");
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        assert!(screen.trouble().is_none());
    }

    #[test]
    fn times_and_sizes_have_units_that_fit() {
        let spans = [
            (48, "0.05 ms"),
            (400, "0.4 ms"),
            (42_300, "42 ms"),
            (2_040_000, "2.0 s"),
        ];
        for (microseconds, text) in spans {
            assert_eq!(span(Duration::from_micros(microseconds)), text);
        }
        let sizes = [
            (812, "812 bytes"),
            (20_480, "20 KiB"),
            (4_404_019, "4.1 MiB"),
        ];
        for (bytes, text) in sizes {
            assert_eq!(size(bytes), text);
        }
    }
}
