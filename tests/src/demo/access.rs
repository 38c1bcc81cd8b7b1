//! The daemons' access logs, as the demo shows them: one row per connection.
//!
//! Reads the text form of the log, `message key=value key="value"`; the JSON form and its fields
//! are the business of the tests.

/// A line of an access log.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct AccessLine<'a> {
    line: &'a str,
}

impl<'a> AccessLine<'a> {
    /// The access lines of a log, in order.
    pub(super) fn all(log: &'a str) -> Vec<Self> {
        log.lines()
            .filter(|line| line.contains(" access: "))
            .map(|line| Self { line })
            .collect()
    }

    /// The line itself.
    pub(super) fn text(&self) -> &'a str {
        self.line
    }

    /// Whether it is about a connection that was relayed.
    pub(super) fn is_relayed(&self) -> bool {
        self.line.contains(" access: connection closed ")
    }

    /// Whether the connection went this way.
    pub(super) fn is_by(&self, path: &str) -> bool {
        self.field("path") == path
    }

    /// Whether it is about a connection that never was the master's.
    pub(super) fn is_steered(&self) -> bool {
        self.is_by("steered")
    }

    /// A field's value, without quotes; empty if there is none of this name.
    pub(super) fn field(&self, name: &str) -> &'a str {
        let key = format!(" {name}=");
        let Some((_, value)) = self.line.split_once(&key) else {
            return "";
        };
        match value.strip_prefix('"') {
            Some(quoted) => quoted.split('"').next().unwrap_or_default(),
            None => value.split(' ').next().unwrap_or_default(),
        }
    }

    /// A field that is a number; 0 if it is none.
    pub(super) fn number(&self, name: &str) -> u64 {
        self.field(name).parse().unwrap_or(0)
    }

    /// The row of a table under [`HEADER`].
    pub(super) fn row(&self) -> String {
        let whole = format!("{} ms", self.number("duration_ms"));
        if !self.is_relayed() {
            let (status, reason) = (self.field("status"), self.field("reason"));
            return format!("{:<13}{:>8}{whole:>10}  {status} {reason}", "refused", "-");
        }
        format!(
            "{:<13}{:>8}{whole:>10}{:>12}{:>14}",
            self.field("outcome"),
            format!("{} ms", self.number("open_ms")),
            self.number("bytes_to_target"),
            self.number("bytes_from_target"),
        )
    }
}

/// Above the rows of [`AccessLine::row`].
pub(super) const HEADER: &str = "outcome       open in    lasted  to kubelet  from kubelet";

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "2020-05-20T10:00:00.000001Z  INFO proxymux_master::app: master is up master.id=1\n\
        2020-05-20T10:00:01.000001Z  INFO access: connection closed node=\"10.0.10.10\" \
        path=\"session\" target=10.0.10.10:10250 peer.addr=\"unix pid=1\" bytes_to_target=1203 \
        bytes_from_target=4404019 open_ms=2 duration_ms=48 outcome=\"done\"\n\
        2020-05-20T10:00:02.000001Z  INFO access: connection refused path=\"none\" \
        target=10.0.10.10:10250 status=503 reason=\"node 10.0.10.10 has no session; last seen 2s \
        ago\" duration_ms=2001\n";

    #[test]
    fn fields_are_read_with_and_without_quotes() {
        let lines = AccessLine::all(LOG);

        assert_eq!(lines.len(), 2);
        let closed = &lines[0];
        assert!(closed.is_relayed());
        assert_eq!(closed.field("target"), "10.0.10.10:10250");
        assert_eq!(closed.field("outcome"), "done");
        assert_eq!(closed.field("peer.addr"), "unix pid=1");
        assert_eq!(closed.number("bytes_from_target"), 4_404_019);
        assert_eq!(closed.field("absent"), "");
    }

    #[test]
    fn rows_stand_below_their_headings() {
        let lines = AccessLine::all(LOG);

        let closed = lines[0].row();
        let refused = lines[1].row();

        assert_eq!(closed.len(), HEADER.len(), "{closed}");
        assert!(closed.ends_with("        1203       4404019"), "{closed}");
        assert!(
            refused.ends_with("2001 ms  503 node 10.0.10.10 has no session; last seen 2s ago"),
            "{refused}"
        );
    }
}
