//! How many tests passed and failed and which failed, read from what the test runners report.
//!
//! nextest's JUnit report is used and not its closing line, which is made for people; doc tests
//! have only their lines. Whatever is not understood is an error: a count is never a guess.
//! The names of failed tests are for people, who look at the end of a long output first.

use std::fmt;

use anyhow::{Context, Result, bail};

#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Counts {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    /// The failed tests by name, each with the first line of what it said, if that is known.
    pub(crate) failures: Vec<String>,
}

impl Counts {
    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.failures.extend(other.failures);
    }

    /// The last word on a group whose commands have all succeeded.
    ///
    /// # Errors
    ///
    /// A test has failed all the same, or there should have been tests and none ran.
    pub(crate) fn accept(&self, has_tests: bool) -> Result<()> {
        if self.failed > 0 {
            bail!("{} tests failed", self.failed);
        }
        if has_tests && self.passed == 0 {
            bail!("no test ran");
        }
        Ok(())
    }

    /// From the opening tag of a JUnit report: `<testsuites tests=".." failures=".." errors="..">`.
    pub(crate) fn from_junit(report: &str) -> Result<Self> {
        let (_, rest) = report
            .split_once("<testsuites ")
            .context("no <testsuites> in the JUnit report")?;
        let (tag, _) = rest
            .split_once('>')
            .context("<testsuites> of the JUnit report has no end")?;
        let tests = attribute(tag, "tests")?;
        let failed = attribute(tag, "failures")? + attribute(tag, "errors")?;
        let passed = tests
            .checked_sub(failed)
            .with_context(|| format!("JUnit report counts {failed} failures in {tests} tests"))?;
        Ok(Self {
            passed,
            failed,
            failures: failures_in_junit(report),
        })
    }

    /// The sum over every `test result:` line that `cargo test` prints.
    pub(crate) fn from_cargo_test(output: &str) -> Result<Self> {
        let mut sum = Self::default();
        for line in output.lines() {
            let Some(result) = line.strip_prefix("test result: ") else {
                continue;
            };
            sum.add(Self {
                passed: number_before(result, " passed")?,
                failed: number_before(result, " failed")?,
                failures: Vec::new(),
            });
        }
        let failures = output.lines().filter_map(|line| {
            let name = line.strip_prefix("test ")?.strip_suffix(" ... FAILED")?;
            Some(name.to_owned())
        });
        sum.failures.extend(failures);
        Ok(sum)
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)
    }
}

/// What a test says is escaped, so a tag within a test case is the report's own.
fn failures_in_junit(report: &str) -> Vec<String> {
    let cases = report.split("<testcase ").skip(1);
    let failed = cases.filter_map(|case| {
        let case = case.split("</testcase>").next()?;
        let (_, problem) = case
            .split_once("<failure")
            .or_else(|| case.split_once("<error"))?;
        let program = value(case, "classname").unwrap_or_default();
        let name = value(case, "name").unwrap_or_default();
        let said = problem.split('>').next().unwrap_or_default();
        let said = value(said, "message").unwrap_or_default();
        let said = unescaped(said.lines().next().unwrap_or_default());
        let said = said.chars().take(MAX_SAID).collect::<String>();
        Some(format!("{program} {name}: {said}"))
    });
    failed.collect()
}

fn unescaped(text: &str) -> String {
    text.replace("&#10;", " ")
        .replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&quot;", "\"")
        .replace("&apos;", "'")
        .replace("&amp;", "&")
}

fn attribute(tag: &str, name: &str) -> Result<u64> {
    let value = value(tag, name)
        .with_context(|| format!("<testsuites> of the JUnit report has no {name}: {tag}"))?;
    value
        .parse()
        .with_context(|| format!("{name} in the JUnit report is no number: {value}"))
}

/// The value of an attribute in an opening tag, with or without its name before it.
fn value<'a>(tag: &'a str, name: &str) -> Option<&'a str> {
    let bare = tag.strip_prefix(&format!("{name}=\""));
    let rest = bare.or_else(|| tag.split_once(&format!(" {name}=\"")).map(|(_, rest)| rest))?;
    rest.split_once('"').map(|(value, _)| value)
}

fn number_before(text: &str, word: &str) -> Result<u64> {
    text.split_once(word)
        .and_then(|(before, _)| before.rsplit(' ').next()?.parse().ok())
        .with_context(|| format!("no number before `{word}` in `test result: {text}`"))
}

/// Of what a failed test said, a line is enough at the end; all of it stands further up.
const MAX_SAID: usize = 400;

#[cfg(test)]
mod tests {
    use super::*;

    const OPENING: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<testsuites name="nextest-run" tests="12" failures="2" errors="1" uuid="7f" time="0.5">
    <testsuite name="proxymux-proto" tests="4" disabled="0" errors="0" failures="0">
"#;

    #[test]
    fn junit_totals_are_read_from_the_opening_tag() {
        let counts = Counts::from_junit(OPENING).unwrap();

        assert_eq!(
            counts,
            Counts {
                passed: 9,
                failed: 3,
                ..Counts::default()
            }
        );
    }

    #[test]
    fn failed_tests_are_named_with_what_they_said() {
        let report = format!(
            "{OPENING}\
        <testcase name=\"a::good\" classname=\"proto\" timestamp=\"t\" time=\"0.003\">
        </testcase>
        <testcase name=\"a::bad\" classname=\"proto::e2e\" time=\"0.1\">
            <failure message=\"thread &apos;a::bad&apos; panicked at a.rs:1\" type=\"x\">all</failure>
            <system-out>&lt;failure</system-out>
        </testcase>\n"
        );

        assert_eq!(
            Counts::from_junit(&report).unwrap().failures,
            ["proto::e2e a::bad: thread 'a::bad' panicked at a.rs:1"]
        );
    }

    #[test]
    fn junit_report_that_is_cut_off_or_wrong_is_an_error() {
        let wrong = [
            "",
            "<testsuites tests=\"1\"",
            "<testsuites name=\"x\" tests=\"1\" failures=\"0\">",
            "<testsuites name=\"x\" tests=\"many\" failures=\"0\" errors=\"0\">",
            "<testsuites name=\"x\" tests=\"1\" failures=\"1\" errors=\"1\">",
        ];

        for report in wrong {
            assert!(Counts::from_junit(report).is_err(), "{report}");
        }
    }

    #[test]
    fn doc_tests_of_every_crate_are_added_up() {
        let output = "\
running 2 tests
test src/lib.rs - frame (line 7) ... ok
test src/lib.rs - open (line 9) ... FAILED

test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.20s

test result: FAILED. 10 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1s
";

        let counts = Counts::from_cargo_test(output).unwrap();

        assert_eq!(
            counts,
            Counts {
                passed: 12,
                failed: 1,
                failures: vec!["src/lib.rs - open (line 9)".to_owned()],
            }
        );
    }

    #[test]
    fn doc_test_result_in_another_form_is_an_error() {
        assert!(Counts::from_cargo_test("test result: fine\n").is_err());
    }

    #[test]
    fn no_doc_tests_at_all_are_no_tests() {
        assert_eq!(Counts::from_cargo_test("").unwrap(), Counts::default());
    }

    #[test]
    fn group_without_a_single_test_is_not_accepted() {
        let none = Counts::default();

        assert_eq!(none.accept(true).unwrap_err().to_string(), "no test ran");
        none.accept(false).unwrap();
    }

    #[test]
    fn failed_tests_are_not_accepted_whatever_the_exit_code_said() {
        let counts = Counts {
            passed: 5,
            failed: 1,
            ..Counts::default()
        };

        assert_eq!(
            counts.accept(true).unwrap_err().to_string(),
            "1 tests failed"
        );
    }
}
