//! Running the check on a node, and asking what it has found.

use std::{fmt, fs};

use anyhow::{Context, Result};
use proxymux_testkit::cluster::{AGENT, Cluster, program};
use proxymux_tests::{admin::Printed, programs::config_flag};
use serde_json::Value;

/// What a check has found.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) code: Option<i32>,
    report: Value,
}

/// Runs it with this configuration on the first node.
pub(crate) fn check(cluster: &Cluster, config: &str) -> Result<Seen> {
    check_as(cluster, config, &[])
}

/// Runs it through another program, which takes something away from it.
pub(crate) fn check_as(cluster: &Cluster, config: &str, through: &[&str]) -> Result<Seen> {
    let printed = printed(cluster, config, &["check", "--json"], through)?;
    let report = serde_json::from_str(&printed.stdout).with_context(|| format!("{printed:?}"))?;
    Ok(Seen {
        code: printed.code,
        report,
    })
}

pub(crate) fn printed(
    cluster: &Cluster,
    config: &str,
    arguments: &[&str],
    through: &[&str],
) -> Result<Printed> {
    let file = cluster.dir().join("check.yaml");
    fs::write(&file, config)?;
    let program = program(AGENT)?;
    let host = cluster.node(0);
    let mut command = match through {
        [] => host.command(program),
        [first, rest @ ..] => {
            let mut command = host.command(first);
            command.args(rest).arg(program);
            command
        }
    };
    let output = command.args(arguments).arg(config_flag(&file)).output()?;
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).context("output is UTF-8");
    Ok(Printed {
        code: output.status.code(),
        stdout: text(output.stdout)?,
        stderr: text(output.stderr)?,
    })
}

impl Seen {
    fn of(&self, topic: &str) -> impl Iterator<Item = &Value> {
        let findings = self.report.get("findings").and_then(Value::as_array);
        let findings = findings.into_iter().flatten();
        findings.filter(move |finding| word(finding, "topic") == topic)
    }

    /// How many errors there are.
    pub(crate) fn errors(&self) -> usize {
        let findings = self.report.get("findings").and_then(Value::as_array);
        let findings = findings.into_iter().flatten();
        findings
            .filter(|finding| word(finding, "level") == "error")
            .count()
    }

    /// Whether there is anything of this topic.
    pub(crate) fn has(&self, topic: &str) -> bool {
        self.of(topic).next().is_some()
    }

    /// The worst of a topic; empty if there is nothing of it.
    pub(crate) fn level(&self, topic: &str) -> &str {
        let order = ["error", "warning", "ok"];
        let levels: Vec<_> = self
            .of(topic)
            .map(|finding| word(finding, "level"))
            .collect();
        order
            .into_iter()
            .find(|level| levels.contains(level))
            .unwrap_or_default()
    }

    /// All that is said of a topic.
    pub(crate) fn text(&self, topic: &str) -> String {
        self.of(topic).map(ToString::to_string).collect()
    }

    /// There is something of this topic, and all of it is well.
    #[track_caller]
    pub(crate) fn fine(&self, topic: &str) {
        assert_eq!(self.level(topic), "ok", "{topic}: {self}");
    }

    /// One finding of this topic has this level, these words, and this advice.
    #[track_caller]
    pub(crate) fn broken(&self, topic: &str, level: &str, found: &str, fix: &str) {
        let is_it = |finding: &Value| {
            word(finding, "level") == level
                && word(finding, "found").contains(found)
                && word(finding, "fix").contains(fix)
        };
        assert!(
            self.of(topic).any(is_it),
            "no {level} of {topic}: {found}, {fix}: {self}"
        );
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "exit code {:?}, {:#}", self.code, self.report)
    }
}

fn word<'a>(finding: &'a Value, key: &str) -> &'a str {
    finding.get(key).and_then(Value::as_str).unwrap_or_default()
}
