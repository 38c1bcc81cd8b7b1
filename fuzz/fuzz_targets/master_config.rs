//! Reads any bytes as the master's configuration file, and as its file of node addresses.
//!
//! What must hold: no input panics, hangs or blows up, what is accepted can be shown, and each
//! address and network leads back to its node. The samples under `deploy/samples` are good seeds.

#![no_main]

use libfuzzer_sys::fuzz_target;
use proxymux_master::config::{Config, NodeAddressFile};

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    match Config::parse(text, "fuzz.yaml") {
        Ok((config, warnings)) => {
            assert!(
                !config.front_doors.is_empty(),
                "a file without a front door was accepted"
            );
            let _ = (config.settings().to_string(), warnings.len());
        }
        Err(error) => assert!(
            !error.to_string().is_empty(),
            "a file was refused without a reason"
        ),
    }
    if let Ok(file) = NodeAddressFile::parse(text, "fuzz.yaml") {
        for (node, nets) in file.iter() {
            for net in nets {
                assert_eq!(file.owner(*net), Some(node), "{net} leads elsewhere");
            }
        }
    }
});
