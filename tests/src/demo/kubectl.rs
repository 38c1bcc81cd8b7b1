//! Requests as people type them, and errors as people read them.
//!
//! kube-apiserver puts the cause of a failed dial into the one line that `kubectl` prints; here
//! that line is made from what really happened, in the words of Go's HTTP client.

use std::{error::Error, io};

use anyhow::Result;
use proxymux_testkit::apiserver::{ConnectError, Reply, RequestError};

use super::{checks::Checks, screen::span, stage::Answer};

/// What `kubectl -n kube-system logs kube-flannel-ds-h9cm9` becomes on the wire.
pub(super) const LOGS: &str = "/containerLogs/kube-system/kube-flannel-ds-h9cm9/kube-flannel";
/// What `kubectl -n kube-system exec -i kube-flannel-ds-h9cm9 -- cat` becomes.
pub(super) const EXEC: &str =
    "/exec/kube-system/kube-flannel-ds-h9cm9/kube-flannel?command=cat&input=1&output=1";
/// As a person types it.
pub(super) const TYPED_LOGS: &str = "kubectl -n kube-system logs kube-flannel-ds-h9cm9";

/// Checks that a request was answered with 200, and hands the reply on.
pub(super) fn succeeds(show: &mut Checks, expected: &str, answer: Answer) -> Result<Reply> {
    let took = span(answer.took);
    let reply = show.have_shown(expected, answer.result, |error| {
        format!("{}, after {took}", with_sources(error))
    })?;
    let seen = format!("{}, {} bytes, after {took}", reply.status, reply.body.len());
    show.check(reply.status == 200, expected, seen)?;
    Ok(reply)
}

/// As [`succeeds`], showing the reply's body first, as `kubectl` prints it.
pub(super) fn prints(show: &mut Checks, expected: &str, answer: Answer) -> Result<Reply> {
    if let Ok(reply) = &answer.result {
        show.screen.verbatim(&reply.text());
        show.screen.gap();
    }
    succeeds(show, expected, answer)
}

/// Shows the line that `kubectl` prints for a request that has to fail, and checks that it failed
/// in the way that `wanted` knows.
pub(super) fn fails<T>(
    show: &mut Checks,
    expected: &str,
    (target, path): (&str, &str),
    answer: &Answer<T>,
    wanted: impl FnOnce(&RequestError) -> bool,
) -> Result<()> {
    if let Err(error) = &answer.result {
        show.screen.verbatim(&printed(target, path, error));
        show.screen.gap();
    }
    let short = format!("after {}", span(answer.took));
    failed_as(show, expected, answer, wanted, Some(&short))
}

/// As [`fails`], for requests that nobody has typed.
pub(super) fn fails_silently<T>(
    show: &mut Checks,
    expected: &str,
    answer: &Answer<T>,
    wanted: impl FnOnce(&RequestError) -> bool,
) -> Result<()> {
    failed_as(show, expected, answer, wanted, None)
}

fn failed_as<T>(
    show: &mut Checks,
    expected: &str,
    answer: &Answer<T>,
    wanted: impl FnOnce(&RequestError) -> bool,
    short: Option<&str>,
) -> Result<()> {
    let took = span(answer.took);
    match &answer.result {
        Ok(_) => show.check(false, expected, format!("an answer, after {took}")),
        Err(error) => {
            let seen = format!("{}, after {took}", in_short(error));
            show.check_in_short(wanted(error), expected, short.unwrap_or(&seen), &seen)
        }
    }
}

/// The status line with which the front door turned a request away; empty if it did not.
pub(super) fn status_line(error: &RequestError) -> &str {
    match error {
        RequestError::Connect(ConnectError::Refused { status, .. }) => status,
        _ => "",
    }
}

/// Whether the target itself was dialled, and answered with a reset.
pub(super) fn is_refused_dial(error: &RequestError) -> bool {
    matches!(error, RequestError::Connect(ConnectError::Direct { source, .. })
        if source.kind() == io::ErrorKind::ConnectionRefused)
}

/// The line that `kubectl` prints when a request to a kubelet has failed.
fn printed(target: &str, path: &str, error: &RequestError) -> String {
    format!(
        "Error from server: Get https://{target}{path}: {}",
        cause(error)
    )
}

fn cause(error: &RequestError) -> String {
    match error {
        RequestError::Connect(ConnectError::Direct { target, source }) => {
            format!("dial tcp {target}: connect: {}", system_words(source))
        }
        other => with_sources(other),
    }
}

/// What is new to a reader who has seen the line.
fn in_short(error: &RequestError) -> String {
    match error {
        RequestError::Connect(ConnectError::Direct { source, .. }) => system_words(source),
        RequestError::Connect(ConnectError::Refused { status, .. }) => status.clone(),
        other => with_sources(other),
    }
}

/// The system's own words for an error, as Go shows them: lower case, without a number.
fn system_words(error: &io::Error) -> String {
    let text = error.to_string();
    let words = text.split(" (os error").next().unwrap_or(&text);
    words.to_lowercase()
}

/// An error and its causes on one line.
pub(super) fn with_sources(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let words = cause.to_string();
        // Some libraries repeat their cause in their own text.
        if !text.ends_with(&words) {
            text = format!("{text}: {words}");
        }
        source = cause.source();
    }
    // rustls adds where to read more, which is for its users and not for ours.
    text.split(": https://")
        .next()
        .unwrap_or_default()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: &str = "10.0.10.10:10250";

    #[test]
    fn a_refused_dial_reads_as_it_does_in_kubernetes() {
        let error = RequestError::Connect(ConnectError::Direct {
            target: TARGET.to_owned(),
            source: io::Error::from_raw_os_error(111),
        });

        assert_eq!(
            printed(TARGET, LOGS, &error),
            "Error from server: Get https://10.0.10.10:10250/containerLogs/kube-system/\
             kube-flannel-ds-h9cm9/kube-flannel: dial tcp 10.0.10.10:10250: connect: connection \
             refused"
        );
    }

    #[test]
    fn the_reason_phrase_of_the_front_door_is_in_the_line() {
        let error = RequestError::Connect(ConnectError::Refused {
            proxy: "/run/egress.sock".to_owned(),
            target: TARGET.to_owned(),
            code: 503,
            status: "503 node 10.0.10.10 has no session; last seen 42s ago".to_owned(),
        });

        let line = printed(TARGET, LOGS, &error);

        assert!(
            line.ends_with(
                "proxy error from /run/egress.sock while dialing 10.0.10.10:10250, code 503: 503 \
                 node 10.0.10.10 has no session; last seen 42s ago"
            ),
            "{line}"
        );
    }
}
