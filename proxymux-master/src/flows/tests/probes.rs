//! When a node is dialled, and what is made of what is met there.

use std::sync::atomic::{AtomicUsize, Ordering};

use proxymux_transport::config_file::values::AutoOff;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::flows::{
    Why,
    direct::{Direct, Met, PROVEN_FOR},
};

const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn steering(stands: bool) -> SteeringStatus {
    SteeringStatus {
        stands,
        reason: "as the test says".to_owned(),
    }
}

/// A path on which nothing was met yet, with steering that stands.
fn direct() -> Direct {
    let at = SocketAddr::new(LOCALHOST, 10250);
    let direct = Direct::new(AutoOff::Auto, Some(at));
    direct.steering(steering(true));
    direct
}

#[tokio::test(start_paused = true)]
async fn what_was_proven_counts_for_a_minute_and_a_failure_ends_it_at_once() {
    let direct = direct();
    assert_eq!(direct.way(), Err(Why::Unproven));

    assert_eq!(direct.met(Met::Agent), Some(true));
    assert!(direct.way().is_ok());
    assert_eq!(direct.met(Met::Agent), None, "no news");
    tokio::time::advance(PROVEN_FOR).await;
    assert_eq!(direct.way(), Err(Why::Unproven));

    direct.met(Met::Agent);
    assert_eq!(direct.met(Met::Silence), Some(false));
    assert_eq!(direct.way(), Err(Why::Unproven));
    assert_eq!(direct.met(Met::Silence), None);
}

#[tokio::test(start_paused = true)]
async fn what_was_proven_is_looked_for_again_at_once_and_what_never_was_later_and_later() {
    let direct = direct();
    direct.met(Met::Agent);

    direct.met(Met::Stranger);
    assert_eq!(direct.pause(), Some(Duration::ZERO));

    let pauses = [(); 3].map(|()| {
        direct.met(Met::Stranger);
        direct.pause().unwrap()
    });
    assert!(pauses[0] > Duration::from_secs(3), "{pauses:?}");
    assert!(pauses.is_sorted(), "{pauses:?}");
}

#[tokio::test(start_paused = true)]
async fn without_steering_or_leave_or_an_address_nothing_is_direct() {
    let at = Some(SocketAddr::new(LOCALHOST, 10250));
    let off = Direct::new(AutoOff::Off, at);
    let nowhere = Direct::new(AutoOff::Auto, None);
    for (direct, why) in [(off, Why::DirectOff), (nowhere, Why::NoAddress)] {
        direct.steering(steering(true));
        direct.met(Met::Agent);
        assert_eq!(direct.way(), Err(why));
    }
    let direct = direct();
    direct.met(Met::Agent);

    direct.steering(steering(false));
    assert_eq!(direct.way(), Err(Why::NotSteered));
    direct.met(Met::Agent);
    assert_eq!(direct.way(), Err(Why::NotSteered));
    direct.steering(steering(true));

    assert_eq!(direct.way(), Err(Why::Unproven), "it is to be proven anew");
}

/// A stage whose node's kubelet is at a listener of the test, and the probes of its session.
async fn probed(lines: &str) -> (Stage, TcpListener, AbortOnDropHandle<()>) {
    let listener = TcpListener::bind((LOCALHOST, 0)).await.unwrap();
    let at = listener.local_addr().unwrap();
    let registration = with_flows(1, Some(at));
    let stage = Stage::of(lines, &registration, OpenAnswer::Opened).await;
    let run = direct::run(Arc::clone(&stage.session.handle), Arc::clone(&stage.master));
    let probes = AbortOnDropHandle::new(tokio::spawn(run));
    (stage, listener, probes)
}

async fn accept(listener: &TcpListener) -> TcpStream {
    let accepted = tokio::time::timeout(SOON, listener.accept()).await;
    accepted.expect("dialled in time").unwrap().0
}

/// Answers a probe as an agent does.
async fn answer_probe(stage: &Stage, listener: &TcpListener) {
    let connection = accept(listener).await;
    let accepted = FlowConnection::accept(connection, &[], &stage.table, FlowDirection::Direct);
    let (mut flow, ()) = accepted.await.unwrap();
    let open = flow.hear().await.unwrap();
    assert_eq!(open, FlowMessage::Open(FlowOpen::Probe));
    flow.say(&FlowMessage::Accepted).await.unwrap();
    // A probe ends after its answer.
    assert!(flow.hear().await.is_err());
}

fn probes(stage: &Stage, word: &'static str) -> u64 {
    stage.master.metrics.flows.probes.get(word).get()
}

#[tokio::test]
async fn an_agent_that_steers_is_found_and_from_then_on_direct_is_the_way() {
    let (stage, listener, _probes) = probed("").await;
    assert_eq!(stage.flows().direct.way(), Err(Why::NotSteered));

    stage.flows().steering(steering(true));
    answer_probe(&stage, &listener).await;

    eventually(|| stage.flows().direct.way().is_ok()).await;
    assert_eq!(probes(&stage, "proven"), 1);
}

#[tokio::test]
async fn nobody_is_dialled_before_the_agent_steers_or_where_it_is_not_to_be() {
    for lines in ["", "direct: off\n"] {
        let (stage, listener, _probes) = probed(lines).await;
        stage.flows().steering(steering(!lines.is_empty()));
        let dialled = tokio::time::timeout(Duration::from_millis(300), listener.accept()).await;
        assert!(dialled.is_err(), "{lines:?}");
    }
}

#[tokio::test]
async fn an_address_that_is_not_proven_to_be_the_nodes_is_not_dialled() {
    let listener = TcpListener::bind((LOCALHOST, 0)).await.unwrap();
    let at = listener.local_addr().unwrap();
    let stage = Stage::of("", &with_flows(1, Some(at)), OpenAnswer::Opened).await;
    // Another session of the node, that could not prove the address.
    let registration = with_flows(2, Some(at));
    let flows = stage.master.flows.of_session(&registration, flow_keys(2));
    let session = session_of(&registration, flows);
    session.admit(&stage.master.registry).unwrap();
    let run = direct::run(Arc::clone(&session.handle), Arc::clone(&stage.master));
    let _probes = AbortOnDropHandle::new(tokio::spawn(run));

    session
        .handle
        .flows
        .as_ref()
        .unwrap()
        .steering(steering(true));

    let dialled = tokio::time::timeout(Duration::from_millis(300), listener.accept()).await;
    assert!(dialled.is_err());
}

#[tokio::test]
async fn a_kubelet_that_answers_itself_is_no_direct_path_and_is_asked_again_later() {
    let (stage, listener, _probes) = probed("").await;
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let kubelet = tokio::spawn(async move {
        loop {
            let (mut connection, _) = listener.accept().await.unwrap();
            count.fetch_add(1, Ordering::Relaxed);
            // As Go's TLS does with what is no TLS.
            let mut hello = [0; 5];
            connection.read_exact(&mut hello).await.unwrap();
            let answer = b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request\n";
            // The other end may have gone.
            let _ = connection.write_all(answer).await;
        }
    });

    stage.flows().steering(steering(true));

    eventually(|| probes(&stage, "not-direct") == 1).await;
    assert_eq!(stage.flows().direct.way(), Err(Why::Unproven));
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(
        asked.load(Ordering::Relaxed),
        1,
        "not before five seconds or so"
    );
    eventually(|| asked.load(Ordering::Relaxed) == 2).await;
    kubelet.abort();
}

#[tokio::test]
async fn a_port_at_which_nobody_listens_is_unreachable() {
    let (stage, listener, _probes) = probed("").await;
    drop(listener);

    stage.flows().steering(steering(true));

    eventually(|| probes(&stage, "unreachable") == 1).await;
    assert_eq!(stage.flows().direct.way(), Err(Why::Unproven));
}
