//! Orders to measure: what is refused, in which words, and that one measurement runs at a time.
//!
//! No agent answers here; figures of a real one are tested end to end, in `tests/tests/admin`.

use super::*;
use crate::testing::{self, NODE, session};

fn start(master: &Arc<Master>, query: &str) -> Result<Value, String> {
    master.perf.start(master, &Handle::current(), query)
}

#[tokio::test(start_paused = true)]
async fn orders_that_make_no_sense_are_refused_in_words() {
    let master = testing::master("");
    let session = session(NODE, 1);
    session.admit(&master.registry).unwrap();
    for (query, said) in [
        (String::new(), "the order has no `node`"),
        (
            format!("node={NODE}&path=fast"),
            "unknown path `fast`, expected all, session, reverse or direct",
        ),
        (
            format!("node={NODE}&seconds=0"),
            "bad number of seconds `0`, expected 1 to 60",
        ),
        (
            "node=10.0.10.99".to_owned(),
            "node 10.0.10.99 has no session; `proxymux-master nodes` lists those that have",
        ),
    ] {
        assert_eq!(start(&master, &query).unwrap_err(), said);
    }
    assert_eq!(
        master.perf.state().unwrap_err(),
        "nothing has been measured"
    );
}

#[tokio::test(start_paused = true)]
async fn one_measurement_at_a_time_and_each_path_says_why_it_has_no_figures() {
    let master = testing::master("");
    let session = session(NODE, 1);
    session.handle.registered.cancel();
    session.admit(&master.registry).unwrap();

    let first = start(&master, &format!("node={NODE}")).unwrap();

    assert_eq!(first["done"], false);
    let busy = format!("a measurement of node {NODE} is running; wait until it is over");
    assert_eq!(start(&master, &format!("node={NODE}")).unwrap_err(), busy);
    // Nobody answers on this session.
    let state = loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let state = master.perf.state().unwrap();
        if is_over(&state) {
            break state;
        }
    };
    let problem = |at: usize| state["paths"][at]["problem"].as_str().unwrap().to_owned();
    assert_eq!(state["paths"].as_array().unwrap().len(), 3);
    assert!(problem(0).contains(NODE), "{}", problem(0));
    assert_eq!(problem(1), "not usable now: unverified");
    start(&master, &format!("node={NODE}&path=session")).unwrap();
}
