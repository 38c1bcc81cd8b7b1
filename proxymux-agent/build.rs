//! Builds the eBPF objects that the agent carries in itself.
//!
//! Owns when they are built anew: when their sources change. Does nothing without feature `ebpf`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    #[cfg(feature = "ebpf")]
    objects()?;
    Ok(())
}

#[cfg(feature = "ebpf")]
fn objects() -> Result<(), Box<dyn std::error::Error>> {
    use std::{env, path::Path};

    let programs = Path::new("../proxymux-ebpf");
    for source in ["src", "Cargo.toml", "Cargo.lock"] {
        println!(
            "cargo::rerun-if-changed={}",
            programs.join(source).display()
        );
    }
    println!("cargo::rerun-if-changed=../proxymux-common/src");
    println!("cargo::rerun-if-changed=../proxymux-common/Cargo.toml");
    let directory = env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR for build scripts")?;
    let directory = Path::new(&directory);
    // One for all profiles and features of the agent, which make no difference to the programs:
    // beside the profile's directory, in which this is build/proxymux-agent-0123abc/out.
    let target = directory
        .ancestors()
        .nth(4)
        .unwrap_or(directory)
        .join("ebpf");
    for build in proxymux_ebpf_build::Build::ALL {
        // Cargo shows an error of `main` in the form for programmers, without line breaks.
        if let Err(error) = proxymux_ebpf_build::build(build, programs, &target, directory) {
            return Err(tell(&error));
        }
    }
    Ok(())
}

/// Writes the error for people, and hands back a short one.
#[cfg(feature = "ebpf")]
fn tell(error: &proxymux_ebpf_build::BuildError) -> Box<dyn std::error::Error> {
    eprintln!("{error}");
    if let Some(cause) = std::error::Error::source(error) {
        eprintln!("{cause}");
    }
    "no eBPF object".into()
}
