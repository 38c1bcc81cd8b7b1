//! Hellos and messages of flows: no bytes make the decoders panic, and none that we did not sign are
//! believed.
//!
//! What is inside a proven message is decoded by the code that target `open` covers.

#![no_main]

use std::sync::{Arc, LazyLock};

use proxymux_proto::{FLOW_HEADER_LEN, FLOW_HELLO_LEN, FlowConversation, FlowDirection, FlowKeys};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Some((hello, _)) = bytes.split_first_chunk::<FLOW_HELLO_LEN>() {
        assert!(FlowConversation::accept(hello, Arc::clone(&KEYS)).is_err());
    }
    let Some((header, rest)) = bytes.split_first_chunk::<FLOW_HEADER_LEN>() else {
        return;
    };
    for direction in [FlowDirection::Reverse, FlowDirection::Direct] {
        let (mut conversation, _) = FlowConversation::dial(Arc::clone(&KEYS), direction, 1);
        let wanted = FlowConversation::rest_len(*header).unwrap_or(rest.len());
        let rest = rest.get(..wanted).unwrap_or(rest);
        assert!(conversation.hear(*header, rest).is_err());
    }
});

/// Keys that the fuzzer cannot guess.
static KEYS: LazyLock<Arc<FlowKeys>> = LazyLock::new(|| {
    let export = |context: &[u8], secret: &mut [u8]| {
        secret.fill(context.iter().fold(0x5a, |sum, byte| sum ^ byte));
        Ok::<(), std::convert::Infallible>(())
    };
    Arc::new(FlowKeys::export(export).unwrap_or_else(|never| match never {}))
});
