//! The answer 200, what may follow it when, and what the client has sent before it.
//!
//! kube-apiserver gives up a connection on which a single byte comes together with the 200, so the
//! far ends here are of the kind that speaks first. Half-close is a rule of the same contract.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use proxymux_testkit::{
    apiserver::connect_request,
    cluster::Cluster,
    far_end::{Closer, FarEnd, Script, drive, drive_fixed},
    netns::Running,
    pattern::Pattern,
    wait::eventually,
};
use proxymux_tests::{
    access::access_lines,
    doors::{DOORS, at_master, start_with_both_doors},
    far_target::{ALLOW, far_target, fixed_far_end, scripted_far_end},
    limits::{SOON, within},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[test]
fn the_200_arrives_alone_even_if_the_target_speaks_first() -> Result<()> {
    let cluster = cluster()?;
    let script = Script::source(100_000, 3);
    let far_end = fixed_far_end(&cluster, 0, script.clone())?;
    let target = far_target(&cluster, 0);

    for door in DOORS {
        let api = door.api(&cluster)?;
        at_master(&cluster, async {
            let mut client = within(SOON, "front door", api.raw()).await?;
            client.send(connect_request(&target).as_bytes()).await?;
            let answer = within(SOON, "answer", client.read_answer()).await?;
            ensure!(answer.code() == Some(200), "{door}: {answer:?}");
            ensure!(
                answer.head.lines().count() == 2,
                "{door}: more than a status: {answer:?}"
            );
            ensure!(
                answer.rest.is_empty(),
                "{door}: {} bytes with the 200",
                answer.rest.len()
            );
            // kube-apiserver may be slow to read it, and must not find more than it then either.
            let silent = within(SOON, "silence", client.is_silent_for(ALONE)).await?;
            ensure!(silent, "{door}: something came within {ALONE:?} of the 200");

            // It says nothing itself, and gets what the target had to say all the same.
            let driven = drive_fixed(client.into_tunnel(), &script);
            let driven = within(SOON, "the target's bytes", driven).await?;
            ensure!(driven.received == 100_000, "{door}: {driven:?}");
            Ok(())
        })?;
    }
    assert_clean(&far_end, 2);
    Ok(())
}

#[test]
fn kube_apiserver_takes_the_answer_of_a_target_that_speaks_first() -> Result<()> {
    let cluster = cluster()?;
    let script = Script::duplex(1_000_000, 4);
    let far_end = fixed_far_end(&cluster, 0, script.clone())?;
    let target = far_target(&cluster, 0);

    for door in DOORS {
        let api = door.api(&cluster)?;
        let driven = at_master(&cluster, async {
            let tunnel = within(SOON, "connect", api.connect(&target)).await?;
            within(SOON, "duplex", drive_fixed(tunnel, &script)).await
        })?;
        assert_eq!(
            (driven.sent, driven.received),
            (1_000_000, 1_000_000),
            "{door}"
        );
    }
    assert_clean(&far_end, 2);
    Ok(())
}

#[test]
fn bytes_behind_the_header_are_the_first_that_the_target_gets() -> Result<()> {
    let cluster = cluster()?;
    let far_end = scripted_far_end(&cluster, 0)?;
    let target = far_target(&cluster, 0);
    let (bytes, pattern) = (500_000, Pattern::new(6));
    let script = Script::sink(bytes, 6);

    // A handful, and more than the master keeps while it waits for the node.
    for (door, early) in DOORS
        .into_iter()
        .flat_map(|door| [(door, 3), (door, 60_000)])
    {
        let api = door.api(&cluster)?;
        let head = format!("{}{script}\n", connect_request(&target));
        let together = [head.as_bytes(), pattern.at(0, early)].concat();
        at_master(&cluster, async {
            let mut client = within(SOON, "front door", api.raw()).await?;
            within(SOON, "request", client.send(&together)).await?;
            let answer = within(SOON, "answer", client.read_answer()).await?;
            ensure!(answer.code() == Some(200), "{door}: {answer:?}");
            ensure!(
                answer.rest.is_empty(),
                "{door}: {} bytes with the 200",
                answer.rest.len()
            );

            let mut tunnel = client.into_tunnel();
            let mut sent = early as u64;
            while sent < bytes {
                let piece = pattern.at(sent, usize::try_from(bytes - sent)?);
                within(SOON, "more", tunnel.write_all(piece)).await?;
                sent += piece.len() as u64;
            }
            tunnel.shutdown().await?;
            let mut report = String::new();
            within(SOON, "report", tunnel.read_to_string(&mut report)).await?;
            ensure!(
                report == format!("ok received={bytes}\n"),
                "{door}: {report}"
            );
            Ok(())
        })?;
    }
    assert_clean(&far_end, 4);
    Ok(())
}

#[test]
fn a_half_close_is_passed_on_both_ways() -> Result<()> {
    let mut cluster = cluster()?;
    let far_end = scripted_far_end(&cluster, 0)?;
    let target = far_target(&cluster, 0);
    let scripts = [
        Script::source(300_000, 1).closed_first_by(Closer::Client),
        Script::source(300_000, 2).closed_first_by(Closer::FarEnd),
        Script::sink(300_000, 3),
        Script::echo(300_000, 4),
        Script::duplex(300_000, 5).closed_first_by(Closer::Client),
        Script::duplex(300_000, 6).closed_first_by(Closer::FarEnd),
    ];

    for door in DOORS {
        for script in &scripts {
            let api = door.api(&cluster)?;
            let driven = async {
                let tunnel = within(SOON, "connect", api.connect(&target)).await?;
                within(SOON, "script", drive(tunnel, script)).await
            };
            at_master(&cluster, driven).with_context(|| format!("{script} by {door}"))?;
        }
    }

    let connections = DOORS.len() * scripts.len();
    assert_clean(&far_end, connections);
    let machine = cluster.topology().master().clone();
    let mut lines = machine.block_on(access_lines(cluster.master(0), connections))?;
    lines.extend(machine.block_on(access_lines(cluster.agent(0), connections))?);
    for line in lines {
        assert_eq!(line.text("outcome"), Some("done"), "{line:#?}");
    }
    Ok(())
}

#[test]
fn a_client_that_ends_at_once_still_hears_the_target_out() -> Result<()> {
    let cluster = cluster()?;
    let script = Script::source(300_000, 1).closed_first_by(Closer::Client);
    let far_end = fixed_far_end(&cluster, 0, script.clone())?;
    let target = far_target(&cluster, 0);

    for door in DOORS {
        let api = door.api(&cluster)?;
        at_master(&cluster, async {
            let tunnel = within(SOON, "connect", api.connect(&target)).await?;
            within(SOON, "script", drive_fixed(tunnel, &script)).await
        })?;
    }
    assert_clean(&far_end, 2);
    Ok(())
}

#[test]
fn requests_of_other_clients_are_granted_too() -> Result<()> {
    let cluster = cluster()?;
    let _far_end = scripted_far_end(&cluster, 0)?;
    let target = far_target(&cluster, 0);
    let many: String = (0..200)
        .map(|n| format!("X-Header-{n}: {}\r\n", "v".repeat(50)))
        .collect();
    let requests = [
        format!("CONNECT {target} HTTP/1.0\r\n\r\n"),
        format!("CONNECT {target} HTTP/1.1\r\nHost: another.example:1\r\n\r\n"),
        format!("CONNECT {target} HTTP/1.1\nHost: 127.0.0.1\n\n"),
        format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\nUser-Agent: curl/8\r\n{many}\r\n"),
    ];

    for door in DOORS {
        let api = door.api(&cluster)?;
        for request in &requests {
            // In one piece, and as if each byte came in a packet of its own.
            for piece in [request.len(), 1] {
                at_master(&cluster, async {
                    let mut client = within(SOON, "front door", api.raw()).await?;
                    for part in request.as_bytes().chunks(piece.max(request.len() / 300)) {
                        within(SOON, "request", client.send(part)).await?;
                    }
                    let answer = within(SOON, "answer", client.read_answer()).await?;
                    ensure!(
                        answer.code() == Some(200),
                        "{door}: {request:?}: {answer:?}"
                    );
                    let script = Script::sink(1000, 1);
                    within(SOON, "sink", drive(client.into_tunnel(), &script)).await?;
                    Ok(())
                })?;
            }
        }
    }
    Ok(())
}

fn cluster() -> Result<Cluster> {
    start_with_both_doors(Cluster::builder().agent_lines(ALLOW))
}

/// Checks that so many connections went as their scripts say.
fn assert_clean(far_end: &Running<FarEnd>, connections: usize) {
    eventually(SOON, || far_end.outcomes().len() == connections);
    for outcome in far_end.outcomes() {
        assert!(outcome.is_clean(), "{outcome}");
    }
}

/// A little less than the master waits for a client that says nothing.
const ALONE: Duration = Duration::from_millis(500);
