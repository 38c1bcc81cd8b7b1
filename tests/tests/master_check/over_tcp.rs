//! An egress selector that leads to the front door on TCP, with certificates on both sides.
//!
//! The master runs, so that the last line of a good check is its own answer to kube-apiserver's
//! certificate.

use std::fs;

use anyhow::{Context as _, Result};
use proxymux_testkit::pki::{Authority, Leaf, Usage};

use crate::stage::{CONFIG, DOOR_NAME, Mend, Row, SELECTOR, Stage, Told};

const GOOD: &str = "apiVersion: apiserver.k8s.io/v1beta1
kind: EgressSelectorConfiguration
egressSelections:
- name: cluster
  connection:
    proxyProtocol: HTTPConnect
    transport:
      tcp:
        url: https://proxymux-master.kube-system.svc:8131
        tlsConfig:
          caBundle: /etc/kubernetes/pki/ca.crt
          clientCert: /etc/kubernetes/pki/apiserver/egress.crt
          clientKey: /etc/kubernetes/pki/apiserver/egress.key
";

fn client(stage: &Stage, leaf: &Leaf) -> Result<()> {
    stage.pki().pair("apiserver/egress", leaf).map(drop)
}

fn good_client(stage: &Stage) -> Result<()> {
    stage.pki().apiserver_egress_client().map(drop)
}

/// One that has the right name, of another authority.
fn strange_client(stage: &Stage, strangers: &Authority) -> Result<()> {
    let leaf = Leaf::new("kube-apiserver").usages([Usage::Client]);
    let path = |extension: &str| stage.path(&format!("apiserver/egress.{extension}"));
    strangers
        .issue(&leaf)?
        .write_pair(path("crt"), path("key"))
        .map(drop)
}

#[test]
fn a_good_selector_ends_with_the_masters_answer() -> Result<()> {
    let stage = Stage::new()?;
    let _master = stage.start()?;
    stage.write(SELECTOR, GOOD)?;

    let told = stage.check()?;

    assert!(told.complaints().is_empty(), "{told:#?}");
    assert!(answered(&told), "{told:#?}");
    Ok(())
}

fn answered(told: &Told) -> bool {
    let asked = "asked with kube-apiserver's certificate";
    told.findings
        .iter()
        .any(|finding| finding.level == "ok" && finding.found.ends_with(asked))
}

#[test]
fn what_would_not_connect_is_told() -> Result<()> {
    let stage = Stage::new()?;
    let _master = stage.start()?;
    let strangers = Authority::new("strangers")?;
    let rows = [
        Row {
            what: "without TLS",
            spoil: &|stage| stage.edit(SELECTOR, "https:", "http:"),
            told: (
                "error",
                "egress selector",
                "is without TLS",
                "set `url: https://HOST:8131`",
            ),
            mend: Mend::By(&|stage| stage.edit(SELECTOR, "http:", "https:")),
        },
        Row {
            what: "without a port",
            spoil: &|stage| stage.edit(SELECTOR, ".svc:8131", ".svc"),
            told: (
                "error",
                "egress selector",
                "port",
                "set `url: https://HOST:8131`",
            ),
            mend: Mend::By(&|stage| stage.edit(SELECTOR, ".svc", ".svc:8131")),
        },
        Row {
            what: "another port",
            spoil: &|stage| stage.edit(SELECTOR, ".svc:8131", ".svc:8132"),
            told: (
                "warning",
                "egress selector",
                "doors on TCP are at IP:8131",
                "https://IP:8131",
            ),
            mend: Mend::By(&|stage| stage.edit(SELECTOR, DOOR_NAME_8132, "IP:8131")),
        },
        Row {
            what: "no tlsConfig",
            spoil: &|stage| {
                let (above, _) = GOOD.split_once("        tlsConfig").context("a part")?;
                stage.write(SELECTOR, above)
            },
            told: (
                "error",
                "egress selector",
                "no `tlsConfig`",
                "caBundle, clientCert and clientKey",
            ),
            mend: Mend::By(&|stage| stage.write(SELECTOR, GOOD)),
        },
        Row {
            what: "no caBundle",
            spoil: &|stage| {
                stage.edit(
                    SELECTOR,
                    "          caBundle: /etc/kubernetes/pki/ca.crt\n",
                    "",
                )
            },
            told: (
                "error",
                "egress selector",
                "has no `caBundle`",
                "set `caBundle: PATH`",
            ),
            mend: Mend::By(&|stage| stage.write(SELECTOR, GOOD)),
        },
        Row {
            what: "files that its pod does not see",
            spoil: &|stage| stage.edit(SELECTOR, "/etc/kubernetes/pki/ca.crt", "/etc/ssl/ca.crt"),
            told: (
                "error",
                "egress selector",
                "does not see /etc/ssl/ca.crt",
                "mountPath: /etc/ssl`",
            ),
            mend: Mend::By(&|stage| {
                stage.edit(SELECTOR, "/etc/ssl/ca.crt", "/etc/kubernetes/pki/ca.crt")
            }),
        },
        Row {
            what: "no such file",
            spoil: &|stage| Ok(fs::remove_file(stage.path("apiserver/egress.key"))?),
            told: (
                "error",
                "kube-apiserver's certificate",
                "`DIR/apiserver/egress.key` does not exist",
                "",
            ),
            mend: Mend::By(&good_client),
        },
        Row {
            what: "a name that is not in the door's certificate",
            spoil: &|stage| stage.edit(SELECTOR, DOOR_NAME, "master.example"),
            told: (
                "error",
                "egress selector",
                "refuses the certificate of IP:8131",
                DOOR_NAME,
            ),
            mend: Mend::By(&|stage| {
                let line = format!("tlsConfig:\n          tlsServerName: {DOOR_NAME}\n");
                stage.edit(SELECTOR, "tlsConfig:\n", &line)
            }),
        },
        Row {
            what: "another authority for the door",
            spoil: &|stage| {
                stage.write("strangers.crt", &strangers.pem())?;
                stage.edit(SELECTOR, "pki/ca.crt", "pki/strangers.crt")
            },
            told: (
                "error",
                "egress selector",
                "refuses the certificate of IP:8131",
                "the CA `CN=kubernetes-ca`",
            ),
            mend: Mend::By(&|stage| stage.edit(SELECTOR, "pki/strangers.crt", "pki/ca.crt")),
        },
        Row {
            what: "a client of another authority",
            spoil: &|stage| strange_client(stage, &strangers),
            told: (
                "error",
                "kube-apiserver's certificate",
                "the front door IP:8131 refuses it",
                "set `client-ca` of front-doors[1] to a file with the CA `CN=strangers`",
            ),
            mend: Mend::By(&good_client),
        },
        Row {
            what: "a client that is not listed",
            spoil: &|stage| client(stage, &Leaf::new("apiserver").usages([Usage::Client])),
            told: (
                "error",
                "kube-apiserver's certificate",
                "has the common name `apiserver`",
                "add `apiserver` to `client-names` of front-doors[1], or have the certificate issued for kube-apiserver",
            ),
            mend: Mend::By(&good_client),
        },
        Row {
            what: "a node's certificate",
            spoil: &|stage| client(stage, &Leaf::node_client("10.0.10.10")),
            told: (
                "error",
                "kube-apiserver's certificate",
                "belongs to a node",
                "with the one name kube-apiserver",
            ),
            mend: Mend::By(&good_client),
        },
        Row {
            what: "a client's certificate for servers",
            spoil: &|stage| client(stage, &Leaf::new("kube-apiserver").usages([Usage::Server])),
            told: (
                "error",
                "kube-apiserver's certificate",
                "is not for client authentication",
                "clientAuth",
            ),
            mend: Mend::By(&good_client),
        },
    ];
    for row in rows {
        stage.write_all()?;
        stage.write(SELECTOR, GOOD)?;
        row.prove(&stage, &Stage::check).context(row.what)?;
        assert!(answered(&stage.check()?), "{}", row.what);
    }
    Ok(())
}

const DOOR_NAME_8132: &str = "proxymux-master.kube-system.svc:8132";

#[test]
fn a_master_that_is_of_another_mind_than_its_file_is_found_by_asking() -> Result<()> {
    let stage = Stage::new()?;
    stage.edit(CONFIG, "[ kube-apiserver ]", "[ somebody-else ]")?;
    let master = std::cell::RefCell::new(Some(stage.start()?));
    let row = Row {
        what: "client-names changed and no restart",
        spoil: &|stage| {
            stage.write_all()?;
            stage.write(SELECTOR, GOOD)
        },
        told: (
            "error",
            "egress selector",
            "with kube-apiserver's certificate, no master answers",
            "restart it",
        ),
        mend: Mend::By(&|stage| {
            drop(master.take());
            for left in ["run/egress.sock", "run/master.sock"] {
                fs::remove_file(stage.path(left))?;
            }
            master.replace(Some(stage.start()?));
            Ok(())
        }),
    };
    row.prove(&stage, &Stage::check)
}
