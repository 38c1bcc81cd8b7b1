//! What scrapes say: counts that add up, gauges that return to zero, words that are all there.
//!
//! Numbers are read from the text that a scraper gets.

use std::sync::Arc;

use proxymux_proto::{AbortCode, EndCode, RefuseCode};

use super::*;
use crate::{
    relay::{Outcome, RelayBytes},
    telemetry::{Path, Side},
};

const PATHS: &[Path] = &[Path::Session, Path::Route];

fn value(registry: &Registry, sample: &str) -> f64 {
    let text = encode(registry);
    let line = text.lines().find_map(|line| line.strip_prefix(sample));
    let line = line.unwrap_or_else(|| panic!("no `{sample}` in:\n{text}"));
    line.trim().parse().unwrap()
}

#[test]
fn a_stream_is_counted_while_it_is_open_and_once_when_it_ends() {
    let mut registry = registry("x", "1.2.3");
    let streams = StreamMetrics::register(&mut registry, PATHS);
    let bytes = Arc::<RelayBytes>::default();

    let mut open = streams.open(
        Path::Session,
        Side::ConnectionLeadsToTarget,
        Arc::clone(&bytes),
    );
    bytes.add_to_stream(5);
    bytes.add_from_stream(7);

    assert_eq!(value(&registry, r#"x_build_info{version="1.2.3"}"#), 1.0);
    assert_eq!(value(&registry, r#"x_streams_open{path="session"}"#), 1.0);
    let to_target = r#"x_relayed_bytes_total{path="session",direction="to-target"}"#;
    let from_target = r#"x_relayed_bytes_total{path="session",direction="from-target"}"#;
    assert_eq!(value(&registry, to_target), 7.0, "while it is open");
    assert_eq!(value(&registry, from_target), 5.0);

    open.set_outcome(Outcome::Idle);
    drop(open);

    assert_eq!(value(&registry, r#"x_streams_open{path="session"}"#), 0.0);
    let idle = r#"x_streams_closed_total{path="session",outcome="idle"}"#;
    assert_eq!(value(&registry, idle), 1.0);
    assert_eq!(value(&registry, to_target), 7.0, "after its end");
    let other_path = r#"x_relayed_bytes_total{path="route",direction="to-target"}"#;
    assert_eq!(value(&registry, other_path), 0.0);
}

#[test]
fn a_stream_that_is_dropped_was_cancelled() {
    let mut registry = registry("x", "1");
    let streams = StreamMetrics::register(&mut registry, PATHS);

    drop(streams.open(Path::Route, Side::StreamLeadsToTarget, Arc::default()));

    let cancelled = r#"x_streams_closed_total{path="route",outcome="cancelled"}"#;
    assert_eq!(value(&registry, cancelled), 1.0);
    assert_eq!(streams.count(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_longest_wait_is_told_and_forgotten_when_it_ends() {
    let mut registry = registry("x", "1");
    let streams = StreamMetrics::register(&mut registry, PATHS);
    let (old, new) = (Arc::<RelayBytes>::default(), Arc::<RelayBytes>::default());
    let side = Side::StreamLeadsToTarget;
    let first = streams.open(Path::Session, side, Arc::clone(&old));
    let _second = streams.open(Path::Session, side, Arc::clone(&new));

    old.sending_waits();
    tokio::time::advance(Duration::from_secs(30)).await;
    new.receiving_waits();
    // Once more is still the same wait.
    old.sending_waits();
    tokio::time::advance(Duration::from_secs(10)).await;

    let oldest = "x_oldest_blocked_stream_seconds ";
    assert_eq!(value(&registry, oldest), 40.0);
    old.receiving_moves();
    assert_eq!(value(&registry, oldest), 40.0, "the other direction waits");
    drop(first);
    assert_eq!(value(&registry, oldest), 10.0);
    new.receiving_moves();
    assert_eq!(value(&registry, oldest), 0.0);
}

#[test]
fn a_moment_that_is_not_known_has_no_sample() {
    let mut registry = registry("x", "1");
    let expiry = certificate_expiry(&mut registry, &["own", "ca"]);
    let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);

    expiry.set("own", Some(at));

    let own = r#"x_certificate_expiry_timestamp_seconds{certificate="own"}"#;
    assert_eq!(value(&registry, own), 1_800_000_000.0);
    assert!(!encode(&registry).contains(r#"certificate="ca""#));
    expiry.set("own", None);
    assert!(!encode(&registry).contains(r#"certificate="own""#));
}

#[test]
fn a_moment_before_1970_is_negative() {
    let before = SystemTime::UNIX_EPOCH - Duration::from_secs(10);
    assert_eq!(unix_seconds(before), -10);
}

#[test]
fn a_guard_gives_back_what_it_took() {
    let gauge = Gauge::default();
    let guards = [GaugeGuard::new(&gauge), GaugeGuard::new(&gauge)];
    assert_eq!(gauge.get(), 2);
    drop(guards);
    assert_eq!(gauge.get(), 0);
}

#[test]
fn every_outcome_has_its_word_in_the_list() {
    let aborted = (0..=u8::MAX).map(|code| Outcome::PeerAborted(AbortCode::from_wire(code)));
    let others = [
        Outcome::Done,
        Outcome::LocalReset,
        Outcome::SessionLost,
        Outcome::Idle,
        Outcome::Drained,
        Outcome::Protocol,
        Outcome::Memory,
        Outcome::NotTls,
    ];
    let words: std::collections::BTreeSet<_> = aborted.chain(others).map(Outcome::as_str).collect();
    let listed = Outcome::WORDS.iter().copied().collect();
    assert_eq!(words, listed);
}

#[test]
fn every_code_of_the_protocol_has_its_word_in_the_list() {
    for code in [
        EndCode::Identity,
        EndCode::Cluster,
        EndCode::Version,
        EndCode::Superseded,
        EndCode::Busy,
        EndCode::ShuttingDown,
        EndCode::Protocol,
        EndCode::AlreadyConnected,
        EndCode::Other(77),
    ] {
        assert!(EndCode::WORDS.contains(&code.as_str()), "{code:?}");
    }
    for code in [
        RefuseCode::NotAllowed,
        RefuseCode::Unreachable,
        RefuseCode::TimedOut,
        RefuseCode::Busy,
        RefuseCode::BadRequest,
        RefuseCode::Draining,
        RefuseCode::Other(77),
    ] {
        assert!(RefuseCode::WORDS.contains(&code.as_str()), "{code:?}");
    }
}

#[test]
fn the_document_lists_names_kinds_labels_and_meanings() {
    let mut registry = registry("x", "1");
    let _refused = counters(
        &mut registry,
        ("streams_refused", "Requests refused"),
        "reason",
        &["busy", "other"],
    );
    let _times = times(&mut registry, "dial", "How long dialling took");

    assert_eq!(
        document(&registry),
        "| metric | kind | labels | meaning |\n\
         |---|---|---|---|\n\
         | `x_build_info` | gauge | `version` | Always 1; the version is the label. |\n\
         | `x_streams_refused_total` | counter | `reason`: `busy`, `other` | Requests refused. |\n\
         | `x_dial_seconds` | histogram |  | How long dialling took. |\n"
    );
}
