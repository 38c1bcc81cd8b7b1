//! The values of a YAML file as a tree.
//!
//! Owns what serde_yaml says each value is, with a bound on what aliases expand to, and joins it
//! with the line numbers from `lines`. What a value means is left to `section`.
//! Read [`Node`] first.
//!
//! Own types instead of `serde_yaml::Value`: they keep duplicate keys, so that these become
//! mistakes with a line like any other, and know lines.

use std::{cell::Cell, fmt};

use serde::de::{
    DeserializeSeed, Deserializer, EnumAccess, Error as _, MapAccess, SeqAccess, Visitor,
};

use super::{
    lines::{self, Position},
    mistakes::excerpt,
};

/// One value.
#[derive(Debug)]
pub(super) struct Node {
    /// Unknown only where the two YAML parsers disagree.
    pub(super) line: Option<usize>,
    pub(super) content: Content,
}

/// What a value is.
#[derive(Debug)]
pub(super) enum Content {
    /// Null or nothing.
    Empty,
    Scalar(Scalar),
    List(Vec<Node>),
    /// In the order of the file, duplicate keys included.
    Mapping(Vec<(Key, Node)>),
}

/// A value that holds no others.
#[derive(Debug)]
pub(super) enum Scalar {
    Bool(bool),
    /// `whole` for what fits, `shown` for all: fractions, negative and huge numbers too.
    Number {
        whole: Option<u64>,
        shown: String,
    },
    Text(String),
}

/// A key of a mapping.
#[derive(Debug)]
pub(super) struct Key {
    pub(super) text: String,
    /// Whether YAML sees a string; `5:` and `true:` are keys of other types.
    pub(super) is_text: bool,
}

/// A text that is not one YAML document that we take.
#[derive(Debug)]
pub(super) struct SyntaxError {
    /// Line and column, from 1.
    pub(super) at: Option<(usize, usize)>,
    pub(super) problem: String,
}

impl Content {
    /// What to call it in a sentence.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Empty => "nothing",
            Self::Scalar(Scalar::Bool(_)) => "a boolean",
            Self::Scalar(Scalar::Number { .. }) => "a number",
            Self::Scalar(Scalar::Text(_)) => "a string",
            Self::List(_) => "a list",
            Self::Mapping(_) => "a mapping",
        }
    }
}

impl fmt::Display for Scalar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool(value) => value.fmt(f),
            Self::Number { shown, .. } => f.write_str(shown),
            Self::Text(text) => f.write_str(text),
        }
    }
}

/// Parses the only document in `text`.
///
/// # Errors
///
/// When the text is not valid YAML, or has more than one document, tags of its own, too much
/// nesting, or aliases that expand to too much.
pub(super) fn parse(text: &str) -> Result<Node, SyntaxError> {
    let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text);
    refuse_bad_lines(text)?;
    let positions = lines::positions(text)?;
    let budget = Cell::new(MAX_TREE_BYTES);
    let seed = NodeSeed { budget: &budget };
    let mut root = seed
        .deserialize(serde_yaml::Deserializer::from_str(text))
        .map_err(|error| syntax_error(&error))?;
    set_lines(&mut root, positions.as_ref());
    Ok(root)
}

/// Characters that libyaml refuses too, but gives no line for, and directives, whose number its
/// time grows with the square of.
fn refuse_bad_lines(text: &str) -> Result<(), SyntaxError> {
    for (index, line) in text.split('\n').enumerate() {
        if line.starts_with('%') {
            return Err(SyntaxError {
                at: Some((index + 1, 1)),
                problem: "has a directive, which no file here needs".to_owned(),
            });
        }
        let bad = line
            .chars()
            .enumerate()
            .find(|&(_, c)| !is_yaml_character(c));
        if let Some((column, c)) = bad {
            return Err(SyntaxError {
                at: Some((index + 1, column + 1)),
                problem: format!("character U+{:04X} is not allowed in YAML", u32::from(c)),
            });
        }
    }
    Ok(())
}

/// The set of libyaml, which is that of YAML 1.2 without the byte order mark.
fn is_yaml_character(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\r' | ' '..='~' | '\u{85}' | '\u{a0}'..='\u{fffd}' | '\u{10000}'..)
        && c != BYTE_ORDER_MARK
}

fn syntax_error(error: &serde_yaml::Error) -> SyntaxError {
    let at = error.location().map(|at| (at.line(), at.column()));
    let mut problem = error.to_string();
    if let Some((line, column)) = at {
        // The location goes in front; the one of the construct around it stays in the text.
        problem = problem.replacen(&format!(" at line {line} column {column}"), "", 1);
    }
    // It may quote a key, which may be any text.
    let problem = excerpt(&problem, MAX_PROBLEM_CHARS);
    SyntaxError { at, problem }
}

/// Gives `node` and all inside it their lines; where one is unknown, that of the value around it.
fn set_lines(node: &mut Node, position: Option<&Position>) {
    if let Some(position) = position {
        node.line = Some(position.line);
    }
    let line = node.line;
    let children: Vec<&mut Node> = match &mut node.content {
        Content::List(items) => items.iter_mut().collect(),
        Content::Mapping(entries) => entries.iter_mut().map(|(_, value)| value).collect(),
        Content::Empty | Content::Scalar(_) => return,
    };
    // An alias has values inside but no positions of them.
    let known = position
        .map(|p| p.children.as_slice())
        .filter(|p| p.len() == children.len());
    for (index, child) in children.into_iter().enumerate() {
        child.line = line;
        set_lines(child, known.and_then(|known| known.get(index)));
    }
}

/// Builds a [`Node`] from what serde_yaml sees.
#[derive(Clone, Copy)]
struct NodeSeed<'b> {
    /// How many bytes the tree may still grow by.
    budget: &'b Cell<usize>,
}

impl NodeSeed<'_> {
    fn node<E: serde::de::Error>(self, content: Content, extra: usize) -> Result<Node, E> {
        let cost = size_of::<(Key, Node)>().saturating_add(extra);
        let rest = self.budget.get().checked_sub(cost);
        let rest = rest.ok_or_else(|| E::custom("holds too much once its aliases are expanded"))?;
        self.budget.set(rest);
        Ok(Node {
            line: None,
            content,
        })
    }

    fn number<E: serde::de::Error>(
        self,
        whole: Option<u64>,
        shown: impl fmt::Display,
    ) -> Result<Node, E> {
        let shown = shown.to_string();
        self.node(Content::Scalar(Scalar::Number { whole, shown }), 0)
    }
}

impl<'de> DeserializeSeed<'de> for NodeSeed<'_> {
    type Value = Node;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for NodeSeed<'_> {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<Node, E> {
        self.node(Content::Empty, 0)
    }

    /// An empty file.
    fn visit_none<E: serde::de::Error>(self) -> Result<Node, E> {
        self.node(Content::Empty, 0)
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<Node, E> {
        self.node(Content::Scalar(Scalar::Bool(value)), 0)
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Node, E> {
        self.number(Some(value), value)
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Node, E> {
        self.number(u64::try_from(value).ok(), value)
    }

    fn visit_u128<E: serde::de::Error>(self, value: u128) -> Result<Node, E> {
        self.number(None, value)
    }

    fn visit_i128<E: serde::de::Error>(self, value: i128) -> Result<Node, E> {
        self.number(None, value)
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Node, E> {
        self.number(None, value)
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Node, E> {
        self.node(Content::Scalar(Scalar::Text(text.to_owned())), text.len())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(self)? {
            list.push(item);
        }
        self.node(Content::List(list), 0)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Node, A::Error> {
        let mut mapping = Vec::new();
        while let Some((key, value)) = entries.next_entry_seed(self, self)? {
            let key = match key.content {
                Content::Scalar(Scalar::Text(text)) => Key {
                    text,
                    is_text: true,
                },
                Content::Scalar(other) => Key {
                    text: other.to_string(),
                    is_text: false,
                },
                other => Key {
                    text: other.name().to_owned(),
                    is_text: false,
                },
            };
            mapping.push((key, value));
        }
        self.node(Content::Mapping(mapping), 0)
    }

    fn visit_enum<A: EnumAccess<'de>>(self, _: A) -> Result<Node, A::Error> {
        Err(A::Error::custom(
            "has a tag of its own (a word after '!'), which no key here takes",
        ))
    }
}

/// Bounds the memory that aliases can take; a file of full size without any needs less, unless
/// it holds nothing but punctuation.
const MAX_TREE_BYTES: usize = 32 << 20;

/// The parser's own messages are shorter.
const MAX_PROBLEM_CHARS: usize = 200;

const BYTE_ORDER_MARK: char = '\u{feff}';
