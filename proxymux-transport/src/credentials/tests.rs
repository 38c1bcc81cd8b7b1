//! Files as people leave them, each with the error that it must give.
//!
//! Every test has a directory of its own; texts are compared with its name taken out.
//! The tests run as root as well as not, so none depends on permissions.

use std::{
    error::Error as _,
    fs,
    os::unix::fs::symlink,
    time::{Duration, SystemTime},
};

use rustls::pki_types::pem::PemObject as _;
use tempfile::TempDir;

use super::*;
use crate::certificate::{
    Validity,
    test_pki::{Ca, Issued, Request},
};

struct Files {
    dir: TempDir,
}

impl Files {
    fn new() -> Self {
        Self {
            dir: TempDir::new().unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, content).unwrap();
        path
    }

    /// The error's whole text with the directory's name taken out.
    fn text(&self, error: &CredentialsError) -> String {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            text = format!("{text}: {cause}");
            source = cause.source();
        }
        text.replace(self.dir.path().to_str().unwrap(), "DIR")
    }
}

fn node() -> Issued {
    Ca::new("kubernetes").issue(&Request::node("10.0.10.3"))
}

fn both(issued: &Issued) -> String {
    format!("{}{}", issued.cert_pem, issued.key_pem)
}

#[test]
fn a_certificate_and_its_key_load_from_one_file() {
    let files = Files::new();
    let issued = node();
    let path = files.write("both.pem", both(&issued));

    let credentials = Credentials::load(&path, None).unwrap();

    assert_eq!(
        credentials.info().common_name(),
        Some("system:node:10.0.10.3")
    );
    assert_eq!(credentials.chain(), [issued.der]);
    assert_eq!(credentials.cert_file(), path);
    assert_eq!(credentials.key_file(), path);
}

#[test]
fn a_certificate_and_its_key_load_from_two_files() {
    let files = Files::new();
    let issued = node();
    let cert = files.write("tls.pem", &issued.cert_pem);
    let key = files.write("tls.key", &issued.key_pem);

    let credentials = Credentials::load(&cert, Some(&key)).unwrap();

    assert_eq!(credentials.key_file(), key);
}

#[test]
fn the_key_may_come_first_and_other_sections_and_text_are_skipped() {
    let files = Files::new();
    let issued = node();
    let content = format!(
        "subject=CN = x\n-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n\
         -----END EC PARAMETERS-----\n{}some text\n{}",
        issued.key_pem, issued.cert_pem
    );
    let path = files.write("both.pem", content);

    assert!(Credentials::load(&path, None).is_ok());
}

#[test]
fn an_elliptic_curve_key_loads_in_the_form_that_a_kubelet_writes() {
    let files = Files::new();
    let issued = node();
    let content = format!("{}{}", issued.cert_pem, sec1_pem(&issued.key_pem));
    let path = files.write("kubelet-client-current.pem", content);

    assert!(Credentials::load(&path, None).is_ok());
}

#[test]
fn the_chain_is_kept_in_order() {
    let files = Files::new();
    let root = Ca::new("root");
    let intermediate = root.intermediate("intermediate", 2100);
    let issued = intermediate.issue(&Request::node("a"));
    let content = format!("{}{}{}", issued.cert_pem, intermediate.pem, issued.key_pem);
    let path = files.write("both.pem", content);

    let credentials = Credentials::load(&path, None).unwrap();

    assert_eq!(credentials.chain(), [issued.der, intermediate.der]);
    assert_eq!(credentials.info().issuer, "CN=intermediate");
}

#[test]
fn an_expired_certificate_loads_for_the_caller_to_warn_about() {
    let files = Files::new();
    let issued = Ca::new("ca").issue(&Request::node("a").years(2020, 2021));
    let path = files.write("both.pem", both(&issued));

    let credentials = Credentials::load(&path, None).unwrap();

    let in_2023 = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let validity = credentials.info().validity_at(in_2023);
    assert!(matches!(validity, Validity::Expired { .. }));
}

#[test]
fn a_missing_file_is_told_from_every_other_mistake() {
    let files = Files::new();
    let issued = node();
    let cert = files.write("tls.pem", &issued.cert_pem);
    let absent = files.path("absent.pem");
    symlink(&absent, files.path("dangling.pem")).unwrap();

    let no_cert = Credentials::load(&absent, None).unwrap_err();
    let no_key = Credentials::load(&cert, Some(&absent)).unwrap_err();
    let dangling = Credentials::load(&files.path("dangling.pem"), None).unwrap_err();
    let no_directory = Credentials::load(&files.path("no/such.pem"), None).unwrap_err();
    let no_ca = load_roots(&absent).unwrap_err();

    assert_eq!(files.text(&no_cert), "`DIR/absent.pem` does not exist");
    assert_eq!(files.text(&no_key), "`DIR/absent.pem` does not exist");
    assert_eq!(files.text(&dangling), "`DIR/dangling.pem` does not exist");
    assert!(no_cert.is_missing() && no_key.is_missing() && dangling.is_missing());
    assert!(no_directory.is_missing() && no_ca.is_missing());
}

#[test]
fn each_mistake_in_a_file_has_its_own_words() {
    let files = Files::new();
    let issued = node();
    let other = node();
    let truncated = &issued.cert_pem[..issued.cert_pem.len() / 2];
    let damaged = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
    let cases: [(&str, Vec<u8>, &str); 12] = [
        (
            "empty.pem",
            Vec::new(),
            "`DIR/empty.pem` holds no certificate: it is empty",
        ),
        (
            "text.pem",
            b"hello".to_vec(),
            "`DIR/text.pem` holds no certificate",
        ),
        (
            "cert.der",
            issued.der.to_vec(),
            "`DIR/cert.der` holds no certificate: it looks like DER, expected PEM",
        ),
        (
            "key.pem",
            issued.key_pem.clone().into_bytes(),
            "`DIR/key.pem` holds no certificate, only a private key",
        ),
        (
            "cert.pem",
            issued.cert_pem.clone().into_bytes(),
            "`DIR/cert.pem` holds no private key, only certificates",
        ),
        (
            "cut.pem",
            truncated.as_bytes().to_vec(),
            "`DIR/cut.pem` is not valid PEM: the line `-----END CERTIFICATE-----` is missing",
        ),
        (
            "base64.pem",
            issued.cert_pem.replace("MII", "!!!").into_bytes(),
            "`DIR/base64.pem` is not valid PEM: base64 decode error: ",
        ),
        (
            "damaged.pem",
            format!("{}{damaged}{}", issued.cert_pem, issued.key_pem).into_bytes(),
            "`DIR/damaged.pem`: certificate 2: is not an X.509 certificate: ",
        ),
        (
            "mismatch.pem",
            format!("{}{}", issued.cert_pem, other.key_pem).into_bytes(),
            "the private key in `DIR/mismatch.pem` does not match certificate \
             `O=system:nodes, CN=system:node:10.0.10.3` in `DIR/mismatch.pem`",
        ),
        (
            "encrypted8.pem",
            format!("{}{ENCRYPTED_PKCS8}", issued.cert_pem).into_bytes(),
            "the private key in `DIR/encrypted8.pem` is encrypted, expected one without a \
             passphrase",
        ),
        (
            "encrypted1.pem",
            format!("{}{ENCRYPTED_LEGACY}", issued.cert_pem).into_bytes(),
            "the private key in `DIR/encrypted1.pem` is encrypted, expected one without a \
             passphrase",
        ),
        (
            "garbage-key.pem",
            format!(
                "{}-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----\n",
                issued.cert_pem
            )
            .into_bytes(),
            "the private key in `DIR/garbage-key.pem` cannot be used: ",
        ),
    ];
    for (name, content, expected) in cases {
        let path = files.write(name, content);

        let error = Credentials::load(&path, None).unwrap_err();

        let text = files.text(&error);
        // What follows a colon at the end is the library's own explanation.
        let matches = match expected.strip_suffix(": ") {
            Some(start) => text.starts_with(start) && text.len() > expected.len(),
            None => text == expected,
        };
        assert!(matches, "{text}\nexpected {expected}");
        assert!(!error.is_missing());
    }
}

#[test]
fn a_ca_certificate_in_first_place_is_refused() {
    let files = Files::new();
    let ca = Ca::new("kubernetes");
    let issued = ca.issue(&Request::node("a"));
    let wrong_order = format!("{}{}", ca.pem, both(&issued));
    let path = files.write("both.pem", wrong_order);

    let error = Credentials::load(&path, None).unwrap_err();

    assert_eq!(
        files.text(&error),
        "`DIR/both.pem`: its first certificate, `CN=kubernetes`, is a CA certificate, expected \
         the end-entity certificate first"
    );
}

#[test]
fn a_version_1_certificate_is_refused_with_what_it_is() {
    let files = Files::new();
    let path = files.write("v1.pem", VERSION_1);

    let error = read_certificate(&path).unwrap_err();

    assert_eq!(
        files.text(&error),
        "`DIR/v1.pem`: `CN=made by hand` is not an X.509 version 3 certificate (it was made \
         without extensions), which TLS peers refuse"
    );
}

#[test]
fn what_cannot_be_read_is_not_taken_for_missing() {
    let files = Files::new();
    fs::create_dir(files.path("dir.pem")).unwrap();
    nix::unistd::mkfifo(&files.path("pipe.pem"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let issued = node();
    let below_a_file = files.write("file", both(&issued)).join("x.pem");
    let long = files.write("long.pem", vec![b'x'; 1024 * 1024 + 1]);

    let directory = Credentials::load(&files.path("dir.pem"), None).unwrap_err();
    let pipe = Credentials::load(&files.path("pipe.pem"), None).unwrap_err();
    let below_a_file = Credentials::load(&below_a_file, None).unwrap_err();
    let long = Credentials::load(&long, None).unwrap_err();

    assert_eq!(
        files.text(&directory),
        "`DIR/dir.pem` is not a regular file"
    );
    assert_eq!(files.text(&pipe), "`DIR/pipe.pem` is not a regular file");
    assert_eq!(
        files.text(&below_a_file),
        "cannot read `DIR/file/x.pem`: Not a directory (os error 20)"
    );
    assert_eq!(
        files.text(&long),
        "`DIR/long.pem` has more than 1048576 bytes"
    );
}

#[test]
fn equal_content_has_an_equal_identity_and_other_content_another() {
    let files = Files::new();
    let (first, second) = (node(), node());
    let load = |name, issued: &Issued| {
        Credentials::load(&files.write(name, both(issued)), None)
            .unwrap()
            .content()
    };

    let [a, copy, b] = [
        load("a.pem", &first),
        load("copy.pem", &first),
        load("b.pem", &second),
    ];

    assert_eq!(a, copy);
    assert_ne!(a, b);
}

#[test]
fn a_ca_bundle_may_hold_several_and_is_compared_by_content() {
    let files = Files::new();
    let (old, new) = (Ca::new("old"), Ca::new("new"));
    let one = files.write("one.crt", &old.pem);
    let two = files.write("two.crt", format!("{}{}", old.pem, new.pem));

    let one = load_roots(&one).unwrap();
    let two = load_roots(&two).unwrap();

    assert_eq!(one.certificates().len(), 1);
    let subjects: Vec<_> = two
        .certificates()
        .iter()
        .map(|c| c.subject.as_str())
        .collect();
    assert_eq!(subjects, ["CN=old", "CN=new"]);
    assert_ne!(one.content(), two.content());
    assert!(two.ignored().is_empty());
}

#[test]
fn what_is_no_ca_in_a_bundle_is_left_out_and_named() {
    let files = Files::new();
    let ca = Ca::new("kubernetes");
    let issued = ca.issue(&Request::node("a"));
    let path = files.write("ca.crt", format!("{}{}", issued.cert_pem, ca.pem));

    let roots = load_roots(&path).unwrap();

    assert_eq!(roots.certificates().len(), 1);
    assert_eq!(roots.store().len(), 1);
    assert_eq!(roots.ignored(), ["O=system:nodes, CN=system:node:a"]);
}

#[test]
fn a_ca_file_without_a_ca_says_what_it_holds_instead() {
    let files = Files::new();
    let ca = Ca::new("kubernetes");
    let (a, b) = (
        ca.issue(&Request::node("a")),
        ca.issue(&Request::master("b.example")),
    );
    let leaves = files.write("ca.crt", format!("{}{}", a.cert_pem, b.cert_pem));
    let key = files.write("ca.key", &a.key_pem);

    let leaves = load_roots(&leaves).unwrap_err();
    let key = load_roots(&key).unwrap_err();

    assert_eq!(
        files.text(&leaves),
        "`DIR/ca.crt` holds no CA certificate: `O=system:nodes, CN=system:node:a`, \
         `CN=proxymux-master`"
    );
    assert_eq!(
        files.text(&key),
        "`DIR/ca.key` holds no certificate, only a private key"
    );
}

#[test]
fn a_debug_text_shows_no_key() {
    let issued = node();

    let text = format!("{:?}", issued.credentials());

    assert!(text.contains("system:node:10.0.10.3"), "{text}");
    for line in issued.key_pem.lines() {
        assert!(!text.contains(line));
    }
    assert!(text.len() < 400, "{text}");
}

/// The key of a PKCS #8 section in the older form of RFC 5915: it is the octet string inside.
fn sec1_pem(pkcs8_pem: &str) -> String {
    use x509_parser::der_parser::der::parse_der_sequence;

    let key = PrivateKeyDer::from_pem_slice(pkcs8_pem.as_bytes()).unwrap();
    let (_, pkcs8) = parse_der_sequence(key.secret_der()).unwrap();
    let sec1 = pkcs8.as_sequence().unwrap()[2].as_slice().unwrap();
    let base64 = base64(sec1);
    format!("-----BEGIN EC PRIVATE KEY-----\n{base64}\n-----END EC PRIVATE KEY-----\n")
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let mut bits = [0; 3];
        bits[..group.len()].copy_from_slice(group);
        let bits = u32::from_be_bytes([0, bits[0], bits[1], bits[2]]);
        for digit in 0..4 {
            if digit <= group.len() {
                let index = usize::try_from((bits >> (18 - 6 * digit)) & 63).unwrap();
                text.push(char::from(DIGITS[index]));
            } else {
                text.push('=');
            }
        }
    }
    text
}

const ENCRYPTED_PKCS8: &str = "-----BEGIN ENCRYPTED PRIVATE KEY-----\n\
    MIHsMFcGCSqGSIb3DQEFDTBKMCkGCSqGSIb3DQEFDDAcBAg=\n\
    -----END ENCRYPTED PRIVATE KEY-----\n";

const ENCRYPTED_LEGACY: &str = "-----BEGIN RSA PRIVATE KEY-----\n\
    Proc-Type: 4,ENCRYPTED\n\
    DEK-Info: AES-256-CBC,0123456789ABCDEF0123456789ABCDEF\n\
    \n\
    MIHsMFcGCSqGSIb3DQEFDTBKMCkGCSqGSIb3DQEFDDAcBAg=\n\
    -----END RSA PRIVATE KEY-----\n";

/// `openssl x509 -req` without an extension file makes such certificates.
const VERSION_1: &str = "\
    -----BEGIN CERTIFICATE-----\n\
    MIIBKjCB0QIUNrOUOdlAllW/FGJftS/gGC57wqAwCgYIKoZIzj0EAwIwFzEVMBMG\n\
    A1UEAwwMbWFkZSBieSBoYW5kMCAXDTI2MTEyMjA0MTE1OVoYDzIxMjYxMDI5MDQx\n\
    MTU5WjAXMRUwEwYDVQQDDAxtYWRlIGJ5IGhhbmQwWTATBgcqhkjOPQIBBggqhkjO\n\
    PQMBBwNCAAQoDj9KramH6PCexD4bXVLaUhZnxtEmmgiN7KDiaq2yK1RQ1sLUfcd6\n\
    nnu4dkHJZIWuEAev3Z18i4PAdcdzAkp2MAoGCCqGSM49BAMCA0gAMEUCIBv1c/LN\n\
    EF36GN5LEsw3YC2mVasvKAjw7RWceTqOMrgFAiEAkkCcxt5mGNFiE2ygoN/rdnp5\n\
    21tNhimT58Y3Feqhepw=\n\
    -----END CERTIFICATE-----\n";
