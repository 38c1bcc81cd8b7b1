//! What the demo promises: each check says what is expected, and what was seen.
//!
//! [`Checks`] shows a check when it is made and keeps it for the summary; the first one that fails
//! ends the demo as a [`CheckFailed`].

use std::fmt;

use anyhow::Result;

use super::screen::Screen;

/// The screen, and the checks that passed so far.
#[derive(Debug)]
pub(super) struct Checks {
    pub(super) screen: Screen,
    passed: Vec<Passed>,
}

#[derive(Debug)]
struct Passed {
    expected: String,
    seen: String,
}

/// A check failed.
#[derive(Debug)]
pub(super) struct CheckFailed {
    pub(super) expected: String,
    pub(super) seen: String,
}

impl Checks {
    pub(super) fn new(screen: Screen) -> Self {
        Self {
            screen,
            passed: Vec::new(),
        }
    }

    /// How many have passed.
    pub(super) fn count(&self) -> usize {
        self.passed.len()
    }

    /// One check.
    ///
    /// # Errors
    ///
    /// `holds` is false.
    pub(super) fn check(
        &mut self,
        holds: bool,
        expected: impl Into<String>,
        seen: impl Into<String>,
    ) -> Result<()> {
        let seen = seen.into();
        self.check_in_short(holds, expected, &seen.clone(), seen)
    }

    /// As [`Checks::check`], where most of what is seen has been shown already: `short` stands
    /// beside the check, `seen` in the summary.
    ///
    /// # Errors
    ///
    /// As there.
    pub(super) fn check_in_short(
        &mut self,
        holds: bool,
        expected: impl Into<String>,
        short: &str,
        seen: impl Into<String>,
    ) -> Result<()> {
        let (expected, seen) = (expected.into(), seen.into());
        if let Some(error) = self.screen.trouble() {
            return Err(anyhow::Error::new(error).context("cannot write to the standard output"));
        }
        if !holds {
            return Err(CheckFailed { expected, seen }.into());
        }
        self.screen.passed(&expected, short);
        self.passed.push(Passed { expected, seen });
        Ok(())
    }

    /// What must be there for a check to be made at all. Nothing is shown if it is there.
    ///
    /// # Errors
    ///
    /// It is not, which fails the check.
    pub(super) fn have<T>(&self, expected: &str, result: Result<T>) -> Result<T> {
        self.have_shown(expected, result, |error| format!("{error:#}"))
    }

    /// As [`Checks::have`], for errors that need words of their own.
    ///
    /// # Errors
    ///
    /// As there.
    pub(super) fn have_shown<T, E>(
        &self,
        expected: &str,
        result: Result<T, E>,
        words: impl FnOnce(&E) -> String,
    ) -> Result<T> {
        result.map_err(|error| {
            let (expected, seen) = (expected.to_owned(), words(&error));
            CheckFailed { expected, seen }.into()
        })
    }

    /// Shows every check, with what was expected and what was seen.
    pub(super) fn sum_up(&mut self) {
        for (number, passed) in (1..).zip(&self.passed) {
            self.screen
                .summed_up(number, &passed.expected, &passed.seen);
        }
    }
}

impl fmt::Display for CheckFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "expected: {}; seen: {}", self.expected, self.seen)
    }
}

impl std::error::Error for CheckFailed {}
