//! What is in `target/dist`: checksums, symbols apart, and images that have what they promise.

use std::{
    env, fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::archive::{Unpacked, archive, dist};

const DAEMONS: [&str; 2] = ["proxymux-agent", "proxymux-master"];

#[test]
fn the_checksums_are_those_of_the_programs_the_symbols_and_the_archives() -> Result<()> {
    let dist = dist()?;
    let mut command = Command::new("sha256sum");
    command.args(["--check", "--strict", "SHA256SUMS"]);
    let output = command.current_dir(&dist).output()?;
    assert!(output.status.success(), "{output:?}");

    let sums = fs::read_to_string(dist.join("SHA256SUMS"))?;
    let mut names: Vec<_> = sums
        .lines()
        .filter_map(|line| line.split("  ").nth(1))
        .collect();
    names.sort_unstable();
    let mut expected = Vec::new();
    for daemon in DAEMONS {
        let archive = archive(daemon)?;
        let archive = archive.file_name().context("a name")?;
        expected.push(daemon.to_owned());
        expected.push(format!("{daemon}.debug"));
        expected.push(archive.to_string_lossy().into_owned());
    }
    expected.sort();
    assert_eq!(names, expected);
    Ok(())
}

#[test]
fn programs_need_no_library_and_their_symbols_are_apart() -> Result<()> {
    for daemon in DAEMONS {
        let readelf = |file: &str, options: &[&str]| -> Result<String> {
            let mut command = Command::new("readelf");
            let output = command.args(options).arg(dist()?.join(file)).output()?;
            assert!(output.status.success(), "{output:?}");
            Ok(String::from_utf8(output.stdout)?)
        };
        let headers = readelf(daemon, &["--wide", "--program-headers", "--dynamic"])?;
        assert!(!headers.contains("INTERP"), "{daemon}: {headers}");
        assert!(!headers.contains("NEEDED"), "{daemon}: {headers}");
        let sections = readelf(daemon, &["--wide", "--sections"])?;
        for apart in [".debug_info", ".debug_line", ".symtab"] {
            assert!(!sections.contains(apart), "{daemon}: {sections}");
        }
        assert!(sections.contains(".gnu_debuglink"), "{daemon}: {sections}");
        let symbols = readelf(&format!("{daemon}.debug"), &["--wide", "--sections"])?;
        for apart in [".debug_line", ".symtab"] {
            assert!(symbols.contains(apart), "{daemon}: {symbols}");
        }
    }
    Ok(())
}

/// Whoever builds the same commit elsewhere has to get the same.
#[test]
fn no_path_of_the_machine_that_built_it_is_in_a_program_or_its_symbols() -> Result<()> {
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    let home = |variable: &str, below: &str| match env::var_os(variable) {
        Some(set) => Some(PathBuf::from(set)),
        None => env::var_os("HOME").map(|home| Path::new(&home).join(below)),
    };
    let places: Vec<_> = [
        checkout.map(Path::to_owned),
        home("CARGO_HOME", ".cargo"),
        home("RUSTUP_HOME", ".rustup"),
    ]
    .into_iter()
    .flatten()
    .collect();
    assert_eq!(places.len(), 3, "{places:?}");
    let scratch = tempfile::tempdir()?;
    for daemon in DAEMONS {
        for file in [daemon.to_owned(), format!("{daemon}.debug")] {
            // What is compressed cannot be searched.
            let plain = scratch.path().join(&file);
            let mut command = Command::new("objcopy");
            command.arg("--decompress-debug-sections");
            let output = command.arg(dist()?.join(&file)).arg(&plain).output()?;
            assert!(output.status.success(), "{output:?}");
            let content = fs::read(&plain)?;
            assert!(holds(&content, b"/proxymux"), "{file}: no path at all");
            for place in &places {
                let place = place.to_str().context("a path in UTF-8")?;
                assert!(!holds(&content, place.as_bytes()), "{file}: {place}");
            }
        }
    }
    Ok(())
}

fn holds(content: &[u8], part: &[u8]) -> bool {
    let mut candidates = content.iter().enumerate();
    let starts = part.first();
    candidates.any(|(at, byte)| {
        Some(byte) == starts && content.get(at..).is_some_and(|rest| rest.starts_with(part))
    })
}

#[test]
fn images_have_names_labels_and_a_user_and_little_else() -> Result<()> {
    for (daemon, entry, user) in [
        ("proxymux-agent", "/bin/proxymux.sh", "0:0"),
        ("proxymux-master", "/bin/proxymux-master", "65532:65532"),
    ] {
        let image = Unpacked::new(daemon)?;
        let version = env!("CARGO_PKG_VERSION");
        let name = format!("localhost/{daemon}:{version}");
        assert_eq!(image.docker_name, name);
        assert_eq!(image.oci_names, [name.clone(), name]);
        assert_eq!((image.entry_point()?, image.user()?), (entry, user));
        let labels = &image.config["config"]["Labels"];
        assert_eq!(labels["org.opencontainers.image.title"], daemon);
        assert_eq!(labels["org.opencontainers.image.version"], version);
        assert_eq!(
            labels["org.opencontainers.image.licenses"],
            "MIT OR Apache-2.0"
        );

        let root = image.root();
        let program = fs::metadata(root.join("bin").join(daemon))?;
        assert_eq!((program.mode() & 0o7777, program.uid()), (0o755, 0));
        let run = fs::metadata(root.join("run/proxymux"))?;
        assert_eq!(format!("{}:{}", run.uid(), run.gid()), user);
        assert_eq!(run.permissions().mode() & 0o777, 0o755);
        let mut programs = Vec::new();
        for entry in fs::read_dir(root.join("bin"))? {
            programs.push(entry?.file_name().to_string_lossy().into_owned());
        }
        programs.sort();
        match daemon {
            "proxymux-agent" => assert_eq!(programs, [daemon, "proxymux.sh"]),
            _ => assert_eq!(programs, [daemon]),
        }
        let bytes = fs::metadata(archive(daemon)?)?.len();
        println!("{daemon}: {bytes} bytes");
        assert!(bytes < 25 << 20, "{bytes}");
    }
    Ok(())
}

#[test]
fn the_dockerfile_makes_the_same_of_the_same_layer() -> Result<()> {
    let file = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../deploy/container/Dockerfile"
    );
    let text = fs::read_to_string(file)?;
    for (stage, daemon) in [("agent", "proxymux-agent"), ("master", "proxymux-master")] {
        let image = Unpacked::new(daemon)?;
        let begin = format!("FROM scratch AS {stage}\n");
        let (_, lines) = text.split_once(&begin).context("the stage")?;
        let lines: Vec<_> = lines
            .lines()
            .take_while(|line| !line.starts_with("FROM "))
            .collect();
        let layer = format!("{daemon}.layer.tar");
        assert!(dist()?.join(&layer).is_file(), "{layer}");
        for line in [
            format!("ADD {layer} /"),
            format!("USER {}", image.user()?),
            format!("ENTRYPOINT [\"{}\"]", image.entry_point()?),
        ] {
            assert!(lines.contains(&line.as_str()), "{line} in {lines:?}");
        }
        let version = format!(
            "org.opencontainers.image.version=\"{}\"",
            env!("CARGO_PKG_VERSION")
        );
        assert!(
            lines.iter().any(|line| line.contains(&version)),
            "{version}"
        );
    }
    Ok(())
}
