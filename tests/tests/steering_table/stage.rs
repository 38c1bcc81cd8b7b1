//! The nodes of these tests: their agents insist on eBPF, attached in the way that a test asks for.
//!
//! The program is the silent one, as on most nodes. Everything else is [`Stage`].

use anyhow::Result;
pub(crate) use proxymux_tests::steered::{SOURCES, Stage, attach_kinds};

/// A node whose programs are attached in this way; its agent does not run yet.
pub(crate) fn build(attach: &str) -> Result<Stage> {
    build_with(attach, SOURCES)
}

/// The same with other lines in the place of [`SOURCES`].
pub(crate) fn build_with(attach: &str, lines: &str) -> Result<Stage> {
    Stage::with_lines(&format!("mode: ebpf\nattach: {attach}\n{lines}"))
}

/// A node whose agent steers both families.
pub(crate) fn start(attach: &str) -> Result<Stage> {
    let mut stage = build(attach)?;
    stage.start_agent()?;
    Ok(stage)
}
