//! What a `check` of either daemon has found, and how it is told.
//!
//! Owns the form of a finding (topic, level, what was seen, what to do about it), the list for
//! people, the JSON, and the exit code. Leaves what is looked at to the daemons.
//! A finding that is a warning or an error always says what to do about it: the only ways to make
//! one ask for it.

use std::{fmt::Write as _, process::ExitCode};

use proxymux_proto::printable;
use serde::Serialize;

use super::{Program, Reader, print};

/// How bad it is.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// It works, yet not as well or not for as long as it could.
    Warning,
    /// It does not work.
    Error,
}

/// One thing that was looked at.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Finding {
    /// What was looked at, in a word or two of the same form everywhere: `kubelet certificate`.
    pub topic: &'static str,
    /// How bad it is.
    pub level: Level,
    /// What was seen.
    pub found: String,
    /// What to do about it; none where it is fine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

/// Everything that one check has found, in the order in which it was looked at.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
pub struct Report {
    findings: Vec<Finding>,
}

impl Report {
    /// Something that is as it should be.
    pub fn ok(&mut self, topic: &'static str, found: impl Into<String>) {
        self.add(topic, Level::Ok, found.into(), None);
    }

    /// Something that works, yet not as well as it could, and what to do.
    pub fn warning(
        &mut self,
        topic: &'static str,
        found: impl Into<String>,
        fix: impl Into<String>,
    ) {
        self.add(topic, Level::Warning, found.into(), Some(fix.into()));
    }

    /// Something that does not work, and what to do.
    pub fn error(&mut self, topic: &'static str, found: impl Into<String>, fix: impl Into<String>) {
        self.add(topic, Level::Error, found.into(), Some(fix.into()));
    }

    /// Takes over what a part of the check has found.
    pub fn extend(&mut self, other: Self) {
        self.findings.extend(other.findings);
    }

    /// All of it.
    #[must_use]
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// The worst of it; [`Level::Ok`] if nothing was found at all.
    #[must_use]
    pub fn worst(&self) -> Level {
        let levels = self.findings.iter().map(|finding| finding.level);
        levels.max().unwrap_or(Level::Ok)
    }

    /// The list for people: a line each, under a warning or an error what to do, and the totals.
    /// What comes from outside is made printable.
    #[must_use]
    pub fn show(&self) -> String {
        let width = self.findings.iter().map(|finding| finding.topic.len());
        let width = width.max().unwrap_or(0);
        let mut text = String::new();
        for finding in &self.findings {
            let level = finding.level.word();
            let found = printable(&finding.found, MAX_TEXT);
            // Writing into a string cannot fail.
            let _ = writeln!(text, "{level:7}  {:width$}  {found}", finding.topic);
            if let Some(fix) = &finding.fix {
                let fix = printable(fix, MAX_TEXT);
                let _ = writeln!(text, "{:7}  {:width$}  fix: {fix}", "", "");
            }
        }
        let count = |level| {
            let findings = self.findings.iter();
            findings.filter(|finding| finding.level == level).count()
        };
        let (ok, warnings, errors) = (count(Level::Ok), count(Level::Warning), count(Level::Error));
        let _ = writeln!(text, "{ok} ok, {warnings} warnings, {errors} errors");
        text
    }

    /// `{"worst": "ok|warning|error", "findings": [{"topic", "level", "found", "fix"}]}`.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        serde_json::json!({ "worst": self.worst(), "findings": self.findings })
    }

    fn add(&mut self, topic: &'static str, level: Level, found: String, fix: Option<String>) {
        self.findings.push(Finding {
            topic,
            level,
            found,
            fix,
        });
    }
}

impl Level {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

impl Program {
    /// Prints what a check has found; exit code 1 if there was an error, else 0.
    #[must_use]
    pub fn report(self, report: &Report, json: bool) -> ExitCode {
        let text = if json {
            format!("{:#}\n", report.json())
        } else {
            report.show()
        };
        match print(&text) {
            Ok(Reader::There | Reader::Gone) => match report.worst() {
                Level::Ok | Level::Warning => ExitCode::SUCCESS,
                Level::Error => ExitCode::FAILURE,
            },
            Err(problem) => self.fail(&problem),
        }
    }
}

/// A finding may hold all mistakes of a configuration's line, or a chain of errors.
const MAX_TEXT: usize = 2048;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_found_is_a_list_with_fixes_and_totals() {
        let mut report = Report::default();
        report.ok("clock", "2026-11-26T10:00:00Z");
        report.warning("bridge", "ens3 is a port of br0", "set `net-inf: br0`");
        report.error(
            "master",
            "192.0.2.10:12250: connection\nrefused",
            "start it",
        );

        assert_eq!(
            report.show(),
            "ok       clock   2026-11-26T10:00:00Z\n\
             warning  bridge  ens3 is a port of br0\n\
             \u{20}                fix: set `net-inf: br0`\n\
             error    master  192.0.2.10:12250: connection?refused\n\
             \u{20}                fix: start it\n\
             1 ok, 1 warnings, 1 errors\n"
        );
    }

    #[test]
    fn the_worst_finding_decides() {
        let mut report = Report::default();
        assert_eq!(report.worst(), Level::Ok);
        report.warning("a", "b", "c");
        report.ok("a", "b");
        assert_eq!(report.worst(), Level::Warning);
        let mut other = Report::default();
        other.error("a", "b", "c");
        report.extend(other);
        assert_eq!(report.worst(), Level::Error);
    }

    #[test]
    fn json_has_a_fix_only_where_there_is_something_to_do() {
        let mut report = Report::default();
        report.ok("clock", "fine");
        report.error("master", "gone", "start it");

        assert_eq!(
            report.json(),
            serde_json::json!({ "worst": "error", "findings": [
                { "topic": "clock", "level": "ok", "found": "fine" },
                { "topic": "master", "level": "error", "found": "gone", "fix": "start it" },
            ]})
        );
    }
}
