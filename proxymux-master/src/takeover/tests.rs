//! Two masters in one process, with agents played by the test.
//!
//! The clock is paused: what takes seconds here takes none.

use std::{
    net::SocketAddr,
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use proxymux_proto::ControlMessage;
use proxymux_transport::unix_socket::UnixSocket;
use tempfile::TempDir;
use tokio::{net::TcpListener, task::JoinHandle, time::sleep};

use super::{words::TalkError, *};
use crate::{
    master::Master,
    testing::{Agent, NODE, master},
};

/// A running master that lets others take over.
struct Running {
    _directory: TempDir,
    at: PathBuf,
    master: Arc<Master>,
    giver: JoinHandle<()>,
    /// How often it has looked after its front doors.
    reopened: Arc<AtomicUsize>,
}

impl Running {
    async fn with(listeners: Vec<(String, std::os::fd::OwnedFd)>) -> Self {
        let directory = TempDir::new().unwrap();
        let at = directory.path().join("takeover.sock");
        let master = master("drain-deadline: 30s");
        let socket = UnixSocket::bind(&at, 0o600, "a test").await.unwrap();
        let reopened = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&reopened);
        let reopen: Reopen = Box::new(move || {
            count.fetch_add(1, Ordering::Relaxed);
            Box::pin(std::future::ready(()))
        });
        let giver = Giver::new(socket, listeners, reopen, Arc::clone(&master));
        Self {
            _directory: directory,
            at,
            giver: tokio::spawn(giver.run()),
            master,
            reopened,
        }
    }

    fn sends_agents_away(&self) -> bool {
        *self.master.moving.watch().borrow()
    }
}

#[tokio::test(start_paused = true)]
async fn where_nobody_is_nothing_is_taken_over() {
    let directory = TempDir::new().unwrap();
    let at = directory.path().join("takeover.sock");
    assert!(begin(&at).await.unwrap().is_none());

    drop(std::os::unix::net::UnixListener::bind(&at).unwrap());
    assert!(begin(&at).await.unwrap().is_none(), "a dead one's socket");
}

#[tokio::test(start_paused = true)]
async fn a_listener_goes_over_by_what_it_is_for_and_its_address() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let real = listener.local_addr().unwrap();
    let (configured, other): (SocketAddr, SocketAddr) = (
        "192.0.2.1:12250".parse().unwrap(),
        "192.0.2.1:1".parse().unwrap(),
    );
    let handle = listener.as_fd().try_clone_to_owned().unwrap();
    let name = listener_name(AGENTS, configured);
    let running = Running::with(vec![(name, handle)]).await;

    let mut taker = begin(&running.at).await.unwrap().unwrap();

    assert!(taker.listener(AGENTS, other).is_none());
    assert!(taker.listener("door", configured).is_none());
    let taken = taker.listener(AGENTS, configured).unwrap();
    assert_eq!(taken.local_addr().unwrap(), real);
    assert!(taker.listener(AGENTS, configured).is_none(), "only once");
}

#[tokio::test(start_paused = true)]
async fn agents_go_over_and_then_the_old_master_drains() {
    let running = Running::with(Vec::new()).await;
    let mut agent = Agent::admitted(&running.master, NODE, 1).await;
    let new = master("");
    let mut taker = begin(&running.at).await.unwrap().unwrap();

    let going_over = async {
        let told = agent.message().await;
        let ControlMessage::Drain(drain) = told else {
            panic!("{told:?}");
        };
        assert!(
            drain.deadline >= Duration::from_secs(3600),
            "no stream is hurried"
        );
        // It serves the old one as before meanwhile.
        agent.idle(Duration::from_secs(5)).await;
        assert_eq!(running.master.registry.connected().len(), 1);
        Agent::admitted(&new, NODE, 1).await
    };
    let (back, moved) = tokio::join!(taker.wait_for_agents(&new.registry), going_over);
    back.unwrap();
    taker.finish().await;

    running.giver.await.unwrap();
    assert!(running.master.shutdown.drain.is_cancelled());
    assert!(new.registry.is_connected(&crate::testing::name(NODE)));
    drop(moved);
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_the_old_master_loses_is_not_waited_for() {
    let running = Running::with(Vec::new()).await;
    let agent = Agent::admitted(&running.master, NODE, 1).await;
    let new = master("");
    let mut taker = begin(&running.at).await.unwrap().unwrap();

    let losing = async {
        sleep(Duration::from_secs(3)).await;
        drop(agent);
    };
    let (back, ()) = tokio::join!(taker.wait_for_agents(&new.registry), losing);

    back.unwrap();
    assert!(taker.is_of_a_living());
}

#[tokio::test(start_paused = true)]
async fn a_new_master_whose_agents_do_not_come_gives_up_and_changes_nothing() {
    let running = Running::with(Vec::new()).await;
    let mut agent = Agent::admitted(&running.master, NODE, 1).await;
    let new = master("");
    let mut taker = begin(&running.at).await.unwrap().unwrap();

    let staying = async {
        agent.message().await;
        agent.idle(Duration::from_secs(90)).await;
    };
    let (gave_up, ()) = tokio::join!(
        async {
            let error = taker.wait_for_agents(&new.registry).await.unwrap_err();
            drop(taker);
            error
        },
        staying
    );

    assert!(
        matches!(
            gave_up,
            TakeoverError::AgentsMissing {
                back: 0,
                expected: 1,
                ..
            }
        ),
        "{gave_up}"
    );
    assert!(!running.sends_agents_away());
    assert!(!running.master.shutdown.drain.is_cancelled());
    assert_eq!(running.master.registry.connected().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_new_master_that_falls_silent_is_given_up() {
    let running = Running::with(Vec::new()).await;
    let _agent = Agent::admitted(&running.master, NODE, 1).await;
    let new = master("");
    let mut taker = begin(&running.at).await.unwrap().unwrap();
    let waiting = taker.wait_for_agents(&new.registry);
    let waiting = tokio::time::timeout(Duration::from_secs(1), waiting).await;
    assert!(waiting.is_err());
    assert!(running.sends_agents_away());

    sleep(Duration::from_secs(11)).await;

    assert!(!running.sends_agents_away());
    // It finds out, and does not take the place of a master that lives.
    let error = taker.wait_for_agents(&new.registry).await.unwrap_err();
    assert!(matches!(error, TakeoverError::GivenUp), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_new_master_that_dies_with_the_sockets_in_its_hands_leaves_a_way_to_the_old_one() {
    let running = Running::with(Vec::new()).await;
    let new = master("");
    let mut taker = begin(&running.at).await.unwrap().unwrap();
    taker.wait_for_agents(&new.registry).await.unwrap();
    let theirs = meet_instead(&running.at).await.unwrap();

    drop((theirs, taker));
    sleep(Duration::from_secs(1)).await;

    assert_eq!(running.reopened.load(Ordering::Relaxed), 1);
    assert!(!running.sends_agents_away());
    let mut another = begin(&running.at)
        .await
        .unwrap()
        .expect("it is there again");
    another.wait_for_agents(&new.registry).await.unwrap();
    another.finish().await;
    running.giver.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_second_new_master_is_refused_while_there_is_a_first() {
    let running = Running::with(Vec::new()).await;
    let _first = begin(&running.at).await.unwrap().unwrap();

    let error = begin(&running.at).await.unwrap_err();

    assert_eq!(
        error.to_string(),
        "the running master refuses: another master is taking over already"
    );
}

#[tokio::test(start_paused = true)]
async fn a_running_master_that_says_nothing_is_not_waited_for_for_ever() {
    let directory = TempDir::new().unwrap();
    let at = directory.path().join("takeover.sock");
    let _hung = UnixSocket::bind(&at, 0o600, "a test").await.unwrap();

    let error = begin(&at).await.unwrap_err();

    assert!(
        matches!(error, TakeoverError::Talk(TalkError::Silent(_))),
        "{error}"
    );
}
