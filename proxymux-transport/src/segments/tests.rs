//! The signs of a path that loses large segments, second by second, and what must not be one.

use super::*;

/// What is seen in one second: what was heard and acknowledged so far, whether something waits,
/// and how often in a row it was sent in vain.
struct Second {
    received: u64,
    acked: u64,
    outstanding: bool,
    timeouts: u8,
}

/// The signs within so many seconds, with the second.
fn signs(seconds: u64, see: impl Fn(u64) -> Second) -> Vec<(u64, Sign)> {
    let look = |second| {
        let Second {
            received,
            acked,
            outstanding,
            timeouts,
        } = see(second);
        Look {
            received,
            progress: TcpProgress {
                acked,
                outstanding,
                unheard: Duration::ZERO,
            },
            segments: TcpSegments {
                largest_sent: 8948,
                largest_taken: 8948,
                timeouts,
                received,
            },
        }
    };
    let start = Instant::now();
    let mut watch = SegmentWatch::new(start, look(0));
    (1..=seconds)
        .filter_map(|second| {
            let sign = watch.tick(start + Duration::from_secs(second), look(second));
            sign.map(|sign| (second, sign))
        })
        .collect()
}

/// Retransmissions by second: the kernel doubles the time from 0.2 s on.
fn timeouts_after(seconds: u64) -> u8 {
    match seconds {
        0 => 0,
        1 => 2,
        2 => 3,
        3..=5 => 4,
        _ => 5,
    }
}

/// A ping of either side every 5 s.
fn pings(second: u64) -> u64 {
    second / 5
}

#[test]
fn what_we_send_is_lost_while_the_peers_pings_arrive() {
    let seen = signs(60, |second| Second {
        received: pings(second),
        acked: second.min(20),
        outstanding: second > 20,
        timeouts: timeouts_after(second.saturating_sub(20)),
    });
    let [(second, Sign::Stalled(Direction::ToPeer))] = seen[..] else {
        panic!("{seen:?}");
    };
    assert!((24..=27).contains(&second), "{seen:?}");
}

#[test]
fn what_the_peer_sends_is_lost_while_it_acknowledges_our_pings() {
    let seen = signs(60, |second| Second {
        received: second.min(20),
        acked: pings(second),
        outstanding: false,
        timeouts: 0,
    });
    assert_eq!(seen, [(27, Sign::Stalled(Direction::FromPeer))]);
}

#[test]
fn what_moves_again_is_said_once() {
    let seen = signs(90, |second| Second {
        received: if second < 35 { second.min(20) } else { second },
        acked: pings(second),
        outstanding: false,
        timeouts: 0,
    });
    assert_eq!(
        seen,
        [(27, Sign::Stalled(Direction::FromPeer)), (35, Sign::Moves)]
    );
}

#[test]
fn a_dead_link_is_no_sign() {
    let seen = signs(60, |second| Second {
        received: second.min(20),
        acked: second.min(20),
        outstanding: second > 20,
        timeouts: timeouts_after(second.saturating_sub(20)),
    });
    assert_eq!(seen, []);
}

#[test]
fn a_dead_link_with_an_idle_session_is_no_sign() {
    // The last ping's answer, then nothing: what is sent waits for ever.
    let seen = signs(60, |second| Second {
        received: pings(second.min(20)),
        acked: pings(second.min(20)),
        outstanding: second >= 25,
        timeouts: timeouts_after(second.saturating_sub(25)),
    });
    assert_eq!(seen, []);
}

#[test]
fn a_dead_link_with_a_load_on_it_is_no_sign() {
    // The peer's last ping comes a while before the last acknowledgement.
    let seen = signs(60, |second| Second {
        received: pings(second.min(20)),
        acked: second.min(23) * 250_000,
        outstanding: true,
        timeouts: timeouts_after(second.saturating_sub(23)),
    });
    assert_eq!(seen, []);
}

#[test]
fn a_slow_link_under_load_is_no_sign_in_either_direction() {
    // Much waits, a segment is lost now and then, and each second something gets through.
    let up = signs(120, |second| Second {
        received: pings(second),
        acked: second * 250_000,
        outstanding: true,
        timeouts: u8::try_from(second % 4).unwrap(),
    });
    let down = signs(120, |second| Second {
        received: second * 250_000,
        acked: pings(second),
        outstanding: second % 5 == 0,
        timeouts: 0,
    });
    assert_eq!((up, down), (vec![], vec![]));
}

#[test]
fn a_link_that_stands_still_for_five_seconds_is_no_sign() {
    let stands = |second: u64| if second > 20 { second.max(25) } else { second };
    let seen = signs(60, |second| Second {
        received: stands(second),
        acked: stands(second),
        outstanding: (20..25).contains(&second),
        timeouts: if (20..25).contains(&second) {
            timeouts_after(second - 20)
        } else {
            0
        },
    });
    assert_eq!(seen, []);
}

#[test]
fn an_idle_session_is_no_sign() {
    let seen = signs(600, |second| Second {
        received: pings(second),
        acked: pings(second),
        outstanding: false,
        timeouts: 0,
    });
    assert_eq!(seen, []);
}
