//! Text that came from a peer, made safe to log and to put into a status line.
//!
//! Owns the one filter through which such text passes; leaves to callers where it is shown.

/// The most bytes that a reason shown to a user may have.
///
/// An HTTP status line carries it, and clients cut lines that they find too long.
pub const MAX_REASON_LEN: usize = 200;

/// Returns `text` reduced to printable ASCII and at most `limit` bytes.
///
/// Every other character, line ends included, becomes one `?`, so that nothing a peer chose can
/// end a line early or steer a terminal.
///
/// ```
/// assert_eq!(proxymux_proto::printable("no\r\nway", 200), "no??way");
/// assert_eq!(proxymux_proto::printable("abcdef", 4), "abcd");
/// ```
#[must_use]
pub fn printable(text: &str, limit: usize) -> String {
    text.chars()
        .take(limit)
        .map(|c| {
            if c == ' ' || c.is_ascii_graphic() {
                c
            } else {
                '?'
            }
        })
        .collect()
}
