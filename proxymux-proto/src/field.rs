//! One field of a message that a peer sent, on its way to a checked value.
//!
//! Owns how a bad value is reported: which message, which field, the value seen and the value
//! expected, all in printable ASCII however hostile the value was.
//! Leaves to `control.rs` and `open.rs` which fields there are and what they must hold.

use std::{fmt, net::IpAddr, str::FromStr};

use crate::{DecodeError, InstanceId, MAX_ID_LEN, MAX_REASON_LEN, printable};

/// A field being read, for the errors it may have.
#[derive(Clone, Copy)]
pub(crate) struct Field {
    pub(crate) message: &'static str,
    pub(crate) field: &'static str,
}

impl Field {
    pub(crate) fn missing(self) -> DecodeError {
        DecodeError::MissingField {
            message: self.message,
            field: self.field,
        }
    }

    pub(crate) fn bad(self, reason: impl fmt::Display) -> DecodeError {
        DecodeError::BadField {
            message: self.message,
            field: self.field,
            reason: printable(&reason.to_string(), MAX_REASON_LEN),
        }
    }

    /// Refuses a list that is longer than `limit`, before any of it is looked at.
    pub(crate) fn at_most<T>(self, limit: usize, list: &[T]) -> Result<&[T], DecodeError> {
        if list.len() > limit {
            return Err(self.too_many(list.len(), limit));
        }
        Ok(list)
    }

    pub(crate) fn too_many(self, seen: usize, limit: usize) -> DecodeError {
        self.bad(format_args!("{seen} entries, expected at most {limit}"))
    }

    pub(crate) fn parse<T: FromStr<Err: fmt::Display>>(self, text: &str) -> Result<T, DecodeError> {
        text.parse().map_err(|error| self.bad_text(text, error))
    }

    pub(crate) fn bad_text(self, seen: &str, why: impl fmt::Display) -> DecodeError {
        // Cut, so that the value cannot push out of the line what is wrong with it.
        self.bad(format_args!("{:?}: {why}", printable(seen, MAX_SHOWN_LEN)))
    }

    /// Reads addresses in the one form that each has, every one once.
    pub(crate) fn ips(self, limit: usize, texts: &[String]) -> Result<Vec<IpAddr>, DecodeError> {
        let mut ips = Vec::new();
        for text in self.at_most(limit, texts)? {
            let ip = self.ip(text)?;
            if !ips.contains(&ip) {
                ips.push(ip);
            }
        }
        Ok(ips)
    }

    pub(crate) fn ip(self, text: &str) -> Result<IpAddr, DecodeError> {
        self.parse::<IpAddr>(text).map(|ip| ip.to_canonical())
    }

    pub(crate) fn instance(self, bytes: &[u8]) -> Result<InstanceId, DecodeError> {
        InstanceId::try_from(bytes).map_err(|error| self.bad(error))
    }

    /// Reads a text that is compared and not only shown, so that nothing in it may be replaced.
    pub(crate) fn exact(self, text: String) -> Result<Option<String>, DecodeError> {
        if printable(&text, MAX_ID_LEN) != text {
            let why = format!("expected at most {MAX_ID_LEN} bytes of printable ASCII");
            return Err(self.bad_text(&text, why));
        }
        Ok((!text.is_empty()).then_some(text))
    }
}

/// The most bytes of a bad value that an error shows.
const MAX_SHOWN_LEN: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    const FIELD: Field = Field {
        message: "M",
        field: "f",
    };

    #[test]
    fn errors_stay_printable_and_short_whatever_the_value_was() {
        let hostile = "\u{202e}\r\n\u{1b}[2J\"".repeat(1000);

        let error = FIELD.parse::<crate::TargetAddr>(&hostile).unwrap_err();

        let text = error.to_string();
        assert_eq!(printable(&text, 300), text);
        assert!(
            text.ends_with("target has no port, expected host:port"),
            "{text}"
        );
    }

    #[test]
    fn a_long_list_is_refused_before_it_is_read() {
        let texts = vec!["no address".to_owned(); 3];

        let error = FIELD.ips(2, &texts).unwrap_err();

        assert_eq!(
            error.to_string(),
            "message `M`: `f`: 3 entries, expected at most 2"
        );
    }

    #[test]
    fn an_address_in_two_forms_is_one_address() {
        let texts = ["10.0.0.1", "::ffff:10.0.0.1", "fd00::1", "FD00:0::1"].map(str::to_owned);

        let ips = FIELD.ips(4, &texts).unwrap();

        let expected: [IpAddr; 2] = ["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
        assert_eq!(ips, expected);
    }

    #[test]
    fn a_text_to_be_compared_is_taken_whole_or_not_at_all() {
        assert_eq!(FIELD.exact(String::new()).unwrap(), None);
        assert_eq!(FIELD.exact("oke-1".into()).unwrap().unwrap(), "oke-1");
        assert!(FIELD.exact("a".repeat(255)).is_ok());
        assert!(FIELD.exact("a".repeat(256)).is_err());
        assert!(FIELD.exact("ü".into()).is_err());
    }
}
