//! What is handed out of a pool, and how its size follows the load.

use super::*;
use crate::flows::pool::Taken;

fn take(stage: &Stage) -> Taken {
    stage.flows().pool.take()
}

#[tokio::test]
async fn the_newest_flow_that_lives_is_handed_out() {
    let stage = Stage::with("").await;
    let (_first, second, third) = (stage.idle().await, stage.idle().await, stage.idle().await);
    let counter = second.counter();
    drop(third);
    // The kernel of this machine knows at once.

    let taken = take(&stage).flow.unwrap();

    assert_eq!(taken.flow.counter(), counter);
    assert_eq!(stage.flows().pool.len(), 1);
}

#[tokio::test]
async fn a_flow_that_its_agent_has_given_up_is_never_handed_out() {
    let stage = Stage::with("").await;
    let flows = [stage.idle().await, stage.idle().await];
    let [ended, mut talks] = flows;
    drop(ended);
    // What says something before it was asked is as bad.
    let odd = FlowMessage::Opened;
    talks.say(&odd).await.unwrap();

    assert!(take(&stage).flow.is_none());
    assert_eq!(stage.master.metrics.flows.idle.get(), 0);
}

#[tokio::test]
async fn upkeep_lets_dead_flows_go() {
    let stage = Stage::with("").await;
    let (first, _second) = (stage.idle().await, stage.idle().await);
    drop(first);

    assert_eq!(stage.flows().pool.upkeep(), None);

    assert_eq!(stage.flows().pool.len(), 1);
}

#[tokio::test]
async fn an_agent_is_asked_for_more_when_there_is_none_and_for_less_after_a_quiet_minute() {
    let stage = Stage::with("flow-pool: 3\n").await;
    assert_eq!(take(&stage).ask, None, "none has ever come");
    let _idle = stage.idle().await;
    assert!(take(&stage).flow.is_some());
    // From here on nothing comes from outside.
    tokio::time::pause();

    assert_eq!(take(&stage).ask, Some(6));
    assert_eq!(take(&stage).ask, None, "it has just been asked");
    for ask in [12, 24, 48, 64] {
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(take(&stage).ask, Some(ask));
    }
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(take(&stage).ask, None, "that is the limit");

    let pool = &stage.flows().pool;
    tokio::time::advance(Duration::from_secs(59)).await;
    assert_eq!(pool.upkeep(), None);
    for ask in [32, 16, 8, 4, 3] {
        tokio::time::advance(Duration::from_mins(1)).await;
        assert_eq!(pool.upkeep(), Some(ask));
        assert_eq!(pool.upkeep(), None);
    }
    tokio::time::advance(Duration::from_mins(5)).await;
    assert_eq!(pool.upkeep(), None);
}
