//! By which path a request is opened when flows answer, refuse, fail or are silent.

use proxymux_transport::telemetry::Path;

use super::*;
use crate::{
    flows::{Why, direct::Met},
    front_door::{Gateway as _, Refusal, Status},
    gateway::{Gateway, Tunnel},
    testing::target,
};

const TARGET: &str = "10.0.10.10:10250";

/// What a request got, and after how long.
struct Answered {
    result: Result<(Path, Option<Why>), Refusal>,
    after: Duration,
    _tunnel: Option<Tunnel>,
}

async fn ask(stage: &Stage, at: &str) -> Answered {
    let gateway = Gateway::new(Arc::clone(&stage.master));
    let target = target(at);
    let began = Instant::now();
    let opened = gateway.open(&target, Duration::from_secs(8)).await;
    let after = began.elapsed();
    match opened {
        Ok(tunnel) => Answered {
            result: Ok(tunnel.path()),
            after,
            _tunnel: Some(tunnel),
        },
        Err(refusal) => Answered {
            result: Err(refusal),
            after,
            _tunnel: None,
        },
    }
}

/// Hears the open request of a flow and answers so.
async fn answer(mut flow: FlowConnection, with: FlowMessage) -> FlowConnection {
    let open = tokio::time::timeout(SOON, flow.hear()).await.unwrap();
    assert!(
        matches!(open, Ok(FlowMessage::Open(FlowOpen::Target(_)))),
        "{open:?}"
    );
    flow.say(&with).await.unwrap();
    flow
}

fn refusing(code: RefuseCode) -> FlowMessage {
    FlowMessage::Refused {
        code,
        message: "the agent's own words".to_owned(),
    }
}

fn opens(stage: &Stage, result: &'static str) -> u64 {
    let opens = &stage.master.metrics.flows.opens;
    opens.get_pair(["reverse", result]).get() + opens.get_pair(["direct", result]).get()
}

#[tokio::test]
async fn a_flow_that_is_ready_is_used_and_needs_no_stream() {
    let stage = Stage::with("").await;
    let flow = stage.idle().await;

    let (answered, _flow) = tokio::join!(ask(&stage, TARGET), answer(flow, FlowMessage::Opened));

    let expected = (Path::Reverse, Some(Why::NoAddress));
    assert_eq!(answered.result.unwrap(), expected);
    assert_eq!(stage.flows().node.len(), 1);
    assert_eq!(opens(&stage, "opened"), 1);
}

#[tokio::test]
async fn without_a_flow_the_session_is_used_at_once() {
    let stage = Stage::with("").await;
    let answered = ask(&stage, TARGET).await;
    assert_eq!(answered.result.unwrap(), (Path::Session, Some(Why::NoFlow)));
    assert_eq!(stage.flows().node.len(), 0);
}

#[tokio::test]
async fn only_the_kubelet_is_reached_by_flows() {
    let stage = Stage::with("").await;
    let idle = stage.idle().await;
    for other in ["10.0.10.10:10255", "10.0.10.10:443"] {
        let answered = ask(&stage, other).await;
        let expected = (Path::Session, Some(Why::NotKubelet));
        assert_eq!(answered.result.unwrap(), expected);
    }
    assert!(idle.is_quiet());
}

#[tokio::test]
async fn an_agent_without_flows_is_asked_by_its_session() {
    let unwilling = registration(NODE, 1);
    let stage = Stage::of("", &unwilling, OpenAnswer::Opened).await;
    let answered = ask(&stage, TARGET).await;
    assert_eq!(
        answered.result.unwrap(),
        (Path::Session, Some(Why::AgentOff))
    );
}

#[tokio::test]
async fn a_kubelet_that_cannot_be_reached_is_the_answer() {
    for (code, status) in [
        (RefuseCode::Unreachable, Status::BadGateway),
        (RefuseCode::TimedOut, Status::GatewayTimeout),
    ] {
        let stage = Stage::with("").await;
        let flow = stage.idle().await;

        let (answered, _flow) = tokio::join!(ask(&stage, TARGET), answer(flow, refusing(code)));

        let refusal = answered.result.unwrap_err();
        assert_eq!(refusal.status, status);
        assert_eq!(refusal.reason, "the agent's own words");
        assert_eq!(opens(&stage, "refused"), 1);
    }
}

#[tokio::test]
async fn an_agent_that_does_not_want_the_flow_is_asked_by_its_session() {
    for code in [
        RefuseCode::Busy,
        RefuseCode::Draining,
        RefuseCode::NotAllowed,
        RefuseCode::BadRequest,
        RefuseCode::Other(77),
    ] {
        let stage = Stage::with("").await;
        let flow = stage.idle().await;

        let (answered, _flow) = tokio::join!(ask(&stage, TARGET), answer(flow, refusing(code)));

        assert_eq!(
            answered.result.unwrap(),
            (Path::Session, Some(Why::Refused)),
            "{code:?}"
        );
    }
}

#[tokio::test]
async fn a_flow_that_fails_is_followed_by_the_session_at_once() {
    let stage = Stage::with("").await;
    let mut flow = stage.idle().await;
    let failing = async {
        let _ = flow.hear().await;
        drop(flow);
    };

    let (answered, ()) = tokio::join!(ask(&stage, TARGET), failing);

    assert_eq!(answered.result.unwrap(), (Path::Session, Some(Why::Failed)));
    assert_eq!(opens(&stage, "failed"), 1);
    assert_eq!(stage.flows().node.len(), 0);
}

#[tokio::test]
async fn a_silent_flow_is_overtaken_by_the_session_after_its_head_start() {
    for (rtt, least) in [(1, 250), (200, 600)] {
        let stage = Stage::with("").await;
        let about = &stage.session.handle.about;
        about.round_trip(Duration::from_millis(rtt));
        let mut flow = stage.idle().await;

        let answered = ask(&stage, TARGET).await;

        assert_eq!(answered.result.unwrap(), (Path::Session, Some(Why::Slow)));
        assert!(answered.after >= Duration::from_millis(least));
        // The open request, and then the end: the agent stops dialling.
        assert!(flow.hear().await.is_ok());
        assert!(flow.hear().await.is_err());
        assert_eq!(opens(&stage, "given-up"), 1);
    }
}

#[tokio::test]
async fn a_slow_flow_wins_over_a_session_that_is_slower() {
    let mut session_is_silent = Stage::of("", &with_flows(1, None), OpenAnswer::Dialing).await;
    let flow = session_is_silent.idle().await;
    let slow = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        answer(flow, FlowMessage::Opened).await
    };

    let (answered, _flow) = tokio::join!(ask(&session_is_silent, TARGET), slow);

    assert_eq!(answered.result.unwrap().0, Path::Reverse);
    session_is_silent.session.break_off().await;
}

#[tokio::test]
async fn a_session_that_is_full_does_not_take_the_answer_from_a_slow_flow() {
    let busy = OpenAnswer::Refused {
        code: RefuseCode::Busy,
        message: "no room".to_owned(),
    };
    let stage = Stage::of("", &with_flows(1, None), busy).await;
    let flow = stage.idle().await;
    let slow = async {
        tokio::time::sleep(Duration::from_millis(600)).await;
        answer(flow, FlowMessage::Opened).await
    };

    let (answered, _flow) = tokio::join!(ask(&stage, TARGET), slow);

    assert_eq!(answered.result.unwrap().0, Path::Reverse);
}

#[tokio::test]
async fn a_node_with_as_many_flows_as_it_may_have_is_asked_by_its_session() {
    let stage = Stage::with("max-flows-per-node: 1\n").await;
    let (first, _second) = (stage.idle().await, stage.idle().await);
    // The newest is handed out first.
    drop(first);
    let _held = stage.flows().node.enter().unwrap();

    let answered = ask(&stage, TARGET).await;

    assert_eq!(answered.result.unwrap(), (Path::Session, Some(Why::Limit)));
}

#[tokio::test]
async fn a_client_that_leaves_takes_its_flow_with_it() {
    let stage = Stage::with("").await;
    let mut flow = stage.idle().await;

    let asked = tokio::time::timeout(Duration::from_millis(100), ask(&stage, TARGET)).await;

    assert!(asked.is_err());
    assert!(flow.hear().await.is_ok());
    assert!(flow.hear().await.is_err());
    eventually(|| stage.flows().node.len() == 0).await;
}

/// A stage whose direct path was proven a moment ago, and where its node is dialled.
async fn proven() -> (Stage, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let stage = Stage::of("", &with_flows(1, Some(at)), OpenAnswer::Opened).await;
    stage.flows().steering(SteeringStatus {
        stands: true,
        reason: String::new(),
    });
    stage.flows().direct.met(Met::Agent);
    (stage, listener)
}

#[tokio::test]
async fn a_node_that_was_found_is_dialled_also_when_a_flow_is_ready() {
    let (stage, listener) = proven().await;
    let idle = stage.idle().await;
    let port = listener.local_addr().unwrap().port();
    let agent = async {
        let (connection, _) = listener.accept().await.unwrap();
        let accepted = FlowConnection::accept(connection, &[], &stage.table, FlowDirection::Direct);
        let (mut flow, ()) = accepted.await.unwrap();
        let open = flow.hear().await.unwrap();
        assert!(matches!(open, FlowMessage::Open(FlowOpen::Target(_))));
        flow.say(&FlowMessage::Accepted).await.unwrap();
        flow.say(&FlowMessage::Opened).await.unwrap();
        flow
    };

    let at = format!("10.0.10.10:{port}");
    let (answered, _flow) = tokio::join!(ask(&stage, &at), agent);

    assert_eq!(answered.result.unwrap(), (Path::Direct, None));
    assert!(idle.is_quiet());
    assert!(stage.flows().direct.way().is_ok());
}

#[tokio::test]
async fn a_direct_path_that_fails_is_not_tried_again_before_a_probe() {
    let (stage, listener) = proven().await;
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let at = format!("10.0.10.10:{port}");

    let answered = ask(&stage, &at).await;

    assert_eq!(answered.result.unwrap(), (Path::Session, Some(Why::Failed)));
    assert_eq!(stage.flows().direct.way(), Err(Why::Unproven));
    let flow = stage.idle().await;
    let (answered, _flow) = tokio::join!(ask(&stage, &at), answer(flow, FlowMessage::Opened));
    let expected = (Path::Reverse, Some(Why::Unproven));
    assert_eq!(answered.result.unwrap(), expected);
}

#[tokio::test]
async fn a_node_that_stopped_answering_is_not_dialled_for_the_next_request() {
    // Connections are made, as the kernel of a stopped process does, and nothing is said.
    let (stage, listener) = proven().await;
    let at = format!("10.0.10.10:{}", listener.local_addr().unwrap().port());

    let answered = ask(&stage, &at).await;

    assert_eq!(answered.result.unwrap(), (Path::Session, Some(Why::Slow)));
    assert_eq!(stage.flows().direct.way(), Err(Why::Unproven));
}
