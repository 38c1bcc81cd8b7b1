//! HTTP CONNECT as a front door speaks it: reading the request, writing the answer.
//!
//! Owns which bytes are a request that we take, which status and reason the others get, and the
//! exact bytes of every answer. Leaves sockets and time to `serve`.
//! Read [`parse`] and [`Status`] first. Nothing here does IO, and nothing of what a client sent
//! gets into an answer unless it was made printable.
//!
//! kube-apiserver shows its user the status line and nothing else, so the cause goes there.

use std::fmt;

use httparse::EMPTY_HEADER;
use proxymux_proto::{MAX_REASON_LEN, TargetAddr, printable};

/// The whole answer to a request that was granted. It is written alone: kube-apiserver gives up
/// a connection on which anything was read together with it.
pub const ESTABLISHED: &[u8] = b"HTTP/1.1 200 Connection established\r\n\r\n";

/// What the bytes that have arrived so far amount to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Parsed {
    /// The beginning of a header.
    NeedMore,
    /// A request.
    Request {
        /// What the client wants to be connected to.
        target: TargetAddr,
        /// Where the header ends. The bytes behind it are payload.
        header_len: usize,
    },
    /// No request that we take. More bytes would not change that.
    Refused(Refusal),
}

/// The status and the reason with which a connection is turned away.
///
/// ```
/// use proxymux_master::front_door::connect::{Refusal, Status};
/// let refusal = Refusal::new(Status::Unavailable, "no route to\r\n10.0.10.10:1");
/// assert_eq!(
///     refusal.answer(),
///     "HTTP/1.1 503 no route to??10.0.10.10:1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
/// );
/// ```
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Refusal {
    /// The status.
    pub status: Status,
    /// The cause in words. Anything may be in it: it is made printable when it is shown.
    pub reason: String,
}

/// Every status with which a front door turns a client away.
///
/// 200 is not among them: it has no reason of its own and is always [`ESTABLISHED`].
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Status {
    /// 400: the request makes no sense.
    BadRequest,
    /// 403: the node does not dial that target.
    Forbidden,
    /// 405: not a CONNECT request.
    MethodNotAllowed,
    /// 408: the request's header took too long.
    RequestTimeout,
    /// 431: the request's header is too large.
    HeaderTooLarge,
    /// 502: the node could not reach the target.
    BadGateway,
    /// 503: no session or route for that target, or a limit is reached.
    Unavailable,
    /// 504: the node did not answer in time.
    GatewayTimeout,
}

/// Reads the bytes that have arrived so far, from the connection's first on.
///
/// The outcome does not depend on the pieces in which bytes arrive: once it is not
/// [`Parsed::NeedMore`], it stays the same whatever follows. It starts from the first byte every
/// time, which is no waste for a header that comes in one piece, as nearly all do; the worst that
/// a client can do is 16 KiB byte by byte, some tenth of a second of work.
///
/// `max_len` is the most bytes that a header may have, the empty line at its end included.
#[must_use]
pub fn parse(bytes: &[u8], max_len: usize) -> Parsed {
    let header = bytes.get(..max_len).unwrap_or(bytes);
    let mut few = [EMPTY_HEADER; FEW_HEADERS];
    match read(header, &mut few, max_len) {
        // More headers than nearly every client sends, yet not more than fit into the limit.
        Read::NoRoom => {
            let mut many = vec![EMPTY_HEADER; max_len / SHORTEST_HEADER + 1];
            match read(header, &mut many, max_len) {
                Read::NoRoom => too_large(max_len),
                Read::Done(parsed) => parsed,
            }
        }
        Read::Done(parsed) => parsed,
    }
}

impl Refusal {
    /// A refusal with its cause in words.
    #[must_use]
    pub fn new(status: Status, reason: impl Into<String>) -> Self {
        Self {
            status,
            reason: reason.into(),
        }
    }

    /// The reason as it is shown: printable ASCII, 1 to [`MAX_REASON_LEN`] bytes. If nothing is
    /// left of it, the status's own words.
    #[must_use]
    pub fn phrase(&self) -> String {
        match self.reason.trim() {
            "" => self.status.phrase().to_owned(),
            reason => printable(reason, MAX_REASON_LEN),
        }
    }

    /// The whole answer, after which the connection is closed.
    #[must_use]
    pub fn answer(&self) -> String {
        format!("HTTP/1.1 {self}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.status.code(), self.phrase())
    }
}

impl Status {
    /// Every status.
    pub const ALL: [Self; 8] = [
        Self::BadRequest,
        Self::Forbidden,
        Self::MethodNotAllowed,
        Self::RequestTimeout,
        Self::HeaderTooLarge,
        Self::BadGateway,
        Self::Unavailable,
        Self::GatewayTimeout,
    ];

    /// The number on the wire.
    #[must_use]
    pub fn code(self) -> u16 {
        match self {
            Self::BadRequest => 400,
            Self::Forbidden => 403,
            Self::MethodNotAllowed => 405,
            Self::RequestTimeout => 408,
            Self::HeaderTooLarge => 431,
            Self::BadGateway => 502,
            Self::Unavailable => 503,
            Self::GatewayTimeout => 504,
        }
    }

    /// Every word of [`Self::word`].
    pub const WORDS: &[&str] = &[
        "bad-request",
        "forbidden",
        "method-not-allowed",
        "request-timeout",
        "header-too-large",
        "bad-gateway",
        "unavailable",
        "gateway-timeout",
    ];

    /// The word for metric labels, from a closed list.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::BadRequest => "bad-request",
            Self::Forbidden => "forbidden",
            Self::MethodNotAllowed => "method-not-allowed",
            Self::RequestTimeout => "request-timeout",
            Self::HeaderTooLarge => "header-too-large",
            Self::BadGateway => "bad-gateway",
            Self::Unavailable => "unavailable",
            Self::GatewayTimeout => "gateway-timeout",
        }
    }

    /// The words for a refusal that came without a reason.
    fn phrase(self) -> &'static str {
        match self {
            Self::BadRequest => "malformed request",
            Self::Forbidden => "target refused by the node",
            Self::MethodNotAllowed => "method not allowed, expected CONNECT",
            Self::RequestTimeout => "request header too slow",
            Self::HeaderTooLarge => "request header too large",
            Self::BadGateway => "target could not be reached",
            Self::Unavailable => "no way to the target",
            Self::GatewayTimeout => "no answer in time",
        }
    }
}

enum Read {
    /// There are more headers than places for them.
    NoRoom,
    Done(Parsed),
}

fn read<'b>(header: &'b [u8], places: &mut [httparse::Header<'b>], max_len: usize) -> Read {
    let mut request = httparse::Request::new(places);
    let outcome = request.parse(header);
    // What was read before an error decides first. Otherwise the outcome would depend on whether
    // the offending bytes came together with those before them.
    if request.method.is_some_and(|method| method != "CONNECT") {
        return Read::Done(Parsed::Refused(Refusal::new(Status::MethodNotAllowed, "")));
    }
    let target = match request.path.map(str::parse::<TargetAddr>).transpose() {
        Ok(target) => target,
        Err(error) => return malformed(&error.to_string()),
    };
    match (outcome, target) {
        (Ok(httparse::Status::Complete(header_len)), Some(target)) => {
            Read::Done(Parsed::Request { target, header_len })
        }
        (Ok(httparse::Status::Complete(_)), None) => malformed("request without a target"),
        (Ok(httparse::Status::Partial), _) if header.len() >= max_len => {
            Read::Done(too_large(max_len))
        }
        (Ok(httparse::Status::Partial), _) => Read::Done(Parsed::NeedMore),
        (Err(httparse::Error::TooManyHeaders), _) => Read::NoRoom,
        (Err(httparse::Error::Version), _) => {
            malformed("unknown protocol version, expected HTTP/1.0 or HTTP/1.1")
        }
        (Err(error), _) => malformed(&format!("malformed request: {error}")),
    }
}

fn malformed(reason: &str) -> Read {
    Read::Done(Parsed::Refused(Refusal::new(Status::BadRequest, reason)))
}

fn too_large(max_len: usize) -> Parsed {
    let reason = format!("request header too large, expected at most {max_len} bytes");
    Parsed::Refused(Refusal::new(Status::HeaderTooLarge, reason))
}

/// Headers of an ordinary request, with room to spare; their places are on the stack.
const FEW_HEADERS: usize = 32;

/// A letter, a colon and a line feed.
const SHORTEST_HEADER: usize = 3;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MAX_HEADER_LEN: usize = 16 * 1024;

    fn parse(bytes: &[u8]) -> Parsed {
        super::parse(bytes, MAX_HEADER_LEN)
    }

    const REQUEST: &str = "CONNECT 10.0.10.10:10250 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n";

    fn request(target: &str, header_len: usize) -> Parsed {
        Parsed::Request {
            target: target.parse().unwrap(),
            header_len,
        }
    }

    fn refusal(text: impl AsRef<[u8]>) -> Refusal {
        match parse(text.as_ref()) {
            Parsed::Refused(refusal) => refusal,
            other => panic!("expected a refusal, got {other:?}"),
        }
    }

    /// What a reader gets that hands over bytes in these pieces, as they come.
    fn parse_in_pieces(bytes: &[u8], pieces: &[usize]) -> Parsed {
        let mut end = 0;
        let mut pieces = pieces.iter().cycle();
        loop {
            end = bytes
                .len()
                .min(end + pieces.next().copied().unwrap_or(1).max(1));
            let parsed = parse(&bytes[..end]);
            if parsed != Parsed::NeedMore || end == bytes.len() {
                return parsed;
            }
        }
    }

    #[test]
    fn what_kube_apiserver_sends_is_a_request() {
        assert_eq!(
            parse(REQUEST.as_bytes()),
            request("10.0.10.10:10250", REQUEST.len())
        );
    }

    #[test]
    fn every_beginning_of_a_request_needs_more() {
        for end in 0..REQUEST.len() {
            assert_eq!(
                parse(&REQUEST.as_bytes()[..end]),
                Parsed::NeedMore,
                "{end} bytes"
            );
        }
    }

    #[test]
    fn bytes_behind_the_header_are_not_part_of_it() {
        let with_payload = [REQUEST.as_bytes(), b"CONNECT b:1 HTTP/1.1\r\n\r\n\xff\0"].concat();
        assert_eq!(
            parse(&with_payload),
            request("10.0.10.10:10250", REQUEST.len())
        );
    }

    #[test]
    fn host_names_no_target_and_other_headers_do_no_harm() {
        let text = "CONNECT [FD00::10]:443 HTTP/1.0\r\nHost: elsewhere:1\r\nUser-Agent: curl/8\r\n\
                    Proxy-Connection: Keep-Alive\r\nContent-Length: 5\r\nX-Empty:\r\n\r\n";
        assert_eq!(
            parse(text.as_bytes()),
            request("[fd00::10]:443", text.len())
        );
    }

    #[test]
    fn as_many_headers_as_fit_are_accepted() {
        let mut text = "CONNECT node-a:1 HTTP/1.1\r\n".to_owned();
        while text.len() + 4 + 2 <= MAX_HEADER_LEN {
            text += "a:\r\n";
        }
        text += "\r\n";
        assert_eq!(parse(text.as_bytes()), request("node-a:1", text.len()));
    }

    #[test]
    fn the_shortest_headers_have_places_up_to_the_limit() {
        let endless = format!("CONNECT a:1 HTTP/1.1\n{}", "a:\n".repeat(MAX_HEADER_LEN));
        assert_eq!(refusal(endless).status, Status::HeaderTooLarge);
    }

    #[test]
    fn a_header_may_have_the_limit_and_not_a_byte_more() {
        let start = "CONNECT a:1 HTTP/1.1\r\nX: ";
        let fill = "x".repeat(MAX_HEADER_LEN - start.len() - 4);

        let at_limit = format!("{start}{fill}\r\n\r\n");
        assert_eq!(parse(at_limit.as_bytes()), request("a:1", MAX_HEADER_LEN));

        let over = refusal(format!("{start}{fill}x\r\n\r\n"));
        assert_eq!(
            over.to_string(),
            "431 request header too large, expected at most 16384 bytes"
        );
    }

    #[test]
    fn other_methods_are_not_allowed() {
        for text in [
            "GET / HTTP/1.1\r\n\r\n",
            "GET ",
            "POST /",
            "connect a:1 HTTP/1.1\r\n\r\n",
            "OPTIONS * HTTP/1.1\r\nbad header\r\n\r\n",
        ] {
            assert_eq!(refusal(text).status, Status::MethodNotAllowed, "{text:?}");
        }
    }

    #[test]
    fn malformed_requests_say_what_is_wrong_with_them() {
        for (text, said) in [
            (
                "CONNECT a HTTP/1.1\r\n\r\n",
                "400 target has no port, expected host:port",
            ),
            (
                "CONNECT / HTTP/1.1\r\n\r\n",
                "400 target has no port, expected host:port",
            ),
            (
                "CONNECT a:0 ",
                "400 target has a bad port, expected 1 to 65535",
            ),
            (
                "CONNECT fd00::1:1 HTTP/1.1\r\n\r\n",
                "400 target has a bad IPv6 address, expected [address]:port",
            ),
            (
                "CONNECT  a:1 HTTP/1.1\r\n\r\n",
                "400 malformed request: invalid token",
            ),
            (
                "CONNECT a:1\r\n\r\n",
                "400 malformed request: invalid token",
            ),
            (
                "CONNECT a:1 HTTP/1.1\r\nno colon\r\n",
                "400 malformed request: invalid header name",
            ),
            (
                "CONNECT a:1 HTTP/1.1\r\na: b\r\n c\r\n",
                "400 malformed request: invalid header name",
            ),
            (
                "CONNECT a:1 HTTP/2.0\r\n\r\n",
                "400 unknown protocol version, expected HTTP/1.0 or HTTP/1.1",
            ),
            ("\x16\x03\x01\x02", "400 malformed request: invalid token"),
            (
                "CONNECT n\u{f6}de:1 HTTP/1.1\r\n\r\n",
                "400 target host has '\\u{f6}' at byte 1, expected letters, digits, '-' or '.', or \
                 an IPv6 address",
            ),
        ] {
            assert_eq!(refusal(text).to_string(), said, "{text:?}");
        }
    }

    #[test]
    fn a_tls_client_at_a_plain_door_is_turned_away_at_its_first_byte() {
        assert_eq!(refusal(b"\x16").status, Status::BadRequest);
    }

    #[test]
    fn an_empty_reason_becomes_the_words_of_its_status() {
        for status in Status::ALL {
            let refusal = Refusal::new(status, " \r\n ");
            assert_eq!(refusal.phrase(), status.phrase());
        }
    }

    #[test]
    fn a_long_reason_is_cut() {
        let refusal = Refusal::new(Status::GatewayTimeout, "x".repeat(500));
        assert_eq!(refusal.phrase().len(), MAX_REASON_LEN);
    }

    fn nearly_a_request() -> impl Strategy<Value = Vec<u8>> {
        // Bytes of a request's alphabet, so that random text gets past the first line often.
        let noise = proptest::collection::vec(
            prop_oneof![
                Just(b"\r\n".to_vec()),
                Just(b"CONNECT ".to_vec()),
                Just(b"GET ".to_vec()),
                Just(b"10.0.10.10:10250 ".to_vec()),
                Just(b"HTTP/1.1\r\n".to_vec()),
                Just(b"Host: a\r\n".to_vec()),
                Just(b"a:\n".repeat(40)),
                Just(vec![b'x'; 5000]),
                proptest::collection::vec(any::<u8>(), 0..6),
            ],
            0..16,
        );
        (any::<bool>(), noise).prop_map(|(proper, parts)| {
            let start: &[u8] = if proper {
                b"CONNECT a:1 HTTP/1.1\r\n"
            } else {
                b""
            };
            [start, &parts.concat()].concat()
        })
    }

    proptest! {
        #[test]
        fn the_pieces_make_no_difference(
            bytes in nearly_a_request(),
            pieces in proptest::collection::vec(1_usize..4000, 1..8),
        ) {
            prop_assert_eq!(parse_in_pieces(&bytes, &pieces), parse(&bytes));
        }

        #[test]
        fn single_bytes_make_no_difference(
            bytes in nearly_a_request().prop_filter("short", |bytes| bytes.len() < 600),
        ) {
            prop_assert_eq!(parse_in_pieces(&bytes, &[1]), parse(&bytes));
        }

        #[test]
        fn an_answer_is_one_printable_status_line_and_two_headers(
            reason in any::<String>(),
            status in prop::sample::select(&Status::ALL[..]),
        ) {
            let answer = Refusal::new(status, reason).answer();
            let lines: Vec<_> = answer.split("\r\n").collect();
            let start = format!("HTTP/1.1 {} ", status.code());
            let phrase = lines[0].strip_prefix(&start).unwrap();
            prop_assert!((1..=MAX_REASON_LEN).contains(&phrase.len()));
            prop_assert!(phrase.bytes().all(|b| (b' '..=b'~').contains(&b)));
            prop_assert_eq!(&lines[1..], ["Content-Length: 0", "Connection: close", "", ""]);
        }
    }
}
