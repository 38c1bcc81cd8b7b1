//! Tables and words for people who look at a status.
//!
//! Owns the alignment of columns and how times are written. What comes from a status is made
//! printable, since the other end of a session has written some of it.

use std::fmt::Write as _;

use proxymux_proto::printable;
use serde_json::Value;

/// Rows under headings, each column as wide as it has to be.
#[derive(Clone, Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings and no rows.
    #[must_use]
    pub fn new(headings: &[&str]) -> Self {
        let headings = headings.iter().map(|heading| (*heading).to_owned());
        Self {
            rows: vec![headings.collect()],
        }
    }

    /// Adds a row. What is empty is shown as `-`.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        let cells = cells.into_iter().map(|cell| match cell.as_str() {
            "" => NOTHING.to_owned(),
            cell => printable(cell, MAX_CELL),
        });
        self.rows.push(cells.collect());
    }

    /// Whether there are no rows.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.len() <= 1
    }

    /// The table as text, with a line break at its end.
    #[must_use]
    pub fn show(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                // Writing into a string cannot fail.
                let _ = write!(line, "{cell:width$}{GAP}");
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// Names and values under each other, the values aligned. What is empty is left out.
#[must_use]
pub fn lines<const N: usize>(pairs: [(&str, String); N]) -> String {
    let shown = || pairs.iter().filter(|(_, value)| !value.is_empty());
    let width = shown().map(|(name, _)| name.len()).max().unwrap_or(0) + 1;
    let mut text = String::new();
    for (name, value) in shown() {
        let name = format!("{name}:");
        let value = printable(value, MAX_CELL);
        // Writing into a string cannot fail.
        let _ = writeln!(text, "{name:width$} {value}");
    }
    text
}

/// What stands at a place of a status, such as `/session/streams`, as text; a list with commas
/// between. Nothing is an empty text.
#[must_use]
pub fn text(status: &Value, place: &str) -> String {
    match status.pointer(place) {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(values)) => {
            let texts: Vec<_> = values.iter().map(|value| text(value, "")).collect();
            texts.join(",")
        }
        Some(other) => other.to_string(),
    }
}

/// Why a daemon is not ready, in one line; empty if it is.
#[must_use]
pub fn reasons(status: &Value) -> String {
    let reasons = status.get("reasons").and_then(Value::as_array);
    let reasons = reasons.into_iter().flatten().map(|reason| text(reason, ""));
    reasons.collect::<Vec<_>>().join("; ")
}

/// A number at a place of a status.
#[must_use]
pub fn number(status: &Value, place: &str) -> Option<u64> {
    status.pointer(place).and_then(Value::as_u64)
}

/// A round trip of so many microseconds, such as `1.53ms`.
#[must_use]
pub fn rtt(us: u64) -> String {
    format!("{}.{:02}ms", us / 1000, us % 1000 / 10)
}

/// A number of seconds as its two largest units, such as `3d4h` or `5m12s`.
#[must_use]
pub fn age(seconds: u64) -> String {
    let units = [
        (seconds / 86_400, "d"),
        (seconds / 3600 % 24, "h"),
        (seconds / 60 % 60, "m"),
        (seconds % 60, "s"),
    ];
    let shown: Vec<_> = units
        .iter()
        .skip_while(|(count, _)| *count == 0)
        .take(2)
        .filter(|(count, _)| *count > 0)
        .map(|(count, unit)| format!("{count}{unit}"))
        .collect();
    if shown.is_empty() {
        "0s".to_owned()
    } else {
        shown.concat()
    }
}

const GAP: &str = "  ";

const NOTHING: &str = "-";

/// The longest reason that a peer may give, and some of our own words before it.
const MAX_CELL: usize = 512;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(&["NODE", "RTT"]);
        assert!(table.is_empty());
        table.row(["10.0.10.10".to_owned(), String::new()]);
        table.row(["a".to_owned(), "1.5ms".to_owned()]);
        assert_eq!(
            table.show(),
            "NODE        RTT\n10.0.10.10  -\na           1.5ms\n"
        );
    }

    #[test]
    fn nothing_of_a_peer_reaches_the_terminal_unfiltered() {
        let mut table = Table::new(&["X"]);
        table.row(["\x1b[2Jgone\n".to_owned()]);
        assert_eq!(table.show(), "X\n?[2Jgone?\n");
        let shown = lines([("name", "a\x07b".to_owned()), ("none", String::new())]);
        assert_eq!(shown, "name: a?b\n");
    }

    #[test]
    fn ages_have_two_units() {
        for (seconds, expected) in [
            (0, "0s"),
            (59, "59s"),
            (60, "1m"),
            (312, "5m12s"),
            (7 * 3600 + 59, "7h"),
            (3 * 86_400 + 4 * 3600 + 5, "3d4h"),
        ] {
            assert_eq!(age(seconds), expected);
        }
    }

    #[test]
    fn what_stands_in_a_status_becomes_text() {
        let status = json!({ "a": { "n": 3, "list": ["x", "y"], "null": null } });
        assert_eq!(text(&status, "/a/n"), "3");
        assert_eq!(text(&status, "/a/list"), "x,y");
        assert_eq!(text(&status, "/a/null"), "");
        assert_eq!(text(&status, "/b"), "");
    }
}
