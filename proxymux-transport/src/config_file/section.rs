//! Taking settings out of a YAML mapping, one key at a time.
//!
//! Owns the reading of a mapping's keys: which are known, which are written twice, and whether a
//! value has the right YAML type. Whether the value makes sense is checked afterwards, through
//! [`Setting`], by whoever knows what the key means.
//!
//! One wrong value never hides another: each key is taken by itself, and what is wrong with it
//! goes into [`Mistakes`] while the rest is still read.

use std::{collections::HashMap, fmt};

use super::{
    mistakes::{MAX_SHOWN_CHARS, Mistakes, Place, Refused, excerpt},
    tree::{Content, Key, Node, Scalar},
};

/// What a key means that is not in a section's list.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum UnknownKeys {
    /// The keys are data: the list is not looked at.
    Data,
    /// A mistake.
    Refuse,
    /// Worth a warning.
    Warn,
}

/// A mapping whose keys are being taken.
#[derive(Debug)]
pub struct Section {
    place: Place,
    keys: &'static [&'static str],
    /// In the order of the file, each key once.
    entries: Vec<(Key, Option<Node>)>,
}

/// The value of a key or an item of a list, whose YAML type nobody has looked at.
#[derive(Debug)]
pub struct Entry {
    place: Place,
    content: Content,
}

/// A setting as written in the file, on its way to a checked value.
///
/// It is absent if its key is, or if the value is empty.
#[derive(Debug)]
pub struct Setting<T> {
    place: Place,
    /// The value as the report shows it; `None` for lists and mappings.
    seen: Option<String>,
    value: Result<Option<T>, Refused>,
}

impl Section {
    /// Checks the keys of a mapping.
    pub(super) fn open(
        place: Place,
        all: Vec<(Key, Node)>,
        keys: &'static [&'static str],
        unknown: UnknownKeys,
        mistakes: &mut Mistakes,
    ) -> Self {
        let mut entries: Vec<(Key, Option<Node>)> = Vec::with_capacity(all.len());
        let mut first_lines = HashMap::with_capacity(all.len());
        let mut unknown_seen = 0;
        for (key, node) in all {
            let at = place.key(&key.text, node.line);
            if let Some(&first) = first_lines.get(&key.text) {
                mistakes.add(&at, None, Duplicate { first });
                continue;
            }
            first_lines.insert(key.text.clone(), at.line);
            let known = keys.contains(&key.text.as_str()) && key.is_text;
            if unknown != UnknownKeys::Data && !known {
                // A wrong file may have thousands of keys, and finding a neighbour takes time.
                unknown_seen += 1;
                let near = (unknown_seen <= super::MAX_REPORTED).then(|| nearest(&key.text, keys));
                let problem = UnknownKey {
                    near: near.flatten(),
                };
                match unknown {
                    UnknownKeys::Warn => mistakes.warn(&at, None, problem),
                    UnknownKeys::Refuse | UnknownKeys::Data => {
                        mistakes.add(&at, None, problem);
                    }
                }
                continue;
            }
            entries.push((key, Some(node)));
        }
        Self {
            place,
            keys,
            entries,
        }
    }

    /// Takes the value of a key, which must be one of the section's list.
    pub fn take(&mut self, key: &'static str) -> Entry {
        debug_assert!(
            self.keys.contains(&key),
            "{key} is not in the section's list of keys"
        );
        let found = self.entries.iter_mut().find(|(k, _)| k.text == key);
        let node = found.and_then(|(_, node)| node.take());
        let line = node.as_ref().and_then(|node| node.line);
        Entry {
            place: self.place.key(key, line),
            content: node.map_or(Content::Empty, |node| node.content),
        }
    }

    /// Takes all keys and values that have not been taken, in the order of the file.
    ///
    /// A key that YAML does not see as a string is a mistake.
    pub fn take_all(&mut self, mistakes: &mut Mistakes) -> Vec<(Setting<String>, Entry)> {
        let entries = std::mem::take(&mut self.entries);
        let left = entries
            .into_iter()
            .filter_map(|(key, node)| Some((key, node?)));
        left.map(|(key, node)| {
            let place = self.place.key(&key.text, node.line);
            let value = if key.is_text {
                Ok(Some(key.text))
            } else {
                Err(mistakes.add(&place, None, "must be a string, write the key in quotes"))
            };
            let name = Setting {
                place: place.clone(),
                seen: None,
                value,
            };
            let content = node.content;
            (name, Entry { place, content })
        })
        .collect()
    }
}

impl Entry {
    /// Whether there is a mapping.
    #[must_use]
    pub fn is_mapping(&self) -> bool {
        matches!(self.content, Content::Mapping(_))
    }

    /// Reads a string. `expected` completes "must be ...".
    pub fn text(self, expected: &str, mistakes: &mut Mistakes) -> Setting<String> {
        self.scalar_as(expected, mistakes, |scalar| match scalar {
            Scalar::Text(text) => Some(text),
            Scalar::Bool(_) | Scalar::Number { .. } => None,
        })
    }

    /// Reads a whole number that is not negative. `expected` completes "must be ...".
    pub fn number(self, expected: &str, mistakes: &mut Mistakes) -> Setting<u64> {
        self.scalar_as(expected, mistakes, |scalar| match scalar {
            Scalar::Number { whole, .. } => whole,
            Scalar::Bool(_) | Scalar::Text(_) => None,
        })
    }

    /// Reads a string, number or boolean as text. `expected` completes "must be ...".
    pub fn scalar(self, expected: &str, mistakes: &mut Mistakes) -> Setting<String> {
        self.scalar_as(expected, mistakes, |scalar| Some(scalar.to_string()))
    }

    /// Reads a list, each item by `item`. `expected` completes "must be ...".
    pub fn list<T>(
        self,
        expected: &str,
        mistakes: &mut Mistakes,
        mut item: impl FnMut(Self, &mut Mistakes) -> T,
    ) -> Setting<Vec<T>> {
        let Self { place, content } = self;
        let value = match content {
            Content::Empty => Ok(None),
            Content::List(nodes) => {
                let items = nodes.into_iter().enumerate().map(|(index, node)| {
                    let place = place.item(index, node.line);
                    item(
                        Self {
                            place,
                            content: node.content,
                        },
                        mistakes,
                    )
                });
                Ok(Some(items.collect()))
            }
            other => return Setting::wrong_type(place, &other, expected, mistakes),
        };
        Setting {
            place,
            seen: None,
            value,
        }
    }

    /// Reads a list of strings. `expected` completes "must be ...".
    pub fn texts(self, expected: &str, mistakes: &mut Mistakes) -> Setting<Vec<Setting<String>>> {
        self.list(expected, mistakes, |item, mistakes| {
            item.text("a string", mistakes)
        })
    }

    /// Reads one string, or a list of them. `expected` completes "must be ...".
    pub fn text_or_texts(
        self,
        expected: &str,
        mistakes: &mut Mistakes,
    ) -> Setting<Vec<Setting<String>>> {
        if matches!(self.content, Content::List(_)) {
            return self.texts(expected, mistakes);
        }
        let place = self.place.clone();
        let one = self.text(expected, mistakes);
        let value = match &one.value {
            Err(refused) => Err(*refused),
            Ok(None) => Ok(None),
            Ok(Some(_)) => Ok(Some(vec![one])),
        };
        Setting {
            place,
            seen: None,
            value,
        }
    }

    /// Reads a mapping with these keys, by `read`. `expected` completes "must be ...".
    pub fn mapping<T>(
        self,
        keys: &'static [&'static str],
        unknown: UnknownKeys,
        expected: &str,
        mistakes: &mut Mistakes,
        read: impl FnOnce(&mut Section, &mut Mistakes) -> T,
    ) -> Setting<T> {
        let Self { place, content } = self;
        let value = match content {
            Content::Empty => Ok(None),
            Content::Mapping(entries) => {
                let mut section = Section::open(place.clone(), entries, keys, unknown, mistakes);
                Ok(Some(read(&mut section, mistakes)))
            }
            other => return Setting::wrong_type(place, &other, expected, mistakes),
        };
        Setting {
            place,
            seen: None,
            value,
        }
    }

    fn scalar_as<T>(
        self,
        expected: &str,
        mistakes: &mut Mistakes,
        convert: impl FnOnce(Scalar) -> Option<T>,
    ) -> Setting<T> {
        let Self { place, content } = self;
        let seen = Some(shown(&content));
        let value = match content {
            Content::Empty => Ok(None),
            Content::Scalar(Scalar::Text(text)) if text.is_empty() => Ok(None),
            Content::Scalar(scalar) => match convert(scalar) {
                Some(value) => Ok(Some(value)),
                None => {
                    let problem = format_args!("must be {expected}");
                    Err(mistakes.add(&place, seen.clone(), problem))
                }
            },
            other => return Setting::wrong_type(place, &other, expected, mistakes),
        };
        Setting { place, seen, value }
    }
}

impl<T> Setting<T> {
    /// The checked value, which must be there.
    ///
    /// # Errors
    ///
    /// When the setting is absent, had the wrong type, or `check` refused it.
    pub fn required<U, E: fmt::Display>(
        &self,
        mistakes: &mut Mistakes,
        check: impl FnOnce(&T) -> Result<U, E>,
    ) -> Result<U, Refused> {
        let value = self.present(mistakes)?;
        check(value).map_err(|problem| self.refuse(mistakes, problem))
    }

    /// The checked value, if there is one.
    ///
    /// # Errors
    ///
    /// When the setting had the wrong type, or `check` refused it.
    pub fn optional<U, E: fmt::Display>(
        &self,
        mistakes: &mut Mistakes,
        check: impl FnOnce(&T) -> Result<U, E>,
    ) -> Result<Option<U>, Refused> {
        match &self.value {
            Err(refused) => Err(*refused),
            Ok(None) => Ok(None),
            Ok(Some(value)) => match check(value) {
                Ok(checked) => Ok(Some(checked)),
                Err(problem) => Err(self.refuse(mistakes, problem)),
            },
        }
    }

    /// The checked value, or `default` where there is none.
    ///
    /// # Errors
    ///
    /// When the setting had the wrong type, or `check` refused it.
    pub fn or<U, E: fmt::Display>(
        &self,
        default: U,
        mistakes: &mut Mistakes,
        check: impl FnOnce(&T) -> Result<U, E>,
    ) -> Result<U, Refused> {
        Ok(self.optional(mistakes, check)?.unwrap_or(default))
    }

    /// The value as written, which must be there.
    ///
    /// # Errors
    ///
    /// When the setting is absent, or had the wrong type.
    pub fn present(&self, mistakes: &mut Mistakes) -> Result<&T, Refused> {
        match &self.value {
            Err(refused) => Err(*refused),
            Ok(None) => Err(mistakes.add(&self.place, None, "must be set")),
            Ok(Some(value)) => Ok(value),
        }
    }

    /// The value as written, if there is one of the right type.
    pub fn given(&self) -> Option<&T> {
        self.value.as_ref().ok()?.as_ref()
    }

    /// Whether the key has a value, be it a wrong one.
    #[must_use]
    pub fn is_set(&self) -> bool {
        !matches!(self.value, Ok(None))
    }

    /// Records that this setting is wrong.
    pub fn refuse(&self, mistakes: &mut Mistakes, problem: impl fmt::Display) -> Refused {
        let seen = if self.is_set() {
            self.seen.clone()
        } else {
            None
        };
        mistakes.add(&self.place, seen, problem)
    }

    /// Records that this setting may not be meant.
    pub fn warn(&self, mistakes: &mut Mistakes, problem: impl fmt::Display) {
        mistakes.warn(&self.place, self.seen.clone(), problem);
    }

    fn wrong_type(
        place: Place,
        content: &Content,
        expected: &str,
        mistakes: &mut Mistakes,
    ) -> Self {
        let seen = Some(shown(content));
        let value = Err(mistakes.add(&place, seen.clone(), format_args!("must be {expected}")));
        Self { place, seen, value }
    }
}

impl<T> Setting<Vec<Setting<T>>> {
    /// The checked items; none where the setting is absent. All bad items are reported.
    ///
    /// # Errors
    ///
    /// When there is something else than a list, or `check` refused an item.
    pub fn each<U, E: fmt::Display>(
        &self,
        mistakes: &mut Mistakes,
        mut check: impl FnMut(&T) -> Result<U, E>,
    ) -> Result<Vec<U>, Refused> {
        self.each_setting(mistakes, |item, mistakes| {
            item.required(mistakes, &mut check)
        })
    }

    /// The same for items that have settings inside; `check` reports its mistakes itself.
    ///
    /// # Errors
    ///
    /// When there is something else than a list, or `check` refused an item.
    pub fn each_setting<U>(
        &self,
        mistakes: &mut Mistakes,
        mut check: impl FnMut(&Setting<T>, &mut Mistakes) -> Result<U, Refused>,
    ) -> Result<Vec<U>, Refused> {
        let Some(items) = self.value.as_ref().map_err(|refused| *refused)? else {
            return Ok(Vec::new());
        };
        // Not collected into a result at once, which would stop at the first bad item.
        let checked: Vec<Result<U, Refused>> =
            items.iter().map(|item| check(item, mistakes)).collect();
        checked.into_iter().collect()
    }
}

/// The words behind a key that was there before.
struct Duplicate {
    first: Option<usize>,
}

impl fmt::Display for Duplicate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("is written twice")?;
        match self.first {
            Some(line) => write!(f, ", first in line {line}"),
            None => Ok(()),
        }
    }
}

/// The words behind an unknown key.
struct UnknownKey {
    near: Option<&'static str>,
}

impl fmt::Display for UnknownKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("is no known key")?;
        match self.near {
            Some(near) => write!(f, ", did you mean {near}?"),
            None => Ok(()),
        }
    }
}

/// The known key that `key` is most likely a misspelling of.
fn nearest(key: &str, keys: &'static [&'static str]) -> Option<&'static str> {
    if key.len() > MAX_HINT_BYTES {
        return None;
    }
    let key = key.to_ascii_lowercase().replace('_', "-");
    keys.iter()
        .map(|known| (strsim::damerau_levenshtein(&key, known), *known))
        // A third of the letters: more would make a neighbour of every short word.
        .filter(|(distance, known)| *distance <= known.len().div_ceil(3))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, known)| known)
}

/// A value as the report shows it.
fn shown(content: &Content) -> String {
    match content {
        Content::Scalar(Scalar::Text(text)) => format!("\"{}\"", excerpt(text, MAX_SHOWN_CHARS)),
        Content::Scalar(scalar) => scalar.to_string(),
        Content::Empty | Content::List(_) | Content::Mapping(_) => content.name().to_owned(),
    }
}

/// Longer texts are no misspelt keys.
const MAX_HINT_BYTES: usize = 64;
