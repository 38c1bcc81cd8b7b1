//! What the agent that runs on this node says of itself.
//!
//! Owns asking it, and what follows for the sessions that it has or does not get: whether a master
//! accepts its registration is known to it alone. What it says of steering is for `steering.rs`.

use proxymux_transport::{
    admin::{FetchError, fetch},
    command::{Report, age, number, rtt, text},
    telemetry::chain,
};
use serde_json::Value;

use super::{master::ACCEPTS, settings::Settings};

/// Asks it; its status, if there is one.
pub(super) async fn look(settings: &Settings) -> (Report, Option<Value>) {
    let mut report = Report::default();
    let Some(config) = &settings.config else {
        return (report, None);
    };
    match fetch(&config.admin, "proxymux-agent", "/status").await {
        Ok(reply) => match serde_json::from_str::<Value>(&reply.body) {
            Ok(status) if reply.status == 200 => {
                tell(&mut report, &status);
                return (report, Some(status));
            }
            Ok(_) | Err(_) => report.warning(
                AGENT,
                format!(
                    "{} is answered by something that is no proxymux-agent (status {})",
                    config.admin, reply.status
                ),
                "give the agent an `admin` address of its own",
            ),
        },
        Err(error) => refused(&mut report, &error),
    }
    (report, None)
}

fn refused(report: &mut Report, error: &FetchError) {
    let fix = match error {
        FetchError::NotRunning { .. } => {
            "start it: `systemctl start proxymux-agent`, or see its pod; then check again, because \
             whether a master accepts the registration is tried by it alone"
        }
        FetchError::NotAllowed { .. } => "run this as root, or as the user that it runs as",
        FetchError::Connect { .. } | FetchError::TimedOut { .. } | FetchError::Broken { .. } => {
            "see whether it hangs (its log), and restart it"
        }
    };
    report.warning(AGENT, chain(error), fix);
}

fn tell(report: &mut Report, status: &Value) {
    let up = number(status, "/uptime_s").map(age).unwrap_or_default();
    let version = text(status, "/version");
    if status.get("ready").and_then(Value::as_bool) == Some(true) {
        report.ok(AGENT, format!("version {version}, up {up}, ready"));
    } else {
        let reasons = text(status, "/reasons");
        report.error(
            AGENT,
            format!("version {version}, up {up}, not ready: {reasons}"),
            "mend what is said about masters and certificates here",
        );
    }
    let masters = status.get("masters").and_then(Value::as_array);
    for master in masters.into_iter().flatten() {
        tell_master(report, master);
    }
}

fn tell_master(report: &mut Report, master: &Value) {
    let at = match text(master, "/address") {
        at if at.is_empty() => text(master, "/server"),
        at => at,
    };
    let since = number(master, "/since_s").map(age).unwrap_or_default();
    match text(master, "/state").as_str() {
        "connected" => {
            let time = number(master, "/rtt_us").map(rtt).unwrap_or_default();
            report.ok(
                ACCEPTS,
                format!("{at} has accepted the running agent, for {since}, round trip {time}"),
            );
            tell_addresses(report, &at, master);
        }
        "standby" => report.ok(ACCEPTS, format!("{at} is dialled when another is lost")),
        "draining" => {}
        state => {
            let error = text(master, "/last_error");
            let found = format!("the running agent has no session with {at} ({state}): {error}");
            if error.contains(REFUSED) {
                report.error(ACCEPTS, found, refusal_fix(&error));
            } else {
                report.warning(
                    ACCEPTS,
                    found,
                    "mend what is said about this master here; the agent tries again by itself",
                );
            }
        }
    }
}

fn tell_addresses(report: &mut Report, at: &str, master: &Value) {
    let refused = master.get("addresses_refused").and_then(Value::as_array);
    for address in refused.into_iter().flatten() {
        report.warning(
            ACCEPTS,
            format!(
                "{at} does not lead {} to this node: {}",
                text(address, "/address"),
                text(address, "/reason")
            ),
            "see docs/operations.md on proving addresses; kube-apiserver reaches this node by its \
             other addresses only",
        );
    }
}

/// By the code that stands behind [`REFUSED`].
fn refusal_fix(error: &str) -> &'static str {
    let code = error.split_once(REFUSED).map_or("", |(_, rest)| rest);
    let code = code.split_once(')').map_or("", |(code, _)| code);
    match code {
        "identity" => "set node-name to the name in the certificate, or name the right certificate",
        "cluster" => "set cluster-id as the master has it, or correct server-addr",
        "version" => "bring agent and master to versions that go together",
        "already-connected" => {
            "end the other agent that has this node's certificate: a second pod, unit or machine"
        }
        "superseded" => "end the other agent that has taken this node's place",
        "busy" | "shutting-down" => "wait: the master has said that it will not take anybody now",
        _ => "see why in the master's log",
    }
}

pub(super) const AGENT: &str = "agent";

/// What `EstablishError::Rejected` begins with.
const REFUSED: &str = "master refused the registration (";

#[cfg(test)]
mod tests {
    use proxymux_transport::command::Level;
    use serde_json::json;

    use super::*;

    fn levels(status: &Value) -> Vec<(&'static str, Level, Option<String>)> {
        let mut report = Report::default();
        tell(&mut report, status);
        let findings = report.findings().iter();
        let seen = findings.map(|finding| (finding.topic, finding.level, finding.fix.clone()));
        seen.collect()
    }

    #[test]
    fn an_agent_that_is_accepted_is_fine() {
        let told = levels(&json!({
            "version": "1", "uptime_s": 5, "ready": true,
            "masters": [
                { "address": "192.0.2.10:12250", "state": "connected", "since_s": 4, "rtt_us": 900,
                  "addresses_refused": [] },
                { "address": "192.0.2.11:12250", "state": "standby", "since_s": 4 },
                { "address": "192.0.2.10:12250", "state": "draining", "since_s": 4 },
            ],
        }));
        assert_eq!(
            told,
            [
                (AGENT, Level::Ok, None),
                (ACCEPTS, Level::Ok, None),
                (ACCEPTS, Level::Ok, None)
            ]
        );
    }

    #[test]
    fn a_refused_registration_is_an_error_with_a_fix_by_its_code() {
        let told = levels(&json!({
            "ready": false, "reasons": ["x"],
            "masters": [{
                "server": "https://m", "state": "waiting", "since_s": 4,
                "last_error": "master refused the registration (cluster): it is of cluster a",
            }],
        }));
        let [(_, agent, _), (topic, level, Some(fix))] = told.as_slice() else {
            panic!("{told:?}");
        };
        assert_eq!(
            (*agent, *topic, *level),
            (Level::Error, ACCEPTS, Level::Error)
        );
        assert!(fix.contains("cluster-id"), "{fix}");
    }

    #[test]
    fn the_words_of_a_refusal_are_those_of_the_agent() {
        let end = proxymux_proto::SessionEnd {
            code: proxymux_proto::EndCode::Cluster,
            message: "m".to_owned(),
            retry_after: None,
        };
        let text = crate::session::EstablishError::Rejected(end).to_string();
        assert!(refusal_fix(&text).contains("cluster-id"), "{text}");
    }
}
