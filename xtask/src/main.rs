//! Developer commands of proxymux: `cargo xtask <verb>`.
//!
//! Each verb is one module with its options and one `run`; this file only parses arguments and
//! turns the result into an exit code. [`setup`] installs what a verb needs, [`command`] runs
//! outside programs and names the one that failed.

#![expect(
    clippy::print_stdout,
    reason = "a command line tool: its output is its product"
)]

mod bench;
mod build;
mod build_ebpf;
mod check;
mod command;
mod demo;
mod dist;
mod fuzz;
mod gen_docs;
mod setup;
mod soak;
mod test;
mod vm;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask", about = "Developer commands of proxymux")]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Check format, lints, documents, dependencies and source form
    Check(check::Options),
    /// Run the tests, all groups or one
    Test(test::Options),
    /// Build the two daemons
    Build(build::Options),
    /// Build the two eBPF objects that the agent carries
    BuildEbpf(build_ebpf::Options),
    /// Install what the other verbs need
    Setup(setup::Options),
    /// Show a cluster in network namespaces: logs through the tunnel
    Demo(demo::Options),
    /// Make what operators get: static programs, images, checksums
    Dist(dist::Options),
    /// Measure what the tunnel costs, held against plain TCP
    Bench(bench::Options),
    /// Write the lists in the documents anew
    GenDocs(gen_docs::Options),
    /// Kill, cut and abort under load, for so many minutes
    Soak(soak::Options),
    /// Run end-to-end tests in virtual machines with other kernels
    Vm(vm::Options),
    /// Fuzz the decoders
    Fuzz(fuzz::Options),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().verb {
        Verb::Check(options) => check::run(&options),
        Verb::Test(options) => return test::run(&options),
        Verb::Build(options) => build::run(&options),
        Verb::BuildEbpf(options) => build_ebpf::run(&options),
        Verb::Setup(options) => setup::run(&options),
        Verb::Demo(options) => demo::run(&options),
        Verb::Dist(options) => dist::run(&options),
        Verb::Bench(options) => bench::run(&options),
        Verb::GenDocs(options) => gen_docs::run(&options),
        Verb::Soak(options) => soak::run(&options),
        Verb::Vm(options) => vm::run(&options),
        Verb::Fuzz(options) => fuzz::run(&options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
