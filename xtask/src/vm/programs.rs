//! The programs of the guest: our own, linked statically, and a few of this machine's.
//!
//! Ours need nothing of the guest but its kernel. What the testkit calls is copied as it is, with
//! the libraries that `ldd` names.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    process,
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::TestRun;
use crate::{
    build::{DAEMONS, TESTED_PROFILE},
    command::search_path,
    dist,
    workspace::Workspace,
};

/// The executables by name: the daemons and the test programs of `runs`.
///
/// # Errors
///
/// The build failed.
pub(super) fn build(workspace: &Workspace, runs: &[TestRun]) -> Result<BTreeMap<String, PathBuf>> {
    // As what is shipped is built, of which much is there already when all groups are run.
    let mut command = dist::static_build(workspace, TESTED_PROFILE, TARGET)?
        .args(["--message-format", "json-render-diagnostics"])
        .args(["--package", "proxymux-tests"]);
    for daemon in DAEMONS {
        command = command.args(["--package", daemon, "--bin", daemon]);
    }
    let mut wanted: Vec<&str> = runs.iter().map(|run| run.program).collect();
    wanted.sort_unstable();
    wanted.dedup();
    for program in &wanted {
        command = command.args(["--test", program]);
    }
    println!("$ {command}");
    let executables = executables(&command.output()?);
    wanted.extend(DAEMONS);
    match wanted.iter().find(|name| !executables.contains_key(**name)) {
        None => Ok(executables),
        Some(missing) => bail!("cargo does not say where it built {missing}: `{command}`"),
    }
}

/// What cargo says about executables, one JSON object a line.
fn executables(messages: &str) -> BTreeMap<String, PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter_map(|message| {
            let name = message.pointer("/target/name")?.as_str()?.to_owned();
            let path = message.get("executable")?.as_str()?.into();
            Some((name, path))
        })
        .collect()
}

/// The file of a program of this machine, and of every library that it loads.
///
/// # Errors
///
/// There is no such program.
pub(super) fn with_libraries(program: &str) -> Result<(PathBuf, Vec<PathBuf>)> {
    let path = env::split_paths(&search_path())
        .map(|directory| directory.join(program))
        .find(|path| path.is_file())
        .with_context(|| format!("no program {program} here"))?;
    let path = fs::canonicalize(&path).with_context(|| format!("cannot find {program}"))?;
    let output = process::Command::new("ldd")
        .arg(&path)
        .output()
        .context("cannot start ldd")?;
    // It fails for a program that is linked statically, which has no libraries.
    let libraries = libraries(&String::from_utf8_lossy(&output.stdout));
    Ok((path, libraries))
}

/// The paths in lines such as `libc.so.6 => /lib/libc.so.6 (0x7f)` and `/lib64/ld.so.2 (0x7f)`.
fn libraries(said: &str) -> Vec<PathBuf> {
    said.split_whitespace()
        .filter(|word| word.starts_with('/') && !word.ends_with(':'))
        .map(|word| Path::new(word).to_owned())
        .collect()
}

/// The only one for which Debian's kernels are taken.
const TARGET: &str = "x86_64-unknown-linux-gnu";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_and_the_loader_are_found() {
        let said = "\tlinux-vdso.so.1 (0x00007ffd)\n\
                    \tlibmnl.so.0 => /lib/x86_64-linux-gnu/libmnl.so.0 (0x00007f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";

        assert_eq!(
            libraries(said),
            [
                Path::new("/lib/x86_64-linux-gnu/libmnl.so.0"),
                Path::new("/lib64/ld-linux-x86-64.so.2")
            ]
        );
        assert_eq!(
            libraries("\tnot a dynamic executable\n"),
            Vec::<PathBuf>::new()
        );
    }

    #[test]
    fn executables_are_those_that_cargo_names() {
        let messages = r#"{"reason":"compiler-artifact","target":{"name":"anyhow"},"executable":null}
{"reason":"compiler-artifact","target":{"name":"tunnel"},"executable":"/t/tunnel-1"}
{"reason":"build-finished","success":true}
"#;

        let executables = executables(messages);

        assert_eq!(executables.len(), 1);
        assert_eq!(executables["tunnel"], Path::new("/t/tunnel-1"));
    }
}
