//! Wrong arguments, and a configuration file that cannot even be read: exit code 2.
//!
//! Both daemons read both in the same way, so every test is about both. What is wrong inside a
//! file that can be read is in `configuration`.

use anyhow::Result;
use proxymux_testkit::cluster::{AGENT, MASTER};
use proxymux_tests::programs::{Ended, Scratch, config_flag, run};

const DAEMONS: [&str; 2] = [AGENT, MASTER];

#[test]
fn an_unknown_verbosity_ends_the_start_and_names_the_known_ones() -> Result<()> {
    for daemon in DAEMONS {
        let ended = run(daemon, &["--verbosity=loud"])?;

        assert_eq!(ended.code, Some(2), "{ended:?}");
        assert_eq!(
            ended.lines.first().map(String::as_str),
            Some(
                "error: invalid value 'loud' for '--verbosity <LEVEL>': unknown verbosity `loud`, \
                 expected error, warn, info, debug or trace"
            )
        );
    }
    Ok(())
}

#[test]
fn wrong_arguments_end_the_start_and_are_named() -> Result<()> {
    let cases: [(&[&str], &str); 4] = [
        (&["--confg=x"], "error: unexpected argument '--confg' found"),
        (&["run"], "error: unrecognized subcommand 'run'"),
        (
            &["--config"],
            "error: a value is required for '--config <PATH>' but none was supplied",
        ),
        (
            &["--config=a", "--config=b"],
            "error: the argument '--config <PATH>' cannot be used multiple times",
        ),
    ];
    for daemon in DAEMONS {
        for (arguments, message) in cases {
            let ended = run(daemon, arguments)?;

            assert_eq!(ended.code, Some(2), "{ended:?}");
            assert_eq!(ended.lines.first().map(String::as_str), Some(message));
        }
    }
    Ok(())
}

#[test]
fn a_file_that_cannot_be_read_is_named_with_the_reason() -> Result<()> {
    let scratch = Scratch::new()?;
    let cases = [
        ("none.yaml", "No such file or directory (os error 2)"),
        ("nodes", "Is a directory (os error 21)"),
        ("ca.crt/config.yaml", "Not a directory (os error 20)"),
    ];
    for daemon in DAEMONS {
        for (name, reason) in cases {
            let file = scratch.path(name);

            let ended = run(daemon, &[&config_flag(&file)])?;

            let file = file.display();
            let line = format!("{daemon}: config {file}: cannot be read: {reason}");
            assert_eq!(ended, refused(&[line]));
        }
    }
    Ok(())
}

#[test]
fn a_file_that_is_no_configuration_is_named_with_the_place() -> Result<()> {
    let scratch = Scratch::new()?;
    let cases: [(&[u8], &str); 5] = [
        (b"", ": is empty, expected keys and values"),
        (
            b"- a list\n",
            ": must be a mapping of keys to values, but is a list",
        ),
        (b"node-name: a\n\xff\xfe\n", ":2: is not UTF-8 text"),
        (
            b"node-name: a\n  listen: b\n",
            ":2:9: mapping values are not allowed in this context",
        ),
        (
            b"-----BEGIN CERTIFICATE-----\nMIIB\n",
            ": must be a mapping of keys to values, but is a string",
        ),
    ];
    for daemon in DAEMONS {
        for (content, problem) in cases {
            let ended = scratch.run_with(daemon, content)?;

            let file = scratch.path("config.yaml");
            let line = format!("{daemon}: config {}{problem}", file.display());
            assert_eq!(ended, refused(&[line]));
        }
    }
    Ok(())
}

fn refused(lines: &[String]) -> Ended {
    Ended {
        code: Some(2),
        lines: lines.to_vec(),
    }
}
