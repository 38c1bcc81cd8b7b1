//! Which kernel modules the guest loads, and in which order.
//!
//! A module names those that it needs in its own `.modinfo`, so that no `depmod` is needed. The
//! guest has no program that loads modules on demand: what a test needs is in the lists below,
//! and a module that is missing is known before the machine starts.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process,
};

use anyhow::{Context, Result, bail};

use super::kernels::entries;

/// What the tests need as modules of Debian's kernels.
const WANTED: &[&str] = &[
    "veth",
    "bridge",
    "8021q",
    "bonding",
    "dummy",
    "vxlan",
    "sch_ingress",
    "sch_tbf",
    "cls_bpf",
    "act_gact",
    "nf_tables",
    "nft_ct",
    "nft_chain_nat",
    "nft_masq",
    "nft_nat",
    "nft_redir",
    "nft_reject_inet",
    "nft_numgen",
    "br_netfilter",
    "tcp_diag",
];

/// What is a module in some of the kernels and a part of another module in later ones.
const WANTED_IF_THERE: &[&str] = &["nft_counter"];

/// A module and its content, ready to be loaded.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Module {
    pub(super) name: String,
    pub(super) content: Vec<u8>,
}

/// The modules of the kernel whose modules are below `directory`, in an order in which they load.
///
/// # Errors
///
/// One is not there, or cannot be read.
pub(super) fn in_order(directory: &Path) -> Result<Vec<Module>> {
    let mut files = BTreeMap::new();
    find(directory, &mut files)?;
    let optional = WANTED_IF_THERE
        .iter()
        .filter(|name| files.contains_key(**name));
    let mut order = Vec::new();
    for name in WANTED.iter().chain(optional) {
        add(name, &files, &mut order)?;
    }
    Ok(order)
}

/// A module behind those that it needs.
fn add(name: &str, files: &BTreeMap<String, PathBuf>, order: &mut Vec<Module>) -> Result<()> {
    if order.iter().any(|module| module.name == name) {
        return Ok(());
    }
    let path = files
        .get(name)
        .with_context(|| format!("the kernel has no module {name}"))?;
    let content = read(path)?;
    let needed = needed_by(&content)
        .with_context(|| format!("{} does not say what it needs", path.display()))?;
    for needed in needed {
        add(&needed, files, order)?;
    }
    order.push(Module {
        name: name.to_owned(),
        content,
    });
    Ok(())
}

/// The names in `depends=a,b` of a module's `.modinfo`.
fn needed_by(content: &[u8]) -> Option<Vec<String>> {
    const KEY: &[u8] = b"\0depends=";
    let start = content.windows(KEY.len()).position(|part| part == KEY)?;
    let value = content.get(start + KEY.len()..)?;
    let value = value.split(|byte| *byte == 0).next()?;
    let names = str::from_utf8(value).ok()?.split(',');
    Some(
        names
            .filter(|name| !name.is_empty())
            .map(plain_name)
            .collect(),
    )
}

/// Every module below a directory by its name.
fn find(directory: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for path in entries(directory)? {
        if path.is_dir() && !path.is_symlink() {
            find(&path, files)?;
        } else if let Some(name) = module_name(&path) {
            files.insert(name, path);
        }
    }
    Ok(())
}

fn module_name(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_str()?;
    let name = file
        .strip_suffix(".ko")
        .or_else(|| file.strip_suffix(".ko.xz"))?;
    Some(plain_name(name))
}

/// The kernel takes `-` and `_` for the same in a module's name.
fn plain_name(name: &str) -> String {
    name.replace('-', "_")
}

fn read(path: &Path) -> Result<Vec<u8>> {
    if path.extension().is_some_and(|extension| extension == "xz") {
        return decompressed(path);
    }
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn decompressed(path: &Path) -> Result<Vec<u8>> {
    let output = process::Command::new("xz")
        .args(["--decompress", "--stdout"])
        .arg(path)
        .output()
        .context("cannot start xz")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("xz cannot unpack {}: {}", path.display(), said.trim_end());
    }
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn needed_modules_are_read_from_the_module_itself() {
        let module = b"ELF\0license=GPL\0depends=nf_tables,nf-conntrack\0name=nft_ct\0";

        assert_eq!(
            needed_by(module),
            Some(vec!["nf_tables".to_owned(), "nf_conntrack".to_owned()])
        );
        assert_eq!(needed_by(b"\0depends=\0"), Some(Vec::new()));
        assert_eq!(needed_by(b"ELF\0license=GPL\0"), None);
    }

    #[test]
    fn file_names_give_the_names_that_the_kernel_uses() {
        for (file, name) in [
            ("veth.ko", Some("veth")),
            ("x/nf-log.ko.xz", Some("nf_log")),
            ("modules.dep", None),
        ] {
            assert_eq!(module_name(Path::new(file)).as_deref(), name, "{file}");
        }
    }

    #[test]
    fn module_that_the_kernel_lacks_is_named() {
        let error = add("veth", &BTreeMap::new(), &mut Vec::new()).unwrap_err();

        assert_eq!(error.to_string(), "the kernel has no module veth");
    }
}
