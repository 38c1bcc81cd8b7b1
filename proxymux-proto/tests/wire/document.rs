//! Holds `docs/protocol.md` to the code: its messages, its codes and its limits.
//!
//! Reads the document as text; the byte vectors in it are compared in `golden.rs`.

use std::{collections::BTreeSet, fmt::Write as _};

use proxymux_proto::{
    AbortCode, ChunkHeader, ControlMessage, DEFAULT_SESSION_PORT, FLOW_HELLO_LEN, MAX_ADDRESSES,
    MAX_ALLOWED_RANGES, MAX_CHUNK_LEN, MAX_FLOW_BODY_LEN, MAX_FLOW_POOL, MAX_FRAME_LEN,
    MAX_HELD_MASTERS, MAX_ID_LEN, MAX_LABELS, MAX_PADDING, MAX_REASON_LEN, MAX_RETRY_AFTER,
    MAX_STREAMS, OpenAnswer, PROTOCOL_VERSION, REPLAY_WINDOW,
};

use crate::raw::{self, RawMessage};

const DOCUMENT: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/protocol.md"));
const CONTROL_SOURCE: &str =
    include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/control/wire.rs"));
const OPEN_SOURCE: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/open.rs"));

/// The named byte vectors: blocks that open with "```hex NAME". `#` begins a comment.
pub(crate) fn vectors() -> Vec<(String, Vec<u8>)> {
    blocks("hex ")
        .map(|(name, body)| {
            let digits: String = body
                .lines()
                .map(|line| line.split('#').next().unwrap_or_default())
                .flat_map(str::split_whitespace)
                .collect();
            let bytes = digits
                .as_bytes()
                .chunks(2)
                .map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap())
                .collect();
            (name.to_owned(), bytes)
        })
        .collect()
}

/// Bytes as the document shows them, sixteen to a line.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .enumerate()
        .fold(String::new(), |mut text, (i, byte)| {
            let end = if i % 16 == 15 { '\n' } else { ' ' };
            let _ = write!(text, "{byte:02x}{end}");
            text
        })
}

#[test]
fn the_documents_proto_text_is_what_the_code_encodes() {
    let shown: BTreeSet<String> = blocks("proto")
        .flat_map(|(_, body)| fields_of_proto(body))
        .collect();
    let coded: BTreeSet<String> = [CONTROL_SOURCE, OPEN_SOURCE]
        .into_iter()
        .flat_map(fields_of_source)
        .collect();

    assert!(coded.len() > 40, "the source is not understood: {coded:#?}");
    assert_eq!(shown, coded);
}

#[test]
fn the_documents_end_codes_are_the_codes() {
    check_codes("End codes", |number| {
        let bytes = raw::control(4, RawMessage::default().uint(1, number));
        match ControlMessage::decode(&bytes).unwrap() {
            ControlMessage::End(end) => end.code.as_str(),
            other => panic!("decoded {other:?}"),
        }
    });
}

#[test]
fn the_documents_refuse_codes_are_the_codes() {
    check_codes("Refuse codes", |number| {
        let refused = RawMessage::default().uint(1, number);
        let answer = RawMessage::default().message(3, refused).into_bytes();
        match OpenAnswer::decode(&answer).unwrap() {
            OpenAnswer::Refused { code, .. } => code.as_str(),
            other => panic!("decoded {other:?}"),
        }
    });
}

#[test]
fn the_documents_abort_codes_are_the_codes() {
    check_codes("Abort codes", |number| {
        AbortCode::from_wire(u8::try_from(number).unwrap()).as_str()
    });
}

#[test]
fn the_documents_limits_are_the_limits() {
    let replay = usize::try_from(REPLAY_WINDOW).unwrap();
    for (what, limit) in [
        (
            "Content of a frame",
            format!("{} bytes", grouped(MAX_FRAME_LEN)),
        ),
        (
            "Payload of a data chunk",
            format!("{} bytes", grouped(MAX_CHUNK_LEN)),
        ),
        ("Header of a chunk", format!("{} bytes", ChunkHeader::LEN)),
        ("Text shown to people", format!("{MAX_REASON_LEN} bytes")),
        (
            "`cluster_id`, `node_id`, a label's name or value",
            format!("{MAX_ID_LEN} bytes"),
        ),
        ("Addresses in one list", MAX_ADDRESSES.to_string()),
        ("`allow` in Register", MAX_ALLOWED_RANGES.to_string()),
        ("`labels` in Register", MAX_LABELS.to_string()),
        ("`held_masters` in Register", MAX_HELD_MASTERS.to_string()),
        ("`max_streams` in Registered", grouped(MAX_STREAMS as usize)),
        ("`flow_pool`", MAX_FLOW_POOL.to_string()),
        ("Hello of a flow", format!("{FLOW_HELLO_LEN} bytes")),
        (
            "Body of a flow's message",
            format!("{} bytes", grouped(MAX_FLOW_BODY_LEN)),
        ),
        ("Replay window", format!("{} hellos", grouped(replay))),
        (
            "`padding` and `answer_padding`",
            format!("{} bytes", grouped(usize::from(MAX_PADDING))),
        ),
        (
            "`retry_after_ms` in End",
            format!("{} s", MAX_RETRY_AFTER.as_secs()),
        ),
    ] {
        let row = format!("| {what} | {limit} |");
        assert!(section("Limits").contains(&row), "no row {row:?}");
    }
}

#[test]
fn the_document_is_about_this_version() {
    assert!(DOCUMENT.contains(&format!("version {PROTOCOL_VERSION}")));
    assert!(DOCUMENT.contains(&format!("proxymux/{PROTOCOL_VERSION}")));
    assert!(DOCUMENT.contains(&format!("port {DEFAULT_SESSION_PORT}")));
}

/// Checks that the table of a section has every code from 1 on, and no other.
fn check_codes(title: &str, word: impl Fn(u64) -> &'static str) {
    let shown: Vec<(u64, &str)> = section(title)
        .lines()
        .filter_map(|line| {
            let mut cells = line.split('|').map(str::trim).skip(1);
            let number = cells.next()?.parse().ok()?;
            Some((number, cells.next()?.trim_matches('`')))
        })
        .collect();
    let coded: Vec<(u64, &str)> = (1..)
        .map(|number| (number, word(number)))
        .take_while(|(_, word)| *word != "other")
        .collect();
    assert!(!coded.is_empty());
    assert_eq!(shown, coded, "section {title:?}");
}

/// The text under a heading, up to the next one.
fn section(title: &str) -> &'static str {
    let (_, rest) = DOCUMENT
        .split_once(&format!("# {title}\n"))
        .unwrap_or_else(|| panic!("no heading {title:?}"));
    rest.split_once("\n#").map_or(rest, |(section, _)| section)
}

/// Fenced blocks whose opening line begins with `kind`: the rest of that line, and the content.
fn blocks(kind: &'static str) -> impl Iterator<Item = (&'static str, &'static str)> {
    DOCUMENT
        .split("\n```")
        .skip(1)
        .step_by(2)
        .filter_map(move |block| {
            let (opening, body) = block.split_once('\n')?;
            Some((opening.strip_prefix(kind)?, body))
        })
}

/// The fields of messages in a `.proto` text, one per line of the form `Message: type name = 1`.
fn fields_of_proto(text: &str) -> Vec<String> {
    let mut scopes: Vec<&str> = Vec::new();
    let mut fields = Vec::new();
    for line in text.lines() {
        let line = line.split("//").next().unwrap_or_default().trim();
        if let Some(opening) = line.strip_suffix('{') {
            let name = opening.trim().rsplit(' ').next().unwrap_or_default();
            scopes.push(name);
        } else if line == "}" {
            scopes.pop();
        } else if let (Some(field), false) = (line.strip_suffix(';'), scopes.is_empty()) {
            fields.push(format!("{}: {field}", scopes.join(".")));
        }
    }
    fields
}

/// The same from the derive attributes of a source file.
fn fields_of_source(text: &str) -> Vec<String> {
    let mut scope = String::new();
    let mut oneof_owner = String::new();
    let mut attribute = None;
    let mut fields = Vec::new();
    for line in text.lines().map(str::trim) {
        if let Some(inner) = line.strip_prefix("#[prost(") {
            attribute = Some(inner.trim_end_matches(")]"));
        } else if let Some((_, rest)) = line.split_once("struct ") {
            scope = message_name(rest.split([' ', '{']).next().unwrap_or_default());
        } else if line.contains("enum ") {
            scope.clone_from(&oneof_owner);
        } else if let Some(attribute) = attribute.take() {
            match attribute.strip_prefix("oneof") {
                // The enum that follows in the file has the fields.
                Some(_) => oneof_owner = format!("{scope}.{}", field_name(line)),
                None => fields.push(format!("{scope}: {}", field_of(attribute, line))),
            }
        }
    }
    fields
}

/// `#[prost(string, repeated, tag = "4")] addresses: Vec<String>` as `.proto` has it.
fn field_of(attribute: &str, line: &str) -> String {
    let (kind, tag) = attribute.split_once(", tag = ").unwrap();
    let tag = tag.trim_matches('"');
    let repeated = if kind.contains("repeated") {
        "repeated "
    } else {
        ""
    };
    let kind = match kind.split_once(" = ") {
        Some(("btree_map", of)) => format!("map<{}>", of.trim_matches('"')),
        Some((kind, _)) => kind.to_owned(),
        None if kind.starts_with("message") => {
            let mut rust = line
                .split([':', '(', ')', ',', '<', '>', ' '])
                .filter(|s| !s.is_empty());
            message_name(rust.next_back().unwrap())
        }
        None => kind.split(", ").next().unwrap_or_default().to_owned(),
    };
    format!("{repeated}{kind} {} = {tag}", field_name(line))
}

fn field_name(line: &str) -> String {
    let line = line.trim_start_matches("pub(super) ");
    let name = line.split([':', '(']).next().unwrap_or_default();
    let mut snake_case = String::new();
    for letter in name.chars() {
        if letter.is_uppercase() && !snake_case.is_empty() {
            snake_case.push('_');
        }
        snake_case.extend(letter.to_lowercase());
    }
    snake_case
}

fn message_name(rust: &str) -> String {
    rust.trim_end_matches("Msg").to_owned()
}

/// 65536 as `65,536`.
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
