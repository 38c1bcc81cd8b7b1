//! The pages of the program's own file that a process has mapped, and letting go of them.
//!
//! Owns finding them and telling the kernel that they are not needed. When to do so is the
//! daemon's business.
//!
//! A page fault in a file maps what lies around the page too (64 KiB, `fault_around_bytes` in
//! mm/memory.c), so that a program that has started, read its configuration and made a handshake
//! has nearly all of itself mapped, and hardly uses any of it from then on. Letting go moves
//! nothing and loses nothing: the pages stay in the page cache for as long as the kernel finds
//! room for them, as those of any file that is not in use, and are mapped again when they are used
//! again, which takes a page fault for each 64 KiB.
//!
//! This module has one call that needs `unsafe`: `madvise` can throw data away. Here it cannot,
//! because only mappings are touched that hold nothing but the file's contents.

use std::{ffi::c_void, fs, io, num::NonZeroUsize, ptr::NonNull};

use nix::sys::mman::{MmapAdvise, madvise};

use crate::metrics::status_bytes;

/// The mappings of the program's file and of its libraries, as they were at the start.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ProgramPages {
    mappings: Vec<Mapping>,
}

/// A mapping of a file that this process never wrote to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Mapping {
    start: NonZeroUsize,
    len: usize,
    inode: u64,
}

impl ProgramPages {
    /// Takes down the mappings of this process, which must not have loaded or mapped anything of
    /// its own yet: what is there before `main` stays as it is until the process ends.
    ///
    /// # Errors
    ///
    /// When the kernel does not tell the mappings, as without `CONFIG_PROC_PAGE_MONITOR`.
    pub fn at_start() -> io::Result<Self> {
        let mappings = unchanged_mappings()?;
        Ok(Self { mappings })
    }

    /// Unmaps the pages, which come back when they are used. How many bytes of them were mapped.
    ///
    /// A mapping into which a debugger or a probe has written since is left alone.
    ///
    /// # Errors
    ///
    /// When the kernel does not tell the mappings, or refuses.
    pub fn let_go(&self) -> io::Result<usize> {
        let before = mapped_file_bytes()?;
        let unchanged = unchanged_mappings()?;
        for mapping in &self.mappings {
            if unchanged.contains(mapping) {
                mapping.let_go()?;
            }
        }
        Ok(before.saturating_sub(mapped_file_bytes()?))
    }
}

impl Mapping {
    fn let_go(self) -> io::Result<()> {
        let start = NonNull::<c_void>::without_provenance(self.start);
        #[expect(unsafe_code, reason = "madvise has no safe wrapper")]
        // SAFETY: the mapping is private, cannot be written to and has no page of its own
        // ([`Mapping::parse`]), so whatever is read there next is what the file holds, as before.
        // It was there before `main`; nothing unmaps the program or the libraries that it was
        // linked with, so nothing else can be at these addresses now.
        let advised = unsafe { madvise(start, self.len, MmapAdvise::MADV_DONTNEED) };
        Ok(advised?)
    }

    /// The mapping that a paragraph of `smaps` describes, if it is one that holds nothing but the
    /// contents of a file.
    fn parse(paragraph: &[&str]) -> Option<Self> {
        let (head, rest) = paragraph.split_first()?;
        let mut fields = head.split_ascii_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let permissions = fields.next()?;
        let inode: u64 = fields.nth(2)?.parse().ok()?;
        let (start, end) = (hexadecimal(start)?, hexadecimal(end)?);
        // A page that was written to once is not the file's any more, also where writing has been
        // forbidden since, as in what the loader relocates.
        let own = rest
            .iter()
            .find_map(|line| line.strip_prefix("Anonymous:"))?
            .trim();
        (permissions.starts_with("r-") && permissions.ends_with('p') && inode != 0 && own == "0 kB")
            .then_some(Self {
                start: NonZeroUsize::new(start)?,
                len: end.checked_sub(start)?,
                inode,
            })
    }
}

fn unchanged_mappings() -> io::Result<Vec<Mapping>> {
    let smaps = fs::read_to_string("/proc/self/smaps")?;
    Ok(paragraphs(&smaps)
        .filter_map(|paragraph| Mapping::parse(&paragraph))
        .collect())
}

/// The lines of each mapping; the first of them begins with the addresses, the others with a name.
fn paragraphs(smaps: &str) -> impl Iterator<Item = Vec<&str>> {
    let mut lines = smaps.lines().peekable();
    std::iter::from_fn(move || {
        let mut paragraph = vec![lines.next()?];
        while let Some(line) = lines.next_if(|line| !is_head(line)) {
            paragraph.push(line);
        }
        Some(paragraph)
    })
}

fn is_head(line: &str) -> bool {
    let addresses = line.split_ascii_whitespace().next();
    addresses.is_some_and(|word| word.contains('-') && !word.ends_with(':'))
}

fn hexadecimal(text: &str) -> Option<usize> {
    usize::from_str_radix(text, 16).ok()
}

/// Bytes of files that are mapped and in memory.
fn mapped_file_bytes() -> io::Result<usize> {
    status_bytes("RssFile:").ok_or_else(|| io::Error::other("no RssFile in /proc/self/status"))
}

#[cfg(test)]
mod tests;
