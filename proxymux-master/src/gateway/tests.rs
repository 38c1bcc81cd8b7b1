//! What a request waits for, for how long, and what the user is told. The clock is paused, so
//! that every wait is exact; the agents answer every request in one way.

use proxymux_proto::{OpenAnswer, RefuseCode};
use tokio::{task::JoinHandle, time::advance};

use super::*;
use crate::{
    front_door::Gateway as _,
    testing::{NODE, TestSession, master, session, target},
};

const TARGET: &str = "10.0.10.10:10250";
const BUDGET: Duration = Duration::from_secs(8);

/// Longer than a node is waited for after the start of a master.
const SETTLED: Duration = Duration::from_secs(60);

/// An answer, and how long it took.
type Answered = (Result<Tunnel, Refusal>, Duration);

fn ask(master: &Arc<Master>, text: &str) -> JoinHandle<Answered> {
    let gateway = Gateway::new(Arc::clone(master));
    let target = target(text);
    tokio::spawn(async move {
        let began = Instant::now();
        let answer = gateway.open(&target, BUDGET).await;
        (answer, began.elapsed())
    })
}

async fn refusal(asked: JoinHandle<Answered>) -> (Status, String, Duration) {
    let (answer, after) = asked.await.unwrap();
    let refusal = answer.unwrap_err();
    (refusal.status, refusal.reason, after)
}

/// A session that is let in and answers every request in this way.
fn serving(master: &Master, run: u8, answer: OpenAnswer) -> TestSession {
    let mut session = session(NODE, run);
    session.answer(answer);
    session.admit(&master.registry).unwrap();
    session
}

fn refusing(code: RefuseCode) -> OpenAnswer {
    let message = "the agent's own words".to_owned();
    OpenAnswer::Refused { code, message }
}

#[tokio::test(start_paused = true)]
async fn right_after_its_start_a_master_waits_for_nodes_that_it_has_never_seen() {
    let master = master("");
    let asked = ask(&master, TARGET);
    tokio::time::sleep(Duration::from_secs(3)).await;
    // One that comes in the meantime is not the one.
    session("10.0.10.11", 7).admit(&master.registry).unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;

    let _session = serving(&master, 1, OpenAnswer::Opened);

    let (answer, after) = asked.await.unwrap();
    assert!(matches!(answer, Ok(Tunnel::Stream(_))), "{answer:?}");
    assert_eq!(after.as_secs(), 4);
}

#[tokio::test(start_paused = true)]
async fn right_after_its_start_a_master_waits_no_longer_than_the_budget() {
    let (status, reason, after) = refusal(ask(&master(""), TARGET)).await;
    assert_eq!(status, Status::Unavailable);
    assert_eq!(
        reason,
        "no route to 10.0.10.10:10250: no node has this address"
    );
    assert_eq!(after, BUDGET);
}

#[tokio::test(start_paused = true)]
async fn later_a_target_that_nobody_knows_is_refused_at_once() {
    let master = master("");
    advance(WAIT_FOR_RETURN).await;
    for (asked, reason) in [
        (
            TARGET,
            "no route to 10.0.10.10:10250: no node has this address",
        ),
        (
            "worker-1:10250",
            "no route to worker-1:10250: no node has this name",
        ),
    ] {
        let (status, said, after) = refusal(ask(&master, asked)).await;
        assert_eq!(
            (status, &*said, after),
            (Status::Unavailable, reason, Duration::ZERO)
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_has_just_left_is_waited_for_and_served_when_it_is_back() {
    let master = master("");
    let session = serving(&master, 1, OpenAnswer::Opened);
    advance(SETTLED).await;
    master.registry.leave(&session.handle);
    let asked = ask(&master, TARGET);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(!asked.is_finished());

    let _back = serving(&master, 2, OpenAnswer::Opened);

    let (answer, after) = asked.await.unwrap();
    assert!(answer.is_ok(), "{answer:?}");
    assert_eq!(after.as_secs(), 5);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_left_is_waited_for_until_it_has_been_away_for_fifteen_seconds() {
    let master = master("");
    let session = serving(&master, 1, OpenAnswer::Opened);
    advance(SETTLED).await;
    master.registry.leave(&session.handle);

    advance(Duration::from_secs(10)).await;
    let (status, reason, after) = refusal(ask(&master, TARGET)).await;
    assert_eq!((status, after.as_secs()), (Status::Unavailable, 5));
    assert_eq!(reason, "node 10.0.10.10 has no session; last seen 15s ago");

    advance(Duration::from_secs(27)).await;
    let (_, reason, after) = refusal(ask(&master, TARGET)).await;
    assert_eq!(after, Duration::ZERO);
    assert_eq!(reason, "node 10.0.10.10 has no session; last seen 42s ago");
}

#[tokio::test(start_paused = true)]
async fn a_session_that_drains_is_left_for_the_next_one() {
    let master = master("");
    let draining = serving(&master, 1, refusing(RefuseCode::Draining));
    advance(SETTLED).await;
    let asked = ask(&master, TARGET);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(
        !asked.is_finished(),
        "it is not asked again and again either"
    );

    master.registry.leave(&draining.handle);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let _next = serving(&master, 2, OpenAnswer::Opened);

    let (answer, _) = asked.await.unwrap();
    let Ok(Tunnel::Stream(StreamTunnel { session, .. })) = answer else {
        panic!("{answer:?}");
    };
    assert_eq!(session.instance, crate::testing::run_id(2));
}

#[tokio::test(start_paused = true)]
async fn a_session_that_breaks_while_it_is_asked_is_left_for_the_next_one() {
    let master = master("");
    let mut broken = session(NODE, 1);
    broken.admit(&master.registry).unwrap();
    advance(SETTLED).await;
    let asked = ask(&master, TARGET);
    tokio::time::sleep(Duration::from_secs(1)).await;

    broken.break_off().await;
    master.registry.leave(&broken.handle);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let _next = serving(&master, 1, OpenAnswer::Opened);

    assert!(asked.await.unwrap().0.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_session_that_breaks_for_good_is_told_of_within_the_budget() {
    let master = master("");
    let mut broken = session(NODE, 1);
    broken.admit(&master.registry).unwrap();
    advance(SETTLED).await;
    let asked = ask(&master, TARGET);
    tokio::time::sleep(Duration::from_secs(1)).await;

    broken.break_off().await;
    master.registry.leave(&broken.handle);

    let (status, reason, after) = refusal(asked).await;
    assert_eq!((status, after), (Status::Unavailable, BUDGET));
    assert_eq!(reason, "node 10.0.10.10 has no session; last seen 7s ago");
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_does_not_answer_costs_the_budget_and_no_more() {
    let master = master("");
    let _silent = serving(&master, 1, OpenAnswer::Dialing);
    let (status, reason, after) = refusal(ask(&master, TARGET)).await;
    assert_eq!((status, after), (Status::GatewayTimeout, BUDGET));
    assert!(reason.starts_with("node 10.0.10.10 "), "{reason}");
    assert!(reason.contains("within the budget"), "{reason}");
}

#[tokio::test(start_paused = true)]
async fn an_agents_refusal_is_the_answer_in_its_own_words() {
    for (code, expected) in [
        (RefuseCode::NotAllowed, Status::Forbidden),
        (RefuseCode::Unreachable, Status::BadGateway),
        (RefuseCode::BadRequest, Status::BadGateway),
        (RefuseCode::TimedOut, Status::GatewayTimeout),
        (RefuseCode::Busy, Status::Unavailable),
    ] {
        let master = master("");
        let _session = serving(&master, 1, refusing(code));
        let (status, reason, _) = refusal(ask(&master, TARGET)).await;
        assert_eq!(
            (status, &*reason),
            (expected, "the agent's own words"),
            "{code:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_keeps_its_session_in_use_until_it_is_dropped() {
    let master = master("");
    let session = serving(&master, 1, OpenAnswer::Opened);

    let (answer, _) = ask(&master, TARGET).await.unwrap();
    assert_eq!(session.handle.relays.len(), 1);
    drop(answer);
    assert_eq!(session.handle.relays.len(), 0);
}
