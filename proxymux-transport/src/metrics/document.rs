//! The list of metrics as a document, made from what a registry says of itself.
//!
//! Owns the table of `docs/metrics.md`. A label's words come from the samples, of which a closed
//! list has one each; a histogram's buckets are left out.

use std::collections::BTreeMap;

use super::{Registry, encode};

/// A Markdown table of all metrics in a registry: name, kind, labels and meaning.
///
/// The words of the label `version` are left out: they change with each release.
#[must_use]
pub fn document(registry: &Registry) -> String {
    let text = encode(registry);
    let mut table = "| metric | kind | labels | meaning |\n|---|---|---|---|\n".to_owned();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let Some((name, help)) = line
            .strip_prefix("# HELP ")
            .and_then(|rest| rest.split_once(' '))
        else {
            continue;
        };
        let kind = lines
            .next()
            .and_then(|line| line.rsplit_once(' '))
            .map_or("", |(_, kind)| kind);
        let mut words = BTreeMap::<&str, Vec<&str>>::new();
        while let Some(sample) = lines.next_if(|line| !line.starts_with('#')) {
            for (label, word) in labels(sample) {
                let seen = words.entry(label).or_default();
                if !seen.contains(&word) {
                    seen.push(word);
                }
            }
        }
        let labels: Vec<_> = words.iter().filter_map(describe).collect();
        table.push_str(&format!(
            "| `{name}` | {kind} | {} | {help} |\n",
            labels.join("; ")
        ));
    }
    table
}

/// The document with the table of this registry in its section, which two comments that name
/// the section enclose; `None` if there is no such section.
#[must_use]
pub fn with_section(text: &str, section: &str, registry: &Registry) -> Option<String> {
    let (begin, end) = (
        format!("<!-- {section}: begin -->\n"),
        format!("<!-- {section}: end -->\n"),
    );
    let (before, rest) = text.split_once(&begin)?;
    let (_, after) = rest.split_once(&end)?;
    let table = document(registry);
    Some(format!("{before}{begin}\n{table}\n{end}{after}"))
}

fn describe((label, words): (&&str, &Vec<&str>)) -> Option<String> {
    match *label {
        "le" => None,
        "version" => Some("`version`".to_owned()),
        label => {
            let words: Vec<_> = words.iter().map(|word| format!("`{word}`")).collect();
            Some(format!("`{label}`: {}", words.join(", ")))
        }
    }
}

/// The labels of a sample such as `name{path="session",outcome="done"} 0`; no word of ours has a
/// quote or a comma in it.
fn labels(sample: &str) -> impl Iterator<Item = (&str, &str)> {
    let inside = sample
        .split_once('{')
        .and_then(|(_, rest)| rest.split_once('}'))
        .map_or("", |(inside, _)| inside);
    inside.split(',').filter_map(|pair| {
        let (label, word) = pair.split_once('=')?;
        Some((label, word.trim_matches('"')))
    })
}
