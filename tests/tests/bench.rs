//! The bench itself: that it measures every part of what it promises, tells it in the promised
//! form, and leaves nothing behind. Its figures are worth nothing at these sizes.

use std::{fs, os::unix::process::CommandExt, path::Path, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use proxymux_testkit::{cluster::BIN_DIR_VARIABLE, process::Daemon};
use serde_json::Value;

#[test]
fn every_part_is_measured_and_told_in_the_promised_form() -> Result<()> {
    let place = tempfile::tempdir()?;
    let file = place.path().join("results.json");
    let mut command = bench(&["--tiny", "--json"], Some(&file));
    let (document, plots) = (place.path().join("results.md"), place.path().join("plots"));
    command.arg("--markdown").arg(&document);
    command.arg("--plots").arg(&plots);
    let mut bench = Daemon::spawn("bench", command)?;

    let status = bench.wait(LIMIT)?;

    assert_eq!(status.code(), Some(0));
    let json: Value = serde_json::from_str(&fs::read_to_string(&file)?)?;
    let rows = json["results"].as_array().context("no results")?;
    for (case, metric, streams, numbers) in expected() {
        let row = rows
            .iter()
            .find(|row| row["case"] == case && row["metric"] == metric && row["streams"] == streams)
            .with_context(|| format!("no row {case} {metric} {streams}: {rows:#?}"))?;
        for field in FIELDS {
            ensure!(row.get(field).is_some(), "no field {field} in {row}");
        }
        for field in numbers {
            ensure!(
                row[*field].as_f64().is_some_and(|number| number >= 0.0),
                "{field} of {row}"
            );
        }
    }
    for pair in [
        "session/plain-tcp",
        "reverse/plain-tcp",
        "reverse/userspace",
    ] {
        let ratios = &json["ratios"][pair];
        for field in RATIOS {
            // At this size plain TCP may need no processor time that can be seen.
            ensure!(
                ratios.get(field).is_some(),
                "no {field} in {pair}: {ratios}"
            );
        }
    }
    let gains = json["gains"].as_array().context("no gains")?;
    ensure!(gains.len() == 7, "{gains:#?}");
    let distributions = json["distributions"]
        .as_array()
        .context("no distributions")?;
    ensure!(distributions.len() == 2 * CASES.len(), "{distributions:#?}");
    for field in ["cpu", "cores", "kernel", "load_average_before"] {
        ensure!(
            !json["machine"][field].is_null(),
            "no {field} of the machine"
        );
    }
    ensure!(json["background_cpu_s_per_s"].is_number(), "no background");
    let figures = json["figures"].as_array().context("no figures")?;
    ensure!(figures.len() >= 40, "{figures:#?}");
    let missing: Vec<_> = figures
        .iter()
        .filter(|figure| figure["reached"].is_null())
        .filter(|figure| {
            let name = figure["name"].as_str().unwrap_or_default();
            // At this size it may need no processor time that can be seen.
            !name.contains("CPU per GiB")
        })
        .collect();
    ensure!(missing.is_empty(), "not measured: {missing:#?}");
    told_to_people(&document, &plots)?;
    bench.wait_for_line("figures to reach:", Duration::ZERO)?;
    nothing_is_left_of(bench.pid())
}

#[test]
fn ctrl_c_in_the_middle_leaves_nothing_behind() -> Result<()> {
    // A group of its own, so that the signal reaches the daemons too, as in a terminal.
    let mut command = bench(&["--tiny"], None);
    command.process_group(0);
    let mut bench = Daemon::spawn("bench", command)?;
    bench.wait_for_line("round 1 of 1", LIMIT)?;

    killpg(bench.pid(), Signal::SIGINT)?;

    assert_eq!(bench.wait(LIMIT)?.code(), Some(130));
    nothing_is_left_of(bench.pid())
}

#[test]
fn help_shows_the_options_and_needs_no_privilege() -> Result<()> {
    let output = bench(&["--help"], None)
        .env_remove(BIN_DIR_VARIABLE)
        .output()?;

    let text = String::from_utf8(output.stdout)?;
    assert_eq!(output.status.code(), Some(0));
    assert!(
        text.contains("--quick") && text.contains("--json <FILE>"),
        "{text}"
    );
    ensure!(
        text.contains("--markdown <FILE>") && text.contains("--plots <DIR>"),
        "{text}"
    );
    assert!(!text.contains("--tiny"), "{text}");
    Ok(())
}

#[test]
fn an_unknown_argument_is_refused() -> Result<()> {
    let output = bench(&["--fast"], None).output()?;

    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr)?.contains("'--fast'"));
    Ok(())
}

#[test]
fn what_would_stop_it_at_the_end_stops_it_at_the_beginning() -> Result<()> {
    let nowhere = Path::new("/nonexistent/results.json");
    let no_directory = bench(&["--tiny", "--json"], Some(nowhere)).output()?;
    let no_daemons = bench(&["--tiny"], None)
        .env_remove(BIN_DIR_VARIABLE)
        .output()?;

    let text = String::from_utf8(no_directory.stderr)?;
    assert_eq!(no_directory.status.code(), Some(1));
    assert!(
        text.contains("cannot write /nonexistent/results.json"),
        "{text}"
    );
    let text = String::from_utf8(no_daemons.stderr)?;
    assert_eq!(no_daemons.status.code(), Some(1));
    assert!(text.contains("start it as `cargo xtask bench`"), "{text}");
    Ok(())
}

/// The document has every table, and the pictures that it links to are there.
fn told_to_people(document: &Path, plots: &Path) -> Result<()> {
    let text = fs::read_to_string(document)?;
    for part in [
        "## The machine and its noise",
        "## Bulk transfers, one connection",
        "## In times of `userspace`",
        "## Logs of a kubelet over TLS",
        "## Where the gains come from",
        "## Memory",
        "## Promises",
    ] {
        ensure!(text.contains(part), "no {part} in {text}");
    }
    for name in [
        "throughput.svg",
        "cpu.svg",
        "request-latency.svg",
        "open-latency.svg",
    ] {
        ensure!(
            text.contains(&format!("](plots/{name})")),
            "no {name} in {text}"
        );
        let svg = fs::read_to_string(plots.join(name))?;
        ensure!(svg.contains("steered-plain"), "{name}: {svg}");
    }
    Ok(())
}

fn bench(arguments: &[&str], file: Option<&Path>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_proxymux-bench"));
    command.args(arguments).args(file);
    command
}

fn nothing_is_left_of(bench: Pid) -> Result<()> {
    let prefix = format!("pxm-{bench}-");
    for entry in fs::read_dir("/run/netns")? {
        let name = entry?.file_name();
        let name = name.to_string_lossy();
        ensure!(
            !name.starts_with(&prefix),
            "namespace {name} is still there"
        );
    }
    Ok(())
}

/// Case, metric, streams, and which numbers the row has.
type Expected = (&'static str, &'static str, u64, &'static [&'static str]);

/// All ways, in the order of the results.
const CASES: [&str; 8] = [
    "plain-tcp",
    "splice-floor",
    "userspace",
    "session",
    "reverse-copy",
    "reverse",
    "direct",
    "steered-plain",
];

fn expected() -> Vec<Expected> {
    let mut all = vec![
        ("session", "stalled", 3, PATIENCE),
        ("session", "fleet", 10, CROWD),
    ];
    for case in CASES {
        for metric in ["download", "upload"] {
            all.extend([1, 2].map(|streams| (case, metric, streams, BULK)));
        }
        all.push((case, "kubelet-tls", 1, BULK));
        all.extend(["request", "open"].map(|metric| (case, metric, 1, LATENCY)));
        if ["plain-tcp", "splice-floor"].contains(&case) {
            continue;
        }
        all.push((case, "rss", 0, IDLE));
        all.push((case, "rss", 4, MEMORY));
        // Without control groups none of these is there; this is asked for where there are some.
        if Path::new("/sys/fs/cgroup/cpu/cpu.cfs_quota_us").exists() {
            all.push((case, "confined-download", 1, CONFINED));
            all.push((case, "confined-upload", 1, CONFINED));
            all.push((case, "confined-stalled", 2, GOING_ON));
        }
    }
    for case in ["reverse-copy", "reverse", "direct"] {
        all.push((case, "idle-connections", 5, CONNECTIONS));
    }
    all
}

const BULK: &[&str] = &["gib_per_s", "cpu_s_per_gib"];
const LATENCY: &[&str] = &["p50_us", "p99_us"];
const MEMORY: &[&str] = &[
    "agent_rss_kib",
    "master_rss_kib",
    "agent_rss_file_kib",
    "master_rss_file_kib",
    "kernel_mib_first",
    "kernel_mib_later",
];
const CONNECTIONS: &[&str] = &["agent_rss_kib", "agent_kernel_mib", "agent_pipes_held"];
const CONFINED: &[&str] = &["gib_per_s", "throttled_s_per_gib"];
const GOING_ON: &[&str] = &["gone_on", "killed", "peak_mib"];
const IDLE: &[&str] = &[
    "agent_rss_kib",
    "master_rss_kib",
    "agent_rss_file_kib",
    "master_rss_file_kib",
    "agent_voluntary_switches_per_s",
    "window_s",
];
const PATIENCE: &[&str] = &["p50_us", "p99_us", "quiet_p50_us", "quiet_p99_us"];

const CROWD: &[&str] = &[
    "master_rss_kib",
    "all_connected_s",
    "all_back_s",
    "master_rss_per_session_kib",
    "failed_for_time",
];

/// In every row.
const FIELDS: [&str; 9] = [
    "case",
    "metric",
    "streams",
    "gib_per_s",
    "cpu_s_per_gib",
    "p50_us",
    "p99_us",
    "agent_rss_kib",
    "master_rss_kib",
];

const RATIOS: [&str; 8] = [
    "download_throughput",
    "download_cpu",
    "upload_throughput",
    "upload_cpu",
    "request_p50",
    "open_p50",
    "kubelet_tls_throughput",
    "kubelet_tls_cpu",
];

/// It takes half a minute; a machine may be busy.
const LIMIT: Duration = Duration::from_secs(240);
