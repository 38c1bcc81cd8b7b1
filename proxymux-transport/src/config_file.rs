//! Configuration files in YAML: reading them and saying precisely what is wrong with them.
//!
//! Owns the way from a file to single settings, each with its key and line, and the collection
//! of all mistakes into one report. What the keys are and which values make sense is left to the
//! `config` modules of the two daemons; checks that both need are in [`values`].
//! Read [`Document`], [`Section`], [`Setting`] and [`Mistakes`] first.
//!
//! No text makes this module panic. A file has at most [`MAX_FILE_BYTES`] bytes, and what its
//! aliases expand to is bounded as well.

use std::{fs::File, io::Read as _, path::Path};

use self::{
    mistakes::Place,
    tree::{Content, Node},
};
pub use self::{
    mistakes::{ConfigError, MAX_REPORTED, Mistake, Mistakes, Refused, Warning},
    section::{Entry, Section, Setting, UnknownKeys},
};

mod lines;
mod mistakes;
mod section;
mod tree;
pub mod values;

/// The most bytes that a configuration file may have.
///
/// The largest real one lists the addresses of 5,000 nodes, which is a third of this.
pub const MAX_FILE_BYTES: usize = 1 << 20;

/// A YAML file that has been parsed, and whose settings have not been looked at yet.
#[derive(Debug)]
pub struct Document {
    file: String,
    root: Node,
}

impl Document {
    /// Reads and parses a file.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, is too large, is not UTF-8, or is not one YAML document.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let file = path.display().to_string();
        let bytes = read_bounded(path).map_err(|source| ConfigError::Read {
            file: file.clone(),
            source,
        })?;
        // Before the decoding: a file that was cut off might end inside a character.
        if bytes.len() > MAX_FILE_BYTES {
            return Err(ConfigError::TooLarge { file });
        }
        let text = String::from_utf8(bytes).map_err(|error| {
            let valid = error.utf8_error().valid_up_to();
            let before = error.as_bytes().iter().take(valid);
            ConfigError::NotUtf8 {
                file: file.clone(),
                line: before.filter(|&&byte| byte == b'\n').count() + 1,
            }
        })?;
        Self::parse(&text, &file)
    }

    /// Parses text; `file` is the name that mistakes in it will carry.
    ///
    /// # Errors
    ///
    /// When the text is too long, or is not one YAML document.
    pub fn parse(text: &str, file: &str) -> Result<Self, ConfigError> {
        if text.len() > MAX_FILE_BYTES {
            return Err(ConfigError::TooLarge {
                file: file.to_owned(),
            });
        }
        let root = tree::parse(text).map_err(|error| ConfigError::Syntax {
            file: file.to_owned(),
            at: error.at,
            problem: error.problem,
        })?;
        Ok(Self {
            file: file.to_owned(),
            root,
        })
    }

    /// Hands the top-level keys to `read` and collects what it finds wrong.
    ///
    /// `keys` are the keys that the file may have, `unknown` says what any other key means.
    /// Returns what `read` returned and the warnings.
    ///
    /// # Errors
    ///
    /// When the file is empty or no mapping, or when there was any mistake.
    pub fn read<T>(
        self,
        keys: &'static [&'static str],
        unknown: UnknownKeys,
        read: impl FnOnce(&mut Section, &mut Mistakes) -> Result<T, Refused>,
    ) -> Result<(T, Vec<Warning>), ConfigError> {
        let found = self.root.content.name();
        let entries = match self.root.content {
            Content::Mapping(entries) => entries,
            Content::Empty => return Err(ConfigError::Empty { file: self.file }),
            Content::Scalar(_) | Content::List(_) => {
                return Err(ConfigError::NotAMapping {
                    file: self.file,
                    found,
                });
            }
        };
        let mut mistakes = Mistakes::new(self.file);
        let mut section = Section::open(Place::root(), entries, keys, unknown, &mut mistakes);
        let result = read(&mut section, &mut mistakes);
        mistakes.finish(result)
    }
}

/// The file's bytes, or the first [`MAX_FILE_BYTES`] and one more.
fn read_bounded(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let limit = u64::try_from(MAX_FILE_BYTES)
        .unwrap_or(u64::MAX)
        .saturating_add(1);
    File::open(path)?.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests;
