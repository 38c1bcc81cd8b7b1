//! Where in the text each value stands.
//!
//! Owns the walk over the events of a second YAML parser that yields line numbers, which
//! serde_yaml gives only for errors. The values themselves are read in `tree`.
//! Both parsers see the same structure, so positions are matched by order, not by key.
//!
//! This walk runs before serde_yaml and refuses deep nesting: libyaml takes time that grows with
//! the square of the depth.

use saphyr_parser::{Event, Marker, Parser};

use super::tree::SyntaxError;

/// The line of a value and of those inside it.
#[derive(Debug)]
pub(super) struct Position {
    /// The line, from 1: for a value in a mapping that of its key.
    pub(super) line: usize,
    /// In the order of the text. Empty for scalars and aliases.
    pub(super) children: Vec<Position>,
}

/// The positions of the only document in `text`.
///
/// `None` where this parser does not accept the text: whether it is valid is for serde_yaml to
/// say, and mistakes are then reported without a line.
///
/// # Errors
///
/// When the nesting is too deep or there are several documents.
pub(super) fn positions(text: &str) -> Result<Option<Position>, SyntaxError> {
    let mut parser = Parser::new_from_str(text);
    let mut builder = Builder::default();
    while let Some(event) = parser.next_event() {
        let (event, span) = match event {
            Ok(event) => event,
            // The scanner looks ahead, and so may meet its own limit before it yields an event.
            Err(error) if error.info() == SCANNER_TOO_DEEP => {
                return Err(refused(*error.marker(), too_deep()));
            }
            Err(_) => return Ok(None),
        };
        let line = span.start.line();
        match event {
            Event::DocumentStart(_) if builder.root.is_some() => {
                return Err(refused(
                    span.start,
                    "holds more than one YAML document".to_owned(),
                ));
            }
            Event::MappingStart(..) => builder.open(line, Kind::Mapping { key_line: None }),
            Event::SequenceStart(..) => builder.open(line, Kind::List),
            Event::MappingEnd | Event::SequenceEnd => builder.close(),
            Event::Scalar(..) | Event::Alias(_) => {
                builder.add(Position {
                    line,
                    children: Vec::new(),
                });
            }
            Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd
            | Event::Nothing => {}
        }
        if builder.open.len() > MAX_DEPTH {
            return Err(refused(span.start, too_deep()));
        }
    }
    Ok(builder.root)
}

fn refused(at: Marker, problem: String) -> SyntaxError {
    SyntaxError {
        at: Some((at.line(), at.col().saturating_add(1))),
        problem,
    }
}

fn too_deep() -> String {
    format!("is nested deeper than {MAX_DEPTH} levels")
}

/// Collects positions from the inside out, without recursion.
#[derive(Debug, Default)]
struct Builder {
    open: Vec<Frame>,
    root: Option<Position>,
}

/// A list or mapping whose end has not come yet.
#[derive(Debug)]
struct Frame {
    position: Position,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    List,
    /// `key_line` is set between a key and its value.
    Mapping {
        key_line: Option<usize>,
    },
}

impl Builder {
    fn open(&mut self, line: usize, kind: Kind) {
        let position = Position {
            line,
            children: Vec::new(),
        };
        self.open.push(Frame { position, kind });
    }

    fn close(&mut self) {
        if let Some(frame) = self.open.pop() {
            self.add(frame.position);
        }
    }

    fn add(&mut self, mut position: Position) {
        let Some(Frame {
            position: parent,
            kind,
        }) = self.open.last_mut()
        else {
            self.root = Some(position);
            return;
        };
        match kind {
            Kind::List => parent.children.push(position),
            Kind::Mapping { key_line } => match key_line.take() {
                None => *key_line = Some(position.line),
                Some(line) => {
                    position.line = line;
                    parent.children.push(position);
                }
            },
        }
    }
}

/// Our files have four levels.
const MAX_DEPTH: usize = 32;

/// What saphyr-parser says at its limit of 255 brackets.
const SCANNER_TOO_DEEP: &str = "recursion limit exceeded";
