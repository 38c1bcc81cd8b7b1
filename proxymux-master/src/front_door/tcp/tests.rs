//! Who gets in by TLS, and that nobody who does not can keep others out.

use proxymux_testkit::pki::{CertFiles, Leaf, Pki, Usage};
use proxymux_transport::{
    credentials::{Credentials, load_roots},
    tls::{front_door_config, provider},
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use tokio::{io::AsyncReadExt, task::JoinHandle};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::*;
use crate::front_door::tests::{ESTABLISHED, Fake, LIMITS, Plan, REQUEST, Relayed};

const MASTER: &str = "master.example";

/// A running front door, and what a client needs to know.
struct Running {
    pki: Pki,
    address: SocketAddr,
    stop: CancellationToken,
    accepting: JoinHandle<()>,
    relayed: tokio::sync::mpsc::Receiver<Relayed>,
}

fn settings(pki: &Pki, client_names: &[&str]) -> TlsSettings {
    let files = pki.master(&[MASTER]).unwrap();
    let credentials = Credentials::load(&files.cert, Some(&files.key)).unwrap();
    let config = front_door_config(&credentials, &load_roots(&pki.ca_file()).unwrap());
    let names = client_names.iter().map(ToString::to_string);
    TlsSettings {
        config: Arc::new(move || Arc::clone(&config)),
        policy: FrontDoorPolicy::new(names).unwrap(),
    }
}

async fn run() -> Running {
    let pki = Pki::temporary().unwrap();
    let tls = settings(&pki, &["kube-apiserver", "system:node:a"]);
    let door = TcpDoor::bind("127.0.0.1:0".parse().unwrap(), tls)
        .await
        .unwrap();
    let address = door.local_addr();
    let (gateway, relayed) = Fake::new(Plan::Open);
    let doors = FrontDoors::new(gateway, LIMITS, TaskTracker::new());
    let stop = CancellationToken::new();
    let accepting = {
        let stop = stop.clone();
        tokio::spawn(async move { doors.run_tcp(door, stop).await })
    };
    Running {
        pki,
        address,
        stop,
        accepting,
        relayed,
    }
}

impl Running {
    async fn connect(&self, identity: Option<&CertFiles>) -> io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_file(self.pki.ca_file()).unwrap())
            .unwrap();
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots);
        let config = match identity {
            None => builder.with_no_client_auth(),
            Some(files) => {
                let chain = vec![CertificateDer::from_pem_file(&files.cert).unwrap()];
                let key = PrivateKeyDer::from_pem_file(&files.key).unwrap();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        };
        let stream = TcpStream::connect(self.address).await?;
        let name = ServerName::try_from(MASTER).unwrap();
        TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await
    }

    /// What a client reads, up to the end, that sends a request.
    async fn ask(&self, identity: Option<&CertFiles>) -> io::Result<Vec<u8>> {
        let mut client = self.connect(identity).await?;
        client.write_all(REQUEST).await?;
        let mut answer = vec![0; ESTABLISHED.len()];
        let read = client.read_exact(&mut answer).await;
        client.shutdown().await?;
        match read {
            Ok(_) => Ok(answer),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }
}

#[tokio::test]
async fn a_client_on_the_list_is_served_under_its_name() {
    let mut running = run().await;
    let identity = running.pki.apiserver_egress_client().unwrap();

    assert_eq!(running.ask(Some(&identity)).await.unwrap(), ESTABLISHED);

    let arrival = running.relayed.recv().await.unwrap().request.arrival;
    assert_eq!(arrival.client_name.as_deref(), Some("kube-apiserver"));
    assert_eq!(arrival.door, "tcp");
    assert!(arrival.peer.starts_with("127.0.0.1:"), "{}", arrival.peer);
}

#[tokio::test]
async fn a_client_that_may_not_come_in_gets_no_answer() {
    let mut running = run().await;
    let other = Leaf::new("someone").usages([Usage::Client]);
    let other = running.pki.pair("other", &other).unwrap();
    // On the list, and a node all the same.
    let node = running.pki.node_client("a").unwrap();

    for identity in [&other, &node] {
        // The end may come as an end or, as the request was not read, as a reset.
        let read = running.ask(Some(identity)).await.unwrap_or_default();
        assert!(read.is_empty(), "{identity:?} was answered");
    }
    let good = running.pki.apiserver_egress_client().unwrap();
    assert_eq!(running.ask(Some(&good)).await.unwrap(), ESTABLISHED);
    let first = running.relayed.recv().await.unwrap();
    assert_eq!(
        first.request.arrival.client_name.as_deref(),
        Some("kube-apiserver")
    );
}

#[tokio::test]
async fn a_client_without_a_certificate_does_not_get_in() {
    let running = run().await;
    let read = running.ask(None).await;
    assert!(read.is_err() || read.is_ok_and(|answer| answer.is_empty()));
}

#[tokio::test]
async fn an_accepted_client_is_served_to_the_end_after_the_stop() {
    let mut running = run().await;
    let identity = running.pki.apiserver_egress_client().unwrap();
    let mut client = running.connect(Some(&identity)).await.unwrap();
    client.write_all(REQUEST).await.unwrap();
    let mut answer = vec![0; ESTABLISHED.len()];
    client.read_exact(&mut answer).await.unwrap();

    running.stop.cancel();
    running.accepting.await.unwrap();

    let refused = TcpStream::connect(running.address).await.unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    client.write_all(b"still here").await.unwrap();
    client.shutdown().await.unwrap();
    let relayed = running.relayed.recv().await.unwrap();
    assert_eq!(
        [&relayed.early[..], &relayed.rest.unwrap()].concat(),
        b"still here"
    );
}

#[tokio::test]
async fn a_silent_connection_is_closed_after_the_limit() {
    let running = run().await;
    let mut silent = TcpStream::connect(running.address).await.unwrap();
    tokio::time::pause();
    let start = Instant::now();

    let read = silent.read(&mut [0; 1]).await;

    assert!(read.is_err() || read.is_ok_and(|n| n == 0));
    assert_eq!(start.elapsed().as_secs(), HANDSHAKE_LIMIT.as_secs());
}

#[tokio::test]
async fn a_taken_port_is_an_error_that_names_it() {
    let pki = Pki::temporary().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap();
    let tls = settings(&pki, &["kube-apiserver"]);

    let error = TcpDoor::bind(address, tls.clone()).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("address {address} of a front door is in use by another process")
    );

    let foreign = "192.0.2.1:8131".parse().unwrap();
    let error = TcpDoor::bind(foreign, tls).await.unwrap_err();
    assert!(chain(&error).starts_with("cannot listen at 192.0.2.1:8131 for a front door: "));
}

#[tokio::test]
async fn connections_that_say_nothing_keep_nobody_out() {
    let mut running = run().await;
    let mut silent = Vec::new();
    for _ in 0..=MAX_HALF_OPEN {
        silent.push(TcpStream::connect(running.address).await.unwrap());
    }
    let identity = running.pki.apiserver_egress_client().unwrap();

    assert_eq!(running.ask(Some(&identity)).await.unwrap(), ESTABLISHED);

    running.relayed.recv().await.unwrap();
    let first = silent.first_mut().unwrap();
    let read = first.read(&mut [0; 1]).await;
    assert!(
        read.is_err() || read.is_ok_and(|n| n == 0),
        "the oldest has gone"
    );
}
