//! The kubelet stand-in as a process of its own, so that it can be killed like one.
//!
//! The tests for faults and the soak start it; it serves until it is killed.

use std::{net::SocketAddr, path::PathBuf};

use anyhow::Result;
use clap::Parser;
use proxymux_testkit::{
    kubelet::{Kubelet, KubeletConfig},
    pki::CertFiles,
};

/// Serves as a node's kubelet until it is killed.
#[derive(Debug, Parser)]
#[command(name = "proxymux-kubelet-stand-in", version)]
struct Args {
    /// Where to listen
    #[arg(long)]
    listen: SocketAddr,
    /// The certificate to serve, in PEM
    #[arg(long)]
    cert: PathBuf,
    /// Its key, in PEM
    #[arg(long)]
    key: PathBuf,
    /// The CA of its clients, in PEM
    #[arg(long)]
    client_ca: PathBuf,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let args = Args::parse();
    let (cert, key) = (args.cert, args.key);
    let config = KubeletConfig::new(args.listen, CertFiles { cert, key }, args.client_ca);
    let _kubelet = Kubelet::start(config).await?;
    eprintln!("kubelet is up");
    std::future::pending().await
}
