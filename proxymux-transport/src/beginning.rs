//! What a connection is, by its first bytes.
//!
//! Owns telling TLS, flows and the rest apart, where one port serves several, and where nothing but
//! TLS may be passed on. Leaves reading the bytes, and what to do about it, to callers.
//! A TLS record begins with its content type and the major version of the protocol, which is 3 in
//! every version since SSL 3.0 (RFC 8446, section 5.1); a flow with its magic.

use proxymux_proto::FLOW_MAGIC;

/// What the first bytes of a connection are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Beginning {
    /// Too few to be sure.
    Unclear,
    /// A TLS handshake record.
    Tls,
    /// The hello of a flow.
    Flow,
    /// What may be plain HTTP.
    Http,
    /// Something else.
    Other,
}

impl Beginning {
    /// Judges the bytes that have arrived so far, from the connection's first on.
    ///
    /// Once it is not [`Beginning::Unclear`], it stays the same whatever follows, and that is so
    /// after four bytes at most.
    #[must_use]
    pub fn of(first: &[u8]) -> Self {
        match first {
            [] | [TLS_HANDSHAKE] => Self::Unclear,
            [TLS_HANDSHAKE, TLS_MAJOR, ..] => Self::Tls,
            _ if first.starts_with(&FLOW_MAGIC) => Self::Flow,
            _ if FLOW_MAGIC.starts_with(first) => Self::Unclear,
            [byte, ..] if byte.is_ascii_uppercase() => Self::Http,
            _ => Self::Other,
        }
    }

    /// In words, for the one who expected something else.
    #[must_use]
    pub fn what(self) -> &'static str {
        match self {
            Self::Unclear => "too few bytes",
            Self::Tls => "TLS",
            Self::Flow => "the hello of a flow",
            Self::Http => "what may be plain HTTP",
            Self::Other => "bytes of another protocol",
        }
    }
}

/// The content type of a handshake record, and the major version of every TLS.
const TLS_HANDSHAKE: u8 = 0x16;
const TLS_MAJOR: u8 = 0x03;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_tls_handshake_is_known_by_its_first_two_bytes() {
        assert_eq!(Beginning::of(&[]), Beginning::Unclear);
        assert_eq!(Beginning::of(&[0x16]), Beginning::Unclear);
        for minor in 0..=4 {
            assert_eq!(Beginning::of(&[0x16, 0x03, minor, 0x02]), Beginning::Tls);
        }
        assert_eq!(Beginning::of(&[0x16, 0x03]), Beginning::Tls);
    }

    #[test]
    fn a_flow_is_known_by_its_magic_and_http_that_begins_alike_is_not_one() {
        for unclear in [&b"P"[..], b"PX", b"PXM"] {
            assert_eq!(Beginning::of(unclear), Beginning::Unclear);
        }
        assert_eq!(Beginning::of(b"PXMF"), Beginning::Flow);
        for http in [&b"PO"[..], b"POST /", b"PRI * HTTP/2.0", b"GET /", b"G"] {
            assert_eq!(Beginning::of(http), Beginning::Http, "{http:?}");
        }
    }

    #[test]
    fn anything_else_is_named_at_its_first_byte_or_second() {
        for other in [&[0x16, 0x02][..], b"\0\0", &[0x15, 0x03, 0x01], b"pxmf"] {
            assert_eq!(Beginning::of(other), Beginning::Other, "{other:?}");
        }
    }

    proptest! {
        #[test]
        fn what_follows_does_not_change_the_judgement(
            bytes in proptest::collection::vec(
                prop_oneof![Just(0x16), Just(3), Just(b'P'), Just(b'X'), Just(b'M'), any::<u8>()],
                0..8,
            ),
            end in 0_usize..8,
        ) {
            let early = Beginning::of(&bytes[..end.min(bytes.len())]);
            prop_assert!(early == Beginning::Unclear || early == Beginning::of(&bytes));
            prop_assert!(bytes.len() < 4 || Beginning::of(&bytes) != Beginning::Unclear);
        }
    }
}
