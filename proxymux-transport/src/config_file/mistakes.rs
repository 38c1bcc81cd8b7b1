//! What is wrong with a configuration file, collected and reported together.
//!
//! Owns the form of the report: one line per mistake with file, line, key, the value seen and
//! what was expected. What counts as a mistake is decided where settings are read.
//! Read [`Mistakes`] and [`Refused`] first: a `Refused` exists only if a mistake was recorded,
//! so a conversion that hands it up needs no other proof that the file is bad.

use std::{fmt, io};

use super::MAX_FILE_BYTES;
use crate::telemetry::chain;

/// Why a configuration file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be opened or read.
    #[error("{file}: cannot be read")]
    Read {
        /// The file's name.
        file: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The file is larger than any configuration.
    #[error("{file}: is larger than {MAX_FILE_BYTES} bytes")]
    TooLarge {
        /// The file's name.
        file: String,
    },
    /// The file is not UTF-8.
    #[error("{file}:{line}: is not UTF-8 text")]
    NotUtf8 {
        /// The file's name.
        file: String,
        /// The line of the first bad byte, from 1.
        line: usize,
    },
    /// The file is not one YAML document.
    #[error("{file}{}: {problem}", Position(*.at))]
    Syntax {
        /// The file's name.
        file: String,
        /// Line and column, from 1, where known.
        at: Option<(usize, usize)>,
        /// What the parser said.
        problem: String,
    },
    /// The file has no content.
    #[error("{file}: is empty, expected keys and values")]
    Empty {
        /// The file's name.
        file: String,
    },
    /// The file holds something else than keys and values.
    #[error("{file}: must be a mapping of keys to values, but is {found}")]
    NotAMapping {
        /// The file's name.
        file: String,
        /// What it is.
        found: &'static str,
    },
    /// Some settings are wrong.
    #[error("{}", lines(.mistakes, *.more).join("\n"))]
    Invalid {
        /// In the order of the file, those without a line last; at most [`MAX_REPORTED`].
        mistakes: Vec<Mistake>,
        /// How many there are besides these.
        more: usize,
    },
}

impl ConfigError {
    /// The report line by line: one for each mistake, and causes on the line of what they caused.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        match self {
            Self::Invalid { mistakes, more } => lines(mistakes, *more),
            other => vec![chain(other)],
        }
    }

    /// The same report on a single line, mistakes separated by `; `.
    #[must_use]
    pub fn one_line(&self) -> String {
        self.lines().join("; ")
    }
}

/// One thing that is wrong with a file.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Mistake(Finding);

/// Something in a file that may not be what its author meant. The file is used all the same.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Warning(Finding);

/// Proof that a mistake was recorded.
#[derive(Clone, Copy, Debug)]
pub struct Refused(());

/// Collects mistakes and warnings while a file's settings are read.
#[derive(Debug)]
pub struct Mistakes {
    file: String,
    mistakes: Vec<Mistake>,
    warnings: Vec<Warning>,
}

impl Mistakes {
    pub(super) fn new(file: String) -> Self {
        Self {
            file,
            mistakes: Vec::new(),
            warnings: Vec::new(),
        }
    }

    pub(super) fn add(
        &mut self,
        place: &Place,
        seen: Option<String>,
        problem: impl fmt::Display,
    ) -> Refused {
        let finding = self.finding(place, seen, problem);
        self.mistakes.push(Mistake(finding));
        Refused(())
    }

    pub(super) fn warn(&mut self, place: &Place, seen: Option<String>, problem: impl fmt::Display) {
        let finding = self.finding(place, seen, problem);
        self.warnings.push(Warning(finding));
    }

    fn finding(&self, place: &Place, seen: Option<String>, problem: impl fmt::Display) -> Finding {
        Finding {
            file: self.file.clone(),
            line: place.line,
            key: place.key.clone(),
            seen,
            problem: problem.to_string(),
        }
    }

    /// What came of the reading: the result and the warnings, or all mistakes.
    pub(super) fn finish<T>(
        mut self,
        result: Result<T, Refused>,
    ) -> Result<(T, Vec<Warning>), ConfigError> {
        match result {
            Ok(value) if self.mistakes.is_empty() => {
                let more = shorten(&mut self.warnings, |warning| warning.0.line);
                if more > 0 {
                    let problem = format!("{more} more warnings like these are not shown");
                    self.warn(&Place::root(), None, problem);
                }
                Ok((value, self.warnings))
            }
            Ok(_) | Err(Refused(())) => {
                let more = shorten(&mut self.mistakes, |mistake| mistake.0.line);
                Err(ConfigError::Invalid {
                    mistakes: self.mistakes,
                    more,
                })
            }
        }
    }
}

/// Sorts by line and keeps [`MAX_REPORTED`]; returns how many were dropped.
fn shorten<T>(list: &mut Vec<T>, line: impl Fn(&T) -> Option<usize>) -> usize {
    list.sort_by_key(|item| line(item).unwrap_or(usize::MAX));
    let more = list.len().saturating_sub(MAX_REPORTED);
    list.truncate(MAX_REPORTED);
    more
}

/// The key and line that a mistake is about.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// As a path, such as `front-doors[1].cert`; empty for the file itself.
    pub(super) key: String,
    pub(super) line: Option<usize>,
}

impl Place {
    pub(super) fn root() -> Self {
        Self {
            key: String::new(),
            line: None,
        }
    }

    /// The place of a key inside the mapping at this place.
    pub(super) fn key(&self, key: &str, line: Option<usize>) -> Self {
        // A key may be any text of any length.
        let key = excerpt(key, MAX_SHOWN_CHARS);
        let key = if self.key.is_empty() {
            key
        } else {
            format!("{}.{key}", self.key)
        };
        Self {
            key,
            line: line.or(self.line),
        }
    }

    /// The place of an item of the list at this place.
    pub(super) fn item(&self, index: usize, line: Option<usize>) -> Self {
        Self {
            key: format!("{}[{index}]", self.key),
            line: line.or(self.line),
        }
    }
}

/// The part of a text that a report shows, on one line and harmless to a terminal.
pub(super) fn excerpt(text: &str, limit: usize) -> String {
    let mut shown = String::new();
    for c in text.chars().take(limit) {
        match c {
            '"' | '\'' | '\\' => shown.push(c),
            other => shown.extend(other.escape_debug()),
        }
    }
    if text.chars().nth(limit).is_some() {
        shown.push_str("...");
    }
    shown
}

#[derive(Clone, Debug, Eq, PartialEq)]
struct Finding {
    file: String,
    line: Option<usize>,
    key: String,
    seen: Option<String>,
    problem: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if !self.key.is_empty() {
            write!(f, ": {}", self.key)?;
        }
        if let Some(seen) = &self.seen {
            write!(f, ": {seen}")?;
        }
        write!(f, ": {}", self.problem)
    }
}

/// `:line:column` behind a file's name, or nothing.
struct Position(Option<(usize, usize)>);

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some((line, column)) => write!(f, ":{line}:{column}"),
            None => Ok(()),
        }
    }
}

fn lines(mistakes: &[Mistake], more: usize) -> Vec<String> {
    let mut lines: Vec<String> = mistakes.iter().map(Mistake::to_string).collect();
    if let Some(Mistake(first)) = mistakes.first().filter(|_| more > 0) {
        lines.push(format!(
            "{}: {more} more mistakes are not shown",
            first.file
        ));
    }
    lines
}

/// The most mistakes, and the most warnings, that a report lists.
///
/// Nobody reads more; a wrong file given by accident may have thousands.
pub const MAX_REPORTED: usize = 50;

/// More of a value or key would hide what is said about it.
pub(super) const MAX_SHOWN_CHARS: usize = 80;
