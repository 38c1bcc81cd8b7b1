//! Many connections on fast paths: what they hold while they rest, and what is left of those that
//! gave up.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use proxymux_testkit::{
    apiserver::{ApiServer, Tunnel, connect_request},
    cluster::Cluster,
    far_end::Script,
};
use proxymux_tests::{
    admin::{Metrics, at_agent, at_master, scrape},
    far_target::{far_target, scripted_far_end},
    fast_paths::FAST_PATHS,
    limits::{SOON, within},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_idle_connections_hold_no_pipe_and_little_memory() -> Result<()> {
    for path in FAST_PATHS {
        let cluster = path.builder_for_far_end().start()?;
        let _far_end = scripted_far_end(&cluster, 0)?;
        path.is_taken(&cluster).await?;
        let (api, target) = (cluster.api()?, far_target(&cluster, 0));
        let mut idle = Vec::new();
        while idle.len() < IDLE {
            let mut tunnel = within(SOON, "connect", api.connect(&target)).await?;
            let script = Script::echo(1 << 40, 1);
            tunnel.write_all(&script.record()).await?;
            tunnel.write_all(b"said").await?;
            tunnel.flush().await?;
            within(SOON, "echo", tunnel.read_exact(&mut [0; 4])).await?;
            idle.push(tunnel);
        }

        // A client has its bytes a moment before the relay has given its pipe back.
        let now = within(SOON, "pipes given back", async {
            loop {
                let now = Now::of(&cluster).await?;
                if now.pipes_held() == 0.0 {
                    break anyhow::Ok(now);
                }
                sleep(Duration::from_millis(50)).await;
            }
        });
        let now = now.await?;
        let open = format!("proxymux_agent_streams_open{{path=\"{}\"}}", path.as_str());
        assert!(
            now.agent.get(&open) >= IDLE as f64 * 0.9,
            "{}",
            now.agent.text
        );
        let resident = now.agent.get("proxymux_agent_resident_memory_bytes");
        let mib = resident / f64::from(1 << 20);
        eprintln!("{}: {mib:.1} MiB resident", path.as_str());
        assert!(resident < MEMORY, "{resident}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_nodes_end_of_a_flow_takes_in_twice_the_buffer() -> Result<()> {
    for path in FAST_PATHS {
        let mut cluster = path.builder_for_far_end().start()?;
        let _far_end = scripted_far_end(&cluster, 0)?;
        path.is_taken(&cluster).await?;
        let (api, target) = (cluster.api()?, far_target(&cluster, 0));
        let mut tunnel = ask(&api, &target, &Script::echo(1 << 40, 1)).await?;
        tunnel.write_all(b"said").await?;
        within(SOON, "echo", tunnel.read_exact(&mut [0; 4])).await?;

        let owner = format!("pid={},", cluster.agent(0).pid());
        let output = cluster.node(0).command("ss").arg("-HOtnmp").output()?;

        // What arrives from the master, and then what goes to the target.
        let listed = String::from_utf8_lossy(&output.stdout);
        for [received, sent] in [["rb524288,", "tb262144,"], ["rb262144,", "tb262144,"]] {
            let alike = listed.lines().filter(|line| {
                line.contains(&owner) && line.contains(received) && line.contains(sent)
            });
            assert_eq!(alike.count(), 1, "{}: {received} {listed}", path.as_str());
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_give_up_at_every_stage_leave_nothing_behind() -> Result<()> {
    let seed = fastrand::u64(..);
    eprintln!("seed {seed}");
    let mut random = Rng::with_seed(seed);
    for path in FAST_PATHS {
        let cluster = path.builder_for_far_end().start()?;
        let _far_end = scripted_far_end(&cluster, 0)?;
        path.is_taken(&cluster).await?;
        let (api, target) = (cluster.api()?, far_target(&cluster, 0));
        let before = Now::of(&cluster).await?;

        storm(&api, &target, &mut random).await?;

        // Nobody had to wait for a session: what was opened at all was opened on the path.
        let deadline = Instant::now() + SETTLED;
        loop {
            let now = Now::of(&cluster).await?;
            let leak = now.leak(&before);
            match leak {
                None => break,
                Some(leak) => ensure!(Instant::now() < deadline, "{}: {leak}", path.as_str()),
            }
            sleep(Duration::from_millis(200)).await;
        }
        let now = Now::of(&cluster).await?;
        let opened = format!(
            "proxymux_agent_streams_opened_total{{path=\"{}\"}}",
            path.as_str()
        );
        assert!(
            now.agent.get(&opened) >= CONNECTIONS as f64 / 2.0,
            "{}",
            now.agent.text
        );
        let reply = within(SOON, "one more", echo(&api, &target)).await;
        reply.context("after the storm")?;
    }
    Ok(())
}

/// What both daemons hold.
struct Now {
    master: Metrics,
    agent: Metrics,
}

impl Now {
    async fn of(cluster: &Cluster) -> Result<Self> {
        Ok(Self {
            master: scrape(&at_master(cluster)).await?,
            agent: scrape(&at_agent(cluster, 0)).await?,
        })
    }

    /// By both daemons.
    fn pipes_held(&self) -> f64 {
        self.agent.get("proxymux_agent_pipes{state=\"held\"}")
            + self.master.get("proxymux_master_pipes{state=\"held\"}")
    }

    /// What there is more of than before. Idle flows come and go with the demand, and empty pipes
    /// are kept; both are bounded, and cost descriptors and tasks that are no leak.
    fn leak(&self, older: &Self) -> Option<String> {
        let both = [
            ("agent", &self.agent, &older.agent),
            ("master", &self.master, &older.master),
        ];
        let mut leaks = both.into_iter().filter_map(|(daemon, now, before)| {
            let value =
                |metrics: &Metrics, name: &str| metrics.get(&format!("proxymux_{daemon}_{name}"));
            let open: f64 = ["session", "reverse", "direct"]
                .iter()
                .map(|path| value(now, &format!("streams_open{{path=\"{path}\"}}")))
                .sum();
            let idle = |metrics: &Metrics| {
                let at_agent = metrics.beginning_with("proxymux_agent_flows_idle");
                at_agent.map(|(_, count)| count).sum::<f64>()
            };
            let held = value(now, "pipes{state=\"held\"}");
            let descriptors = |metrics: &Metrics| {
                value(metrics, "open_fds") - 2.0 * value(metrics, "pipes{state=\"free\"}")
            };
            let more = descriptors(now) - descriptors(before);
            let room = IDLE_MORE + (idle(&self.agent) - idle(&older.agent)).max(0.0);
            (open > 0.0 || held > 0.0 || more > room)
                .then(|| format!("{daemon}: {open} open, {held} pipes, {more} descriptors more"))
        });
        leaks.next()
    }
}

/// Connections that are given up, a few dozen at a time.
async fn storm(api: &ApiServer, target: &str, random: &mut Rng) -> Result<()> {
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let mut clients = JoinSet::new();
    for number in 0..CONNECTIONS {
        let place = Arc::clone(&places).acquire_owned().await?;
        let (api, target) = (api.clone(), target.to_owned());
        let mut random = Rng::with_seed(random.u64(..));
        clients.spawn(async move {
            let _place = place;
            let ended = timeout(SOON, give_up(&api, &target, number % STAGES, &mut random)).await;
            let ended = ended.with_context(|| format!("stage {} hangs", number % STAGES));
            ended?.with_context(|| format!("stage {}", number % STAGES))
        });
        while let Some(ended) = clients.try_join_next() {
            ended??;
        }
    }
    while let Some(ended) = clients.join_next().await {
        ended??;
    }
    Ok(())
}

async fn give_up(api: &ApiServer, target: &str, stage: usize, random: &mut Rng) -> Result<()> {
    match stage {
        // Behind the request, without waiting for the answer.
        0 => {
            let mut client = api.raw().await?;
            client.send(connect_request(target).as_bytes()).await?;
            end(client.into_tunnel(), random)
        }
        // Behind the answer, without a word.
        1 => end(api.connect(target).await?, random),
        // With a part of what shows that it is TLS.
        2 => {
            let mut tunnel = api.connect(target).await?;
            tunnel.write_all(&[0x16]).await?;
            end(tunnel, random)
        }
        // In the middle of a download.
        3 => {
            let mut tunnel = ask(api, target, &Script::source(1 << 40, 1)).await?;
            let mut buffer = vec![0; random.usize(1..100_000)];
            tunnel.read_exact(&mut buffer).await?;
            end(tunnel, random)
        }
        // With bytes on their way both ways.
        4 => {
            let mut tunnel = ask(api, target, &Script::echo(1 << 40, 1)).await?;
            tunnel.write_all(&vec![7; random.usize(1..50_000)]).await?;
            end(tunnel, random)
        }
        // After its own end.
        5 => {
            let mut tunnel = ask(api, target, &Script::echo(1 << 40, 1)).await?;
            tunnel.write_all(&vec![7; random.usize(1..8_000)]).await?;
            tunnel.shutdown().await?;
            end(tunnel, random)
        }
        // By the target.
        _ => {
            let mut tunnel = ask(api, target, &Script::Reset { after: 1000 }).await?;
            tunnel.write_all(&[7; 1000]).await?;
            // However it ends; a Unix socket cannot tell a reset from an end.
            let _ = tunnel.read_to_end(&mut Vec::new()).await;
            Ok(())
        }
    }
}

async fn ask(api: &ApiServer, target: &str, script: &Script) -> Result<Tunnel> {
    let mut tunnel = api.connect(target).await?;
    tunnel.write_all(&script.record()).await?;
    tunnel.flush().await?;
    Ok(tunnel)
}

async fn echo(api: &ApiServer, target: &str) -> Result<()> {
    let mut tunnel = ask(api, target, &Script::echo(1 << 40, 1)).await?;
    tunnel.write_all(b"said").await?;
    let mut said = [0; 4];
    tunnel.read_exact(&mut said).await?;
    ensure!(&said == b"said", "{said:?}");
    Ok(())
}

/// With a reset or a close, where there is a difference.
fn end(tunnel: Tunnel, random: &mut Rng) -> Result<()> {
    if random.bool() {
        tunnel.abort()?;
    }
    Ok(())
}

const IDLE: usize = 200;

/// What the agent may have with them.
const MEMORY: f64 = (24 << 20) as f64;

const CONNECTIONS: usize = 3_500;
const STAGES: usize = 7;
const AT_ONCE: usize = 24;

/// A scrape's own connection, and a flow that is just being replaced.
const IDLE_MORE: f64 = 4.0;

/// The pool shrinks to what was configured a minute after the last demand.
const SETTLED: Duration = Duration::from_secs(40);
