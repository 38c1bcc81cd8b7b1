//! Reads any bytes as the agent's configuration file.
//!
//! What must hold: no input panics, hangs or blows up, and what is accepted can be shown. The
//! samples under `deploy/samples` are good seeds.

#![no_main]

use libfuzzer_sys::fuzz_target;
use proxymux_agent::config::Config;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    match Config::parse(text, "fuzz.yaml") {
        Ok((config, warnings)) => {
            assert!(
                !config.server_addrs.is_empty(),
                "a file without a master was accepted"
            );
            let _ = (config.settings().to_string(), warnings.len());
        }
        Err(error) => assert!(
            !error.to_string().is_empty(),
            "a file was refused without a reason"
        ),
    }
});
