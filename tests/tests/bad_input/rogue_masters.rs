//! A master with a good certificate that does not keep to the protocol.
//!
//! The agent must say what was wrong, to the master where it can still hear it, and end what is
//! concerned only: a stream, or that session. It always has a session with a healthy master
//! besides, whose user must not notice.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use proxymux_proto::{
    AbortCode, ControlMessage, Drain, EndCode, FLOW_HELLO_LEN, MAX_FLOW_POOL, OpenAnswer,
    RefuseCode, Registered, SessionEnd, encode_frame,
};
use proxymux_testkit::{cluster::Cluster, pki::CertFiles, process::LogEvent};
use proxymux_tests::{
    access::access_line_with,
    bystander::Bystander,
    events::wait_for,
    limits::{SOON, within},
    rogue::{RogueHost, RogueSession, accept, messages},
};
use proxymux_transport::stream::MessageStream;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    time::timeout,
};

use crate::stage::second_master;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_answer_to_the_registration_is_told_with_what_is_wrong() -> Result<()> {
    let mut stage = RogueMaster::new().await?;
    let mut newer = messages::registered();
    newer.version = 9;
    let mut limitless = messages::registered();
    limitless.max_streams = 0;
    let before = "session ended before it was accepted: session failed: ";
    let cases = [
        (
            ControlMessage::Registered(newer).encode()?.to_vec(),
            "master speaks version 9 of the protocol, this agent 1".to_owned(),
        ),
        (
            drain().encode()?.to_vec(),
            "master sent `Drain` before it answered the registration".to_owned(),
        ),
        (
            ControlMessage::Registered(limitless).encode()?.to_vec(),
            format!(
                "{before}peer sent a bad control message: message `Registered` has no `max_streams`"
            ),
        ),
        (
            encode_frame(b"\xff\xff\xff\xff")?.to_vec(),
            format!("{before}{GARBAGE}"),
        ),
        (
            (MAX_FRAME_LEN_PLUS_ONE).to_be_bytes().to_vec(),
            format!("{before}{OVERSIZED}"),
        ),
    ];
    for (answer, error) in cases {
        let mut session = stage.registering_agent().await?;

        session.send_bytes(&answer).await?;

        let failed = stage.agent_logs("no session", |event| event.text("error"), &error)?;
        assert_eq!(failed.level, "WARN", "{failed:?}");
        if let Some((_, problem)) = error.split_once("session failed: ") {
            let end = SessionEnd::new(EndCode::Protocol, problem);
            assert_eq!(session.next().await?, ControlMessage::End(end));
        }
        session.ends().await?;
    }
    stage.bystander.is_served().await
}

/// As many as the protocol has, of which it resets some, answers some without a proof, and says
/// nothing to the rest.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flows_that_a_master_wants_and_does_not_take_harm_nobody() -> Result<()> {
    let mut stage = RogueMaster::new().await?;
    let mut session = stage.registering_agent().await?;
    let wanting = Registered {
        flow_pool: MAX_FLOW_POOL,
        ..messages::registered()
    };
    session.send(&ControlMessage::Registered(wanting)).await?;

    let mut kept = Vec::new();
    for number in 0..MAX_FLOW_POOL {
        let (mut flow, _) = within(SOON, "a flow", stage.listener.accept()).await?;
        let mut hello = [0; FLOW_HELLO_LEN];
        within(SOON, "a hello", flow.read_exact(&mut hello)).await?;
        match number % 3 {
            0 => continue,
            1 => flow.write_all(&ACCEPTED_WITHOUT_PROOF).await?,
            _ => {}
        }
        kept.push(flow);
    }

    let rogue = stage.cluster.master_addr(1);
    let complaint = stage.agent_event(|event| {
        event.message.starts_with("no flow to the master") && event.text("master") == Some(&*rogue)
    })?;
    assert_eq!(complaint.level, "WARN", "{complaint:?}");
    // From now on there is a pause before the next one, which goes alone.
    let more = timeout(Duration::from_millis(100), async {
        stage.listener.accept().await?;
        anyhow::Ok(stage.listener.accept().await?)
    });
    assert!(more.await.is_err(), "two more at once");
    drop(open_to_kubelet(&session).await?);
    stage.bystander.is_served().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_does_not_answer_is_given_up_in_time() -> Result<()> {
    let mut stage = RogueMaster::new().await?;
    let session = stage.registering_agent().await?;

    let error = "master did not answer the registration within 10 s";
    stage.agent_logs("no session", |event| event.text("error"), error)?;

    session.ends().await?;
    stage.bystander.is_served().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_for_a_reason_of_the_future_is_told_as_it_is() -> Result<()> {
    let mut stage = RogueMaster::new().await?;
    let mut session = stage.registering_agent().await?;

    let end = SessionEnd::new(EndCode::Other(99), "not on a\r\nSunday\x1b[2J");
    session.send(&ControlMessage::End(end)).await?;

    let reason = "not on a??Sunday?[2J";
    let refused = stage.agent_logs("registration refused", |event| event.text("reason"), reason)?;
    assert_eq!(
        (refused.level.as_str(), refused.text("code")),
        ("ERROR", Some("other"))
    );
    session.ends().await?;
    stage.bystander.is_served().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_breaks_the_protocol_loses_that_session_only() -> Result<()> {
    let mut stage = RogueMaster::new().await?;
    let cases = [
        (encode_frame(b"\xff\xff\xff\xff")?.to_vec(), GARBAGE),
        ((MAX_FRAME_LEN_PLUS_ONE).to_be_bytes().to_vec(), OVERSIZED),
    ];
    for (bytes, problem) in cases {
        let mut session = stage.registered_agent().await?;
        let relayed = open_to_kubelet(&session).await?;

        session.send_bytes(&bytes).await?;

        let end = SessionEnd::new(EndCode::Protocol, problem);
        assert_eq!(session.next().await?, ControlMessage::End(end));
        let reason = format!("session failed: {problem}");
        let lost = stage.agent_logs("session lost", |event| event.text("reason"), &reason)?;
        assert_eq!(lost.level, "WARN");
        session.ends().await?;
        drop(relayed);
    }
    stage.bystander.is_served().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_newer_master_might_say_is_ignored() -> Result<()> {
    let mut stage = RogueMaster::new().await?;
    let mut session = stage.registering_agent().await?;
    session
        .send_bytes(&messages::message_of_the_future()?)
        .await?;
    session
        .send(&ControlMessage::Registered(messages::registered()))
        .await?;

    session
        .send_bytes(&messages::message_of_the_future()?)
        .await?;
    // One that only agents send, and one about a stream that never was.
    session.send(&messages::register("somebody")?).await?;
    let code = AbortCode::Other(200);
    session
        .send(&ControlMessage::Abort { stream: 4242, code })
        .await?;

    drop(open_to_kubelet(&session).await?);
    stage
        .cluster
        .agent(0)
        .wait_for_line("\"message ignored\"", SOON)?;
    assert!(!session.is_over());
    stage.bystander.is_served().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_without_a_request_are_closed_in_time_and_others_go_on() -> Result<()> {
    let mut stage = RogueMaster::new().await?;
    let session = stage.registered_agent().await?;
    let mut relayed = open_to_kubelet(&session).await?;
    let mut silent = Vec::new();
    for _ in 0..SILENT_STREAMS {
        let mut stream = session.mux.open().await?;
        // Half of a length: the agent has to be told of the stream by something.
        within(SOON, "send", stream.send(&[0, 0])).await?;
        silent.push(stream);
    }

    for mut stream in silent {
        let received = timeout(SOON, stream.receive())
            .await
            .context("the stream stays")?;
        // Its end is all that it is told here; the reason is in the agent's log.
        assert!(!matches!(received, Ok(Some(_))), "{received:?}");
    }

    let error = "master sent no request within 5 s";
    let line = stage.refused_stream(error).await?;
    assert_eq!(line.text("reason"), Some("bad-request"));
    assert!(!session.is_over());
    assert!(
        timeout(Duration::ZERO, relayed.given_up()).await.is_err(),
        "the relayed stream is still there"
    );
    drop(open_to_kubelet(&session).await?);
    stage.bystander.is_served().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_request_is_refused_with_what_is_wrong_and_others_go_on() -> Result<()> {
    let mut stage = RogueMaster::new().await?;
    let mut session = stage.registered_agent().await?;
    let cases = [
        (
            encode_frame(b"")?.to_vec(),
            "master sent a bad request: message `OpenRequest` has no `target`",
        ),
        (
            encode_frame(b"\x0a\x0710.0.10.10:10250")?.to_vec(),
            "master sent a bad request: malformed message: failed to decode Protobuf message: \
             invalid wire type value: 6",
        ),
        (
            encode_frame(b"\x0a\x04node\x10\x01")?.to_vec(),
            "master sent a bad request: message `OpenRequest`: `target`: \"node\": target has \
             no port, expected host:port",
        ),
        (
            encode_frame(b"\x0a\x1010.0.10.10:10250")?.to_vec(),
            "master sent a bad request: message `OpenRequest` has no `budget_ms`",
        ),
        (
            MAX_FRAME_LEN_PLUS_ONE.to_be_bytes().to_vec(),
            "master sent a bad request: message of 65537 bytes, expected at most 65536",
        ),
    ];
    for (request, problem) in cases {
        let mut stream = session.mux.open().await?;

        within(SOON, "send", stream.send(&request)).await?;

        let answer = within(SOON, "an answer", stream.receive())
            .await?
            .context("the end")?;
        let refused = OpenAnswer::Refused {
            code: RefuseCode::BadRequest,
            message: problem.to_owned(),
        };
        assert_eq!(OpenAnswer::decode(&answer)?, refused);
        let line = stage.refused_stream(problem).await?;
        assert_eq!(line.text("reason"), Some("bad-request"));
    }

    // Given up in the middle: there is nobody to answer.
    let mut halting = session.mux.open().await?;
    within(SOON, "send", halting.send(&[0, 0, 0, 10, 1])).await?;
    let (stream, code) = (halting.id(), AbortCode::Cancelled);
    session
        .send(&ControlMessage::Abort { stream, code })
        .await?;
    let problem = "master ended the stream before its request was complete: peer aborted the \
                   stream: cancelled";
    stage.refused_stream(problem).await?;

    drop(open_to_kubelet(&session).await?);
    assert!(!session.is_over());
    stage.bystander.is_served().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_in_place_of_frames_ends_that_session_only() -> Result<()> {
    let mut stage = RogueMaster::new().await?;
    let mut stream = stage.accept().await?;

    stream.write_all(&[b'x'; 4096]).await?;

    let event = stage.agent_event(|event| event.message == "no session")?;
    let error = event.text("error").context("an error")?;
    let begins = "session ended before it was accepted: session ended: peer broke the \
                  multiplexer's protocol: ";
    assert!(
        error.starts_with(begins) && error.ends_with("unknown version: 120"),
        "{error}"
    );
    stage.bystander.is_served().await
}

/// One node that has two masters in its configuration: a healthy one, and the test.
struct RogueMaster {
    cluster: Cluster,
    bystander: Bystander,
    host: RogueHost,
    listener: TcpListener,
    identity: CertFiles,
    /// How many lines of the agent's log have been dealt with.
    mark: usize,
}

impl RogueMaster {
    async fn new() -> Result<Self> {
        let mut cluster = Cluster::builder().masters(2).build()?;
        let host = RogueHost::on(&cluster, second_master(&cluster)?)?;
        let listener = host.listen(cluster.master_addr(1).parse()?).await?;
        cluster.start_master(0)?;
        cluster.start_agent(0)?;
        let healthy = cluster.master_addr(0);
        let is_up = |line: &str| line.contains("session up") && line.contains(&healthy);
        cluster.agent(0).wait_for_line(is_up, SOON)?;
        let bystander = Bystander::of_node(&mut cluster, 0).await?;
        let dir = cluster.dir().join("master");
        Ok(Self {
            bystander,
            host,
            listener,
            identity: CertFiles {
                cert: dir.join("master.crt"),
                key: dir.join("master.key"),
            },
            mark: 0,
            cluster,
        })
    }

    async fn accept(&self) -> Result<tokio_rustls::server::TlsStream<tokio::net::TcpStream>> {
        accept(&self.listener, self.host.master_config(&self.identity)?).await
    }

    /// The agent's next session, whose registration has come and was not answered.
    async fn registering_agent(&self) -> Result<RogueSession> {
        let mut session = RogueSession::as_master(self.accept().await?).await?;
        match session.next().await? {
            ControlMessage::Register(registration) => {
                assert_eq!(registration.node.as_str(), self.cluster.node_name(0));
            }
            other => bail!("the agent begins with {other:?}"),
        }
        Ok(session)
    }

    async fn registered_agent(&mut self) -> Result<RogueSession> {
        let mut session = self.registering_agent().await?;
        session
            .send(&ControlMessage::Registered(messages::registered()))
            .await?;
        let rogue = self.cluster.master_addr(1);
        self.agent_event(|event| {
            event.message == "session up" && event.text("master") == Some(&*rogue)
        })?;
        Ok(session)
    }

    /// Waits for the agent to say `expected` in a field of such an event about this master.
    fn agent_logs(
        &mut self,
        message: &str,
        field: impl Fn(&LogEvent) -> Option<&str>,
        expected: &str,
    ) -> Result<LogEvent> {
        let rogue = self.cluster.master_addr(1);
        let event = self.agent_event(|event| {
            event.message == message && event.text("master") == Some(&*rogue)
        })?;
        assert_eq!(field(&event), Some(expected), "{event:?}");
        Ok(event)
    }

    fn agent_event(&mut self, wanted: impl Fn(&LogEvent) -> bool) -> Result<LogEvent> {
        let agent = self.cluster.agent(0);
        let is_wanted = |line: &str| LogEvent::parse(line).is_some_and(|event| wanted(&event));
        let event = wait_for(agent, self.mark, SOON, &wanted)?;
        let lines = agent.lines();
        let at = lines
            .iter()
            .skip(self.mark)
            .position(|line| is_wanted(line));
        self.mark += at.context("it was there a moment ago")? + 1;
        Ok(event)
    }

    /// The line in the agent's access log about a stream that was refused with this error.
    async fn refused_stream(&mut self, error: &str) -> Result<LogEvent> {
        let rogue = self.cluster.master_addr(1);
        access_line_with(self.cluster.agent(0), |line| {
            line.message == "connection refused"
                && line.text("error") == Some(error)
                && line.text("peer.addr") == Some(&*rogue)
        })
        .await
    }
}

/// A proper stream, up to the point where the kubelet is connected.
async fn open_to_kubelet(session: &RogueSession) -> Result<MessageStream> {
    let mut stream = session.mux.open().await?;
    let request = messages::open_request("10.0.10.10:10250")?;
    within(SOON, "send a request", stream.send(&request)).await?;
    for expected in [OpenAnswer::Dialing, OpenAnswer::Opened] {
        let answer = within(SOON, "an answer", stream.receive())
            .await?
            .context("the end")?;
        assert_eq!(OpenAnswer::decode(&answer)?, expected);
    }
    Ok(stream)
}

fn drain() -> ControlMessage {
    ControlMessage::Drain(Drain {
        deadline: Duration::from_secs(1),
        reason: "just so".to_owned(),
        takes_new: false,
    })
}

/// Many more than the agent has threads, and than a master would ever have pending.
const SILENT_STREAMS: usize = 200;

/// Its header, and nothing where the proof should be.
const ACCEPTED_WITHOUT_PROOF: [u8; 36] = {
    let mut answer = [0; 36];
    answer[0] = 1;
    answer
};

const MAX_FRAME_LEN_PLUS_ONE: u32 = 64 * 1024 + 1;

const OVERSIZED: &str = "control stream failed: peer broke the stream's framing: message of 65537 \
                         bytes, expected at most 65536";

const GARBAGE: &str = "peer sent a bad control message: malformed message: failed to decode \
                       Protobuf message: invalid varint";
