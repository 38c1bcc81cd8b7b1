//! How the API server is reached: a kubeconfig or a pod's service account, and what is wrong with
//! it.
//!
//! Owns the way from the files to kube's client ([`open`]). kube reads the kubeconfig and adds the
//! token to requests; the token's file, and whom we trust, are read here.
//! Leaves connections to `connection`.
//! Limits: TLS 1.3 alone, no proxy, no server without a CA that is named.

use std::{
    env,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hyper::{Uri, header::HeaderValue};
use kube_client::{
    Client, Config,
    client::{ClientBuilder, ConfigExt as _},
    config::{AuthInfo, InClusterError, KubeConfigOptions, KubeconfigError},
};
use proxymux_transport::tls::provider;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};
use secrecy::ExposeSecret as _;

use super::connection::{Connector, Endpoint};
use crate::config::Kubeconfig;

/// A client, and whom it asks.
pub(super) struct Access {
    pub(super) client: Client,
    /// For people.
    pub(super) server: String,
}

/// Why the API server cannot be asked. Each names the file, and what to do where that is known.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AccessError {
    #[error("cannot read the kubeconfig {}", .path.display())]
    Missing {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(
        "no service account here (KUBERNETES_SERVICE_HOST is not set, or no token is mounted), and \
         no kubeconfig {}: set node-addresses: {{kubernetes: {{kubeconfig: PATH}}}}", .0.display()
    )]
    Nothing(PathBuf),
    #[error("the kubeconfig {} has no context {context:?}, which its current-context names", .path.display())]
    NoContext { path: PathBuf, context: String },
    #[error("the kubeconfig {} has no cluster {cluster:?}, which its context names", .path.display())]
    NoCluster { path: PathBuf, cluster: String },
    #[error("the kubeconfig {} cannot be used", .path.display())]
    Kubeconfig {
        path: PathBuf,
        #[source]
        source: Box<KubeconfigError>,
    },
    #[error("the pod's service account cannot be used")]
    InCluster(#[source] InClusterError),
    #[error("{origin}: its server is {server}, expected https://HOST:PORT")]
    Server { origin: String, server: String },
    #[error(
        "{origin}: it has no certificate-authority, expected the one that signed the API server's \
         certificate"
    )]
    NoCa { origin: String },
    #[error(
        "{origin}: it says insecure-skip-tls-verify, but who answers decides where addresses lead: \
         give it a certificate-authority instead"
    )]
    Insecure { origin: String },
    #[error("{origin}: it has a proxy-url, which is not supported")]
    Proxy { origin: String },
    #[error("{origin}: {what} has no usable content")]
    Pem {
        origin: String,
        what: String,
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    #[error("{origin}: {what} cannot be read")]
    File {
        origin: String,
        what: String,
        #[source]
        source: std::io::Error,
    },
    #[error("{origin}: {what} is empty")]
    Empty { origin: String, what: String },
    #[error("{origin}: {what} is not base64")]
    Base64 {
        origin: String,
        what: String,
        #[source]
        source: base64::DecodeError,
    },
    #[error("{origin}: it has {there} without {missing}")]
    HalfIdentity {
        origin: String,
        there: &'static str,
        missing: &'static str,
    },
    #[error("{origin}: its certificates cannot be used")]
    Tls {
        origin: String,
        #[source]
        source: rustls::Error,
    },
    #[error("{origin}: no credentials for the API server")]
    Credentials {
        origin: String,
        #[source]
        source: Box<kube_client::Error>,
    },
    #[error("nothing was read within {} s, of a file or of a command in the kubeconfig", .0.as_secs())]
    TimedOut(Duration),
}

impl AccessError {
    /// For the metric.
    pub(super) const WORD: &'static str = "access";
}

/// Reads everything anew, so that what has been renewed counts.
///
/// # Errors
///
/// When something is missing, or of no use.
pub(super) async fn open(kubeconfig: &Kubeconfig) -> Result<Access, AccessError> {
    let kubeconfig = kubeconfig.clone();
    let runtime = tokio::runtime::Handle::current();
    // Files are read, and a command may be run that makes a token.
    let opening = tokio::task::spawn_blocking(move || {
        let _inside = runtime.enter();
        runtime.block_on(load(&kubeconfig)).and_then(connect)
    });
    match tokio::time::timeout(OPEN_LIMIT, opening).await {
        Ok(Ok(opened)) => opened,
        // It has panicked, which was counted and logged, or we are ending.
        Ok(Err(_)) | Err(_) => Err(AccessError::TimedOut(OPEN_LIMIT)),
    }
}

/// What the files say, and what to call them in messages.
struct Loaded {
    config: Config,
    origin: String,
}

async fn load(kubeconfig: &Kubeconfig) -> Result<Loaded, AccessError> {
    match kubeconfig {
        Kubeconfig::InClusterOr(_) if is_in_cluster() => Ok(Loaded {
            config: Config::incluster().map_err(AccessError::InCluster)?,
            origin: "service account of the pod".to_owned(),
        }),
        Kubeconfig::InClusterOr(path) if !path.exists() => Err(AccessError::Nothing(path.clone())),
        Kubeconfig::InClusterOr(path) | Kubeconfig::File(path) => from_file(path).await,
    }
}

/// Kubernetes sets the variable in every pod, and mounts the token unless it is told not to.
fn is_in_cluster() -> bool {
    env::var_os("KUBERNETES_SERVICE_HOST").is_some() && Path::new(TOKEN).exists()
}

async fn from_file(path: &Path) -> Result<Loaded, AccessError> {
    let origin = format!("kubeconfig {}", path.display());
    let failed = |source| match source {
        KubeconfigError::ReadConfig(source, path) => AccessError::Missing { path, source },
        KubeconfigError::LoadContext(context) => AccessError::NoContext {
            path: path.to_owned(),
            context,
        },
        KubeconfigError::LoadClusterOfContext(cluster) => AccessError::NoCluster {
            path: path.to_owned(),
            cluster,
        },
        source => AccessError::Kubeconfig {
            path: path.to_owned(),
            source: Box::new(source),
        },
    };
    let file = kube_client::config::Kubeconfig::read_from(path).map_err(failed)?;
    let proxied = file.clusters.iter().filter_map(|named| {
        let proxy = named.cluster.as_ref()?.proxy_url.as_deref()?;
        (!proxy.is_empty()).then_some(&*named.name)
    });
    let proxied: Vec<_> = proxied.map(str::to_owned).collect();
    let context = file.current_context.clone();
    let cluster = file
        .contexts
        .iter()
        .find(|named| Some(&named.name) == context.as_ref())
        .and_then(|named| named.context.as_ref())
        .map(|context| context.cluster.clone());
    if cluster.is_some_and(|cluster| proxied.contains(&cluster)) {
        return Err(AccessError::Proxy { origin });
    }
    let options = KubeConfigOptions::default();
    let config = Config::from_custom_kubeconfig(file, &options)
        .await
        .map_err(failed)?;
    Ok(Loaded { config, origin })
}

fn connect(loaded: Loaded) -> Result<Access, AccessError> {
    let Loaded { mut config, origin } = loaded;
    read_token(&mut config.auth_info, &origin)?;
    if config.accept_invalid_certs {
        return Err(AccessError::Insecure { origin });
    }
    let uri = &config.cluster_url;
    let server = uri.to_string();
    let not_https = || AccessError::Server {
        origin: origin.clone(),
        server: server.clone(),
    };
    let (host, authority) = host_of(uri).ok_or_else(not_https)?;
    let name = config.tls_server_name.as_deref().unwrap_or(&host);
    let name = ServerName::try_from(name.to_owned()).map_err(|_| not_https())?;
    let endpoint = Endpoint {
        port: uri.port_u16().unwrap_or(HTTPS),
        name,
        authority,
        tls: Arc::new(tls(&config, &origin)?),
        host,
    };
    let credentials = |source| AccessError::Credentials {
        origin: origin.clone(),
        source: Box::new(source),
    };
    let service = Connector::new(endpoint);
    let base = config.base_uri_layer();
    let headers = config.extra_headers_layer().map_err(credentials)?;
    let builder = ClientBuilder::new(service, "default").with_layer(&base);
    let client = match config.auth_layer().map_err(credentials)? {
        Some(auth) => builder.with_layer(&headers).with_layer(&auth).build(),
        None => builder.with_layer(&headers).build(),
    };
    Ok(Access { client, server })
}

/// Puts the content of a token's file in the place of the file. It counts more than a token that
/// stands beside it, as for kubectl.
///
/// kube would read the file by itself, and send what it has read with the line's end that
/// `kubectl create token` and editors write, which no header may have.
fn read_token(auth: &mut AuthInfo, origin: &str) -> Result<(), AccessError> {
    let file = auth.token_file.take().filter(|file| !file.is_empty());
    let Some(file) = file else {
        return Ok(());
    };
    let (origin, what) = (origin.to_owned(), format!("tokenFile {file}"));
    let token = match std::fs::read_to_string(file) {
        Ok(content) => content.trim().to_owned(),
        Err(source) => {
            return Err(AccessError::File {
                origin,
                what,
                source,
            });
        }
    };
    if token.is_empty() {
        return Err(AccessError::Empty { origin, what });
    }
    auth.token = Some(token.into());
    Ok(())
}

/// The host without brackets, and what stands in the header `Host`.
fn host_of(uri: &Uri) -> Option<(String, HeaderValue)> {
    if uri.scheme_str() != Some("https") {
        return None;
    }
    let host = uri.host()?.trim_start_matches('[').trim_end_matches(']');
    let authority = HeaderValue::from_str(uri.authority()?.as_str()).ok()?;
    Some((host.to_owned(), authority))
}

fn tls(config: &Config, origin: &str) -> Result<ClientConfig, AccessError> {
    let failed = |source| AccessError::Tls {
        origin: origin.to_owned(),
        source,
    };
    let mut roots = RootCertStore::empty();
    for der in config.root_cert.iter().flatten() {
        let der = CertificateDer::from(der.clone());
        roots.add(der).map_err(failed)?;
    }
    if roots.is_empty() {
        return Err(AccessError::NoCa {
            origin: origin.to_owned(),
        });
    }
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(failed)?
        .with_root_certificates(roots);
    let mut tls = match identity(&config.auth_info, origin)? {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).map_err(failed)?,
        None => builder.with_no_client_auth(),
    };
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(tls)
}

type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// The client certificate, if there is one.
fn identity(auth: &AuthInfo, origin: &str) -> Result<Option<Identity>, AccessError> {
    let cert = content(
        auth.client_certificate_data.as_deref(),
        auth.client_certificate.as_deref(),
        (origin, "client-certificate"),
    )?;
    let key = auth.client_key_data.as_ref();
    let key = content(
        key.map(|secret| secret.expose_secret()),
        auth.client_key.as_deref(),
        (origin, "client-key"),
    )?;
    let half = |there, missing| AccessError::HalfIdentity {
        origin: origin.to_owned(),
        there,
        missing,
    };
    let ((cert, cert_name), (key, key_name)) = match (cert, key) {
        (None, None) => return Ok(None),
        (Some(_), None) => return Err(half("a client-certificate", "a client-key")),
        (None, Some(_)) => return Err(half("a client-key", "a client-certificate")),
        (Some(cert), Some(key)) => (cert, key),
    };
    let unusable = |what: &str| {
        let (origin, what) = (origin.to_owned(), what.to_owned());
        move |source| AccessError::Pem {
            origin,
            what,
            source,
        }
    };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&cert).collect();
    let chain = chain.map_err(unusable(&cert_name))?;
    if chain.is_empty() {
        let nothing = rustls::pki_types::pem::Error::NoItemsFound;
        return Err(unusable(&cert_name)(nothing));
    }
    let key = PrivateKeyDer::from_pem_slice(&key).map_err(unusable(&key_name))?;
    Ok(Some((chain, key)))
}

/// What a kubeconfig has in itself or in another file, and what that is called in messages. What is
/// in itself counts more, as for kubectl.
fn content(
    data: Option<&str>,
    file: Option<&str>,
    (origin, what): (&str, &str),
) -> Result<Option<(Vec<u8>, String)>, AccessError> {
    let origin = origin.to_owned();
    if let Some(data) = data.filter(|data| !data.is_empty()) {
        let what = format!("{what}-data");
        return match STANDARD.decode(data) {
            Ok(content) => Ok(Some((content, what))),
            Err(source) => Err(AccessError::Base64 {
                origin,
                what,
                source,
            }),
        };
    }
    let Some(file) = file.filter(|file| !file.is_empty()) else {
        return Ok(None);
    };
    let what = format!("{what} {file}");
    match std::fs::read(file) {
        Ok(content) => Ok(Some((content, what))),
        Err(source) => Err(AccessError::File {
            origin,
            what,
            source,
        }),
    }
}

/// Where Kubernetes mounts the token of a pod's service account.
const TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

const HTTPS: u16 = 443;

/// Reading files takes no time; a command that makes a token may ask elsewhere first.
const OPEN_LIMIT: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests;
