//! Tests of the idle flows of the reverse path: how many there are, and what replaces them.

use std::time::Duration;

use proxymux_proto::{FlowDirection, FlowMessage, FlowOpen, RefuseCode};
use proxymux_transport::flow::FlowConnection;
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    time::timeout,
};

use crate::flows::{
    PoolStatus,
    testing::{FakeMaster, HELLO, Rig, assert_reset, open, read, read_to_end, request, within},
};

impl Rig {
    fn pool(&self) -> PoolStatus {
        self.flows.as_ref().unwrap().view().pool()
    }

    async fn until(&self, what: impl Fn(PoolStatus) -> bool) {
        let until = async {
            while !what(self.pool()) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let waited = timeout(Duration::from_secs(30), until).await;
        assert!(waited.is_ok(), "{:?}", self.pool());
    }
}

async fn assert_ended(flow: FlowConnection) {
    assert_reset(&mut flow.into_connection()).await;
}

#[tokio::test]
async fn the_pool_has_what_the_master_wants_and_each_that_is_taken_is_replaced() {
    let rig = Rig::start(2, "").await;
    let (mut taken, left) = (rig.idle().await, rig.idle().await);
    rig.until(|pool| pool.idle == 2).await;
    assert!(rig.master.is_left_alone().await);
    assert!(rig.counts("flows_idle 2"));

    assert_eq!(open(&mut taken, &rig.target()).await, FlowMessage::Opened);

    let _replacement = rig.idle().await;
    rig.until(|pool| pool.idle == 2 && pool.dialling == 0).await;
    assert!(left.is_quiet());
    assert!(rig.master.is_left_alone().await);
    rig.count("flow_dials_total{result=\"accepted\"} 3").await;
}

#[tokio::test]
async fn the_master_may_want_more_and_then_fewer() {
    let rig = Rig::start(1, "").await;
    let oldest = rig.idle().await;
    rig.until(|pool| pool.idle == 1).await;

    rig.flows.as_ref().unwrap().want(3);
    let (second, newest) = (rig.idle().await, rig.idle().await);
    rig.until(|pool| pool.idle == 3).await;
    // Never more than the protocol has.
    rig.flows.as_ref().unwrap().want(1);

    assert_ended(oldest).await;
    assert_ended(second).await;
    assert!(newest.is_quiet());
    rig.count("flows_ended_idle_total{reason=\"excess\"} 2")
        .await;
    rig.flows.as_ref().unwrap().want(0);
    assert_ended(newest).await;
    assert!(rig.master.is_left_alone().await);
}

#[tokio::test]
async fn a_flow_that_was_idle_for_long_is_replaced_before_a_nat_forgets_it() {
    let rig = Rig::start(2, "").await;
    let old = [rig.idle().await, rig.idle().await];
    rig.until(|pool| pool.idle == 2).await;

    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(140)).await;
    assert!(old.iter().all(FlowConnection::is_quiet));
    // The longest is a fifth more than three minutes.
    tokio::time::advance(Duration::from_secs(80)).await;
    tokio::time::resume();

    for flow in old {
        assert_ended(flow).await;
    }
    let _new = [rig.idle().await, rig.idle().await];
    rig.until(|pool| pool.idle == 2).await;
    rig.count("flows_ended_idle_total{reason=\"recycled\"} 2")
        .await;
}

#[tokio::test]
async fn where_no_flow_can_be_had_the_reason_is_shown_and_it_is_tried_again() {
    let mut rig = Rig::start(0, "").await;
    assert!(rig.flows.is_none(), "a master that wants none has none");
    let at = rig.master.at;
    let FakeMaster { table, session, .. } = rig.master;
    // Nobody listens any more.
    rig.master = FakeMaster::listen(9).await;
    rig.master.at = at;
    rig.flows = rig.session(3, 1);

    rig.until(|pool| pool.trouble.is_some()).await;
    let (trouble, retry_at) = rig.pool().trouble.unwrap();
    assert!(trouble.starts_with("cannot connect: "), "{trouble}");
    assert!(trouble.contains("refused"), "{trouble}");
    assert!(retry_at.is_some() || rig.pool().dialling > 0);
    rig.count("flows_idle 0").await;

    rig.master = FakeMaster {
        listener: TcpListener::bind(at).await.unwrap(),
        at,
        table,
        session,
    };
    let _flows = [rig.idle().await, rig.idle().await, rig.idle().await];
    rig.until(|pool| pool.idle == 3 && pool.trouble.is_none())
        .await;
}

#[tokio::test]
async fn a_refusal_of_the_master_is_shown_in_its_words_and_one_at_a_time_is_tried() {
    let rig = Rig::start(4, "").await;
    let refused = FlowMessage::Refused {
        code: RefuseCode::Busy,
        message: "pool is full".to_owned(),
    };
    for _ in 0..4 {
        rig.master.hello().await.say(&refused).await.unwrap();
    }
    rig.until(|pool| pool.trouble.is_some()).await;
    let (trouble, _) = rig.pool().trouble.unwrap();
    assert_eq!(trouble, "master refused the flow (busy): pool is full");
    rig.count("flow_dials_total{result=\"refused\"} 4").await;

    // From now on one is dialled to see.
    let mut trial = rig.master.hello().await;
    assert!(rig.master.is_left_alone().await);
    trial.say(&FlowMessage::Accepted).await.unwrap();
    let _others = [rig.idle().await, rig.idle().await, rig.idle().await];
    rig.until(|pool| pool.idle == 4).await;
}

#[tokio::test]
async fn flows_that_are_ended_as_soon_as_they_stand_are_dialled_less_and_less_often() {
    let rig = Rig::start(1, "").await;
    let mut dialled = 0_u32;
    let dialling = async {
        loop {
            drop(rig.idle().await);
            dialled += 1;
        }
    };
    // With waits of up to 0.2, 0.4, 0.8 s and so on.
    assert!(timeout(Duration::from_secs(2), dialling).await.is_err());

    assert!((1..40).contains(&dialled), "{dialled}");
    rig.count("flows_idle 0").await;
    let (trouble, _) = rig.pool().trouble.unwrap();
    assert_eq!(
        trouble,
        "master ended an idle flow right after it had accepted it"
    );
}

#[tokio::test]
async fn one_that_the_master_ends_later_is_replaced_at_once() {
    let rig = Rig::start(1, "").await;
    let flow = rig.idle().await;
    rig.until(|pool| pool.idle == 1).await;
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(60)).await;
    tokio::time::resume();

    drop(flow);

    let _flow = rig.idle().await;
    rig.until(|pool| pool.idle == 1 && pool.trouble.is_none())
        .await;
    rig.count("flows_ended_idle_total{reason=\"master\"} 1")
        .await;
}

#[tokio::test]
async fn idle_flows_end_with_their_session_and_so_does_what_is_believed() {
    let mut rig = Rig::start(2, "").await;
    let flows = [rig.idle().await, rig.idle().await];
    rig.until(|pool| pool.idle == 2).await;

    rig.flows = None;

    for flow in flows {
        assert_ended(flow).await;
    }
    rig.count("flows_ended_idle_total{reason=\"session\"} 2")
        .await;
    assert!(rig.master.is_left_alone().await);
    let (_, hello) = rig.master.session.hello(FlowDirection::Direct);
    let hello = hello[..].try_into().unwrap();
    let refused = rig.agent.flows.table.accept(hello, FlowDirection::Direct);
    assert_eq!(refused.unwrap_err().as_str(), "unknown-session");
}

#[tokio::test]
async fn what_is_not_believed_on_an_idle_flow_ends_that_one_alone() {
    let rig = Rig::start(4, "").await;
    let mut flows = Vec::new();
    for _ in 0..4 {
        flows.push(rig.idle().await);
    }
    rig.until(|pool| pool.idle == 4).await;
    let mut good = flows.pop().unwrap();

    // A request of another flow, one with a byte changed, and a probe.
    let copied = rig.request_of_another_flow().await;
    let mut replayed = flows.pop().unwrap().into_connection();
    replayed.write_all(&copied).await.unwrap();
    assert_reset(&mut replayed).await;

    let mut changed = copied.clone();
    *changed.last_mut().unwrap() ^= 1;
    let mut forged = flows.pop().unwrap().into_connection();
    forged.write_all(&changed).await.unwrap();
    assert_reset(&mut forged).await;

    let mut probed = flows.pop().unwrap();
    probed
        .say(&FlowMessage::Open(FlowOpen::Probe))
        .await
        .unwrap();
    assert_ended(probed).await;

    rig.count("flows_broken_total{path=\"reverse\",reason=\"forged\"} 2")
        .await;
    rig.count("flows_broken_total{path=\"reverse\",reason=\"unexpected\"} 1")
        .await;
    rig.count("flows_ended_idle_total{reason=\"broken\"} 3")
        .await;
    assert_eq!(open(&mut good, &rig.target()).await, FlowMessage::Opened);
    let mut kubelet = rig.kubelet_end().await;
    let mut client = good.into_connection();
    client.write_all(HELLO).await.unwrap();
    assert_eq!(read(&mut kubelet, HELLO.len()).await, HELLO);
}

#[tokio::test]
async fn a_flow_goes_where_the_master_advertises() {
    let mut rig = Rig::start(0, "").await;
    let elsewhere = FakeMaster::listen(1).await;
    let mut registered = crate::flows::testing::registered(1);
    registered.advertise = Some(format!("localhost:{}", elsewhere.at.port()));
    let way = crate::flows::Way {
        master: rig.master.at,
        largest_segment: None,
    };
    let keys = crate::flows::testing::keys(1);
    rig.flows = crate::flows::SessionFlows::start(&rig.agent, Some(&keys), &registered, way);

    elsewhere
        .hello()
        .await
        .say(&FlowMessage::Accepted)
        .await
        .unwrap();

    assert!(rig.master.is_left_alone().await);
}

impl Rig {
    /// A request as the master says it on another flow of the same session.
    async fn request_of_another_flow(&self) -> Vec<u8> {
        let connection = within(TcpStream::connect(self.master.at)).await.unwrap();
        let session = &self.flows.as_ref().unwrap()._session;
        let dialled = FlowConnection::dial(connection, session, FlowDirection::Reverse, None);
        let near = dialled.await.unwrap();
        let mut far = self.master.hello().await;
        far.say(&FlowMessage::Accepted).await.unwrap();
        far.say(&request(&self.target())).await.unwrap();
        drop(far.into_connection());
        let said = read_to_end(&mut near.into_connection()).await;
        said.get(ANSWER_LEN..).unwrap().to_vec()
    }
}

/// A message without a body: header and proof.
const ANSWER_LEN: usize = 4 + 32;
