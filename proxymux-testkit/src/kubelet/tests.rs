//! The stand-in, dialled directly by the API server stand-in over loopback.

use std::{fs, net::Ipv4Addr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

use super::*;
use crate::{
    apiserver::{ApiServer, FrontDoor, RequestError},
    pattern::{Digest, Pattern},
    pki::{Authority, Leaf, Pki, Validity},
    wait::eventually_async,
};

const LIMIT: Duration = Duration::from_secs(10);
const LOGS: &str = "/containerLogs/kube-system/kube-flannel-ds-h9cm9/kube-flannel";
const CONTAINER: &str = "kube-system/kube-flannel-ds-h9cm9/kube-flannel";

struct Cluster {
    pki: Pki,
    kubelet: Kubelet,
    target: String,
}

impl Cluster {
    async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    async fn start_with(change: impl FnOnce(&mut KubeletConfig)) -> Self {
        let pki = Pki::temporary().unwrap();
        let serving = pki
            .kubelet_serving("n", &[Ipv4Addr::LOCALHOST.into()])
            .unwrap();
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let mut config = KubeletConfig::new(listen, serving, pki.ca_file());
        config.log_interval = Duration::from_millis(1);
        config.metrics_bytes = 3 << 20;
        change(&mut config);
        let kubelet = Kubelet::start(config).await.unwrap();
        let target = kubelet.local_addr().to_string();
        Self {
            pki,
            kubelet,
            target,
        }
    }

    fn apiserver(&self) -> ApiServer {
        self.client(&self.pki.apiserver_kubelet_client().unwrap())
    }

    fn client(&self, certificate: &CertFiles) -> ApiServer {
        let apiserver = ApiServer::new(FrontDoor::Transparent).unwrap();
        apiserver
            .with_kubelet_client(self.pki.ca_file(), certificate)
            .unwrap()
    }

    async fn get(&self, path: &str) -> crate::apiserver::Reply {
        self.apiserver().get(&self.target, path).await.unwrap()
    }
}

fn whole_error(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}

#[tokio::test]
async fn health_and_unknown_paths_are_answered() {
    let cluster = Cluster::start().await;
    let health = cluster.get("/healthz").await;
    assert_eq!((health.status, health.text().as_str()), (200, "ok"));
    assert_eq!(cluster.get("/nothing").await.status, 404);
    assert_eq!(cluster.get("/containerLogs/a/b").await.status, 404);
    assert_eq!(cluster.kubelet.stats().requests, 3);
}

#[tokio::test]
async fn one_connection_takes_several_requests() {
    let cluster = Cluster::start().await;
    let apiserver = cluster.apiserver();
    let mut connection = apiserver.connect_kubelet(&cluster.target).await.unwrap();
    for _ in 0..3 {
        assert_eq!(connection.get("/healthz").await.unwrap().status, 200);
    }
    assert_eq!(cluster.kubelet.stats().connections_accepted, 1);
    assert_eq!(cluster.kubelet.stats().connections_open, 1);
    drop(connection);
    eventually_async(LIMIT, async || {
        cluster.kubelet.stats().connections_open == 0
    })
    .await;
}

#[tokio::test]
async fn metrics_are_several_megabytes_and_always_the_same() {
    let cluster = Cluster::start().await;
    let (first, second) = (cluster.get("/metrics").await, cluster.get("/metrics").await);
    assert!(first.body.len() > 3 << 20, "{} bytes", first.body.len());
    assert_eq!(first.body, second.body);
    let text = first.text();
    let sample = text.lines().find(|line| !line.starts_with('#')).unwrap();
    let (_, value) = sample.rsplit_once(' ').unwrap();
    assert!(value.parse::<u64>().is_ok(), "{sample}");
}

#[tokio::test]
async fn a_client_without_certificate_does_not_get_in() {
    let cluster = Cluster::start().await;
    let config = tls::client_config(&cluster.pki.ca_file(), None).unwrap();
    let name = rustls::pki_types::ServerName::try_from("127.0.0.1").unwrap();
    let stream = TcpStream::connect(cluster.kubelet.local_addr())
        .await
        .unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    // In TLS 1.3 the client has finished before the server has seen that it shows nothing.
    let mut stream = connector.connect(name, stream).await.unwrap();
    let error = stream.read_u8().await.unwrap_err();
    assert!(error.to_string().contains("CertificateRequired"), "{error}");
    eventually_async(LIMIT, async || {
        cluster.kubelet.stats().handshakes_failed == 1
    })
    .await;
    assert_eq!(cluster.kubelet.stats().requests, 0);
}

#[tokio::test]
async fn certificates_that_are_no_good_do_not_get_in() {
    let cluster = Cluster::start().await;
    let masters = || {
        let leaf = Leaf::new("kube-apiserver-kubelet-client").organisations(["system:masters"]);
        leaf.usages([crate::pki::Usage::Client])
    };
    let stranger = Authority::new("kubernetes-ca").unwrap();
    let expired = masters().validity(Validity::Expired);
    let server = masters().usages([crate::pki::Usage::Server]);
    let bad = [
        stranger.issue(&masters()).unwrap(),
        cluster.pki.ca().issue(&expired).unwrap(),
        cluster.pki.ca().issue(&server).unwrap(),
    ];
    for (count, issued) in (1..).zip(bad) {
        let files = issued
            .write_combined(cluster.pki.dir().join("bad.pem"))
            .unwrap();
        let error = cluster
            .client(&files)
            .get(&cluster.target, "/healthz")
            .await
            .unwrap_err();
        assert!(
            matches!(error, RequestError::Http { .. }),
            "{}",
            whole_error(&error)
        );
        let stats = cluster.kubelet.stats();
        assert_eq!((stats.handshakes_failed, stats.requests), (count, 0));
    }
}

#[tokio::test]
async fn a_client_that_speaks_no_tls_is_a_failed_handshake() {
    let cluster = Cluster::start().await;
    let mut stream = TcpStream::connect(cluster.kubelet.local_addr())
        .await
        .unwrap();
    stream
        .write_all(b"GET /healthz HTTP/1.1\r\n\r\n")
        .await
        .unwrap();
    let mut answer = Vec::new();
    // It may end with a reset, since not all that was sent has been read.
    let _ = timeout(LIMIT, stream.read_to_end(&mut answer))
        .await
        .expect("is closed");
    eventually_async(LIMIT, async || {
        cluster.kubelet.stats().handshakes_failed == 1
    })
    .await;
}

#[tokio::test]
async fn a_node_may_come_in_and_is_forbidden_everything() {
    let cluster = Cluster::start().await;
    let client = cluster.client(&cluster.pki.node_client("other").unwrap());
    let reply = client.get(&cluster.target, "/healthz").await.unwrap();
    assert_eq!(reply.status, 403);
    assert_eq!(
        reply.text(),
        "Forbidden (user=system:node:other, verb=get, resource=nodes)"
    );
    assert_eq!(cluster.kubelet.stats().requests_forbidden, 1);
}

#[tokio::test]
async fn the_kubelets_own_certificate_is_checked_by_name_and_ca() {
    let cluster = Cluster::start().await;
    let port = cluster.kubelet.local_addr().port();
    let wrong_name = cluster
        .apiserver()
        .get(&format!("localhost:{port}"), "/healthz")
        .await;
    let error = whole_error(&wrong_name.unwrap_err());
    assert!(error.contains("not valid for name"), "{error}");
    let other = Pki::temporary().unwrap();
    let certificate = cluster.pki.apiserver_kubelet_client().unwrap();
    let apiserver = ApiServer::new(FrontDoor::Transparent).unwrap();
    let apiserver = apiserver
        .with_kubelet_client(other.ca_file(), &certificate)
        .unwrap();
    let error = apiserver
        .get(&cluster.target, "/healthz")
        .await
        .unwrap_err();
    assert!(
        matches!(error, RequestError::Tls { .. }),
        "{}",
        whole_error(&error)
    );
}

#[tokio::test]
async fn a_log_is_its_history_or_the_end_of_it() {
    let cluster = Cluster::start_with(|config| config.log_history = 250).await;
    let all = cluster.get(LOGS).await;
    assert_eq!(all.headers.get("transfer-encoding").unwrap(), "chunked");
    let numbers: Vec<u64> = all.text().lines().filter_map(log_line_number).collect();
    assert_eq!(numbers, (1..=250).collect::<Vec<_>>());
    let tail = cluster.get(&format!("{LOGS}?tailLines=2")).await.text();
    let expected = [log_line(CONTAINER, 249, 80), log_line(CONTAINER, 250, 80)];
    assert_eq!(tail.lines().collect::<Vec<_>>(), expected);
    assert_eq!(cluster.get(&format!("{LOGS}?tailLines=0")).await.text(), "");
    assert_eq!(
        cluster.get(&format!("{LOGS}?tailLines=x")).await.status,
        400
    );
}

#[tokio::test]
async fn a_followed_log_goes_on_without_a_gap_until_the_client_leaves() {
    let cluster = Cluster::start().await;
    let apiserver = cluster.apiserver();
    let path = format!("{LOGS}?follow=true&tailLines=10");
    let mut lines = apiserver.get_stream(&cluster.target, &path).await.unwrap();
    for number in 991..1050 {
        let line = timeout(LIMIT, lines.next_line())
            .await
            .expect("comes")
            .unwrap()
            .unwrap();
        assert_eq!(log_line_number(&line), Some(number), "{line}");
    }
    assert_eq!(cluster.kubelet.stats().logs_followed, 1);
    drop(lines);
    eventually_async(LIMIT, async || {
        let stats = cluster.kubelet.stats();
        (stats.logs_followed, stats.connections_open) == (0, 0)
    })
    .await;
}

#[tokio::test]
async fn a_log_without_interval_comes_as_fast_as_it_is_read() {
    let cluster = Cluster::start_with(|config| config.log_interval = Duration::ZERO).await;
    let apiserver = cluster.apiserver();
    let path = format!("{LOGS}?follow=true&tailLines=0");
    let mut lines = apiserver.get_stream(&cluster.target, &path).await.unwrap();
    for number in 1001..50_000 {
        let line = lines.next_line().await.unwrap().unwrap();
        assert_eq!(log_line_number(&line), Some(number), "{line}");
    }
}

#[tokio::test]
async fn an_exec_echoes_until_the_clients_end_and_then_says_so() {
    let cluster = Cluster::start().await;
    let apiserver = cluster.apiserver();
    let path = "/exec/default/pod/main?command=cat&input=1&output=1";
    let mut exec = apiserver.exec(&cluster.target, path).await.unwrap();
    assert_eq!(cluster.kubelet.stats().execs_open, 1);
    exec.write_all(b"first").await.unwrap();
    let mut echoed = [0; 5];
    exec.read_exact(&mut echoed).await.unwrap();
    assert_eq!(&echoed, b"first");

    let pattern = Pattern::new(3);
    exec.write_all(pattern.at(0, 10_000)).await.unwrap();
    exec.shutdown().await.unwrap();
    let mut rest = Vec::new();
    timeout(LIMIT, exec.read_to_end(&mut rest))
        .await
        .expect("ends")
        .unwrap();
    let mut digest = Digest::default();
    digest.update(b"first");
    digest.update(pattern.at(0, 10_000));
    let expected = [pattern.at(0, 10_000), exec_trailer(&digest).as_bytes()].concat();
    assert!(
        rest == expected,
        "{} bytes, expected {}",
        rest.len(),
        expected.len()
    );
    eventually_async(LIMIT, async || cluster.kubelet.stats().execs_open == 0).await;
}

#[tokio::test]
async fn an_exec_without_upgrade_headers_is_refused() {
    let cluster = Cluster::start().await;
    let reply = cluster.get("/exec/default/pod/main").await;
    assert_eq!(reply.status, 400);
    assert!(
        reply.text().contains("missing upgrade headers"),
        "{}",
        reply.text()
    );
}

#[tokio::test]
async fn bodies_of_any_size_go_both_ways() {
    let cluster = Cluster::start().await;
    let (apiserver, target) = (cluster.apiserver(), cluster.target.as_str());
    for (path, length) in [
        ("/bytes?n=5000000&seed=9", 5_000_000),
        ("/bytes?n=5000000&seed=9&chunked=true", 5_000_000),
        ("/bytes?n=0&seed=9", 0),
    ] {
        assert_eq!(
            apiserver.get_pattern(target, path, 9).await.unwrap(),
            length
        );
    }
    let sized = cluster.get("/bytes?n=10").await;
    assert_eq!(sized.headers.get("content-length").unwrap(), "10");
    let chunked = cluster.get("/bytes?n=10&chunked=true").await;
    assert_eq!(chunked.headers.get("transfer-encoding").unwrap(), "chunked");
    assert_eq!(cluster.get("/bytes").await.status, 400);
    let error = apiserver
        .get_pattern(target, "/bytes?n=10&seed=1", 2)
        .await
        .unwrap_err();
    assert!(
        whole_error(&error).contains("byte 0 of stream 2"),
        "{}",
        whole_error(&error)
    );

    let sink = apiserver
        .post_pattern(target, "/sink", 3_000_000, 4)
        .await
        .unwrap();
    assert!(
        sink.text().starts_with("received=3000000 digest="),
        "{}",
        sink.text()
    );
    let small = apiserver.post(target, "/sink", "hello").await.unwrap();
    let digest = Digest::of(b"hello");
    assert_eq!(small.text(), format!("received=5 digest={digest:016x}\n"));
}

#[tokio::test]
async fn dropping_the_kubelet_closes_its_connections() {
    let cluster = Cluster::start().await;
    let apiserver = cluster.apiserver();
    let path = format!("{LOGS}?follow=true&tailLines=1");
    let mut lines = apiserver.get_stream(&cluster.target, &path).await.unwrap();
    lines.next_line().await.unwrap().unwrap();
    drop(cluster.kubelet);
    let end = async { while lines.next_line().await.is_ok_and(|line| line.is_some()) {} };
    timeout(LIMIT, end).await.expect("ends");
    assert!(TcpStream::connect(&cluster.target).await.is_err());
}

#[tokio::test]
async fn missing_or_unusable_files_are_named() {
    let pki = Pki::temporary().unwrap();
    let serving = pki.kubelet_serving("n", &[]).unwrap();
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let start = |config| async { format!("{:#}", Kubelet::start(config).await.unwrap_err()) };
    let no_ca = KubeletConfig::new(listen, serving.clone(), pki.dir().join("none"));
    assert!(start(no_ca).await.contains("none"));
    fs::write(&serving.key, "no key").unwrap();
    let no_key = KubeletConfig::new(listen, serving, pki.ca_file());
    assert!(start(no_key).await.contains("tls.key"));
}
