//! Manifests as values: reading, rendering, and what differs between two.
//!
//! A document is JSON here, so that places in it are JSON pointers. Members of lists that have a
//! `name`, as containers and volumes do, are found by it and not by their position.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::Value;

/// A path below `deploy`.
pub(crate) fn deploy(path: &str) -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.join("../deploy").join(path)
}

/// The documents of a file below `deploy`.
pub(crate) fn read(path: &str) -> Result<Vec<Value>> {
    let text = fs::read_to_string(deploy(path)).with_context(|| path.to_owned())?;
    documents(&text).with_context(|| path.to_owned())
}

/// The only document of a file below `deploy`.
pub(crate) fn read_one(path: &str) -> Result<Value> {
    one(read(path)?).with_context(|| path.to_owned())
}

/// What kubectl makes of a kustomization below `deploy`.
pub(crate) fn render(path: &str) -> Result<Vec<Value>> {
    let output = Command::new("kubectl")
        .arg("kustomize")
        .arg(deploy(path))
        .output();
    let output = output.context("kubectl, of Debian's package kubernetes-client")?;
    if !output.status.success() {
        bail!("{path}: {}", String::from_utf8_lossy(&output.stderr));
    }
    documents(std::str::from_utf8(&output.stdout)?).with_context(|| path.to_owned())
}

/// The only document of a kustomization below `deploy`.
pub(crate) fn render_one(path: &str) -> Result<Value> {
    one(render(path)?).with_context(|| path.to_owned())
}

/// The documents of a text.
pub(crate) fn documents(text: &str) -> Result<Vec<Value>> {
    let parsed = serde_yaml::Deserializer::from_str(text).map(Value::deserialize);
    Ok(parsed.collect::<Result<_, _>>()?)
}

fn one(mut documents: Vec<Value>) -> Result<Value> {
    match (documents.pop(), documents.len()) {
        (Some(document), 0) => Ok(document),
        (_, more) => bail!("{more} more documents than the one expected"),
    }
}

/// The document of this kind and name.
pub(crate) fn find<'a>(documents: &'a [Value], kind: &str, name: &str) -> Result<&'a Value> {
    let is_it = |document: &&Value| {
        text(document, "/kind") == kind && text(document, "/metadata/name") == name
    };
    let found = documents.iter().find(is_it);
    found.with_context(|| format!("no {kind} {name}"))
}

/// The text at a place; empty if there is none.
pub(crate) fn text<'a>(document: &'a Value, place: &str) -> &'a str {
    let found = document.pointer(place).and_then(Value::as_str);
    found.unwrap_or_default()
}

/// The members of the list at a place.
pub(crate) fn list<'a>(document: &'a Value, place: &str) -> &'a [Value] {
    let found = document.pointer(place).and_then(Value::as_array);
    found.map_or(&[], Vec::as_slice)
}

/// The member with this `name` of the list at a place.
pub(crate) fn named<'a>(document: &'a Value, place: &str, name: &str) -> Result<&'a Value> {
    let mut members = list(document, place).iter();
    let found = members.find(|member| text(member, "/name") == name);
    found.with_context(|| format!("nothing named {name} in {place}"))
}

/// All leaves with their places, a list without named members being a leaf.
pub(crate) fn leaves(value: &Value) -> Vec<(String, Value)> {
    let mut found = Vec::new();
    collect(value, "", &mut found);
    found.sort_by(|(one, _), (other, _)| one.cmp(other));
    found
}

fn collect(value: &Value, place: &str, found: &mut Vec<(String, Value)>) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (name, value) in fields {
                collect(value, &format!("{place}/{name}"), found);
            }
        }
        Value::Array(members)
            if members
                .iter()
                .any(|member| !text(member, "/name").is_empty()) =>
        {
            for member in members {
                let name = text(member, "/name");
                collect(member, &format!("{place}[{name}]"), found);
            }
        }
        leaf => found.push((place.to_owned(), leaf.clone())),
    }
}

/// The places at which two documents differ.
pub(crate) fn differences(one: &Value, other: &Value) -> Vec<String> {
    let (one, other) = (leaves(one), leaves(other));
    let only_in = |these: &[(String, Value)], those: &[(String, Value)]| -> Vec<String> {
        let missing = these.iter().filter(|leaf| !those.contains(leaf));
        missing.map(|(place, _)| place.clone()).collect()
    };
    let mut places = only_in(&one, &other);
    places.extend(only_in(&other, &one));
    places.sort();
    places.dedup();
    places
}
