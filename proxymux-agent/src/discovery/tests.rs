//! Directories as nodes have them, and what the agent makes of each.
//!
//! Certificates are made on the spot; texts are compared with the directory's name taken out.
//! Nothing here depends on permissions, because the tests also run as root.

use std::{fs, os::unix::fs::symlink};

use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose as Purpose, KeyPair,
    date_time_ymd,
};
use tempfile::TempDir;

use super::*;

struct Pki {
    dir: TempDir,
}

struct Pair {
    cert: String,
    key: String,
}

/// A certificate; who signed it does not matter to discovery.
fn pair(common_name: &str, organization: &str, purposes: &[Purpose], last_year: i32) -> Pair {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::OrganizationName, organization);
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    params.extended_key_usages = purposes.to_vec();
    params.not_after = date_time_ymd(last_year, 1, 1);
    let key = KeyPair::generate().unwrap();
    Pair {
        cert: params.self_signed(&key).unwrap().pem(),
        key: key.serialize_pem(),
    }
}

fn client() -> Pair {
    pair(
        "system:node:10.0.10.3",
        "system:nodes",
        &[Purpose::ClientAuth],
        2120,
    )
}

fn serving() -> Pair {
    pair(
        "system:node:10.0.10.3",
        "system:nodes",
        &[Purpose::ServerAuth],
        2120,
    )
}

impl Pki {
    fn new() -> Self {
        Self {
            dir: TempDir::new().unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, content).unwrap();
        path
    }

    fn write_pair(&self, pair: &Pair) {
        self.write("tls.pem", &pair.cert);
        self.write("tls.key", &pair.key);
    }

    fn in_directory(&self) -> Result<Discovery, DiscoveryError> {
        discover(&ClientIdentity::Directory(self.dir.path().to_owned()))
    }

    fn shown(&self, text: &str) -> String {
        text.replace(self.dir.path().to_str().unwrap(), "DIR")
    }

    fn waits(&self, found: Result<Discovery, DiscoveryError>) -> String {
        match found.unwrap() {
            Discovery::Waiting { message } => self.shown(&message),
            Discovery::Found(credentials) => panic!("found {credentials:?}"),
        }
    }

    fn fails(&self, found: Result<Discovery, DiscoveryError>) -> String {
        let error = anyhow::Error::from(found.unwrap_err());
        self.shown(&format!("{error:#}"))
    }
}

fn finds(found: Result<Discovery, DiscoveryError>) -> Credentials {
    match found.unwrap() {
        Discovery::Found(credentials) => credentials,
        Discovery::Waiting { message } => panic!("{message}"),
    }
}

#[test]
fn the_kubelets_client_certificate_comes_first() {
    let pki = Pki::new();
    let kubelets = client();
    let dated = pki.write(
        "kubelet-client-2020-05-01-00-00-00.pem",
        &format!("{}{}", kubelets.cert, kubelets.key),
    );
    symlink(dated, pki.path("kubelet-client-current.pem")).unwrap();
    pki.write_pair(&client());

    let credentials = finds(pki.in_directory());

    assert_eq!(
        credentials.cert_file(),
        pki.path("kubelet-client-current.pem")
    );
}

#[test]
fn a_pair_for_clients_is_used_if_there_is_nothing_else() {
    let pki = Pki::new();
    pki.write_pair(&client());

    let credentials = finds(pki.in_directory());

    assert_eq!(credentials.cert_file(), pki.path("tls.pem"));
    assert_eq!(credentials.key_file(), pki.path("tls.key"));
}

#[test]
fn the_kubelets_serving_pair_is_passed_over_and_the_client_certificate_waited_for() {
    let pki = Pki::new();
    pki.write_pair(&serving());

    assert_eq!(
        pki.waits(pki.in_directory()),
        "waiting for a client certificate: `DIR/kubelet-client-current.pem` does not exist; \
         `DIR/tls.pem` is not used: certificate `O=system:nodes, CN=system:node:10.0.10.3` is \
         not for client authentication (the kubelet's serving certificate?)"
    );

    let kubelets = client();
    pki.write(
        "kubelet-client-current.pem",
        &format!("{}{}", kubelets.cert, kubelets.key),
    );
    assert_eq!(
        finds(pki.in_directory()).cert_file(),
        pki.path("kubelet-client-current.pem")
    );
}

#[test]
fn an_empty_directory_is_waited_for_and_one_that_is_not_there_as_well() {
    let pki = Pki::new();
    let absent = ClientIdentity::Directory(pki.path("pki"));

    assert_eq!(
        pki.waits(pki.in_directory()),
        "waiting for a client certificate: `DIR/kubelet-client-current.pem` does not exist; \
         `DIR/tls.pem` does not exist"
    );
    assert_eq!(
        pki.waits(discover(&absent)),
        "waiting for a client certificate: `DIR/pki/kubelet-client-current.pem` does not exist; \
         `DIR/pki/tls.pem` does not exist"
    );
}

#[test]
fn a_pair_that_cannot_be_used_is_passed_over_with_the_reason() {
    let cases: [(Pair, &str); 3] = [
        (
            Pair {
                key: client().key,
                ..client()
            },
            "the private key in `DIR/tls.key` does not match certificate `O=system:nodes, \
             CN=system:node:10.0.10.3` in `DIR/tls.pem`",
        ),
        (
            pair("10.0.10.3", "system:nodes", &[], 2120),
            "`DIR/tls.pem` is not used: certificate `O=system:nodes, CN=10.0.10.3` has the \
             common name `10.0.10.3`, expected `system:node:<node-name>`",
        ),
        (
            Pair {
                cert: "hello".to_owned(),
                ..client()
            },
            "`DIR/tls.pem` holds no certificate",
        ),
    ];
    for (pair, reason) in cases {
        let pki = Pki::new();
        pki.write_pair(&pair);

        assert_eq!(
            pki.waits(pki.in_directory()),
            format!(
                "waiting for a client certificate: `DIR/kubelet-client-current.pem` does not \
                 exist; {reason}"
            )
        );
    }
}

#[test]
fn a_missing_key_of_the_pair_is_waited_for_only_if_the_certificate_is_fit() {
    let fit = Pki::new();
    fit.write("tls.pem", &client().cert);
    let unfit = Pki::new();
    unfit.write("tls.pem", &serving().cert);

    let fit = fit.waits(fit.in_directory());
    let unfit = unfit.waits(unfit.in_directory());

    assert!(fit.ends_with("; `DIR/tls.key` does not exist"), "{fit}");
    assert!(
        unfit.ends_with("is not for client authentication (the kubelet's serving certificate?)"),
        "{unfit}"
    );
}

#[test]
fn a_damaged_client_certificate_is_an_error_even_if_the_pair_is_good() {
    let pki = Pki::new();
    pki.write_pair(&client());
    let mixed = format!("{}{}", client().cert, client().key);
    pki.write("kubelet-client-current.pem", &mixed);

    assert_eq!(
        pki.fails(pki.in_directory()),
        "the agent's certificate cannot be used: the private key in \
         `DIR/kubelet-client-current.pem` does not match certificate `O=system:nodes, \
         CN=system:node:10.0.10.3` in `DIR/kubelet-client-current.pem`"
    );
}

#[test]
fn an_expired_client_certificate_is_found_for_the_caller_to_warn_about() {
    let pki = Pki::new();
    let expired = pair("system:node:a", "system:nodes", &[], 2020);
    let both = format!("{}{}", expired.cert, expired.key);
    pki.write("kubelet-client-current.pem", &both);

    let credentials = finds(pki.in_directory());

    assert_eq!(credentials.info().common_name(), Some("system:node:a"));
}

#[test]
fn files_that_the_configuration_names_are_used_and_nothing_else() {
    let pki = Pki::new();
    pki.write_pair(&client());
    let named = client();
    let cert = pki.write("my.crt", &named.cert);
    let key = pki.write("my.key", &named.key);
    let both = pki.write("both.pem", &format!("{}{}", named.cert, named.key));

    let two_files = finds(discover(&ClientIdentity::Files {
        cert: cert.clone(),
        key,
    }));
    let one_file = finds(discover(&ClientIdentity::Files {
        cert: both.clone(),
        key: both.clone(),
    }));

    assert_eq!(two_files.cert_file(), cert);
    assert_eq!(one_file.cert_file(), both);
}

#[test]
fn files_that_the_configuration_names_are_waited_for_by_name() {
    let pki = Pki::new();
    pki.write_pair(&client());
    let cert = pki.path("my.crt");
    let files = ClientIdentity::Files {
        cert: cert.clone(),
        key: pki.path("my.key"),
    };
    let one_file = ClientIdentity::Files {
        cert: cert.clone(),
        key: cert.clone(),
    };

    assert_eq!(
        pki.waits(discover(&files)),
        "waiting for a client certificate: `DIR/my.crt` does not exist; `DIR/my.key` does not \
         exist"
    );
    assert_eq!(
        pki.waits(discover(&one_file)),
        "waiting for a client certificate: `DIR/my.crt` does not exist"
    );

    fs::write(&cert, client().cert).unwrap();
    assert_eq!(
        pki.waits(discover(&files)),
        "waiting for a client certificate: `DIR/my.key` does not exist"
    );
}

#[test]
fn files_that_the_configuration_names_and_that_are_unfit_are_an_error() {
    let pki = Pki::new();
    let named = |pair: &Pair| {
        discover(&ClientIdentity::Files {
            cert: pki.write("my.crt", &pair.cert),
            key: pki.write("my.key", &pair.key),
        })
    };

    assert_eq!(
        pki.fails(named(&serving())),
        "the certificate in `DIR/my.crt` cannot be the agent's: certificate `O=system:nodes, \
         CN=system:node:10.0.10.3` is not for client authentication"
    );
    assert_eq!(
        pki.fails(named(&pair("ops", "people", &[], 2120))),
        "the certificate in `DIR/my.crt` cannot be the agent's: certificate `O=people, CN=ops` \
         has the common name `ops`, expected `system:node:<node-name>`"
    );
    assert_eq!(
        pki.fails(named(&Pair {
            cert: String::new(),
            ..client()
        })),
        "the agent's certificate cannot be used: `DIR/my.crt` holds no certificate: it is empty"
    );
}
