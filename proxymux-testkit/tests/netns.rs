//! The simulated machines: links, addresses, who reaches whom, and that nothing stays behind.
//!
//! Needs root and the programs `ip` and `nft`; each test says so and passes where they are
//! missing.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::{
    fs, io,
    net::{IpAddr, SocketAddr},
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use nix::sys::signal::Signal;
use proxymux_testkit::{
    apiserver::{ApiServer, FrontDoor},
    frame::Syn,
    kubelet::{Kubelet, KubeletConfig},
    netns::{Host, HostRuntime, Reach, Running, Topology, TopologyBuilder},
    pki::Pki,
    process::Daemon,
    wait::eventually,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{Instant, timeout},
};

const LIMIT: Duration = Duration::from_secs(10);
const PORT: u16 = 10250;

/// Ends the test with a printed reason where namespaces cannot be made.
macro_rules! topology_or_skip {
    ($builder:expr) => {{
        if let Some(reason) = Topology::unavailable() {
            eprintln!("skipped: {reason}");
            return;
        }
        let builder: TopologyBuilder = $builder;
        builder.build().unwrap()
    }};
}

/// A server on all addresses that tells each client where it sees it come from.
fn serve(host: &Host) -> Running<()> {
    host.run(|| async {
        let listener = TcpListener::bind(("::", PORT)).await?;
        tokio::spawn(async move {
            loop {
                let (mut stream, peer) = listener.accept().await.unwrap();
                let address = peer.ip().to_canonical().to_string();
                stream.write_all(address.as_bytes()).await.unwrap();
            }
        });
        Ok(())
    })
    .unwrap()
}

/// Dials a [`serve`]d address and returns as whom the server saw us.
fn dial(client: &Host, address: IpAddr) -> io::Result<IpAddr> {
    client.block_on(async {
        let target = SocketAddr::from((address, PORT));
        let mut stream = timeout(Duration::from_secs(2), TcpStream::connect(target)).await??;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer.parse().unwrap())
    })
}

fn mount(host: &Host) -> PathBuf {
    Path::new("/run/netns").join(host.namespace())
}

#[test]
fn a_node_reaches_the_master_and_is_seen_as_the_router() {
    let topology = topology_or_skip!(Topology::builder());
    let _server = serve(topology.master());
    let [master4, master6] = topology.master().addresses();
    let router = topology.router();
    assert_eq!(dial(topology.node(), master4).unwrap(), router.ipv4());
    assert_eq!(dial(topology.node(), master6).unwrap(), router.ipv6());
}

#[test]
fn a_master_is_refused_by_the_nat() {
    let topology = topology_or_skip!(Topology::builder());
    let _server = serve(topology.node());
    for address in topology.node().addresses() {
        let error = dial(topology.master(), address).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{error}");
    }
}

#[test]
fn a_master_hears_nothing_from_a_silent_nat() {
    let topology = topology_or_skip!(Topology::builder().reach(Reach::SilentNat));
    let _server = serve(topology.node());
    for address in topology.node().addresses() {
        let error = dial(topology.master(), address).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
    }
}

#[test]
fn with_plain_routing_both_sides_see_true_addresses() {
    let topology = topology_or_skip!(Topology::builder().reach(Reach::Routed));
    let (master, node) = (topology.master(), topology.node());
    let _servers = [serve(master), serve(node)];
    for family in [0, 1] {
        let (master_address, node_address) = (master.addresses()[family], node.addresses()[family]);
        assert_eq!(dial(master, node_address).unwrap(), master_address);
        assert_eq!(dial(node, master_address).unwrap(), node_address);
    }
}

#[test]
fn reach_can_be_changed_while_running() {
    let topology = topology_or_skip!(Topology::builder());
    let _server = serve(topology.node());
    let node = topology.node().ipv4().into();
    dial(topology.master(), node).unwrap_err();
    topology.set_reach(Reach::Routed).unwrap();
    dial(topology.master(), node).unwrap();
    topology.set_reach(Reach::Nat).unwrap();
    dial(topology.master(), node).unwrap_err();
}

#[test]
fn links_have_the_promised_names_sizes_and_addresses() {
    let topology = topology_or_skip!(Topology::builder());
    let show = |host: &Host, interface| host.ip(&["addr", "show", interface]).unwrap();
    let node = show(topology.node(), "ens3");
    assert!(node.contains("mtu 9000"), "{node}");
    assert!(node.contains("inet 10.0.10.10/24"), "{node}");
    assert!(node.contains("inet6 fd00:10::10/64"), "{node}");
    assert!(!node.contains("tentative"), "{node}");
    let master = show(topology.master(), "eth0");
    assert!(master.contains("mtu 1500"), "{master}");
    assert!(master.contains("inet 192.0.2.10/24"), "{master}");
    assert!(master.contains("inet6 2001:db8::10/64"), "{master}");
    let (wan, nodes) = (
        show(topology.router(), "wan"),
        show(topology.router(), "nodes"),
    );
    assert!(
        wan.contains("mtu 1500") && wan.contains("192.0.2.1/24"),
        "{wan}"
    );
    assert!(
        nodes.contains("mtu 9000") && nodes.contains("10.0.10.1/24"),
        "{nodes}"
    );
    let routes = topology.node().ip(&["route"]).unwrap();
    assert!(
        routes.contains("default via 10.0.10.1 dev ens3"),
        "{routes}"
    );
}

#[test]
fn several_nodes_and_masters_share_their_subnets() {
    let topology = topology_or_skip!(Topology::builder().nodes(3).masters(2));
    let _servers = [serve(&topology.masters()[1]), serve(&topology.nodes()[2])];
    let [first, .., third] = topology.nodes() else {
        panic!("three nodes");
    };
    assert_eq!(third.ipv4().to_string(), "10.0.10.12");
    for address in third.addresses() {
        let seen = dial(first, address).unwrap();
        assert!(
            first.addresses().contains(&seen),
            "neighbours see no NAT, saw {seen}"
        );
    }
    for address in topology.masters()[1].addresses() {
        let seen = dial(first, address).unwrap();
        assert!([192, 0x2001].contains(&leading(seen)), "{seen}");
    }
    for host in topology.nodes() {
        let links = host.ip(&["-brief", "link"]).unwrap();
        assert!(links.contains("ens3"), "{links}");
    }
}

fn leading(address: IpAddr) -> u16 {
    match address {
        IpAddr::V4(address) => u16::from(address.octets()[0]),
        IpAddr::V6(address) => address.segments()[0],
    }
}

#[test]
fn a_link_that_went_down_and_up_works_as_before() {
    let topology = topology_or_skip!(Topology::builder());
    let _server = serve(topology.master());
    let node = topology.node();
    node.link_down().unwrap();
    for address in topology.master().addresses() {
        dial(node, address).unwrap_err();
    }
    node.link_up().unwrap();
    for address in topology.master().addresses() {
        dial(node, address).unwrap();
    }
}

/// One byte from `far` to `near`, or nothing within the limit.
fn heard(
    (near_host, near): (&HostRuntime, &mut Option<TcpStream>),
    (far_host, far): (&HostRuntime, &mut Option<TcpStream>),
    limit: Duration,
) -> bool {
    let (mut reader, mut writer) = (near.take().unwrap(), far.take().unwrap());
    let written = async move { writer.write_all(b"x").await.map(|()| writer) };
    *far = Some(far_host.block_on(written).expect("silence gives no error"));
    let read = async move { (timeout(limit, reader.read_u8()).await, reader) };
    let (read, reader) = near_host.block_on(read);
    *near = Some(reader);
    match read {
        Ok(byte) => byte.unwrap() == b'x',
        Err(_) => false,
    }
}

#[test]
fn a_silenced_host_is_cut_off_without_a_sign_until_restored() {
    let topology = topology_or_skip!(Topology::builder());
    let (master, node) = (
        topology.master().runtime().unwrap(),
        topology.node().runtime().unwrap(),
    );
    let listener = master
        .block_on(TcpListener::bind(("192.0.2.10", PORT)))
        .unwrap();
    let accepting = master.spawn(async move { listener.accept().await.unwrap().0 });
    let mut near = Some(
        node.block_on(TcpStream::connect(("192.0.2.10", PORT)))
            .unwrap(),
    );
    let mut far = Some(master.block_on(async { accepting.await.unwrap() }));
    assert!(heard((&node, &mut near), (&master, &mut far), LIMIT));

    topology.silence(topology.node()).unwrap();
    let short = Duration::from_millis(300);
    assert!(
        !heard((&node, &mut near), (&master, &mut far), short),
        "heard through silence"
    );
    topology.restore(topology.node()).unwrap();
    assert!(heard((&node, &mut near), (&master, &mut far), LIMIT));
}

#[test]
fn programs_run_inside_with_their_own_process_id() {
    let topology = topology_or_skip!(Topology::builder());
    let mut command = topology.node().command("sh");
    command.args(["-c", "echo pid $$; ls /sys/class/net; exec sleep 3600"]);
    let mut daemon = Daemon::spawn("shell", command).unwrap();
    let line = daemon.wait_for_line("pid ", LIMIT).unwrap();
    assert_eq!(line, format!("pid {}", daemon.pid()));
    daemon
        .wait_for_line(|line: &str| line == "ens3", LIMIT)
        .unwrap();
    let own = fs::metadata(format!("/proc/{}/ns/net", daemon.pid())).unwrap();
    let host = fs::metadata(mount(topology.node())).unwrap();
    assert_eq!(
        std::os::unix::fs::MetadataExt::ino(&own),
        std::os::unix::fs::MetadataExt::ino(&host)
    );
    daemon.signal(Signal::SIGTERM).unwrap();
    daemon.wait(LIMIT).unwrap();
}

#[test]
fn programs_with_outer_mounts_have_the_hosts_network_too() {
    let topology = topology_or_skip!(Topology::builder());
    let mut command = topology.node().command_with_outer_mounts("ip");
    let output = command.args(["-brief", "addr"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("10.0.10.10/24"), "{text}");
}

#[test]
fn a_kubelet_on_a_node_serves_an_apiserver_on_the_master() {
    let topology = topology_or_skip!(Topology::builder().reach(Reach::Routed));
    let (node, pki) = (topology.node(), Pki::temporary().unwrap());
    let serving = pki
        .kubelet_serving("10.0.10.10", &node.addresses())
        .unwrap();
    let config = KubeletConfig::new("[::]:10250".parse().unwrap(), serving, pki.ca_file());
    let kubelet = node.run(|| Kubelet::start(config)).unwrap();
    let client = pki.apiserver_kubelet_client().unwrap();
    let apiserver = ApiServer::new(FrontDoor::Transparent).unwrap();
    let apiserver = apiserver
        .with_kubelet_client(pki.ca_file(), &client)
        .unwrap();
    topology.master().block_on(async {
        for target in ["10.0.10.10:10250", "[fd00:10::10]:10250"] {
            let reply = apiserver.get(target, "/healthz").await.unwrap();
            assert_eq!((reply.status, reply.text().as_str()), (200, "ok"));
            let length = apiserver
                .get_pattern(target, "/bytes?n=3000000&seed=1", 1)
                .await;
            assert_eq!(length.unwrap(), 3_000_000);
        }
    });
    assert_eq!(kubelet.stats().requests, 4);
}

#[test]
fn an_uplink_can_be_limited() {
    let topology = topology_or_skip!(Topology::builder());
    topology.node().limit_uplink("2mbit").unwrap();
    let queues = topology
        .node()
        .tc(&["qdisc", "show", "dev", "ens3"])
        .unwrap();
    assert!(
        queues.contains("tbf") && queues.contains("2Mbit"),
        "{queues}"
    );
}

#[test]
fn errors_of_the_tools_hold_what_they_said() {
    let topology = topology_or_skip!(Topology::builder());
    let error = topology.node().ip(&["link", "show", "ens9"]).unwrap_err();
    assert!(format!("{error:#}").contains("ens9"), "{error:#}");
    let error = topology.node().nft("no such statement").unwrap_err();
    assert!(format!("{error:#}").contains("syntax error"), "{error:#}");
    let error = topology.node().sysctl("net.ipv4.no_such", "1").unwrap_err();
    assert!(
        format!("{error:#}").contains("net.ipv4.no_such"),
        "{error:#}"
    );
}

#[test]
fn a_failing_start_reports_its_error_or_panic() {
    let topology = topology_or_skip!(Topology::builder());
    let error = topology
        .node()
        .run(|| async { Ok(TcpListener::bind("192.0.2.10:0").await?) })
        .unwrap_err();
    assert!(
        format!("{error:#}").contains("cannot start on host node"),
        "{error:#}"
    );
    let error = topology
        .node()
        .run(|| async {
            if true {
                panic!("of the test's own making")
            } else {
                Ok(())
            }
        })
        .unwrap_err();
    assert_eq!(format!("{error:#}"), "host node: of the test's own making");
}

#[test]
fn dropping_removes_the_namespaces_and_what_runs_in_them() {
    let topology = topology_or_skip!(Topology::builder());
    let mounts: Vec<PathBuf> = topology.hosts().map(mount).collect();
    assert!(mounts.iter().all(|mount| mount.exists()));
    // Started past the guard on purpose, like a grandchild that nobody watches.
    let mut orphan = topology
        .node()
        .command("sleep")
        .arg("3600")
        .spawn()
        .unwrap();
    let inside = PathBuf::from(format!("/proc/{}/ns/net", orphan.id()));
    let own = fs::read_link("/proc/self/ns/net").unwrap();
    eventually(LIMIT, || fs::read_link(&inside).unwrap() != own);
    drop(topology);
    assert!(mounts.iter().all(|mount| !mount.exists()));
    let status = orphan.wait().unwrap();
    assert!(!status.success(), "{status}");
}

#[test]
fn a_panic_removes_the_namespaces_too() {
    let topology = topology_or_skip!(Topology::builder());
    let mounts: Vec<PathBuf> = topology.hosts().map(mount).collect();
    let panicked = panic::catch_unwind(AssertUnwindSafe(move || {
        let _topology = topology;
        panic!("of the test's own making");
    }));
    assert!(panicked.is_err());
    assert!(mounts.iter().all(|mount| !mount.exists()));
}

#[test]
fn leftovers_of_a_dead_process_are_swept_and_those_of_the_living_are_not() {
    let mut topology = topology_or_skip!(Topology::builder());
    topology.keep();
    let mounts: Vec<PathBuf> = topology.hosts().map(mount).collect();
    let mut child = Command::new("true").spawn().unwrap();
    let dead = format!("pxm-{}-0-node", child.id());
    child.wait().unwrap();
    let made = Command::new("ip")
        .args(["netns", "add", &dead])
        .status()
        .unwrap();
    assert!(made.success());

    // Other tests of this machine may sweep at the same moment, so that what counts is that it
    // is gone, not who did it.
    Topology::sweep_leftovers().unwrap();
    assert!(!Path::new("/run/netns").join(&dead).exists());
    drop(topology);
    assert!(
        mounts.iter().all(|mount| mount.exists()),
        "kept, and its process lives"
    );
    for mount in mounts {
        let name = mount.file_name().unwrap();
        let removed = Command::new("ip")
            .args(["netns", "del"])
            .arg(name)
            .status()
            .unwrap();
        assert!(removed.success());
    }
}

#[test]
fn a_frame_of_the_tests_own_making_is_taken_for_a_first_packet_unless_it_is_tagged() {
    let topology = topology_or_skip!(Topology::builder());
    let (router, node) = (topology.router(), topology.node());
    let _server = serve(node);
    let asking = |port| (router.mac("nodes").unwrap(), (router.ipv4(), port).into());
    let asked = (node.mac("ens3").unwrap(), (node.ipv4(), PORT).into());
    let half_open = || {
        let mut command = node.command("ss");
        command.args(["-Htn", "state", "syn-recv"]);
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    };

    // Else the router, which knows of no such connection, refuses the answer at once.
    let silent = "type filter hook input priority 0; tcp sport 10250 drop;";
    let silent = format!("table inet silent {{ chain input {{ {silent} }}; }}\n");
    router.nft(&silent).unwrap();

    let tagged = Syn::new(asking(40_001), asked).tagged(7).frame();
    router.send_frame("nodes", &tagged).unwrap();
    let plain = Syn::new(asking(40_002), asked).frame();
    router.send_frame("nodes", &plain).unwrap();

    eventually(LIMIT, || half_open().contains(":40002"));
    assert!(!half_open().contains(":40001"), "a tag is not looked past");
}

#[test]
fn a_topology_is_made_within_a_second() {
    // Warm caches and a free processor are not promised, hence the generous bound and three tries.
    let fastest = (0..3).map(|_| {
        let start = Instant::now();
        let topology = match Topology::unavailable() {
            None => Topology::new().unwrap(),
            Some(reason) => {
                eprintln!("skipped: {reason}");
                return Duration::ZERO;
            }
        };
        let took = start.elapsed();
        drop(topology);
        took
    });
    let fastest = fastest.min().unwrap();
    assert!(fastest < Duration::from_secs(1), "took {fastest:?}");
}
