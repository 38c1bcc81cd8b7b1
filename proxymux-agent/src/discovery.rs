//! Finding the certificate with which the agent says which node it is.
//!
//! Owns where to look and what is fit: the kubelet's own client certificate, or what the
//! configuration names. Leaves reading and checking files to `proxymux_transport::credentials`,
//! and looking again (after a wait, or because a file has changed) to the caller.
//! Read [`discover`] first. What is not there yet is waited for, because on a new node the agent
//! starts before the kubelet has its certificate; the message names every path and why it is not
//! used.

use std::path::{Path, PathBuf};

use proxymux_transport::{
    certificate::{CertificateInfo, IdentityError, NodeIdentity},
    credentials::{Credentials, CredentialsError, read_certificate},
    telemetry::chain,
};

use crate::config::ClientIdentity;

/// What looking for the agent's certificate came to.
#[derive(Debug)]
pub enum Discovery {
    /// A certificate of a node, fit for a client, with its key. It may have expired: masters will
    /// say so, and the kubelet may be about to replace it.
    Found(Credentials),
    /// There is none yet.
    Waiting {
        /// What was looked at and why it was not used, in one line.
        message: String,
    },
}

/// A certificate is there, in the place where the agent's is to be, and cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DiscoveryError {
    /// A file is damaged, unreadable, or does not go with the other.
    #[error("the agent's certificate cannot be used")]
    Credentials(#[source] CredentialsError),
    /// The certificate is not one with which an agent can come to a master.
    #[error("the certificate in `{}` cannot be the agent's", path.display())]
    Unfit {
        /// Where it was found.
        path: PathBuf,
        /// What it lacks.
        #[source]
        source: Unfit,
    },
}

/// Why a certificate cannot be an agent's.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Unfit {
    /// It is for servers, as the kubelet's serving certificate is.
    #[error("certificate `{subject}` is not for client authentication")]
    NotForClients {
        /// Whose certificate.
        subject: String,
    },
    /// It is not a node's.
    #[error(transparent)]
    NotANode(#[from] IdentityError),
}

/// Looks for the agent's certificate and key.
///
/// In a directory, that is the kubelet's `kubelet-client-current.pem`, which holds both; else
/// `tls.pem` with `tls.key`, if it is a node's and for clients. On many nodes that pair is the
/// kubelet's *serving* certificate, so it is passed over with a reason, not an error.
///
/// Blocks on the file system.
///
/// # Errors
///
/// If the files that the configuration names, or the kubelet's own, are there and cannot be used.
pub fn discover(identity: &ClientIdentity) -> Result<Discovery, DiscoveryError> {
    match identity {
        ClientIdentity::Files { cert, key } => from_files(cert, key),
        ClientIdentity::Directory(directory) => from_directory(directory),
    }
}

/// The files that decide what [`discover`] finds.
#[must_use]
pub fn files(identity: &ClientIdentity) -> Vec<PathBuf> {
    match identity {
        ClientIdentity::Files { cert, key } => vec![cert.clone(), key.clone()],
        ClientIdentity::Directory(directory) => [KUBELET_CLIENT, PAIR_CERT, PAIR_KEY]
            .map(|name| directory.join(name))
            .into(),
    }
}

fn from_files(cert: &Path, key: &Path) -> Result<Discovery, DiscoveryError> {
    let separate_key = (key != cert).then_some(key);
    match Credentials::load(cert, separate_key) {
        Ok(credentials) => found(credentials),
        Err(error) if error.is_missing() => {
            let mut reasons: Vec<_> = [Some(cert), separate_key]
                .into_iter()
                .flatten()
                // An error here means that the file is there.
                .filter(|path| matches!(path.try_exists(), Ok(false)))
                .map(does_not_exist)
                .collect();
            if reasons.is_empty() {
                // It appeared in this moment; the next look will find it.
                reasons.push(chain(&error));
            }
            Ok(waiting(&reasons))
        }
        Err(error) => Err(DiscoveryError::Credentials(error)),
    }
}

fn from_directory(directory: &Path) -> Result<Discovery, DiscoveryError> {
    let kubelets = directory.join(KUBELET_CLIENT);
    match Credentials::load(&kubelets, None) {
        Ok(credentials) => return found(credentials),
        Err(error) if error.is_missing() => {}
        // Not passed over for the pair: the kubelet replaces this file whole, so damage is
        // somebody's to repair, and the pair would hide it until it expires.
        Err(error) => return Err(DiscoveryError::Credentials(error)),
    }
    let cert = directory.join(PAIR_CERT);
    let key = directory.join(PAIR_KEY);
    match usable_pair(&cert, &key) {
        Ok(credentials) => Ok(Discovery::Found(credentials)),
        Err(reason) => Ok(waiting(&[does_not_exist(&kubelets), reason])),
    }
}

/// The pair in the kubelet's directory, or why it is not the agent's.
///
/// Whatever is wrong with it is no error: the pair belongs to the kubelet, and the file that the
/// agent really waits for may still come.
fn usable_pair(cert: &Path, key: &Path) -> Result<Credentials, String> {
    match Credentials::load(cert, Some(key)) {
        Ok(credentials) => match fitness(&credentials) {
            Ok(()) => Ok(credentials),
            Err(unfit) => Err(not_used(cert, &unfit)),
        },
        Err(error) => {
            // A serving certificate whose key is out of reach is passed over for what it is, not
            // for its key, which somebody would then go and make readable.
            let unfit = read_certificate(cert)
                .ok()
                .and_then(|info| fitness_of(&info).err());
            match unfit {
                Some(unfit) => Err(not_used(cert, &unfit)),
                None => Err(chain(&error)),
            }
        }
    }
}

fn found(credentials: Credentials) -> Result<Discovery, DiscoveryError> {
    match fitness(&credentials) {
        Ok(()) => Ok(Discovery::Found(credentials)),
        Err(source) => Err(DiscoveryError::Unfit {
            path: credentials.cert_file().to_owned(),
            source,
        }),
    }
}

fn fitness(credentials: &Credentials) -> Result<(), Unfit> {
    fitness_of(credentials.info())
}

fn fitness_of(info: &CertificateInfo) -> Result<(), Unfit> {
    if !info.permits_client_auth {
        return Err(Unfit::NotForClients {
            subject: info.subject.clone(),
        });
    }
    NodeIdentity::from_certificate(info)?;
    Ok(())
}

fn waiting(reasons: &[String]) -> Discovery {
    Discovery::Waiting {
        message: format!("waiting for a client certificate: {}", reasons.join("; ")),
    }
}

fn does_not_exist(path: &Path) -> String {
    format!("`{}` does not exist", path.display())
}

fn not_used(cert: &Path, unfit: &Unfit) -> String {
    let hint = match unfit {
        Unfit::NotForClients { .. } => " (the kubelet's serving certificate?)",
        Unfit::NotANode(_) => "",
    };
    format!("`{}` is not used: {unfit}{hint}", cert.display())
}

/// The kubelet's client certificate and key, a symbolic link to the newest.
const KUBELET_CLIENT: &str = "kubelet-client-current.pem";

/// The certificate of the pair that some installations keep in the same directory.
const PAIR_CERT: &str = "tls.pem";

/// The key of that pair.
const PAIR_KEY: &str = "tls.key";

#[cfg(test)]
mod tests;
