//! Which session a node's new streams get, who may take its place, and what is known of nodes
//! that are away. Sessions here have both ends in memory and nobody who serves them.

use std::time::Duration;

use tokio::time::advance;

use super::*;
use crate::testing::{NODE, TestSession, name, run_id, session, target};

fn registry() -> Arc<Registry> {
    Registry::new(Policy::Declared)
}

fn found(registry: &Registry) -> Option<Arc<SessionHandle>> {
    match registry.find(&target("10.0.10.10:10250")) {
        Found::Session(session) => Some(session),
        Found::Away { .. } | Found::Unknown => None,
    }
}

fn is_found(registry: &Registry, session: &TestSession) -> bool {
    found(registry).is_some_and(|found| Arc::ptr_eq(&found, &session.handle))
}

fn is_open(session: &TestSession) -> bool {
    session.handle.open.load(Ordering::Acquire)
}

#[tokio::test]
async fn the_newer_session_takes_new_streams_and_the_older_is_handed_back() {
    let registry = registry();
    let (older, newer) = (session(NODE, 1), session(NODE, 1));
    assert!(older.admit(&registry).unwrap().superseded.is_none());

    let superseded = newer.admit(&registry).unwrap().superseded.unwrap();

    assert!(Arc::ptr_eq(&superseded, &older.handle));
    assert!(is_found(&registry, &newer));
    assert_eq!((is_open(&older), is_open(&newer)), (false, true));
}

#[tokio::test]
async fn the_end_of_an_older_session_takes_nothing_from_the_newer() {
    let registry = registry();
    let (older, newer) = (session(NODE, 1), session(NODE, 2));
    older.admit(&registry).unwrap();
    newer.admit(&registry).unwrap();
    let changes = registry.changes();

    registry.leave(&older.handle);

    assert!(is_found(&registry, &newer));
    assert!(!changes.has_changed().unwrap(), "nobody is to look again");
}

#[tokio::test]
async fn an_evicted_run_is_refused_for_as_long_as_another_has_the_node() {
    let registry = registry();
    let (first, second) = (session(NODE, 1), session(NODE, 2));
    first.admit(&registry).unwrap();
    second.admit(&registry).unwrap();

    let again = session(NODE, 1);
    let refused = again.admit(&registry).unwrap_err();

    assert_eq!(refused.code, EndCode::Superseded);
    assert_eq!(refused.retry_after, Some(EVICTED_STAY_AWAY));
    let (holder, evicted) = (second.handle.peer, again.handle.peer);
    assert!(
        refused
            .message
            .contains(&format!("at {holder}, has taken over")),
        "{refused:?}"
    );
    assert!(
        refused.message.contains(&format!("this one at {evicted}")),
        "{refused:?}"
    );
    assert!(is_found(&registry, &second));

    registry.leave(&second.handle);
    again.admit(&registry).unwrap();
    assert!(is_found(&registry, &again));
}

#[tokio::test]
async fn an_evicted_run_takes_the_place_of_a_session_that_is_dead() {
    let registry = registry();
    let (first, mut second) = (session(NODE, 1), session(NODE, 2));
    first.admit(&registry).unwrap();
    second.admit(&registry).unwrap();
    second.break_off().await;

    let again = session(NODE, 1);
    again.admit(&registry).unwrap();

    assert!(is_found(&registry, &again));
}

#[tokio::test]
async fn a_run_replaces_its_own_session_as_often_as_it_likes() {
    let registry = registry();
    let sessions: Vec<_> = (0..3).map(|_| session(NODE, 1)).collect();
    for session in &sessions {
        session.admit(&registry).unwrap();
        assert!(is_found(&registry, session));
    }
}

#[tokio::test]
async fn no_more_evicted_runs_are_remembered_than_there_can_honestly_be() {
    let registry = registry();
    let runs: Vec<_> = (0..=u8::try_from(MAX_EVICTED).unwrap() + 1)
        .map(|run| session(NODE, run))
        .collect();
    for run in &runs {
        run.admit(&registry).unwrap();
    }

    assert!(session(NODE, 1).admit(&registry).is_err());
    assert!(
        session(NODE, 0).admit(&registry).is_ok(),
        "the first is forgotten"
    );
}

#[tokio::test]
async fn a_run_serves_its_node_while_its_session_stands() {
    let registry = registry();
    let mut session = session(NODE, 1);
    let serves = |run| registry.is_served_by(&name(NODE), run_id(run));
    assert!(!serves(1));

    session.admit(&registry).unwrap();
    assert!(serves(1));
    assert!(!serves(2));

    session.break_off().await;
    assert!(!serves(1));
}

#[tokio::test(start_paused = true)]
async fn a_node_that_left_is_known_with_the_time_for_a_day() {
    let registry = registry();
    let session = session("worker-1", 1);
    let asked = target("worker-1:10250");
    assert!(matches!(registry.find(&asked), Found::Unknown));
    session.admit(&registry).unwrap();
    registry.leave(&session.handle);
    let left = Instant::now();

    advance(Duration::from_secs(24 * 3600 - 1)).await;
    registry.expire();
    match registry.find(&asked) {
        Found::Away { node, seen } => assert_eq!((node.as_str(), seen), ("worker-1", Some(left))),
        other => panic!("{other:?}"),
    }
    advance(Duration::from_secs(1)).await;
    registry.expire();
    assert!(matches!(registry.find(&asked), Found::Unknown));
}

#[tokio::test]
async fn whoever_waits_hears_of_what_comes_and_goes_after_it_began() {
    let registry = registry();
    let session = session(NODE, 1);
    session.admit(&registry).unwrap();
    let mut changes = registry.changes();
    assert!(!changes.has_changed().unwrap());

    registry.leave(&session.handle);
    assert!(changes.has_changed().unwrap());
    changes.mark_unchanged();
    session.admit(&registry).unwrap();
    assert!(changes.has_changed().unwrap());
}

#[tokio::test]
async fn a_node_is_told_when_an_address_is_its_own_after_all() {
    let registry = registry();
    // The name proves the address; the other one's list of claims does not.
    let mut other = session("worker-1", 1);
    let evidence = Evidence {
        ip_sans: &[],
        claims: &["10.0.10.77".parse().unwrap()],
        allow: &[],
        source: other.handle.peer.ip(),
    };
    let identity = NodeIdentity {
        name: name("worker-1"),
        ip_sans: Vec::new(),
    };
    let admitted = registry.admit(&other.handle, &identity, evidence).unwrap();
    assert_eq!(admitted.addresses.granted, [] as [IpAddr; 0]);

    let list =
        crate::claims::NodeList::new([(name("worker-1"), vec!["10.0.10.77/32".parse().unwrap()])]);
    registry.replace_policy(Policy::Listed(list.unwrap()));

    match other.commands.try_recv().unwrap() {
        SessionCommand::Addresses(addresses) => {
            assert_eq!(addresses.granted, ["10.0.10.77".parse::<IpAddr>().unwrap()]);
        }
        command => panic!("{command:?}"),
    }
}

#[tokio::test]
async fn an_agent_is_asked_by_its_own_name_for_what_only_a_list_says_and_for_nothing_else() {
    let list = crate::claims::NodeList::new([(
        name("worker-1"),
        ["198.51.100.7/32", "10.244.1.0/24"]
            .map(|net| net.parse().unwrap())
            .to_vec(),
    )]);
    let registry = Registry::new(Policy::Listed(list.unwrap()));
    let worker = session("worker-1", 1);
    worker
        .admit_as(&registry, &["10.0.10.77".parse().unwrap()])
        .unwrap();
    let asked = |text: &str| {
        let asked = registry.asked_as(&worker.handle, &target(text));
        asked.map(|target| target.to_string())
    };

    assert_eq!(
        asked("198.51.100.7:10250").as_deref(),
        Some("worker-1:10250")
    );
    for known_or_no_kubelet in [
        "10.0.10.77:10250",
        "worker-1:10250",
        "198.51.100.7:9100",
        // A pod may listen at the kubelet's port.
        "10.244.1.7:10250",
    ] {
        assert_eq!(asked(known_or_no_kubelet), None, "{known_or_no_kubelet}");
    }
}
