//! `cargo xtask dist`: what is given to operators, in `target/dist`.
//!
//! For each daemon a program that needs no library of the machine it runs on, its debug symbols
//! apart, and an image archive, made without a container engine and without any base image
//! ([`image`]); and the checksums of all of them. The same commit makes the same of all, wherever
//! it is checked out, with the same compilers: times are the commit's, and no path of the machine
//! stands in what Rust and C are compiled to. The eBPF objects in the agent are built so always.

mod image;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use proxymux_ebpf_build::cargo_home;

use self::image::{Image, Stamp};
use crate::{
    build::{self, DAEMONS},
    command::Command,
    setup::{self, Job, ThisMachine},
    workspace::Workspace,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Options {}

pub(crate) fn run(_options: &Options) -> Result<()> {
    let workspace = Workspace::enter()?;
    setup::ensure(&[Job::Build], &ThisMachine)?;
    let dist = make(&workspace, build::SHIPPED_PROFILE)?;
    let sums = dist.join(CHECKSUMS);
    print!(
        "{}",
        fs::read_to_string(&sums).with_context(context(&sums))?
    );
    println!("all in {}", dist.display());
    Ok(())
}

/// Makes everything with the programs of a profile, and says in which directory.
///
/// What an earlier call has left there is removed first.
pub(crate) fn make(workspace: &Workspace, profile: &str) -> Result<PathBuf> {
    let triple = host_triple()?;
    static_daemons(workspace, profile, &triple)?;
    let dist = workspace.target.join("dist");
    if dist.exists() {
        fs::remove_dir_all(&dist).with_context(context(&dist))?;
    }
    fs::create_dir_all(&dist).with_context(context(&dist))?;
    let built = workspace.target.join(&triple).join(profile);
    let stamp = Stamp::of(&workspace.root)?;
    let mut files = Vec::new();
    for daemon in DAEMONS {
        files.extend(split(&built.join(daemon), &dist, daemon)?);
        let image = Image::of(daemon, &stamp, &workspace.root)?;
        files.push(image.write(&dist.join(daemon), &dist)?);
    }
    checksums(&dist, &files)?;
    Ok(dist)
}

/// Builds the daemons with the C library inside.
fn static_daemons(workspace: &Workspace, profile: &str, triple: &str) -> Result<()> {
    static_build(workspace, profile, triple)?
        .args(DAEMONS.iter().flat_map(|package| ["--package", package]))
        .run()?;
    for daemon in DAEMONS {
        let program = workspace.target.join(triple).join(profile).join(daemon);
        expect_static(&program)?;
    }
    Ok(())
}

/// The command that builds programs with the C library inside, which name no place of this machine;
/// which programs is to be added.
pub(crate) fn static_build(workspace: &Workspace, profile: &str, triple: &str) -> Result<Command> {
    let places = places(workspace)?;
    let mut flags = vec!["-Ctarget-feature=+crt-static".to_owned()];
    flags.extend(remapped("--remap-path-prefix", &places));
    // With a target that is named they are for the programs alone, and not for what runs at
    // build time, which could not load macros if it were static.
    let flags: Vec<_> = flags.iter().map(|flag| format!("{flag:?}")).collect();
    let flags = format!("target.{triple}.rustflags=[{}]", flags.join(","));
    // The cryptography is C, whose line information names the sources too.
    let of_c = format!("CFLAGS_{}", triple.replace('-', "_"));
    let mut for_c: Vec<_> = remapped("-ffile-prefix-map", &places).collect();
    for_c.extend(std::env::var(&of_c).or_else(|_| std::env::var("CFLAGS")));
    Ok(Command::cargo(["build", "--locked", "--profile", profile])
        .args(["--target", triple, "--config", &flags])
        .env(&of_c, &for_c.join(" ")))
}

/// The directories of this machine that sources and what is made of them are in, and what stands in
/// their place. Where several hold, the last one does.
fn places(workspace: &Workspace) -> Result<Vec<(PathBuf, String)>> {
    let verbose = Command::new("rustc", ["-vV"]).output()?;
    let commit = verbose
        .lines()
        .find_map(|line| line.strip_prefix("commit-hash: "));
    let sysroot = Command::new("rustc", ["--print", "sysroot"]).output()?;
    let mut places = Vec::new();
    // With its source beside it a compiler names that for the standard library.
    if let Some(commit) = commit {
        let source = Path::new(sysroot.trim()).join("lib/rustlib/src/rust");
        places.push((source, format!("/rustc/{commit}")));
    }
    if let Some(home) = cargo_home() {
        places.push((home, "/cargo".to_owned()));
    }
    places.push((workspace.root.clone(), "/proxymux".to_owned()));
    places.push((workspace.target.clone(), "/target".to_owned()));
    Ok(places)
}

fn remapped(option: &str, places: &[(PathBuf, String)]) -> impl Iterator<Item = String> {
    let flag = move |(from, to): &(PathBuf, String)| format!("{option}={}={to}", from.display());
    places.iter().map(flag)
}

/// Flags in the environment take the place of ours, so that it is worth a look.
fn expect_static(program: &Path) -> Result<()> {
    let headers = Command::new("readelf", ["--wide", "--program-headers", path(program)?]);
    let headers = headers.output()?;
    ensure!(
        !headers.contains("INTERP"),
        "{} needs libraries of this machine; is RUSTFLAGS set?",
        program.display()
    );
    Ok(())
}

/// The program without its symbols, and the symbols by themselves; debuggers find them by the name
/// in the first.
fn split(built: &Path, dist: &Path, daemon: &str) -> Result<[PathBuf; 2]> {
    let (program, symbols) = (dist.join(daemon), dist.join(format!("{daemon}.debug")));
    let objcopy = |arguments: [&str; 2], to: &Path| {
        Command::new("objcopy", arguments)
            .args([path(built)?, path(to)?])
            .run()
    };
    objcopy(["--only-keep-debug", "--compress-debug-sections"], &symbols)?;
    fs::set_permissions(&symbols, fs::Permissions::from_mode(0o644))
        .with_context(context(&symbols))?;
    let link = format!("--add-gnu-debuglink={}", path(&symbols)?);
    objcopy(["--strip-all", &link], &program)?;
    Ok([program, symbols])
}

/// Writes the checksums of files in `dist`, as `sha256sum --check` reads them.
fn checksums(dist: &Path, files: &[PathBuf]) -> Result<()> {
    let mut lines = String::new();
    for file in files {
        let name = file.strip_prefix(dist).with_context(context(file))?;
        lines.push_str(&format!("{}  {}\n", sha256(file)?, path(name)?));
    }
    let sums = dist.join(CHECKSUMS);
    fs::write(&sums, lines).with_context(context(&sums))
}

/// The SHA-256 of a file, as coreutils count it.
fn sha256(file: &Path) -> Result<String> {
    let command = Command::new("sha256sum", ["--", path(file)?]);
    let output = command.output()?;
    match output.split_whitespace().next() {
        Some(sum) if sum.len() == 64 => Ok(sum.to_owned()),
        _ => bail!("`{command}` printed {output:?}"),
    }
}

/// The kind of machine that this is, as rustc calls it.
fn host_triple() -> Result<String> {
    let version = Command::new("rustc", ["-vV"]).output()?;
    let triple = version.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(triple.context("rustc -vV has no line `host:`")?.to_owned())
}

fn path(path: &Path) -> Result<&str> {
    path.to_str()
        .with_context(|| format!("not UTF-8: {}", path.display()))
}

fn context(path: &Path) -> impl Fn() -> String {
    let path = path.display().to_string();
    move || path.clone()
}

const CHECKSUMS: &str = "SHA256SUMS";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checksum_is_that_of_the_content() {
        let dir = Scratch::new("sums");
        fs::write(dir.0.join("a"), "").unwrap();

        checksums(&dir.0, &[dir.0.join("a")]).unwrap();

        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let sums = fs::read_to_string(dir.0.join(CHECKSUMS)).unwrap();
        assert_eq!(sums, format!("{empty}  a\n"));
    }

    #[test]
    fn a_program_that_needs_libraries_is_noticed() {
        let error = expect_static(Path::new("/proc/self/exe")).unwrap_err();

        assert!(error.to_string().contains("needs libraries"), "{error}");
    }

    /// A directory of its own below the target directory, removed at the end.
    pub(super) struct Scratch(pub(super) PathBuf);

    impl Scratch {
        pub(super) fn new(name: &str) -> Self {
            let name = format!("proxymux-dist-{name}-{}", std::process::id());
            let dir = std::env::temp_dir().join(name);
            fs::create_dir_all(&dir).unwrap();
            Self(dir)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }
}
