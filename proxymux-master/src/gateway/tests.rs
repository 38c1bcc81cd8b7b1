//! What a request waits for, for how long, and what the user is told. The clock is paused, so
//! that every wait is exact; the agents answer every request in one way.

use proxymux_proto::{OpenAnswer, RefuseCode};
use tokio::{task::JoinHandle, time::advance};

use super::*;
use crate::{
    front_door::Gateway as _,
    testing::{LIMITS, NODE, TestSession, master, session, target},
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

/// Asks so often at one moment, and waits until all that can have been opened are.
async fn ask_often(master: &Arc<Master>, times: usize) -> Vec<JoinHandle<Answered>> {
    let asked = (0..times).map(|_| ask(master, TARGET)).collect();
    tokio::time::sleep(Duration::from_secs(1)).await;
    asked
}

/// How many requests wait for their turn.
fn waiting(master: &Master) -> i64 {
    master.metrics.turns.waiting.get()
}

/// How many have waited, of which this came.
fn waited(master: &Master, result: &'static str) -> u64 {
    master.metrics.turns.waited.get(result).get()
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

#[tokio::test(start_paused = true)]
async fn requests_beyond_the_limit_of_pending_dials_wait_until_the_others_are_answered() {
    let master = master("");
    let mut busy = session(NODE, 1);
    busy.admit(&master.registry).unwrap();
    let asked = ask_often(&master, LIMITS.max_pending + 5).await;
    assert_eq!(waiting(&master), 5);

    busy.answer(OpenAnswer::Opened);

    for asked in asked {
        let (answer, after) = asked.await.unwrap();
        assert!(matches!(answer, Ok(Tunnel::Stream(_))), "{answer:?}");
        assert_eq!(after.as_secs(), 1);
    }
    assert_eq!((waiting(&master), waited(&master, "opened")), (0, 5));
}

#[tokio::test(start_paused = true)]
async fn a_turn_that_does_not_come_within_the_budget_is_503_and_says_why() {
    let master = master("");
    let _silent = serving(&master, 1, OpenAnswer::Dialing);
    let asked = ask_often(&master, LIMITS.max_pending + 5).await;

    let mut late = 0;
    for asked in asked {
        let (status, reason, after) = refusal(asked).await;
        assert_eq!(after, BUDGET, "{reason}");
        if status == Status::Unavailable {
            assert_eq!(
                reason,
                "node 10.0.10.10: session has 16 dials pending, its limit; waited 8.0s for a turn"
            );
            late += 1;
        } else {
            assert_eq!(status, Status::GatewayTimeout, "{reason}");
        }
    }

    assert_eq!((late, waited(&master, "late")), (5, 5));
    assert_eq!(waiting(&master), 0);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_while_it_waits_for_a_turn_gives_up_its_place() {
    let master = master("");
    let mut busy = session(NODE, 1);
    busy.admit(&master.registry).unwrap();
    let mut asked = ask_often(&master, LIMITS.max_pending + 2).await;

    let last = asked.pop().unwrap();
    last.abort();
    assert!(last.await.unwrap_err().is_cancelled());

    assert_eq!((waiting(&master), waited(&master, "left")), (1, 1));
    assert_eq!(busy.handle.relays.len(), LIMITS.max_pending + 1);
    busy.answer(OpenAnswer::Opened);
    for asked in asked {
        assert!(asked.await.unwrap().0.is_ok());
    }
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_turn_goes_to_the_session_that_takes_the_place() {
    let master = master("");
    let silent = session(NODE, 1);
    silent.admit(&master.registry).unwrap();
    let asked = ask_often(&master, LIMITS.max_pending + 5).await;

    let _next = serving(&master, 2, OpenAnswer::Opened);

    // Those that the first session was asked for are its affair.
    let (mut served, mut unanswered) = (0, 0);
    for asked in asked {
        match asked.await.unwrap() {
            (Ok(Tunnel::Stream(tunnel)), after) => {
                assert_eq!(tunnel.session.instance, crate::testing::run_id(2));
                assert_eq!(after.as_secs(), 1);
                served += 1;
            }
            (answer, after) => {
                assert_eq!(answer.unwrap_err().status, Status::GatewayTimeout);
                assert_eq!(after, BUDGET);
                unanswered += 1;
            }
        }
    }
    assert_eq!((served, unanswered), (5, LIMITS.max_pending));
    assert_eq!(waited(&master, "session-gone"), 5);
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_turn_of_a_session_that_breaks_is_served_by_the_next_like_the_others() {
    let master = master("");
    let mut broken = session(NODE, 1);
    broken.admit(&master.registry).unwrap();
    let asked = ask_often(&master, LIMITS.max_pending + 5).await;

    broken.break_off().await;
    master.registry.leave(&broken.handle);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!((waiting(&master), waited(&master, "session-gone")), (0, 5));
    let _next = serving(&master, 1, OpenAnswer::Opened);

    for asked in asked {
        let (answer, after) = asked.await.unwrap();
        assert!(answer.is_ok(), "{answer:?}");
        assert_eq!(after.as_secs(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn a_crowd_that_waits_for_one_node_leaves_the_others_alone() {
    let master = master("");
    let silent = session(NODE, 1);
    silent.admit(&master.registry).unwrap();
    let mut other = session("10.0.10.11", 2);
    other.answer(OpenAnswer::Opened);
    other.admit(&master.registry).unwrap();
    let crowd = ask_often(&master, LIMITS.max_pending + 40).await;
    assert_eq!(waiting(&master), 40);

    for _ in 0..40 {
        let (answer, after) = ask(&master, "10.0.10.11:10250").await.unwrap();
        assert!(answer.is_ok(), "{answer:?}");
        assert_eq!(after, Duration::ZERO);
    }

    for asked in crowd {
        asked.abort();
    }
}
