//! A bare splice hop as a program of its own, as the daemons are: the bench starts two.
//!
//! Arguments: where to listen (a path with a slash in it, or an address with a port), and which
//! address to dial. Exit codes: 1 it could not, 2 wrong arguments. It ends when it is killed.

use std::{net::SocketAddr, path::PathBuf, process::ExitCode};

use proxymux_tests::splice_hop::{From, Hop};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some(hop) = parse(&arguments) else {
        eprintln!("proxymux-splice-hop: expected PATH or ADDRESS:PORT, then ADDRESS:PORT");
        return ExitCode::from(2);
    };
    match hop.run(|| eprintln!("listening")) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("proxymux-splice-hop: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn parse(arguments: &[String]) -> Option<Hop> {
    let [from, to] = arguments else { return None };
    let from = if from.contains('/') {
        From::Unix(PathBuf::from(from))
    } else {
        From::Tcp(from.parse::<SocketAddr>().ok()?)
    };
    Some(Hop {
        from,
        to: to.parse().ok()?,
    })
}
