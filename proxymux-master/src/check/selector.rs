//! The form of an `EgressSelectorConfiguration`, which says how kube-apiserver connects.
//!
//! Owns reading the file: which keys there are, and that each has the right type. kube-apiserver
//! refuses unknown keys, and so does this. What the values mean for a master is left to `egress`.
//! Read [`EgressSelector`] first.

use std::path::Path;

use proxymux_transport::config_file::{
    ConfigError, Document, Entry, Mistakes, Refused, Section, UnknownKeys,
};

/// What the file says. A text that is missing is empty.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct EgressSelector {
    pub(super) api_version: String,
    pub(super) kind: String,
    pub(super) selections: Vec<Selection>,
}

/// How kube-apiserver connects to one part of the cluster.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Selection {
    pub(super) name: String,
    pub(super) protocol: String,
    pub(super) has_transport: bool,
    /// `udsName`, where there is `uds`.
    pub(super) uds: Option<String>,
    pub(super) tcp: Option<Tcp>,
}

/// A transport over TCP.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Tcp {
    pub(super) url: String,
    pub(super) tls: Option<TlsFiles>,
}

/// The files that kube-apiserver proves itself with. A path that is missing is empty.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct TlsFiles {
    pub(super) ca_bundle: String,
    pub(super) client_cert: String,
    pub(super) client_key: String,
    pub(super) server_name: String,
}

impl EgressSelector {
    /// Reads the file.
    pub(super) fn load(path: &Path) -> Result<Self, ConfigError> {
        Self::from_document(Document::load(path)?)
    }

    fn from_document(document: Document) -> Result<Self, ConfigError> {
        let (selector, _) = document.read(KEYS, UnknownKeys::Refuse, |root, mistakes| {
            Ok::<_, Refused>(Self::read(root, mistakes))
        })?;
        Ok(selector)
    }

    fn read(root: &mut Section, m: &mut Mistakes) -> Self {
        let selections = root.take("egressSelections");
        let selections = selections.list("a list of selections", m, |item, m| {
            read_mapping(item, SELECTION_KEYS, m, Selection::read)
        });
        Self {
            api_version: text(root.take("apiVersion"), m),
            kind: text(root.take("kind"), m),
            selections: given(selections.given()),
        }
    }
}

impl Selection {
    fn read(section: &mut Section, m: &mut Mistakes) -> Self {
        let mut selection = Self {
            name: text(section.take("name"), m),
            ..Self::default()
        };
        let connection = section.take("connection");
        connection.mapping(
            CONNECTION_KEYS,
            UnknownKeys::Refuse,
            A_MAPPING,
            m,
            |section, m| selection.read_connection(section, m),
        );
        selection
    }

    fn read_connection(&mut self, section: &mut Section, m: &mut Mistakes) {
        self.protocol = text(section.take("proxyProtocol"), m);
        let transport = section.take("transport").mapping(
            TRANSPORT_KEYS,
            UnknownKeys::Refuse,
            A_MAPPING,
            m,
            |section, m| {
                let uds = section.take("uds");
                if uds.is_mapping() {
                    self.uds = Some(read_mapping(uds, UDS_KEYS, m, |section, m| {
                        text(section.take("udsName"), m)
                    }));
                }
                let tcp = section.take("tcp");
                if tcp.is_mapping() {
                    self.tcp = Some(read_mapping(tcp, TCP_KEYS, m, Tcp::read));
                }
            },
        );
        self.has_transport = transport.is_set();
    }
}

impl Tcp {
    fn read(section: &mut Section, m: &mut Mistakes) -> Self {
        let tls = section.take("tlsConfig");
        Self {
            tls: tls
                .is_mapping()
                .then(|| read_mapping(tls, TLS_KEYS, m, TlsFiles::read)),
            url: text(section.take("url"), m),
        }
    }
}

impl TlsFiles {
    fn read(section: &mut Section, m: &mut Mistakes) -> Self {
        Self {
            ca_bundle: text(section.take("caBundle"), m),
            client_cert: text(section.take("clientCert"), m),
            client_key: text(section.take("clientKey"), m),
            server_name: text(section.take("tlsServerName"), m),
        }
    }
}

/// What a mapping holds; nothing where there is none. A wrong type is noted as a mistake, so that
/// what stands in its place here is never used.
pub(super) fn read_mapping<T: Default + Clone>(
    entry: Entry,
    keys: &'static [&'static str],
    m: &mut Mistakes,
    read: impl FnOnce(&mut Section, &mut Mistakes) -> T,
) -> T {
    let setting = entry.mapping(keys, UnknownKeys::Refuse, A_MAPPING, m, read);
    given(setting.given())
}

fn text(entry: Entry, m: &mut Mistakes) -> String {
    given(entry.text("a string", m).given())
}

fn given<T: Default + Clone>(value: Option<&T>) -> T {
    value.cloned().unwrap_or_default()
}

const A_MAPPING: &str = "a mapping";

const KEYS: &[&str] = &["apiVersion", "kind", "egressSelections"];
const SELECTION_KEYS: &[&str] = &["name", "connection"];
const CONNECTION_KEYS: &[&str] = &["proxyProtocol", "transport"];
const TRANSPORT_KEYS: &[&str] = &["uds", "tcp"];
const UDS_KEYS: &[&str] = &["udsName"];
const TCP_KEYS: &[&str] = &["url", "tlsConfig"];
const TLS_KEYS: &[&str] = &["caBundle", "clientCert", "clientKey", "tlsServerName"];

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<EgressSelector, ConfigError> {
        EgressSelector::from_document(Document::parse(text, "egress.yaml")?)
    }

    #[test]
    fn both_transports_are_read() {
        let selector = parse(
            "apiVersion: apiserver.k8s.io/v1beta1\n\
             kind: EgressSelectorConfiguration\n\
             egressSelections:\n\
             - name: cluster\n  \
               connection:\n    \
                 proxyProtocol: HTTPConnect\n    \
                 transport: { uds: { udsName: /run/proxymux/egress.sock } }\n\
             - name: etcd\n  \
               connection:\n    \
                 proxyProtocol: HTTPConnect\n    \
                 transport:\n      \
                   tcp:\n        \
                     url: https://a:1\n        \
                     tlsConfig: { caBundle: /ca, clientCert: /c, clientKey: /k }\n\
             - { name: controlplane, connection: { proxyProtocol: Direct } }\n",
        )
        .unwrap();

        let [cluster, etcd, controlplane] = selector.selections.as_slice() else {
            panic!("{selector:?}");
        };
        assert_eq!(selector.kind, "EgressSelectorConfiguration");
        assert_eq!(selector.api_version, "apiserver.k8s.io/v1beta1");
        assert_eq!(cluster.uds.as_deref(), Some("/run/proxymux/egress.sock"));
        assert!(cluster.has_transport && cluster.tcp.is_none());
        let tls = TlsFiles {
            ca_bundle: "/ca".to_owned(),
            client_cert: "/c".to_owned(),
            client_key: "/k".to_owned(),
            server_name: String::new(),
        };
        let url = "https://a:1".to_owned();
        assert_eq!(
            etcd.tcp,
            Some(Tcp {
                url,
                tls: Some(tls)
            })
        );
        assert_eq!(controlplane.protocol, "Direct");
        assert!(!controlplane.has_transport);
    }

    #[test]
    fn what_has_the_wrong_form_is_refused_with_its_line() {
        for (text, problem) in [
            ("", "egress.yaml: is empty"),
            ("[]", "must be a mapping of keys to values, but is a list"),
            ("kind: [x]", "egress.yaml:1: kind: a list: must be a string"),
            (
                "apiversion: v1",
                "is no known key, did you mean apiVersion?",
            ),
            ("egressSelections: cluster", "must be a list of selections"),
            ("egressSelections: [ cluster ]", "must be a mapping"),
            ("egressSelections: [ { name: 5 } ]", "must be a string"),
            (
                "egressSelections:\n- name: cluster\n  connection: { proxyprotocol: GRPC }",
                "egress.yaml:3: egressSelections[0].connection.proxyprotocol: is no known key, did \
                 you mean proxyProtocol?",
            ),
            (
                "egressSelections: [ { name: a, connection: { transport: { uds: { path: x } } } } ]",
                "uds.path: is no known key",
            ),
            ("a: &a [*a]", "egress.yaml"),
            ("kind: !tag x", "has a tag of its own"),
            ("kind: a\n---\nkind: b", "egress.yaml"),
            ("kind: \u{7}", "is not allowed in YAML"),
        ] {
            let error = parse(text).unwrap_err().one_line();
            assert!(error.contains(problem), "{text:?}: {error}");
        }
    }
}
