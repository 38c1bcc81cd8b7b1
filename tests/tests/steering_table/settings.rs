//! Settings of the kernel that change how a connection begins.

use anyhow::Result;
use proxymux_tests::visitors::{Family, Holder};

use crate::stage::{self, attach_kinds};

/// The packet that ends the handshake finds no half-open connection: it is assigned like the first.
#[test]
fn cookies_in_place_of_half_open_connections_are_steered() -> Result<()> {
    for attach in attach_kinds()? {
        let stage = stage::start(attach)?;
        stage.node().sysctl("net.ipv4.tcp_syncookies", "2")?;

        let before = stage.count("followed")?;
        for _ in 0..VISITS {
            for family in Family::ALL {
                assert_eq!(stage.visit(family)?, Holder::Agent, "{attach} {family:?}");
            }
        }

        let (followed, visits) = (stage.count("followed")? - before, f64::from(2 * VISITS));
        assert!(followed >= visits, "{followed} cookies, {visits} visits");
    }
    Ok(())
}

#[test]
fn strict_reverse_path_filtering_lets_steering_be() -> Result<()> {
    for attach in attach_kinds()? {
        let stage = stage::start(attach)?;
        for name in ["all", "ens3", "lo"] {
            let setting = format!("net.ipv4.conf.{name}.rp_filter");
            stage.node().sysctl(&setting, "1")?;
        }

        assert_eq!(stage.visit(Family::V4)?, Holder::Agent, "{attach}");
    }
    Ok(())
}

const VISITS: u32 = 5;
