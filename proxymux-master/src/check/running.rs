//! Whether a master runs that has this configuration, and what it says of itself.
//!
//! Owns the question at the admin address and the findings that come of its answer: readiness,
//! sessions, and whether it was started with another configuration than the file has now.
//! The answer may be of another version, so that what is not there is left out.

use std::io;

use proxymux_transport::{
    admin::{FetchError, Reply, fetch},
    command::{Report, age, number, reasons, text},
    config_file::values::AdminAddr,
    telemetry::chain,
};
use serde_json::Value;
use tokio::net::UnixStream;

use super::PROGRAM;
use crate::{admin::show_door, config::Config};

/// What is known of a running master.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Running {
    /// It has answered with its status.
    Yes {
        status: Value,
        /// Its process, where the kernel says so.
        pid: Option<u32>,
    },
    /// None runs.
    No,
    /// Something is there that could not be asked, or gave no master's answer.
    Unknown,
}

impl Running {
    /// The running master's status.
    pub(super) fn status(&self) -> Option<&Value> {
        match self {
            Self::Yes { status, .. } => Some(status),
            Self::No | Self::Unknown => None,
        }
    }

    /// Whether what it needs can be tried: not beside a master that may have it.
    pub(super) fn is_none(&self) -> bool {
        matches!(self, Self::No)
    }

    /// How many nodes have a session with it.
    pub(super) fn connected(&self) -> u64 {
        let connected = self
            .status()
            .and_then(|status| number(status, "/connected"));
        connected.unwrap_or_default()
    }
}

/// Asks the master at the admin address of its configuration.
pub(super) async fn look(report: &mut Report, config: &Config) -> Running {
    let at = &config.admin;
    match fetch(at, PROGRAM, "/status").await {
        Ok(reply) => {
            let Some(status) = read(&reply) else {
                report.error(
                    TOPIC,
                    format!("what answers at {at} is no proxymux-master"),
                    "set another `admin`, or end what is there",
                );
                return Running::Unknown;
            };
            judge(report, config, &status);
            let pid = pid(at).await;
            Running::Yes { status, pid }
        }
        Err(error) if is_absent(&error) => {
            report.warning(
                TOPIC,
                format!("no master answers at {at}; the rest is about whether one could start"),
                "start it: `systemctl start proxymux-master`, or its pod; if one runs, give its \
                 file with --config",
            );
            Running::No
        }
        Err(error @ FetchError::NotAllowed { .. }) => {
            report.error(
                TOPIC,
                chain(&error),
                "run this check as root, or as the user that the master runs as",
            );
            Running::Unknown
        }
        Err(error) => {
            report.error(
                TOPIC,
                chain(&error),
                "see its log; a master that does not answer here for long has to be restarted",
            );
            Running::Unknown
        }
    }
}

/// Whether it is plain that nobody is there.
fn is_absent(error: &FetchError) -> bool {
    match error {
        FetchError::NotRunning { .. } => true,
        FetchError::Connect { source, .. } => source.kind() == io::ErrorKind::NotADirectory,
        FetchError::NotAllowed { .. } | FetchError::TimedOut { .. } | FetchError::Broken { .. } => {
            false
        }
    }
}

fn read(reply: &Reply) -> Option<Value> {
    let status: Value = serde_json::from_str(&reply.body).ok()?;
    let is_a_masters = reply.status == 200 && status.get("master_id").is_some();
    is_a_masters.then_some(status)
}

fn judge(report: &mut Report, config: &Config, status: &Value) {
    let known = status
        .get("nodes")
        .and_then(Value::as_array)
        .map_or(0, Vec::len);
    let shown = |place: &str| text(status, place);
    let uptime = number(status, "/uptime_s").map(age).unwrap_or_default();
    report.ok(
        TOPIC,
        format!(
            "version {} runs since {uptime}: {} of {known} known nodes have a session, {} \
             connections are open",
            shown("/version"),
            shown("/connected"),
            shown("/streams"),
        ),
    );
    let reasons = reasons(status);
    if !reasons.is_empty() {
        report.error(
            TOPIC,
            format!("it is not ready: {reasons}"),
            "wait a moment and check again; if that does not help, its log says what is missing",
        );
    }
    let differing = differing(config, status);
    if !differing.is_empty() {
        report.warning(
            TOPIC,
            format!(
                "it was started with another configuration: {}",
                differing.join("; ")
            ),
            "restart it, or give the file that it was started with by --config",
        );
    }
}

/// What the running master has otherwise than the file.
fn differing(config: &Config, status: &Value) -> Vec<String> {
    let listen = config.listen.to_string();
    let doors: Vec<String> = config.front_doors.iter().map(show_door).collect();
    let cluster = config.cluster_id.clone().unwrap_or_default();
    let pairs = [
        ("listen", "/listen", listen),
        ("front-doors", "/front_doors", doors.join(",")),
        ("cluster-id", "/cluster_id", cluster),
    ];
    pairs
        .into_iter()
        .filter_map(|(key, place, wanted)| {
            let has = text(status, place);
            // An older version may not say.
            let told = status.pointer(place).is_some();
            (told && has != wanted)
                .then(|| format!("{key} is `{has}` there, `{wanted}` in the file"))
        })
        .collect()
}

/// The process that listens at the admin socket.
async fn pid(at: &AdminAddr) -> Option<u32> {
    let AdminAddr::Unix(path) = at else {
        return None;
    };
    let stream = UnixStream::connect(path).await.ok()?;
    pid_of(&stream)
}

/// The process that listens at the other end; none if it is of another PID namespace.
pub(super) fn pid_of(stream: &UnixStream) -> Option<u32> {
    let pid = stream.peer_cred().ok()?.pid()?;
    u32::try_from(pid).ok().filter(|&pid| pid > 0)
}

const TOPIC: &str = "master";

#[cfg(test)]
mod tests {
    use proxymux_transport::command::Level;
    use serde_json::json;

    use super::*;

    fn config() -> Config {
        let text = "listen: 127.0.0.1:1\ncert: /c\nkey: /k\nclient-ca: /ca\n";
        Config::parse(text, "master.yaml").unwrap().0
    }

    fn status() -> Value {
        json!({
            "version": "1.2.3", "uptime_s": 90, "connected": 1, "streams": 4, "reasons": [],
            "listen": "127.0.0.1:1", "front_doors": ["unix:/run/proxymux/egress.sock"],
            "cluster_id": null, "nodes": [{}, {}],
        })
    }

    fn judged(status: &Value) -> Report {
        let mut report = Report::default();
        judge(&mut report, &config(), status);
        report
    }

    #[test]
    fn a_master_of_this_file_is_ok() {
        let report = judged(&status());

        let [finding] = report.findings() else {
            panic!("{report:?}");
        };
        assert_eq!(
            finding.found,
            "version 1.2.3 runs since 1m30s: 1 of 2 known nodes have a session, 4 connections are \
             open"
        );
        assert_eq!(report.worst(), Level::Ok);
    }

    #[test]
    fn what_is_not_ready_or_of_another_file_is_told() {
        let mut draining = status();
        draining["reasons"] = json!(["draining: this master was told to end"]);
        let report = judged(&draining);
        assert_eq!(report.worst(), Level::Error);
        assert!(
            report.show().contains("it is not ready: draining"),
            "{report:?}"
        );

        let mut other = status();
        other["front_doors"] = json!(["unix:/other"]);
        let report = judged(&other);
        assert_eq!(report.worst(), Level::Warning);
        let expected = "front-doors is `unix:/other` there, `unix:/run/proxymux/egress.sock` in";
        assert!(report.show().contains(expected), "{report:?}");

        let mut older = status();
        older.as_object_mut().unwrap().remove("cluster_id");
        assert_eq!(judged(&older).worst(), Level::Ok);
    }

    #[test]
    fn only_a_masters_status_is_one() {
        let reply = |status: u16, body: &str| Reply {
            status,
            body: body.to_owned(),
        };
        assert!(read(&reply(200, "{\"master_id\": \"x\"}")).is_some());
        assert!(read(&reply(503, "{\"master_id\": \"x\"}")).is_none());
        for body in ["", "{}", "[]", "\"master_id\"", "{\"master_id\""] {
            assert!(read(&reply(200, body)).is_none(), "{body}");
        }
    }
}
