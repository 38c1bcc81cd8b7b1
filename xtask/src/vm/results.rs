//! What the guest said: which tests ran, how each program ended, whether it came to its end.
//!
//! A guest that broke in the middle must never look like one whose tests passed: every run that
//! was asked for has to be there with an end, and at least one test in it.

use anyhow::{Context, Result, bail};

use super::TestRun;
use crate::test::Counts;

/// Counts the tests in a guest's output into `counts`, as far as they came.
///
/// # Errors
///
/// Something other than a failed test went wrong.
pub(super) fn count(output: &str, expected: &[TestRun], counts: &mut Counts) -> Result<()> {
    counts.add(Counts::from_cargo_test(output)?);
    if let Some(problem) = output
        .lines()
        .find_map(|line| line.strip_prefix("vm: problem: "))
    {
        bail!("{problem}");
    }
    for run in expected {
        run_was_complete(output, run).with_context(|| run.to_string())?;
    }
    if !output.lines().any(|line| line == "vm: done") {
        bail!("the guest did not come to its end");
    }
    Ok(())
}

fn run_was_complete(output: &str, run: &TestRun) -> Result<()> {
    let start = format!("vm: start {run}");
    let mut lines = output
        .lines()
        .skip_while(|line| *line != start)
        .skip(1)
        .take_while(|line| !line.starts_with("vm: start "));
    let mut text = String::new();
    let code = loop {
        let line = lines.next().context("did not run to its end")?;
        if let Some(end) = line.strip_prefix("vm: end ") {
            break end.split(' ').next().unwrap_or_default();
        }
        text.push_str(line);
        text.push('\n');
    };
    let counts = Counts::from_cargo_test(&text)?;
    if counts == Counts::default() {
        bail!("no test ran");
    }
    if code != "0" && counts.failed == 0 {
        bail!("ended with code {code}, yet no test failed");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUNS: &[TestRun] = &[
        TestRun {
            program: "tunnel",
            filter: "logs",
        },
        TestRun {
            program: "vm",
            filter: "vlan",
        },
    ];

    const GOOD: &str = "\
vm: kernel 6.1.0
vm: start tunnel logs
test logs::tail ... ok
test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 31 filtered out; finished in 9s
vm: end 0 after 19.20 s
vm: start vm vlan
test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 9s
vm: end 101 after 29.20 s
vm: done
";

    fn counted(output: &str) -> (Counts, Result<()>) {
        let mut counts = Counts::default();
        let result = count(output, RUNS, &mut counts);
        (counts, result)
    }

    #[test]
    fn tests_of_every_program_are_counted() {
        let (counts, result) = counted(GOOD);

        result.unwrap();
        assert_eq!(
            counts,
            Counts {
                passed: 3,
                failed: 1,
                ..Counts::default()
            }
        );
    }

    #[test]
    fn guest_that_breaks_anywhere_is_an_error() {
        let whole: Vec<&str> = GOOD.lines().collect();
        for length in 0..whole.len() {
            let cut = whole[..length].join("\n");
            assert!(counted(&cut).1.is_err(), "{cut}");
        }
    }

    #[test]
    fn filter_that_matches_no_test_is_named() {
        let output = GOOD.replace("2 passed", "0 passed");

        let error = format!("{:#}", counted(&output).1.unwrap_err());

        assert_eq!(error, "tunnel logs: no test ran");
    }

    #[test]
    fn program_that_dies_behind_its_last_test_is_an_error() {
        let output = GOOD.replace("vm: end 0 ", "vm: end 139 ");

        let error = format!("{:#}", counted(&output).1.unwrap_err());

        assert!(error.contains("code 139"), "{error}");
    }

    #[test]
    fn problem_that_the_guest_tells_of_is_an_error() {
        let output = GOOD.replace("vm: kernel 6.1.0", "vm: problem: cannot load veth");

        assert_eq!(
            counted(&output).1.unwrap_err().to_string(),
            "cannot load veth"
        );
    }
}
