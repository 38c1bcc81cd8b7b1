//! The configuration, and the certificates that it leads to.
//!
//! Owns what the other parts of a check go by ([`Settings`]): everything that could be read, and
//! nothing of what could not. Leaves dates, purposes and CAs to `credentials::check`.

use std::path::Path;

use proxymux_transport::{
    certificate::{CertificateInfo, NodeIdentity},
    clock::WallClock,
    command::Report,
    credentials::{
        Credentials, CredentialsError, Roots,
        check::{self, Holder},
        load_roots,
    },
    reload::InForce,
    telemetry::chain,
};

use crate::{
    config::{ClientIdentity, Config},
    discovery::{self, Discovery, DiscoveryError, Unfit},
};

/// A certificate that was seen, and whose it is.
pub(super) type Shown = (&'static str, CertificateInfo);

/// What could be read.
#[derive(Debug, Default)]
pub(super) struct Settings {
    pub(super) config: Option<Config>,
    pub(super) in_force: Option<InForce>,
    pub(super) certificates: Vec<Shown>,
}

/// Reads the file and the certificates that it names.
pub(super) fn read(file: &Path) -> (Report, Settings) {
    let mut report = Report::default();
    let mut settings = Settings::default();
    match Config::load(file) {
        Ok((config, warnings)) => {
            report.ok(CONFIG, format!("{} can be used", file.display()));
            for warning in warnings {
                report.warning(
                    CONFIG,
                    warning.to_string(),
                    "correct the line, or take it out; see docs/configuration.md",
                );
            }
            certificates(&mut report, &config, &mut settings);
            settings.config = Some(config);
        }
        Err(error) => {
            for line in error.lines() {
                report.error(
                    CONFIG,
                    line,
                    "correct the line; docs/configuration.md has every key. Until then nothing is \
                     looked at that needs the configuration",
                );
            }
        }
    }
    (report, settings)
}

fn certificates(report: &mut Report, config: &Config, settings: &mut Settings) {
    let now = WallClock::system().now();
    let credentials = credentials(report, &config.client_identity);
    if let Some(credentials) = &credentials {
        check::pair(report, CERTIFICATE, Holder::Agent, credentials, now);
        name(report, config, credentials);
        settings
            .certificates
            .push(("this node's certificate", credentials.info().clone()));
    }
    let roots = roots(report, &config.ca_file);
    if let Some(roots) = &roots {
        check::cas(report, CA, roots, now);
        let cas = roots.certificates().iter();
        let cas = cas.map(|ca| ("the CA", ca.clone()));
        settings.certificates.extend(cas);
    }
    if let (Some(credentials), Some(roots)) = (credentials, roots) {
        check::issuer(
            report,
            CERTIFICATE,
            Holder::Agent,
            &credentials,
            &roots,
            now,
        );
        settings.in_force = Some(InForce { credentials, roots });
    }
}

fn credentials(report: &mut Report, identity: &ClientIdentity) -> Option<Credentials> {
    match discovery::discover(identity) {
        Ok(Discovery::Found(credentials)) => return Some(credentials),
        Ok(Discovery::Waiting { message }) => {
            report.error(CERTIFICATE, message, missing_fix(identity));
        }
        Err(DiscoveryError::Credentials(error)) => {
            check::unusable(report, CERTIFICATE, &error);
        }
        Err(error @ DiscoveryError::Unfit { .. }) => {
            let fix = match &error {
                DiscoveryError::Unfit {
                    source: Unfit::NotForClients { .. },
                    ..
                } => "name a client certificate: the kubelet's own is kubelet-client-current.pem",
                _ => {
                    "name the kubelet's client certificate, or have one issued with the subject \
                     O=system:nodes, CN=system:node:NODE-NAME"
                }
            };
            report.error(CERTIFICATE, chain(&error), fix);
        }
    }
    None
}

fn missing_fix(identity: &ClientIdentity) -> &'static str {
    match identity {
        ClientIdentity::Directory(_) => {
            "see that the kubelet runs and has joined the cluster, so that it has its certificate; \
             or set cert-path, or client-cert and client-key"
        }
        ClientIdentity::Files { .. } => {
            "put the file there, or correct client-cert and client-key; run this as a user that may \
             look into the directory"
        }
    }
}

/// Whether the certificate is that of the node that the configuration names.
fn name(report: &mut Report, config: &Config, credentials: &Credentials) {
    match NodeIdentity::from_certificate(credentials.info()) {
        Ok(identity) if identity.name == config.node_name => {
            report.ok(
                NAME,
                format!("node-name and certificate agree on {}", identity.name),
            );
        }
        Ok(identity) => report.error(
            NAME,
            format!(
                "node-name is {}, and the certificate is that of {}: masters refuse that",
                config.node_name, identity.name
            ),
            format!(
                "set `node-name: {}`, or name the certificate of {}",
                identity.name, config.node_name
            ),
        ),
        Err(error) => report.error(
            NAME,
            chain(&error),
            "have one issued with the subject O=system:nodes, CN=system:node:NODE-NAME",
        ),
    }
}

fn roots(report: &mut Report, file: &Path) -> Option<Roots> {
    let error = match load_roots(file) {
        Ok(roots) => return Some(roots),
        Err(error) => error,
    };
    match &error {
        CredentialsError::Missing { .. } => report.error(
            CA,
            chain(&error),
            "put the cluster's CA there, or set ca-file (kubeadm: /etc/kubernetes/pki/ca.crt)",
        ),
        _ => check::unusable(report, CA, &error),
    }
    None
}

const CONFIG: &str = "config";
const CERTIFICATE: &str = "certificate";
const NAME: &str = "node name";
const CA: &str = "ca";
