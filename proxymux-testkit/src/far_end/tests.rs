//! Scripts over loopback, and each way in which one can go wrong.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, duplex},
    time::timeout,
};

use super::*;
use crate::{pattern::Pattern, wait::eventually_async};

const LIMIT: Duration = Duration::from_secs(20);
const MIB: u64 = 1 << 20;

async fn connect(far_end: &FarEnd) -> TcpStream {
    TcpStream::connect(far_end.local_addr()).await.unwrap()
}

async fn scripted() -> FarEnd {
    FarEnd::scripted("127.0.0.1:0").await.unwrap()
}

/// Sends these bytes as all there is, and returns what the far end made of it.
async fn outcome_of(bytes: &[u8]) -> Outcome {
    let far_end = scripted().await;
    let mut stream = connect(&far_end).await;
    stream.write_all(bytes).await.unwrap();
    stream.shutdown().await.unwrap();
    eventually_async(LIMIT, async || !far_end.outcomes().is_empty()).await;
    far_end.outcomes().remove(0)
}

fn line_and(script: &Script, payload: &[u8]) -> Vec<u8> {
    [format!("{script}\n").as_bytes(), payload].concat()
}

#[tokio::test]
async fn a_line_in_a_record_of_tls_is_the_same_line() {
    let far_end = scripted().await;
    let script = Script::duplex(100_000, 4);
    let stream = connect(&far_end).await;
    let driven = timeout(LIMIT, drive_record(stream, &script)).await;
    assert_eq!(driven.expect("ends").unwrap().received, 100_000);
    eventually_async(LIMIT, async || far_end.outcomes().len() == 1).await;
    let outcome = far_end.outcomes().pop().unwrap();
    assert!(outcome.is_clean(), "{outcome}");
    assert_eq!(outcome.script, Some(script));
}

#[tokio::test]
async fn every_script_ends_clean_on_both_sides() {
    let far_end = scripted().await;
    let scripts = [
        Script::source(MIB + 1, 1),
        Script::source(MIB + 1, 1).closed_first_by(Closer::Client),
        Script::source(0, 1),
        Script::source(1000, 1).in_chunks_of(1),
        Script::Sink { payload: None },
        Script::sink(MIB + 7, 2),
        Script::echo(MIB + 7, 3),
        Script::duplex(MIB, 4),
        Script::duplex(MIB, 5).closed_first_by(Closer::FarEnd),
        Script::duplex(3000, 6).in_chunks_of(7),
        Script::duplex(1, 7),
        Script::duplex(0, 8),
        Script::duplex(0, 9).closed_first_by(Closer::FarEnd),
        Script::Reset { after: 100_000 },
    ];
    for (count, script) in (1..).zip(&scripts) {
        let stream = connect(&far_end).await;
        let driven = timeout(LIMIT, drive(stream, script))
            .await
            .expect("ends")
            .unwrap();
        eventually_async(LIMIT, async || far_end.outcomes().len() == count).await;
        let outcome = far_end.outcomes().pop().unwrap();
        assert!(outcome.is_clean(), "{script}: {outcome}");
        assert_eq!(outcome.script.as_ref(), Some(script));
        let seen = (driven.sent, driven.received);
        assert_eq!(seen, (outcome.received, outcome.sent), "{script}");
    }
    assert_eq!(far_end.accepted(), scripts.len() as u64);
    assert_eq!(far_end.open(), 0);
}

#[tokio::test]
async fn a_report_says_what_was_received() {
    let far_end = scripted().await;
    let driven = drive(connect(&far_end).await, &Script::sink(1000, 3))
        .await
        .unwrap();
    assert_eq!(driven.report.as_deref(), Some("ok received=1000"));

    let mut stream = connect(&far_end).await;
    stream.write_all(b"SINK\nhello").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut report = String::new();
    stream.read_to_string(&mut report).await.unwrap();
    let digest = crate::pattern::Digest::of(b"hello");
    assert_eq!(report, format!("ok received=5 digest={digest:016x}\n"));
}

#[tokio::test]
async fn the_far_end_locates_a_wrong_byte() {
    let mut payload = Pattern::new(8).at(0, 5000).to_vec();
    payload[1234] ^= 1;
    for script in [Script::sink(5000, 8), Script::duplex(5000, 7)] {
        let outcome = outcome_of(&line_and(&script, &payload)).await;
        let problem = outcome.problem.unwrap();
        assert!(
            problem.starts_with("byte 1234 of stream 8"),
            "{script}: {problem}"
        );
    }
}

#[tokio::test]
async fn a_sink_reports_a_wrong_byte_to_the_client_too() {
    let far_end = scripted().await;
    let mut stream = connect(&far_end).await;
    stream
        .write_all(&line_and(&Script::sink(10, 1), &[0; 10]))
        .await
        .unwrap();
    stream.shutdown().await.unwrap();
    let mut report = String::new();
    stream.read_to_string(&mut report).await.unwrap();
    assert!(report.starts_with("bad byte 0 of stream 1"), "{report}");
}

#[tokio::test]
async fn the_far_end_notices_too_little_and_too_much() {
    let stream = Pattern::new(2);
    for script in [Script::sink(1000, 2), Script::duplex(1000, 1)] {
        let short = outcome_of(&line_and(&script, stream.at(0, 999))).await;
        let expected = "stream ended after 999 bytes, expected 1000";
        assert_eq!(short.problem.as_deref(), Some(expected), "{script}");
        let long = outcome_of(&line_and(&script, stream.at(0, 1001))).await;
        let expected = "1 bytes behind the 1000 expected";
        assert_eq!(long.problem.as_deref(), Some(expected), "{script}");
    }
    let source = outcome_of(b"SOURCE bytes=1 seed=1\nunasked").await;
    assert_eq!(
        source.problem.as_deref(),
        Some("7 bytes behind the 0 expected")
    );
}

#[tokio::test]
async fn a_first_line_that_is_no_script_is_an_outcome() {
    let alert = outcome_of(b"\x15\x03\x01\n").await.problem.unwrap();
    assert!(alert.starts_with("first line: verb"), "{alert}");
    let cut = outcome_of(b"SOURCE byt").await.problem.unwrap();
    assert_eq!(cut, "first line is not there: \"SOURCE byt\"");
    let endless = outcome_of(&[b'x'; 300]).await.problem.unwrap();
    assert!(endless.starts_with("first line is not there"), "{endless}");
}

#[tokio::test]
async fn the_client_locates_what_is_wrong_with_the_far_ends_stream() {
    let good = Pattern::new(1).at(0, 3000).to_vec();
    let flipped = {
        let mut data = good.clone();
        data[2000] ^= 0x80;
        data
    };
    let repeated = [&good[..1000], &good[..2000]].concat();
    let longer = [&good[..], b"!"].concat();
    let cases: [(&[u8], &str); 4] = [
        (&flipped, "byte 2000 of stream 1"),
        (&repeated, "it looks like byte 0"),
        (
            &good[..2999],
            "stream ended after 2999 bytes, expected 3000",
        ),
        (&longer, "1 bytes behind the 3000 expected"),
    ];
    for (sent, expected) in cases {
        let (near, mut far) = duplex(8192);
        far.write_all(sent).await.unwrap();
        far.shutdown().await.unwrap();
        let error = drive_fixed(near, &Script::source(3000, 1))
            .await
            .unwrap_err();
        assert!(error.to_string().contains(expected), "{expected}: {error}");
    }
}

#[tokio::test]
async fn the_client_notices_a_bad_report_and_a_missing_one() {
    for report in ["bad byte 0\n", "ok received=4\n", ""] {
        let (near, mut far) = duplex(8192);
        far.write_all(report.as_bytes()).await.unwrap();
        far.shutdown().await.unwrap();
        let error = drive_fixed(near, &Script::sink(5, 1)).await.unwrap_err();
        assert!(
            matches!(&error, DriveError::Report(text) if text == report),
            "{error}"
        );
    }
}

#[tokio::test]
async fn an_end_is_not_taken_for_a_reset() {
    let (near, far) = duplex(8192);
    drop(far);
    let error = drive_fixed(near, &Script::Reset { after: 0 })
        .await
        .unwrap_err();
    assert!(matches!(error, DriveError::EndInsteadOfReset), "{error}");
}

#[tokio::test]
async fn a_hole_takes_what_buffers_hold_and_says_nothing() {
    let far_end = FarEnd::fixed("127.0.0.1:0", Script::Hole).await.unwrap();
    let mut stream = connect(&far_end).await;
    let flood = async {
        loop {
            stream.write_all(&[0; 65536]).await.unwrap();
        }
    };
    timeout(Duration::from_millis(300), flood)
        .await
        .unwrap_err();
    let answer = timeout(Duration::from_millis(50), stream.read_u8()).await;
    assert!(answer.is_err(), "{answer:?}");
    assert_eq!(far_end.open(), 1);
}

#[tokio::test]
async fn a_fixed_source_speaks_without_being_asked() {
    let far_end = FarEnd::fixed("127.0.0.1:0", Script::source(MIB, 3))
        .await
        .unwrap();
    let driven = drive_fixed(connect(&far_end).await, &Script::source(MIB, 3))
        .await
        .unwrap();
    assert_eq!(driven.received, MIB);
}

#[tokio::test]
async fn dropping_the_far_end_ends_its_connections() {
    let far_end = FarEnd::fixed("127.0.0.1:0", Script::Hole).await.unwrap();
    let mut stream = connect(&far_end).await;
    eventually_async(LIMIT, async || far_end.accepted() == 1).await;
    let address = far_end.local_addr();
    drop(far_end);
    let end = timeout(LIMIT, stream.read_u8()).await.expect("ends");
    assert!(end.is_err());
    eventually_async(LIMIT, async || TcpStream::connect(address).await.is_err()).await;
}

/// Generous: it takes about two seconds in an unoptimised build on a small machine.
#[tokio::test]
async fn a_gibibyte_in_both_directions_is_checked_in_seconds() {
    let far_end = scripted().await;
    let stream = connect(&far_end).await;
    let script = Script::duplex(1024 * MIB, 1);
    let driven = timeout(Duration::from_secs(60), drive(stream, &script)).await;
    let driven = driven.expect("ends within a minute").unwrap();
    assert_eq!((driven.sent, driven.received), (1024 * MIB, 1024 * MIB));
}
