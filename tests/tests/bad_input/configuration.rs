//! Mistakes in a configuration file that can be read: exit code 2, or a warning.
//!
//! What each key may hold is tested beside the code that reads it. Here is what reaches an
//! operator's terminal: all mistakes in one report, each line complete in itself.

use anyhow::{Context, Result};
use proxymux_testkit::cluster::{AGENT, MASTER};
use proxymux_tests::{
    events::{complaints, wait_for_message},
    limits::SOON,
    programs::Scratch,
};

#[test]
fn the_agent_reports_all_mistakes_together_each_with_line_key_value_and_expectation() -> Result<()>
{
    let scratch = Scratch::new()?;
    let config = "\
node-name: [ a, b ]
server-addr:
- http://192.0.2.10:12250
- https://192.0.2.11:99999
private-ip-address: 10.0.10.300
net-inf: a-name-that-linux-would-not-take
expect-masters: many
allow: [ { cidr: 10.244.0.0/99, ports: 0-70000 } ]
dial-timeout: 0s
drain-deadline: 30
log-format: xml
mode: kernel
";

    let ended = scratch.run_with(AGENT, config)?;

    let file = scratch.path("config.yaml");
    let expected = [
        "1: node-name: a list: must be a string, write it in quotes",
        "3: server-addr[0]: \"http://192.0.2.10:12250\": must be https://HOST:PORT",
        "4: server-addr[1]: \"https://192.0.2.11:99999\": must have a port from 1 to 65535",
        "5: private-ip-address: \"10.0.10.300\": must be an IPv4 or IPv6 address",
        "6: net-inf: \"a-name-that-linux-would-not-take\": must be the name of a network \
         interface, at most 15 bytes without '/', ':' or spaces",
        "7: expect-masters: \"many\": must be a whole number",
        "8: allow[0].cidr: \"10.244.0.0/99\": must be a network such as 10.244.0.0/16, or an IP \
         address",
        "8: allow[0].ports: \"0-70000\": must be a port or a range such as \"8000-8999\", from 1 \
         to 65535",
        "9: dial-timeout: \"0s\": must be at least 100ms",
        "10: drain-deadline: 30: must be a duration such as 30s",
        "11: log-format: \"xml\": must be text or json",
        "12: mode: \"kernel\": must be auto, ebpf or userspace",
    ]
    .map(|line| format!("{AGENT}: config {}:{line}", file.display()));
    assert_eq!((ended.code, ended.lines), (Some(2), expected.to_vec()));
    Ok(())
}

#[test]
fn the_master_reports_all_mistakes_together_each_with_line_key_value_and_expectation() -> Result<()>
{
    let scratch = Scratch::new()?;
    let config = "\
listen: 12250
cert: [ master.crt ]
key: /etc/proxymux/pki/master.key
front-doors:
- { unix: egress.sock, mode: \"0888\" }
- { listen: 127.0.0.1:8131, cert: /c, key: /k, client-ca: /ca, client-names: [] }
- { unix: /run/a.sock, listen: 127.0.0.1:8132 }
routes: [ { cidr: 10.96.0.0/12, via: detour } ]
connect-bugdet: 8s
connect-budget: 0s
node-addresses: believed
";

    let ended = scratch.run_with(MASTER, config)?;

    let file = scratch.path("config.yaml");
    let expected = [
        ":1: listen: 12250: must be an IP address and port such as 0.0.0.0:12250",
        ":2: cert: a list: must be an absolute path",
        ":5: front-doors[0].unix: \"egress.sock\": must be an absolute path",
        ":5: front-doors[0].mode: \"0888\": must be octal digits such as \"0660\", at most \
         \"0777\"",
        ":6: front-doors[1].client-names: must name at least one client: whoever comes in \
         reaches every kubelet",
        ":7: front-doors[2]: must have unix or listen, not both",
        ":8: routes[0].via: \"detour\": must be direct, node or refuse",
        ":9: connect-bugdet: is no known key, did you mean connect-budget?",
        ":10: connect-budget: \"0s\": must be at least 100ms",
        ":11: node-addresses: \"believed\": must be declared, kubernetes, {file: PATH} or \
         {kubernetes: {kubeconfig: PATH}}",
        ": client-ca: must be set",
    ]
    .map(|line| format!("{MASTER}: config {}{line}", file.display()));
    assert_eq!((ended.code, ended.lines), (Some(2), expected.to_vec()));
    Ok(())
}

#[test]
fn a_key_that_the_agent_does_not_know_is_warned_about_and_it_starts() -> Result<()> {
    let scratch = Scratch::new()?;
    let good = scratch.agent_config();
    let line = good.lines().count() + 1;
    let config = format!("{good}drain-deadlin: 5s\nsomething-of-theirs: 1\n");

    let mut agent = scratch.start_with(AGENT, config)?;

    wait_for_message(&mut agent, 0, SOON, "agent starts")?;
    let file = scratch.path("config.yaml");
    let warnings: Vec<_> = complaints(&agent, 0)
        .into_iter()
        .filter(|event| event.message == "configuration")
        .map(|event| event.text("reason").map(str::to_owned).context("a reason"))
        .collect::<Result<_>>()?;
    let reasons = [
        format!(":{line}: drain-deadlin: is no known key, did you mean drain-deadline?"),
        format!(":{}: something-of-theirs: is no known key", line + 1),
    ]
    .map(|reason| format!("{}{reason}", file.display()));
    assert_eq!(warnings, reasons);
    assert!(agent.is_running()?);
    Ok(())
}

#[test]
fn a_key_that_the_master_does_not_know_is_refused() -> Result<()> {
    let scratch = Scratch::new()?;
    let good = scratch.master_config();
    let line = good.lines().count() + 1;

    let ended = scratch.run_with(MASTER, format!("{good}max-stream-per-node: 10\n"))?;

    let file = scratch.path("config.yaml");
    let message = format!(
        "{MASTER}: config {}:{line}: max-stream-per-node: is no known key, did you mean \
         max-streams-per-node?",
        file.display()
    );
    assert_eq!((ended.code, ended.lines), (Some(2), vec![message]));
    Ok(())
}
