//! Every answer that is not 200: its code, its reason, its two headers, and then the end.
//!
//! Only the status line reaches the user, so it is held to be one printable line whatever a client
//! asked for. Nodes that are not there are in `absent`, nodes that do not answer in `budget`.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use proxymux_testkit::{
    apiserver::{ApiServer, RawAnswer, connect_request},
    cluster::Cluster,
};
use proxymux_tests::{
    access::{access_line_with, access_lines},
    doors::{DOORS, at_master, refused, start_with_both_doors},
    limits::{SOON, within},
};
use tokio::{task::JoinSet, time::Instant};

#[test]
fn what_is_no_request_is_answered_with_its_code_and_the_connection_closed() -> Result<()> {
    let mut cluster = start_with_both_doors(Cluster::builder())?;
    let oversized = format!("CONNECT a:1 HTTP/1.1\r\nX: {}\r\n\r\n", "y".repeat(17_000));
    let many: String = (0..4000).map(|_| "a: b\r\n").collect();
    let cases: [(&[u8], u16, &str); 11] = [
        (
            b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n",
            405,
            "expected CONNECT",
        ),
        (b"POST / HTTP/1.1\r\n\r\n", 405, "expected CONNECT"),
        (
            b"connect 10.0.10.10:10250 HTTP/1.1\r\n\r\n",
            405,
            "expected CONNECT",
        ),
        (
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            400,
            "malformed request",
        ),
        (b"\x00\x00\x00\x00\r\n\r\n", 400, "malformed request"),
        (
            b"CONNECT 10.0.10.10 HTTP/1.1\r\n\r\n",
            400,
            "target has no port",
        ),
        (
            b"CONNECT 10.0.10.10:0 HTTP/1.1\r\n\r\n",
            400,
            "target has a bad port",
        ),
        (
            b"CONNECT fd00::1:10250 HTTP/1.1\r\n\r\n",
            400,
            "bad IPv6 address",
        ),
        (
            b"CONNECT 10.0.10.10:10250 HTTP/2.0\r\n\r\n",
            400,
            "unknown protocol version",
        ),
        (oversized.as_bytes(), 431, "expected at most 16384 bytes"),
        (many.as_bytes(), 400, "malformed request"),
    ];

    for door in DOORS {
        let api = door.api(&cluster)?;
        for (request, code, said) in cases {
            let text = String::from_utf8_lossy(request.get(..40).unwrap_or(request)).into_owned();
            let answer = at_master(&cluster, answer_to(&api, request));
            let answer = answer.with_context(|| format!("{door}: {text:?}"))?;
            check_refusal(&answer, code, said).with_context(|| format!("{door}: {text:?}"))?;
        }
    }
    let machine = cluster.topology().master().clone();
    let lines = machine.block_on(access_lines(cluster.master(0), 2 * cases.len()))?;
    for line in lines {
        assert_eq!(line.message, "connection refused", "{line:#?}");
        assert_eq!(line.text("path"), Some("none"), "{line:#?}");
        assert!(
            line.number("status").is_some_and(|status| status >= 400),
            "{line:#?}"
        );
    }
    Ok(())
}

#[test]
fn a_header_that_is_not_complete_in_time_is_408() -> Result<()> {
    let cluster = start_with_both_doors(Cluster::builder().master_lines("connect-budget: 1s"))?;
    for door in DOORS {
        for beginning in [
            "",
            "C",
            "CONNECT 10.0.10.10:10250 HTTP/1.1\r\nHost: 127.0.0.1\r\n",
        ] {
            let api = door.api(&cluster)?;
            let began = Instant::now();
            let answer = at_master(&cluster, answer_to(&api, beginning.as_bytes()))?;
            let took = began.elapsed();

            check_refusal(&answer, 408, "request header not complete after 1s")?;
            assert!(
                took < Duration::from_secs(4),
                "{door}: {took:?} for {beginning:?}"
            );
        }
    }
    Ok(())
}

#[test]
fn a_client_that_ends_in_the_middle_of_its_header_is_told_so() -> Result<()> {
    let cluster = start_with_both_doors(Cluster::builder())?;
    for door in DOORS {
        let api = door.api(&cluster)?;
        let answer = at_master(&cluster, async {
            let mut client = within(SOON, "front door", api.raw()).await?;
            client
                .send(b"CONNECT 10.0.10.10:10250 HTTP/1.1\r\n")
                .await?;
            client.half_close().await?;
            within(SOON, "answer", client.read_to_end()).await
        })?;
        check_refusal(&answer, 400, "request header ended early")?;
    }
    Ok(())
}

#[test]
fn a_client_that_comes_and_goes_without_a_word_is_no_request() -> Result<()> {
    let mut cluster = start_with_both_doors(Cluster::builder())?;
    for door in DOORS {
        let api = door.api(&cluster)?;
        at_master(&cluster, async {
            drop(within(SOON, "front door", api.raw()).await?);
            // One that is refused shows that the one before has been dealt with.
            refused(&api, "10.0.10.10:22").await
        })?;
    }

    let machine = cluster.topology().master().clone();
    let lines = machine.block_on(access_lines(cluster.master(0), 2))?;
    assert!(
        lines.iter().all(|line| line.number("status") == Some(403)),
        "{lines:#?}"
    );
    Ok(())
}

#[test]
fn an_answer_is_one_printable_line_whatever_was_asked_for() -> Result<()> {
    let builder = Cluster::builder().master_lines("connect-budget: 1s");
    let mut cluster = start_with_both_doors(builder)?;
    let mut targets: Vec<Vec<u8>> = vec![
        b"10.0.10.10%0d%0aX-Injected:%20yes:10250".to_vec(),
        b"10.0.10.10\rX-Injected: yes:10250".to_vec(),
        b"10.0.10.10\nX-Injected: yes:10250".to_vec(),
        b"\x1b[31mred\x1b[0m:1".to_vec(),
        "n\u{f6}de-\u{202e}:1".as_bytes().to_vec(),
        b"\xff\xfe\xfd:1".to_vec(),
        b"a\x00b:1".to_vec(),
        vec![b'a'; 5_000],
        [&[b'a'; 253][..], b":1"].concat(),
        [&[b'a'; 254][..], b":1"].concat(),
        [&b"a.".repeat(126)[..], b":65535"].concat(),
        b"[fd00::1%25eth0]:1".to_vec(),
        b"[::ffff:10.0.10.77]:10250".to_vec(),
        b":1".to_vec(),
        b"-:1".to_vec(),
    ];
    let seed = fastrand::u64(..);
    eprintln!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    for _ in 0..150 {
        let length = random.usize(1..400);
        targets.push((0..length).map(|_| random.u8(..)).collect());
    }
    let count = targets.len();

    for door in DOORS {
        let api = door.api(&cluster)?;
        let asked = targets.clone();
        at_master(&cluster, async move {
            let mut requests = JoinSet::new();
            for target in asked {
                let api = api.clone();
                requests.spawn(async move {
                    let request = [b"CONNECT ", &target[..], b" HTTP/1.1\r\n\r\n"].concat();
                    let answer = answer_to(&api, &request).await?;
                    check_form(&answer).with_context(|| format!("{target:?}"))
                });
            }
            while let Some(checked) = requests.join_next().await {
                checked?.with_context(|| format!("{door}, seed {seed}"))?;
            }
            anyhow::Ok(())
        })?;
    }

    let machine = cluster.topology().master().clone();
    machine.block_on(access_lines(cluster.master(0), 2 * count))?;
    assert!(cluster.master(0).is_running()?);
    Ok(())
}

#[test]
fn a_refusal_arrives_whole_also_if_the_client_is_still_sending() -> Result<()> {
    let cluster = start_with_both_doors(Cluster::builder())?;
    for door in DOORS {
        let api = door.api(&cluster)?;
        let request = [connect_request("10.0.10.10:22").as_bytes(), &[b'x'; 15_000]].concat();
        let answer = at_master(&cluster, answer_to(&api, &request))?;
        check_refusal(
            &answer,
            403,
            "is not allowed by the configuration of node 10.0.10.10",
        )
        .with_context(|| door.to_string())?;
    }
    Ok(())
}

#[test]
fn what_the_user_reads_is_the_reason() -> Result<()> {
    let mut cluster = start_with_both_doors(Cluster::builder())?;
    let target = "10.0.10.10:22";
    for door in DOORS {
        let api = door.api(&cluster)?;
        let error = at_master(&cluster, refused(&api, target))?.to_string();
        let reason = "code 403: 403 target 10.0.10.10:22 is not allowed by the configuration of \
                      node 10.0.10.10";
        assert!(error.ends_with(reason), "{error}");
        let (word, machine) = (door.to_string(), cluster.topology().master().clone());
        let line = access_line_with(cluster.master(0), |line| {
            line.text("door") == Some(word.as_str())
        });
        let line = machine.block_on(line)?;
        assert_eq!(
            line.text("reason"),
            reason.strip_prefix("code 403: 403 "),
            "{line:#?}"
        );
        let name = line.text("peer.name");
        assert_eq!(
            name,
            (word == "tcp").then_some("kube-apiserver"),
            "{line:#?}"
        );
    }
    Ok(())
}

/// Sends a request and reads all that comes until the master closes the connection.
async fn answer_to(api: &ApiServer, request: &[u8]) -> Result<RawAnswer> {
    let mut client = within(SOON, "front door", api.raw()).await?;
    within(SOON, "request", client.send(request)).await?;
    within(SOON, "answer and end", client.read_to_end()).await
}

fn check_refusal(answer: &RawAnswer, code: u16, said: &str) -> Result<()> {
    check_form(answer)?;
    ensure!(answer.code() == Some(code), "expected {code}: {answer:?}");
    ensure!(
        answer.status_line().contains(said),
        "expected {said:?}: {answer:?}"
    );
    Ok(())
}

/// What holds for every answer but 200.
fn check_form(answer: &RawAnswer) -> Result<()> {
    let RawAnswer { head, rest } = answer;
    ensure!(
        rest.is_empty(),
        "{} bytes behind the header: {answer:?}",
        rest.len()
    );
    let lines: Vec<_> = head.split("\r\n").collect();
    let expected = ["Content-Length: 0", "Connection: close", "", ""];
    ensure!(
        lines.get(1..) == Some(&expected[..]),
        "headers of {answer:?}"
    );
    let code = answer.code().context("no code")?;
    ensure!((400..600).contains(&code), "code of {answer:?}");
    let start = format!("HTTP/1.1 {code} ");
    let reason = answer
        .status_line()
        .strip_prefix(&start)
        .context("no reason")?;
    ensure!(
        (1..=200).contains(&reason.len()),
        "{} bytes of reason",
        reason.len()
    );
    ensure!(
        reason.bytes().all(|b| (b' '..=b'~').contains(&b)),
        "reason {reason:?}"
    );
    Ok(())
}
