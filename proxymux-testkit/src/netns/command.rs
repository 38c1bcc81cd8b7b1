//! Running `ip`, `tc` and `nft`, with what they printed in the error.
//!
//! Every name and address that gets here was made by [`super::plan`] or typed in a test.

use std::{
    env, fs,
    io::Write,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

/// Whether `program` is in one of the directories where programs are looked for.
pub(super) fn is_installed(program: &str) -> bool {
    env::var_os("PATH")
        .is_some_and(|path| env::split_paths(&path).any(|dir| dir.join(program).is_file()))
}

/// Whether this process may make and enter network namespaces. Root in a container often may not.
pub(super) fn is_privileged() -> bool {
    let effective = fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|status| {
            let set = status
                .lines()
                .find_map(|line| line.strip_prefix("CapEff:"))?;
            u64::from_str_radix(set.trim(), 16).ok()
        });
    let needed = (1 << CAP_NET_ADMIN) | (1 << CAP_SYS_ADMIN);
    nix::unistd::geteuid().is_root() && effective.is_some_and(|set| set & needed == needed)
}

/// Runs the lines with one `ip` process, in `namespace` or outside.
pub(super) fn ip_batch(namespace: Option<&str>, lines: &[String]) -> Result<()> {
    let mut command = Command::new("ip");
    if let Some(namespace) = namespace {
        command.args(["-n", namespace]);
    }
    command.args(["-batch", "-"]);
    let text = lines
        .iter()
        .map(|line| format!("{line}\n"))
        .collect::<String>();
    run(&mut command, &text)
        .map(drop)
        .with_context(|| format!("commands of the batch, one per line:\n{text}"))
}

/// Runs `command` with `input` and returns what it wrote to its standard output.
pub(super) fn run(command: &mut Command, input: &str) -> Result<String> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {command:?}"))?;
    // These programs read all input before they write, so that one thread is enough. One that
    // ended early says on stderr why; the broken pipe would only hide it.
    let written = child
        .stdin
        .take()
        .expect("stdin is piped above")
        .write_all(input.as_bytes());
    let output = child
        .wait_with_output()
        .with_context(|| format!("cannot wait for {command:?}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{command:?}: {}: {}", output.status, said.trim_end());
    }
    written.with_context(|| format!("cannot write to {command:?}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;
