//! The life of a session, with an agent played by the test: registration, being superseded, and
//! drains. A stream is played by a token of the session's relays; the clock is paused.

use proxymux_proto::{AbortCode, Drain, FlowAbort, FlowDirection, SteeringStatus};
use proxymux_testkit::pki::{Leaf, Validity};
use tokio::time::sleep;

use super::*;
use crate::{
    flows::Why,
    registry::Found,
    testing::{Agent, LOCAL, NODE, master, registration, run_id, target},
};

/// The session that takes the node's new streams.
fn current(master: &Master) -> Arc<SessionHandle> {
    match master.registry.find(&target("10.0.10.10:10250")) {
        Found::Session(session) => session,
        other => panic!("{other:?}"),
    }
}

fn end(message: ControlMessage) -> SessionEnd {
    match message {
        ControlMessage::End(end) => end,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn who_may_not_register_is_told_why() {
    let master = master("cluster-id: cluster-a\n");
    let _there = Agent::admitted(&master, "worker-7", 7).await;
    let good = registration(NODE, 1);
    let mut of_another_version = good.clone();
    of_another_version.version = 99;
    let mut of_another_cluster = good.clone();
    of_another_cluster.cluster_id = Some("cluster-b".to_owned());
    let mut connected = registration("worker-7", 7);
    connected.held_masters = vec![master.id];
    let cases = [
        (NODE, of_another_version, EndCode::Version),
        (NODE, of_another_cluster, EndCode::Cluster),
        ("worker-2", good, EndCode::Identity),
        ("worker-7", connected, EndCode::AlreadyConnected),
    ];

    for (certified, registration, code) in cases {
        let mut agent = Agent::connect(&master, certified, registration).await;
        assert_eq!(end(agent.message().await).code, code);
        agent.over().await;
    }
    for refused in ["10.0.10.10:10250", "worker-2:10250"] {
        let found = master.registry.find(&target(refused));
        assert!(matches!(found, Found::Unknown), "{found:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_agent_is_told_from_where_its_node_is_dialled() {
    let configured = ["198.51.100.1", "2001:db8::1"].map(|ip| ip.parse().unwrap());
    let cases = [
        ("", &[LOCAL][..]),
        ("dials-from: [ 198.51.100.1, '2001:db8::1' ]\n", &configured),
    ];
    for (lines, expected) in cases {
        let master = master(lines);

        let mut agent = Agent::connect(&master, NODE, registration(NODE, 1)).await;

        let ControlMessage::Registered(registered) = agent.message().await else {
            panic!("not let in");
        };
        assert_eq!(registered.dial_sources, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn an_agent_is_let_in_that_believes_in_a_session_which_is_gone() {
    let master = master("");
    let mut registration = registration(NODE, 1);
    registration.held_masters = vec![master.id];

    let mut agent = Agent::connect(&master, NODE, registration).await;

    assert!(matches!(
        agent.message().await,
        ControlMessage::Registered(_)
    ));
}

#[tokio::test(start_paused = true)]
async fn a_live_session_of_another_run_is_told_at_once_and_stays_for_its_streams() {
    let master = master("");
    let mut older = Agent::admitted(&master, NODE, 1).await;
    let session = current(&master);
    let stream = session.relays.token();

    let mut newer = Agent::admitted(&master, NODE, 2).await;

    let told = end(older.message().await);
    assert_eq!(told.code, EndCode::Superseded);
    assert_eq!(told.retry_after, Some(EVICTED_STAY_AWAY));
    assert_eq!(
        told.message,
        "superseded by a session from 192.0.2.2:40000, this one is from 192.0.2.1:40000"
    );
    // As long as it takes, here longer than any deadline.
    let hour = Duration::from_secs(3600);
    tokio::join!(older.idle(hour), newer.idle(hour));
    assert_eq!(current(&master).instance, run_id(2));

    drop(stream);
    tokio::select! {
        over = older.over() => assert!(matches!(over, SessionOver::Fault(SessionFault::Closed))),
        () = newer.idle(hour) => panic!("the older session does not end"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_that_its_own_run_replaces_is_told_when_its_streams_have_ended() {
    let master = master("");
    let mut older = Agent::admitted(&master, NODE, 1).await;
    let stream = current(&master).relays.token();

    let mut newer = Agent::admitted(&master, NODE, 1).await;

    let hour = Duration::from_secs(3600);
    tokio::join!(older.idle(hour), newer.idle(hour));
    drop(stream);
    let told = end(older.message().await);
    assert_eq!(
        (told.code, told.retry_after),
        (EndCode::AlreadyConnected, None)
    );
    older.over().await;
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_waits_for_a_successor_is_asked_until_there_is_one() {
    let master = master("");
    let mut older = Agent::admitted(&master, NODE, 1).await;
    let session = current(&master);
    let stream = session.relays.token();

    older
        .core
        .make_room(Duration::from_secs(30), "update")
        .unwrap();
    older.idle(Duration::from_secs(10)).await;
    let found = master.registry.find(&target("10.0.10.10:10250"));
    assert!(matches!(found, Found::Session(_)), "{found:?}");
    let mut newer = Agent::admitted(&master, NODE, 2).await;

    assert_eq!(current(&master).instance, run_id(2));
    let while_it_finishes = Duration::from_secs(20);
    tokio::join!(older.idle(while_it_finishes), newer.idle(while_it_finishes));
    drop(stream);
    let told = end(older.message().await);
    assert_eq!(
        (told.code, told.retry_after),
        (EndCode::AlreadyConnected, None)
    );
    // It was asked to go by nobody, and may come again.
    let back = Agent::admitted(&master, NODE, 1).await;
    assert_eq!(current(&master).instance, run_id(1));
    drop((back, newer));
}

#[tokio::test(start_paused = true)]
async fn a_superseded_session_that_does_not_answer_is_dropped_after_two_seconds() {
    let master = master("");
    // Nobody polls it from here on.
    let _older = Agent::admitted(&master, NODE, 1).await;
    let session = current(&master);
    let _stream = session.relays.token();

    let mut newer = Agent::admitted(&master, NODE, 2).await;

    newer.idle(PROBE_LIMIT - Duration::from_millis(100)).await;
    assert!(!session.mux.is_over());
    newer.idle(Duration::from_millis(200)).await;
    assert!(session.mux.is_over());
    assert_eq!(current(&master).instance, run_id(2));
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_drains_gets_no_more_streams_and_its_session_stays() {
    let master = master("");
    let mut agent = Agent::admitted(&master, NODE, 1).await;
    let session = current(&master);
    let _stream = session.relays.token();

    agent.core.drain(Duration::from_secs(30), "update").unwrap();
    agent.idle(Duration::from_secs(10)).await;

    let found = master.registry.find(&target("10.0.10.10:10250"));
    assert!(
        matches!(found, Found::Away { seen: Some(_), .. }),
        "{found:?}"
    );
    assert!(!session.mux.is_over());
}

#[tokio::test(start_paused = true)]
async fn when_the_master_ends_a_session_ends_with_its_last_stream() {
    let master = master("drain-deadline: 30s\n");
    let mut agent = Agent::admitted(&master, NODE, 1).await;
    let session = current(&master);
    let stream = session.relays.token();

    master.shutdown.drain.cancel();

    let asked = agent.message().await;
    let expected = Drain {
        deadline: Duration::from_secs(30),
        reason: "master is ending".to_owned(),
        takes_new: false,
    };
    assert_eq!(asked, ControlMessage::Drain(expected));
    agent.idle(Duration::from_secs(10)).await;
    drop(stream);
    assert_eq!(end(agent.message().await).code, EndCode::ShuttingDown);
    agent.over().await;
    assert!(!session.cut.is_cancelled());
}

#[tokio::test(start_paused = true)]
async fn a_drain_that_is_out_of_time_cuts_streams_off_and_then_ends_the_session() {
    let master = master("drain-deadline: 4s\n");
    let mut agent = Agent::admitted(&master, NODE, 1).await;
    let session = current(&master);
    let stream = session.relays.token();
    let began = Instant::now();
    master.shutdown.drain.cancel();
    agent.message().await;

    tokio::select! {
        () = session.cut.cancelled() => {}
        message = agent.message() => panic!("{message:?}"),
    }
    assert_eq!(began.elapsed().as_secs(), 4);
    // The relay has some time to tell the agent.
    tokio::select! {
        () = sleep(CUT_LIMIT / 2) => {}
        message = agent.message() => panic!("{message:?}"),
    }
    drop(stream);

    assert_eq!(end(agent.message().await).code, EndCode::ShuttingDown);
    assert_eq!(began.elapsed().as_secs(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_cannot_be_cut_off_does_not_keep_a_session_for_ever() {
    let master = master("drain-deadline: 4s\n");
    let mut agent = Agent::admitted(&master, NODE, 1).await;
    let session = current(&master);
    let _stuck = session.relays.token();
    let began = Instant::now();
    master.shutdown.drain.cancel();
    agent.message().await;

    assert_eq!(end(agent.message().await).code, EndCode::ShuttingDown);

    assert_eq!(began.elapsed(), Duration::from_secs(4) + CUT_LIMIT);
}

#[tokio::test(start_paused = true)]
async fn when_the_master_ends_a_superseded_session_has_a_deadline_too_and_is_told_no_more() {
    let master = master("drain-deadline: 4s\n");
    let mut older = Agent::admitted(&master, NODE, 1).await;
    let _stream = current(&master).relays.token();
    let _newer = Agent::admitted(&master, NODE, 2).await;
    assert_eq!(end(older.message().await).code, EndCode::Superseded);
    let began = Instant::now();

    master.shutdown.drain.cancel();

    older.over().await;
    assert_eq!(began.elapsed(), Duration::from_secs(4) + CUT_LIMIT);
}

#[tokio::test(start_paused = true)]
async fn whoever_comes_when_the_master_ends_is_sent_away() {
    let master = master("");
    master.shutdown.drain.cancel();
    let mut agent = Agent::connect(&master, NODE, registration(NODE, 1)).await;
    assert_eq!(end(agent.message().await).code, EndCode::ShuttingDown);
}

#[tokio::test(start_paused = true)]
async fn a_session_whose_agents_certificate_expires_takes_nothing_new_and_drains() {
    let master = master("drain-deadline: 30s");
    let leaf = Leaf::node_client(NODE).validity(Validity::Seconds(7200));
    let mut agent = Agent::connect_with(&master, NODE, registration(NODE, 1), &leaf).await;
    assert!(matches!(
        agent.message().await,
        ControlMessage::Registered(_)
    ));
    let session = current(&master);
    let _stream = session.relays.token();
    agent.idle(Duration::from_secs(7190)).await;

    let told = agent.message().await;

    let ControlMessage::Drain(drain) = told else {
        panic!("{told:?}");
    };
    assert!(drain.reason.contains("expired at"), "{}", drain.reason);
    assert_eq!(drain.deadline, Duration::from_secs(30));
    let found = master.registry.find(&target("10.0.10.10:10250"));
    assert!(!matches!(found, Found::Session(_)), "{found:?}");
    agent.idle(Duration::from_secs(29)).await;
    assert!(!session.cut.is_cancelled(), "its streams have their time");
    agent.message().await;
    assert!(session.cut.is_cancelled());
}

#[tokio::test(start_paused = true)]
async fn a_session_that_was_replaced_is_not_asked_for_its_certificate_any_more() {
    let master = master("");
    let leaf = Leaf::node_client(NODE).validity(Validity::Seconds(3600));
    let mut older = Agent::connect_with(&master, NODE, registration(NODE, 1), &leaf).await;
    assert!(matches!(
        older.message().await,
        ControlMessage::Registered(_)
    ));
    let _stream = current(&master).relays.token();

    let mut newer = Agent::admitted(&master, NODE, 1).await;

    let day = Duration::from_secs(24 * 3600);
    tokio::join!(older.idle(day), newer.idle(day));
}

/// What an agent says that uses flows.
fn with_flows(run: u8) -> Registration {
    Registration {
        fast_path: true,
        kubelet: Some("10.0.10.10:10250".parse().unwrap()),
        ..registration(NODE, run)
    }
}

const VERIFIED: &str = "kubelet-certificates: verified\n";

#[tokio::test(start_paused = true)]
async fn an_agent_is_asked_for_idle_flows_if_both_ends_use_them() {
    for (lines, registration, expected) in [
        (VERIFIED, with_flows(1), 4),
        (VERIFIED, registration(NODE, 1), 0),
        ("", with_flows(1), 0),
        (
            "kubelet-certificates: verified\nflow-pool: 7\n",
            with_flows(1),
            7,
        ),
    ] {
        let master = master(lines);
        let mut agent = Agent::connect(&master, NODE, registration).await;
        let ControlMessage::Registered(registered) = agent.message().await else {
            panic!("not let in");
        };
        assert_eq!(registered.flow_pool, expected, "{lines}");
        assert_eq!(current(&master).flows.is_some(), expected > 0);
    }
}

#[tokio::test(start_paused = true)]
async fn an_agent_is_told_when_more_flows_are_wanted_and_heard_about_its_steering() {
    let master = master(VERIFIED);
    let mut agent = Agent::connect(&master, NODE, with_flows(1)).await;
    agent.message().await;
    let session = current(&master);
    let flows = session.flows.as_ref().unwrap();
    assert_eq!(flows.direct.way(), Err(Why::NotSteered));

    session
        .commands
        .try_send(SessionCommand::FlowPool(8))
        .unwrap();
    assert_eq!(agent.message().await, ControlMessage::FlowPool(8));
    let steering = SteeringStatus {
        stands: true,
        reason: "ens3".to_owned(),
    };
    agent
        .core
        .send(&ControlMessage::Steering(steering))
        .unwrap();
    agent.idle(Duration::from_secs(1)).await;

    // Nobody has proven that the address is this node's: it is not even dialled.
    assert_eq!(flows.direct.way(), Err(Why::Unproven));
    assert_eq!(flows.direct.last().0, None);
}

#[tokio::test(start_paused = true)]
async fn what_an_agent_says_of_a_flow_is_counted() {
    let master = master(VERIFIED);
    let mut agent = Agent::connect(&master, NODE, with_flows(1)).await;
    agent.message().await;

    let abort = FlowAbort {
        direction: FlowDirection::Direct,
        counter: 3,
        code: AbortCode::NotTls,
    };
    agent.core.send(&ControlMessage::FlowAbort(abort)).unwrap();
    agent.idle(Duration::from_secs(1)).await;

    assert_eq!(master.metrics.flows.aborted.get("not-tls").get(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_drain_waits_for_the_flows_of_an_agents_last_session() {
    let master = master(VERIFIED);
    let mut agent = Agent::connect(&master, NODE, with_flows(1)).await;
    agent.message().await;
    let flow = current(&master).flows.as_ref().unwrap().node.enter();
    assert!(flow.is_some());

    master.shutdown.drain.cancel();
    assert!(matches!(agent.message().await, ControlMessage::Drain(_)));
    agent.idle(Duration::from_secs(20)).await;
    drop(flow);

    assert_eq!(end(agent.message().await).code, EndCode::ShuttingDown);
}

#[tokio::test(start_paused = true)]
async fn a_session_that_was_replaced_does_not_wait_for_flows() {
    let master = master(VERIFIED);
    let mut older = Agent::connect(&master, NODE, with_flows(1)).await;
    older.message().await;
    let _flow = current(&master).flows.as_ref().unwrap().node.enter();
    let mut newer = Agent::connect(&master, NODE, with_flows(1)).await;
    newer.message().await;

    let ended = end(older.message().await);

    assert_eq!(ended.code, EndCode::AlreadyConnected);
    newer.idle(Duration::from_secs(60)).await;
}
