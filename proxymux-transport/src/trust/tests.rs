//! Peers that were let in once, while clocks jump and CAs come and go.
//!
//! The wall clock is the test's, and tokio's is paused and advanced.

use std::sync::{Arc, Mutex};

use tokio::time::advance;

use super::*;
use crate::{
    certificate::{
        CertificateInfo,
        test_pki::{Ca, Issued, Request, roots},
    },
    clock::WallClock,
};

const NAME: &str = "master.example";
const HOUR: Duration = Duration::from_secs(3600);

/// A wall clock that only goes where it is put.
#[derive(Clone)]
struct Hands(Arc<Mutex<SystemTime>>);

impl Hands {
    fn at(moment: SystemTime) -> (Self, WallClock) {
        let hands = Self(Arc::new(Mutex::new(moment)));
        let read = hands.clone();
        (hands, WallClock::from_fn(move || *read.0.lock().unwrap()))
    }

    fn put(&self, moment: SystemTime) {
        *self.0.lock().unwrap() = moment;
    }
}

fn peer(issued: &Issued) -> Peer {
    Peer {
        certificate: CertificateInfo::parse(&issued.der).unwrap(),
        chain: vec![issued.der.clone()],
    }
}

/// An agent whose certificate has `left` to live, and the clock that says so.
fn agent_with(left: Duration, ca: &Ca) -> (PeerTrust, Hands, SystemTime) {
    let peer = peer(&ca.issue(&Request::node("10.0.10.3")));
    let not_after = peer.certificate.not_after;
    let (hands, clock) = Hands::at(not_after - left);
    (
        PeerTrust::of_agent(peer, &ca.roots(), clock),
        hands,
        not_after,
    )
}

#[tokio::test(start_paused = true)]
async fn a_certificate_expires_when_its_time_has_passed() {
    let ca = Ca::new("kubernetes");
    let (mut trust, hands, not_after) = agent_with(HOUR, &ca);
    let check_at = trust.next_check().unwrap();
    assert_eq!(check_at, Instant::now() + HOUR);

    advance(HOUR - Duration::from_secs(1)).await;
    assert!(trust.check(&ca.roots()).is_ok());

    advance(Duration::from_secs(2)).await;
    hands.put(not_after + Duration::from_secs(1));
    let lost = trust.check(&ca.roots()).unwrap_err();
    assert!(matches!(lost, TrustLost::Expired { .. }), "{lost}");
}

#[tokio::test(start_paused = true)]
async fn a_wall_clock_that_jumps_ahead_expires_nobody() {
    let ca = Ca::new("kubernetes");
    let (mut trust, hands, not_after) = agent_with(HOUR / 2, &ca);

    hands.put(not_after + HOUR / 2);

    for _ in 0..29 {
        advance(Duration::from_secs(60)).await;
        assert!(trust.check(&ca.roots()).is_ok());
    }
    advance(Duration::from_secs(120)).await;
    assert!(trust.check(&ca.roots()).is_err(), "now it has");
}

#[tokio::test(start_paused = true)]
async fn a_wall_clock_that_jumps_back_is_asked_again_until_it_gets_there() {
    let ca = Ca::new("kubernetes");
    let (mut trust, hands, not_after) = agent_with(HOUR, &ca);
    hands.put(not_after - 2 * HOUR);

    advance(HOUR).await;
    assert!(trust.check(&ca.roots()).is_ok());
    let again = trust.next_check().unwrap();
    assert!(again > Instant::now(), "no busy waiting");

    advance(HOUR).await;
    hands.put(not_after + Duration::from_secs(1));
    assert!(trust.check(&ca.roots()).is_err());
}

#[tokio::test(start_paused = true)]
async fn a_ca_may_be_added_and_only_the_removal_of_the_right_one_counts() {
    let (old, new) = (Ca::new("old"), Ca::new("new"));
    let (mut trust, hands, not_after) = agent_with(HOUR, &old);
    let both = roots(&[&old.pem, &new.pem]);

    assert!(trust.check(&both).is_ok());
    // Dates are the other rule's, whatever the wall clock says meanwhile.
    hands.put(not_after + HOUR);
    assert!(trust.check(&old.roots()).is_ok());

    let lost = trust.check(&new.roots()).unwrap_err();
    assert!(
        matches!(&lost, TrustLost::Untrusted(TlsFault::PeerUnknownCa { .. })),
        "{lost:?}"
    );
    assert!(trust.check(&new.roots()).is_err(), "and stays so");
    assert!(trust.check(&both).is_ok(), "until it is put back");
}

#[tokio::test(start_paused = true)]
async fn a_master_is_held_to_its_name() {
    let (old, new) = (Ca::new("old"), Ca::new("new"));
    let name = ServerName::try_from(NAME).unwrap();
    let master = peer(&old.issue(&Request::master(NAME)));
    let (_, clock) = Hands::at(master.certificate.not_after - HOUR);
    let mut trust = PeerTrust::of_master(master, name, &old.roots(), clock);

    assert!(trust.check(&roots(&[&new.pem, &old.pem])).is_ok());
    let lost = trust.check(&new.roots()).unwrap_err();

    assert_eq!(
        lost.to_string(),
        "not trusted under the CAs now in force",
        "the cause is its source"
    );
    assert_eq!(trust.serial(), trust.peer.certificate.serial);
}

#[tokio::test(start_paused = true)]
async fn a_certificate_for_longer_than_any_clock_goes_never_expires() {
    let ca = Ca::new("kubernetes");
    let request = Request::node("10.0.10.3").years(2020, 9999);
    let peer = peer(&ca.issue(&request));
    let (_, clock) = Hands::at(peer.certificate.not_before + HOUR);

    let mut trust = PeerTrust::of_agent(peer, &ca.roots(), clock);

    advance(1000 * HOUR).await;
    assert!(trust.check(&ca.roots()).is_ok());
}
