//! An agent with a good certificate that does not keep to the protocol of the control stream.
//!
//! The master must say to the agent and in its own log what was wrong, and end that session only.

use std::{iter, time::Duration};

use anyhow::{Context, Result};
use proxymux_proto::{
    ControlMessage, Drain, EndCode, MAX_ADDRESSES, MAX_FRAME_LEN, SessionEnd, encode_frame,
};
use proxymux_tests::{
    events::with_message,
    limits::{SOON, within},
    rogue::{RogueSession, messages},
};

use crate::stage::Stage;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_version_of_the_protocol_is_refused_on_both_sides_with_both_versions() -> Result<()>
{
    let mut stage = Stage::new().await?;
    let mut session = stage.session().await?;
    let mut registration = messages::registration(&stage.rogue())?;
    registration.version = 9;

    session
        .send(&ControlMessage::Register(registration))
        .await?;

    let reason = "agent speaks version 9 of the protocol, this master 1";
    let end = SessionEnd::new(EndCode::Version, reason);
    assert_eq!(session.next().await?, ControlMessage::End(end));
    let refused = stage.trouble("session refused")?;
    assert_eq!(refused.text("node"), Some(&*stage.rogue()));
    assert_eq!(
        (refused.text("code"), refused.text("reason")),
        (Some("version"), Some(reason))
    );
    session.ends().await?;
    stage.nobody_noticed().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_registration_is_refused_on_both_sides_with_what_is_wrong() -> Result<()> {
    let mut stage = Stage::new().await?;
    let mut crowded = messages::registration(&stage.rogue())?;
    crowded.addresses = (0..=MAX_ADDRESSES)
        .map(|n| format!("10.9.{}.{}", n / 250, n % 250).parse())
        .collect::<Result<_, _>>()?;
    let cases = [
        (
            messages::handmade_registration(b"")?,
            "peer sent a bad control message: message `Register` has no `node_name`",
        ),
        (
            messages::handmade_registration(b"no name")?,
            "peer sent a bad control message: message `Register`: `node_name`: \"no name\": has \
             ' ' at byte 2, expected letters, digits, '-' or '.', or an IPv6 address",
        ),
        (
            ControlMessage::Register(crowded).encode()?.to_vec(),
            "peer sent a bad control message: message `Register`: `addresses`: 65 entries, expected \
             at most 64",
        ),
        (
            encode_frame(b"\xff\xff\xff\xff")?.to_vec(),
            "peer sent a bad control message: malformed message: failed to decode Protobuf \
             message: invalid varint",
        ),
        (oversized(), OVERSIZED),
    ];
    for (bytes, problem) in cases {
        let mut session = stage.session().await?;

        session.send_bytes(&bytes).await?;

        let end = SessionEnd::new(EndCode::Protocol, problem);
        assert_eq!(session.next().await?, ControlMessage::End(end));
        let refused = stage.trouble("session refused")?;
        assert_eq!(refused.text("node"), Some(&*stage.rogue()));
        assert_eq!(
            refused.text("error"),
            Some(&*format!(
                "session ended before the agent had registered: session failed: {problem}"
            ))
        );
        session.ends().await?;
    }
    stage.nobody_noticed().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_message_in_place_of_the_registration_is_refused() -> Result<()> {
    let mut stage = Stage::new().await?;
    let mut session = stage.session().await?;

    session.send(&drain()).await?;

    let refused = stage.trouble("session refused")?;
    let reason = "agent sent `Drain` before it registered";
    assert_eq!(refused.text("node"), Some(&*stage.rogue()));
    assert_eq!(refused.text("error"), Some(reason));
    session.ends().await?;
    stage.nobody_noticed().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_does_not_register_is_disconnected_in_time() -> Result<()> {
    let mut stage = Stage::new().await?;
    // The multiplexer tells of a stream with its first byte: this is none yet.
    let streamless = stage.session().await?;
    let mut halting = stage.session().await?;
    halting.send_bytes(&[0, 0]).await?;

    let refused = stage.trouble("connection refused")?;
    assert_eq!(
        refused.text("error"),
        Some("no registration: agent did not register within 5 s")
    );
    let refused = stage.trouble("session refused")?;
    assert_eq!(
        refused.text("error"),
        Some("agent did not register within 5 s")
    );
    streamless.ends().await?;
    halting.ends().await?;
    stage.nobody_noticed().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_newer_agent_might_say_is_ignored() -> Result<()> {
    let mut stage = Stage::new().await?;
    let mut session = stage.session().await?;
    session
        .send_bytes(&messages::message_of_the_future()?)
        .await?;
    session.register(&stage.rogue()).await?;

    session
        .send_bytes(&messages::message_of_the_future()?)
        .await?;
    // One that only masters send.
    session
        .send(&ControlMessage::Registered(messages::registered()))
        .await?;
    session.send(&messages::register(&stage.rogue())?).await?;

    assert_answers_pings(&mut session).await?;
    let master = stage.cluster.master(0);
    assert_eq!(
        with_message(master, "unknown control message ignored").len(),
        2
    );
    assert_eq!(master.count_lines("\"message ignored\""), 2);
    stage.nobody_noticed().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registered_agent_that_breaks_the_protocol_loses_its_session_only() -> Result<()> {
    let mut stage = Stage::new().await?;
    let garbage = encode_frame(b"\xff\xff\xff\xff")?.to_vec();
    let cases = [
        (oversized(), OVERSIZED),
        (
            garbage,
            "peer sent a bad control message: malformed message: failed to decode Protobuf \
             message: invalid varint",
        ),
    ];
    for (bytes, problem) in cases {
        let mut session = stage.session().await?;
        session.register(&stage.rogue()).await?;

        session.send_bytes(&bytes).await?;

        let end = SessionEnd::new(EndCode::Protocol, problem);
        assert_eq!(session.next().await?, ControlMessage::End(end));
        let lost = stage.trouble("session lost")?;
        assert_eq!(lost.text("node"), Some(&*stage.rogue()));
        assert_eq!(
            lost.text("reason"),
            Some(&*format!("session failed: {problem}"))
        );
        session.ends().await?;
    }
    stage.nobody_noticed().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_control_stream_that_ends_ends_the_session() -> Result<()> {
    let mut stage = Stage::new().await?;
    let cases: [(&[u8], &str); 2] = [
        (&[], "session failed: peer closed the control stream"),
        (
            &[0, 0, 0, 100, 1, 2, 3],
            "session failed: control stream failed: stream was cut off without an end mark",
        ),
    ];
    for (bytes, reason) in cases {
        let mut session = stage.session().await?;
        session.register(&stage.rogue()).await?;

        session.send_bytes(bytes).await?;
        let RogueSession { control, mux, .. } = &mut session;
        std::mem::replace(control, mux.open().await?).finish();

        let lost = stage.trouble("session lost")?;
        assert_eq!(lost.text("node"), Some(&*stage.rogue()));
        assert_eq!(lost.text("reason"), Some(reason));
        session.ends().await?;
    }
    stage.nobody_noticed().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_an_agent_opens_ends_its_session_with_the_reason() -> Result<()> {
    let mut stage = Stage::new().await?;
    let mut session = stage.session().await?;
    session.register(&stage.rogue()).await?;

    let mut second = session.mux.open().await?;
    within(
        SOON,
        "send",
        second.send(&messages::open_request("10.0.10.10:10250")?),
    )
    .await?;

    let reason = "agent opened a stream, expected the control stream only";
    let end = SessionEnd::new(EndCode::Protocol, reason);
    assert_eq!(session.next().await?, ControlMessage::End(end));
    let ended = stage.event(|event| event.message == "session ended")?;
    assert_eq!(ended.text("node"), Some(&*stage.rogue()));
    assert_eq!(ended.text("reason"), Some(reason));
    session.ends().await?;
    assert_eq!(stage.cluster.kubelet(0).stats().handshakes_failed, 0);
    stage.nobody_noticed().await
}

/// The control stream is read and written in both directions.
async fn assert_answers_pings(session: &mut RogueSession) -> Result<()> {
    session.send(&ControlMessage::Ping(77)).await?;
    let answered = async {
        loop {
            let content = session.control.receive().await?.context("the end")?;
            if ControlMessage::decode(&content)? == ControlMessage::Pong(77) {
                return anyhow::Ok(());
            }
        }
    };
    within(SOON, "a pong", answered).await
}

fn drain() -> ControlMessage {
    ControlMessage::Drain(Drain {
        deadline: Duration::from_secs(1),
        reason: "just so".to_owned(),
        takes_new: false,
    })
}

/// A message that is one byte too long, and has begun.
fn oversized() -> Vec<u8> {
    let len = u32::try_from(MAX_FRAME_LEN + 1).expect("64 KiB");
    let mut bytes = len.to_be_bytes().to_vec();
    bytes.extend(iter::repeat_n(0, 1000));
    bytes
}

const OVERSIZED: &str = "control stream failed: peer broke the stream's framing: message of 65537 \
                         bytes, expected at most 65536";
