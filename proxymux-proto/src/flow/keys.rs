//! The keys of a session's flows, and the proofs made with them.
//!
//! Owns which key proves what: there is one for each message in each direction, so that no proof
//! can be taken for another. Leaves getting secrets out of TLS to the caller, which has the
//! session's exporter (RFC 8446, section 7.5).
//! Proofs are HMAC-SHA256 (RFC 2104) and compared in constant time.

use std::fmt;

use aws_lc_rs::hmac;

use super::{FlowDirection, FlowSessionId, SESSION_ID_LEN};

/// The label under which all of a session's secrets for flows are exported from TLS.
pub const FLOW_EXPORTER_LABEL: &[u8] = b"EXPORTER-proxymux-flow";

/// The bytes of a proof.
pub const FLOW_MAC_LEN: usize = 32;

/// The secrets that one session gives its flows.
pub struct FlowKeys {
    session: FlowSessionId,
    reverse: DirectionKeys,
    direct: DirectionKeys,
}

struct DirectionKeys {
    hello: hmac::Key,
    answer: hmac::Key,
    open: hmac::Key,
    result: hmac::Key,
}

/// What a key proves.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Purpose {
    Hello,
    Answer,
    Open,
    Result,
}

impl FlowKeys {
    /// Takes the secrets out of a session's exporter.
    ///
    /// `export` fills its second argument with keying material for [`FLOW_EXPORTER_LABEL`] and the
    /// context in its first. Both ends of a session get the same; no other session does.
    ///
    /// # Errors
    ///
    /// What `export` returns.
    pub fn export<E>(mut export: impl FnMut(&[u8], &mut [u8]) -> Result<(), E>) -> Result<Self, E> {
        let mut session = [0; SESSION_ID_LEN];
        export(b"session id", &mut session)?;
        let mut key = |context: &str| -> Result<hmac::Key, E> {
            let mut secret = [0; FLOW_MAC_LEN];
            export(context.as_bytes(), &mut secret)?;
            Ok(hmac::Key::new(hmac::HMAC_SHA256, &secret))
        };
        Ok(Self {
            session: FlowSessionId::from_bytes(session),
            reverse: DirectionKeys {
                hello: key("reverse hello")?,
                answer: key("reverse answer")?,
                open: key("reverse open")?,
                result: key("reverse result")?,
            },
            direct: DirectionKeys {
                hello: key("direct hello")?,
                answer: key("direct answer")?,
                open: key("direct open")?,
                result: key("direct result")?,
            },
        })
    }

    /// The session's id.
    #[must_use]
    pub fn session(&self) -> FlowSessionId {
        self.session
    }

    pub(super) fn sign(
        &self,
        direction: FlowDirection,
        purpose: Purpose,
        transcript: &[u8],
    ) -> [u8; FLOW_MAC_LEN] {
        let tag = hmac::sign(self.key(direction, purpose), transcript);
        tag.as_ref()
            .try_into()
            .expect("a tag of HMAC-SHA256 has 32 bytes")
    }

    /// Whether the proof fits; takes the same time whichever byte is wrong.
    pub(super) fn verify(
        &self,
        direction: FlowDirection,
        purpose: Purpose,
        transcript: &[u8],
        proof: &[u8],
    ) -> bool {
        hmac::verify(self.key(direction, purpose), transcript, proof).is_ok()
    }

    fn key(&self, direction: FlowDirection, purpose: Purpose) -> &hmac::Key {
        let keys = match direction {
            FlowDirection::Reverse => &self.reverse,
            FlowDirection::Direct => &self.direct,
        };
        match purpose {
            Purpose::Hello => &keys.hello,
            Purpose::Answer => &keys.answer,
            Purpose::Open => &keys.open,
            Purpose::Result => &keys.result,
        }
    }
}

impl fmt::Debug for FlowKeys {
    /// Without the secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FlowKeys")
            .field("session", &self.session)
            .finish_non_exhaustive()
    }
}
