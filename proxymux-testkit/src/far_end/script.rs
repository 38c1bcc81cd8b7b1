//! What a far end shall do, as a type and as the line that a client sends.

use std::{fmt, str::FromStr};

use crate::pattern::PERIOD;

/// How many bytes are handed to the socket at a time unless the script says otherwise; also the
/// most, larger sizes count as this one.
pub const DEFAULT_CHUNK: usize = PERIOD;

/// What happens on one connection. Streams are those of [`Pattern`](crate::pattern::Pattern).
///
/// As text it is one line: a verb and `key=value` pairs, those with a default left out.
///
/// ```
/// use proxymux_testkit::far_end::{Closer, Script};
///
/// let script: Script = "DUPLEX bytes=1000 seed=7 first=far".parse().unwrap();
/// assert_eq!(script, Script::duplex(1000, 7).closed_first_by(Closer::FarEnd));
/// assert_eq!(script.to_string(), "DUPLEX bytes=1000 seed=7 first=far");
/// ```
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Script {
    /// The far end sends `bytes` of stream `seed`; the client sends nothing.
    /// `first` says who half-closes first: a client that does so before it is sent anything
    /// proves that its end of stream does not end the other direction.
    Source {
        /// How much.
        bytes: u64,
        /// Of which stream.
        seed: u64,
        /// How many bytes are written at a time.
        chunk: usize,
        /// Who half-closes first.
        first: Closer,
    },
    /// The far end reads to the end and answers with one line: `ok received=N digest=HEX`
    /// ([`Digest`](crate::pattern::Digest)). If it is told the payload, it checks that instead
    /// and the line has no digest.
    Sink {
        /// What the client sends.
        payload: Option<Payload>,
    },
    /// The far end sends back what it gets until the end.
    Echo {
        /// What the client sends; the far end does not mind.
        payload: Option<Payload>,
    },
    /// Both send at once, the far end stream `seed`, the client stream `seed + 1`, and each
    /// checks the other's. Whoever does not half-close first holds its last byte back until it
    /// has seen the other's end.
    ///
    /// If the client is first, the far end's report line follows its stream.
    Duplex {
        /// How much in each direction.
        bytes: u64,
        /// Of which streams.
        seed: u64,
        /// How many bytes are written at a time.
        chunk: usize,
        /// Who half-closes first.
        first: Closer,
    },
    /// The far end reads nothing and says nothing: windows fill up and stay so.
    Hole,
    /// The far end reads this many bytes and then resets the connection.
    Reset {
        /// How many payload bytes to read before.
        after: u64,
    },
}

/// A piece of a stream, from its beginning.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Payload {
    /// How much.
    pub bytes: u64,
    /// Of which stream.
    pub seed: u64,
}

/// Who ends its direction first.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Closer {
    /// Whoever dialled.
    Client,
    /// Whoever accepted.
    FarEnd,
}

/// The content type of a handshake record, with which no script's line begins.
pub(super) const RECORD: u8 = 0x16;

/// Type, version and length.
pub(super) const RECORD_HEAD: usize = 5;

impl Script {
    /// A source that half-closes first.
    pub fn source(bytes: u64, seed: u64) -> Self {
        Self::Source {
            bytes,
            seed,
            chunk: DEFAULT_CHUNK,
            first: Closer::FarEnd,
        }
    }

    /// A sink that checks what it gets.
    pub fn sink(bytes: u64, seed: u64) -> Self {
        let payload = Some(Payload { bytes, seed });
        Self::Sink { payload }
    }

    /// An echo of this payload.
    pub fn echo(bytes: u64, seed: u64) -> Self {
        let payload = Some(Payload { bytes, seed });
        Self::Echo { payload }
    }

    /// Both directions at once; the client half-closes first.
    pub fn duplex(bytes: u64, seed: u64) -> Self {
        Self::Duplex {
            bytes,
            seed,
            chunk: DEFAULT_CHUNK,
            first: Closer::Client,
        }
    }

    /// The script's line in a handshake record of TLS, for paths that carry nothing else. A
    /// [scripted](super::FarEnd::scripted) far end takes either.
    ///
    /// ```
    /// use proxymux_testkit::far_end::Script;
    ///
    /// let record = Script::Hole.record();
    /// assert_eq!(record[..5], [0x16, 3, 1, 0, 5]);
    /// assert_eq!(record[5..], *b"HOLE\n");
    /// ```
    pub fn record(&self) -> Vec<u8> {
        let line = format!("{self}\n");
        let length = u16::try_from(line.len()).expect("a line is far shorter than a record");
        let mut record = vec![RECORD, 3, 1];
        record.extend(length.to_be_bytes());
        record.extend(line.as_bytes());
        record
    }

    /// The same with another one to half-close first. Scripts that leave no choice stay as
    /// they are.
    pub fn closed_first_by(mut self, closer: Closer) -> Self {
        if let Self::Source { first, .. } | Self::Duplex { first, .. } = &mut self {
            *first = closer;
        }
        self
    }

    /// The same with another size of writes. Scripts that write nothing of their own stay as
    /// they are.
    ///
    /// # Panics
    ///
    /// When `size` is 0.
    pub fn in_chunks_of(mut self, size: usize) -> Self {
        assert!(size > 0, "nothing would ever be written");
        if let Self::Source { chunk, .. } | Self::Duplex { chunk, .. } = &mut self {
            *chunk = size;
        }
        self
    }
}

impl fmt::Display for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Source {
                bytes,
                seed,
                chunk,
                first,
            } => {
                write_stream(f, "SOURCE", Payload { bytes, seed }, chunk)?;
                f.write_str(if first == Closer::Client {
                    " first=client"
                } else {
                    ""
                })
            }
            Self::Sink { payload } => write_payload(f, "SINK", payload),
            Self::Echo { payload } => write_payload(f, "ECHO", payload),
            Self::Duplex {
                bytes,
                seed,
                chunk,
                first,
            } => {
                write_stream(f, "DUPLEX", Payload { bytes, seed }, chunk)?;
                f.write_str(if first == Closer::FarEnd {
                    " first=far"
                } else {
                    ""
                })
            }
            Self::Hole => f.write_str("HOLE"),
            Self::Reset { after } => write!(f, "RESET after={after}"),
        }
    }
}

fn write_payload(f: &mut fmt::Formatter<'_>, verb: &str, payload: Option<Payload>) -> fmt::Result {
    f.write_str(verb)?;
    match payload {
        Some(Payload { bytes, seed }) => write!(f, " bytes={bytes} seed={seed}"),
        None => Ok(()),
    }
}

fn write_stream(
    f: &mut fmt::Formatter<'_>,
    verb: &str,
    payload: Payload,
    chunk: usize,
) -> fmt::Result {
    write_payload(f, verb, Some(payload))?;
    if chunk == DEFAULT_CHUNK {
        return Ok(());
    }
    write!(f, " chunk={chunk}")
}

/// Why a line is no script.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ScriptError {
    /// The first word is none of the verbs.
    #[error("verb {0:?}, expected SOURCE, SINK, ECHO, DUPLEX, HOLE or RESET")]
    Verb(String),
    /// A pair that the verb does not have, or whose value is no good.
    #[error("argument {argument:?} of {verb}")]
    Argument {
        /// The verb.
        verb: String,
        /// The pair as it was written.
        argument: String,
    },
    /// A pair that the verb cannot do without.
    #[error("{verb} without {key}=")]
    Missing {
        /// The verb.
        verb: String,
        /// The key that is missing.
        key: &'static str,
    },
}

impl FromStr for Script {
    type Err = ScriptError;

    fn from_str(line: &str) -> Result<Self, ScriptError> {
        let mut words = line.split_whitespace();
        let verb = words.next().unwrap_or_default();
        let keys: &[&str] = match verb {
            "SOURCE" | "DUPLEX" => &["bytes", "seed", "chunk", "first"],
            "SINK" | "ECHO" => &["bytes", "seed"],
            "HOLE" => &[],
            "RESET" => &["after"],
            other => return Err(ScriptError::Verb(other.to_owned())),
        };
        let mut arguments = Arguments::new(verb);
        for word in words {
            arguments.add(word, keys)?;
        }
        Ok(match verb {
            "SOURCE" => Self::Source {
                bytes: arguments.required("bytes", arguments.bytes)?,
                seed: arguments.required("seed", arguments.seed)?,
                chunk: arguments.chunk.unwrap_or(DEFAULT_CHUNK),
                first: arguments.first.unwrap_or(Closer::FarEnd),
            },
            "DUPLEX" => Self::Duplex {
                bytes: arguments.required("bytes", arguments.bytes)?,
                seed: arguments.required("seed", arguments.seed)?,
                chunk: arguments.chunk.unwrap_or(DEFAULT_CHUNK),
                first: arguments.first.unwrap_or(Closer::Client),
            },
            "SINK" => Self::Sink {
                payload: arguments.payload()?,
            },
            "RESET" => Self::Reset {
                after: arguments.required("after", arguments.after)?,
            },
            "HOLE" => Self::Hole,
            _ => Self::Echo {
                payload: arguments.payload()?,
            },
        })
    }
}

/// The pairs of a line while it is being read.
struct Arguments<'a> {
    verb: &'a str,
    bytes: Option<u64>,
    seed: Option<u64>,
    after: Option<u64>,
    chunk: Option<usize>,
    first: Option<Closer>,
}

impl<'a> Arguments<'a> {
    fn new(verb: &'a str) -> Self {
        Self {
            verb,
            bytes: None,
            seed: None,
            after: None,
            chunk: None,
            first: None,
        }
    }

    fn add(&mut self, word: &str, keys: &[&str]) -> Result<(), ScriptError> {
        let understood = word
            .split_once('=')
            .filter(|(key, _)| keys.contains(key))
            .is_some_and(|(key, value)| self.set(key, value).is_some());
        if understood {
            return Ok(());
        }
        Err(ScriptError::Argument {
            verb: self.verb.to_owned(),
            argument: word.to_owned(),
        })
    }

    fn set(&mut self, key: &str, value: &str) -> Option<()> {
        match key {
            "bytes" => self.bytes = Some(value.parse().ok()?),
            "seed" => self.seed = Some(value.parse().ok()?),
            "after" => self.after = Some(value.parse().ok()?),
            "chunk" => self.chunk = Some(value.parse().ok().filter(|chunk| *chunk > 0)?),
            "first" => {
                self.first = Some(match value {
                    "client" => Closer::Client,
                    "far" => Closer::FarEnd,
                    _ => return None,
                });
            }
            _ => return None,
        }
        Some(())
    }

    /// Both or neither.
    fn payload(&self) -> Result<Option<Payload>, ScriptError> {
        if self.bytes.is_none() && self.seed.is_none() {
            return Ok(None);
        }
        Ok(Some(Payload {
            bytes: self.required("bytes", self.bytes)?,
            seed: self.required("seed", self.seed)?,
        }))
    }

    fn required(&self, key: &'static str, value: Option<u64>) -> Result<u64, ScriptError> {
        value.ok_or_else(|| ScriptError::Missing {
            verb: self.verb.to_owned(),
            key,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_script_survives_the_way_over_the_line() {
        let scripts = [
            Script::source(0, u64::MAX),
            Script::source(5, 1)
                .closed_first_by(Closer::Client)
                .in_chunks_of(1),
            Script::Sink { payload: None },
            Script::sink(12, 3),
            Script::Echo { payload: None },
            Script::echo(12, 3),
            Script::duplex(u64::MAX, 0),
            Script::duplex(9, 9)
                .closed_first_by(Closer::FarEnd)
                .in_chunks_of(1460),
            Script::Hole,
            Script::Reset { after: 17 },
        ];
        for script in scripts {
            assert_eq!(script.to_string().parse(), Ok(script));
        }
    }

    #[test]
    fn a_bad_line_names_what_is_wrong_with_it() {
        let problem = |line: &str| line.parse::<Script>().unwrap_err().to_string();
        assert!(problem("").starts_with("verb \"\", expected SOURCE"));
        assert!(problem("GET / HTTP/1.1").starts_with("verb \"GET\""));
        assert_eq!(
            problem("SOURCE bytes=x seed=1"),
            "argument \"bytes=x\" of SOURCE"
        );
        assert_eq!(problem("ECHO after=1"), "argument \"after=1\" of ECHO");
        assert_eq!(
            problem("DUPLEX bytes=1 seed=1 chunk=0"),
            "argument \"chunk=0\" of DUPLEX"
        );
        assert_eq!(problem("DUPLEX bytes=1"), "DUPLEX without seed=");
        assert_eq!(problem("SINK seed=1"), "SINK without bytes=");
        assert_eq!(problem("RESET"), "RESET without after=");
    }
}
