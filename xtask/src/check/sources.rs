//! The form of tracked files that neither the compiler nor clippy looks at.
//!
//! Every Rust file opens with a `//!` comment on what it owns; a module is `foo.rs` beside `foo/`,
//! never `mod.rs`; and no file names a path that exists on one machine only.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail};

use crate::{command::Command, workspace::Workspace};

pub(super) fn check(workspace: &Workspace) -> Result<()> {
    let files = tracked_files(&workspace.root)?;
    let mut rust_files = 0;
    let mut problems = Vec::new();
    for name in &files {
        let path = workspace.root.join(name);
        // A file that is deleted but still in the index, a link, a submodule.
        if !path.is_file() || path.is_symlink() {
            continue;
        }
        let bytes = fs::read(&path).with_context(|| format!("cannot read {name}"))?;
        rust_files += usize::from(name.ends_with(".rs"));
        problems.extend(problems_of(name, &String::from_utf8_lossy(&bytes)));
    }
    if rust_files == 0 {
        bail!("git lists no Rust file in {}", workspace.root.display());
    }
    for problem in &problems {
        println!("{problem}");
    }
    if !problems.is_empty() {
        bail!("{} problems in the form of the sources", problems.len());
    }
    println!("{rust_files} Rust files of {} files", files.len());
    Ok(())
}

/// New files too, so that they are checked before the commit and not after it.
fn tracked_files(root: &Path) -> Result<Vec<String>> {
    // With sudo the checkout belongs to somebody else, which git refuses by default.
    let trusted = format!("safe.directory={}", root.display());
    let list = Command::new("git", ["-c", &trusted, "ls-files", "-z", "--cached"])
        .args(["--others", "--exclude-standard", "--deduplicate"])
        .output()?;
    Ok(list.split_terminator('\0').map(str::to_owned).collect())
}

/// What is wrong with one file, each as `name:line: text`.
fn problems_of(name: &str, text: &str) -> Vec<String> {
    let mut problems = Vec::new();
    if name.ends_with(".rs") {
        if !text.starts_with("//!") {
            problems.push(format!(
                "{name}:1: must open with a `//!` comment that says what the file owns"
            ));
        }
        if Path::new(name)
            .file_name()
            .is_some_and(|file| file == "mod.rs")
        {
            problems.push(format!(
                "{name}:1: name it after its directory and put it beside it"
            ));
        }
    }
    for (number, line) in text.lines().enumerate() {
        if let Some(path) = private_path(line) {
            problems.push(format!(
                "{name}:{}: names `{path}`, which exists on one machine only",
                number + 1
            ));
        }
    }
    problems
}

/// Starts of paths that say something about the writer's machine and nothing about the project.
/// In pieces, because this file is checked too.
const PRIVATE: [&str; 4] = [
    concat!("/wo", "rk/"),
    concat!("/ho", "me/"),
    concat!("/Us", "ers/"),
    concat!("../sha", "red"),
];

fn private_path(line: &str) -> Option<&'static str> {
    PRIVATE.into_iter().find(|path| {
        line.match_indices(path).any(|(start, _)| {
            // Behind a name or a dot it is the end of a longer path, or part of an address.
            !line.get(..start).is_some_and(|before| {
                before.ends_with(|c: char| c.is_ascii_alphanumeric() || c == '.')
            })
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_file_has_no_problem() {
        let text = "//! Owns frames.\n\nuse a::b;\n// see https://example.org/a/b\n";

        assert_eq!(problems_of("x/src/frame.rs", text), Vec::<String>::new());
    }

    #[test]
    fn rust_file_without_opening_comment_is_reported() {
        for text in ["", "use a::b;\n", "// Owns frames.\n", "\n//! Late.\n"] {
            assert_eq!(
                problems_of("a.rs", text),
                ["a.rs:1: must open with a `//!` comment that says what the file owns"],
                "{text:?}"
            );
        }
    }

    #[test]
    fn other_files_need_no_opening_comment() {
        assert_eq!(problems_of("a.md", "# A\n"), Vec::<String>::new());
    }

    #[test]
    fn mod_rs_is_reported() {
        assert_eq!(
            problems_of("src/flow/mod.rs", "//! Flows.\n"),
            ["src/flow/mod.rs:1: name it after its directory and put it beside it"]
        );
    }

    #[test]
    fn path_of_one_machine_is_reported_with_its_line() {
        for path in PRIVATE {
            let text = format!("fine\nread {path}x\nand \"{path}y\"\n");

            let problems = problems_of("README.md", &text);

            assert_eq!(
                problems,
                [2, 3].map(|line| format!(
                    "README.md:{line}: names `{path}`, which exists on one machine only"
                ))
            );
        }
    }

    #[test]
    fn end_of_a_longer_path_is_not_a_path_of_one_machine() {
        let text = format!("http://example.org{}x\ntarget{}y\n", PRIVATE[1], PRIVATE[0]);

        assert_eq!(problems_of("a.md", &text), Vec::<String>::new());
    }
}
