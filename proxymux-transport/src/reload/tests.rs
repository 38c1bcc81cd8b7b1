//! Files that are replaced in every way there is, and what is in force afterwards.
//!
//! Looks are made by hand, so that a test decides what lies between two of them.

use std::{fs, os::unix::fs::symlink, path::Path};

use tempfile::TempDir;
use tokio::time::advance;

use super::*;
use crate::{
    certificate::test_pki::{Ca, Issued, Request, roots},
    credentials::{CredentialsError, load_roots},
};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// A directory with `tls.crt`, `tls.key` and `ca.crt`.
struct Place(TempDir);

/// The three files in a directory.
struct InDirectory(PathBuf);

impl Source for InDirectory {
    type Error = CredentialsError;

    fn credential_files(&self) -> Vec<PathBuf> {
        vec![self.0.join("tls.crt"), self.0.join("tls.key")]
    }

    fn roots_file(&self) -> PathBuf {
        self.0.join("ca.crt")
    }

    fn credentials(&self) -> Result<Credentials, CredentialsError> {
        Credentials::load(&self.0.join("tls.crt"), Some(&self.0.join("tls.key")))
    }

    fn roots(&self) -> Result<Roots, CredentialsError> {
        load_roots(&self.roots_file())
    }
}

impl Place {
    /// With everything that is needed.
    fn with(issued: &Issued, ca: &Ca) -> (Self, Arc<Certificates>) {
        let place = Self(TempDir::new().unwrap());
        place.install(issued);
        place.write("ca.crt", &ca.pem);
        let certificates = place.certificates();
        certificates.look().unwrap();
        (place, certificates)
    }

    fn certificates(&self) -> Arc<Certificates> {
        let source = InDirectory(self.0.path().to_owned());
        Certificates::new("test", source, WallClock::system())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn write(&self, name: &str, content: &str) {
        fs::write(self.0.path().join(name), content).unwrap();
    }

    fn install(&self, issued: &Issued) {
        self.write("tls.key", &issued.key_pem);
        self.write("tls.crt", &issued.cert_pem);
    }
}

fn node() -> (Ca, Issued, Issued) {
    let ca = Ca::new("kubernetes");
    let first = ca.issue(&Request::node("10.0.10.3"));
    let second = ca.issue(&Request::node("10.0.10.3"));
    (ca, first, second)
}

fn shown(certificates: &Certificates) -> Vec<u8> {
    let in_force = certificates.in_force().unwrap();
    in_force.credentials.chain()[0].to_vec()
}

fn look_twice(certificates: &Certificates) {
    certificates.look().unwrap();
    certificates.look().unwrap();
}

#[test]
fn the_first_look_counts_and_a_change_is_taken_once_it_has_settled() {
    let (ca, first, second) = node();
    let (place, certificates) = Place::with(&first, &ca);
    let mut changes = certificates.changes();
    changes.mark_unchanged();
    assert_eq!(shown(&certificates), first.der.to_vec());

    place.install(&second);
    certificates.look().unwrap();
    assert_eq!(shown(&certificates), first.der.to_vec(), "seen once only");
    certificates.look().unwrap();

    assert_eq!(shown(&certificates), second.der.to_vec());
    assert!(changes.has_changed().unwrap());
    changes.mark_unchanged();
    look_twice(&certificates);
    assert!(!changes.has_changed().unwrap(), "nothing new, nothing told");
}

#[test]
fn a_volume_that_swaps_a_link_to_a_directory_is_followed() {
    let (ca, first, second) = node();
    let volume = TempDir::new().unwrap();
    for (version, issued) in [("..1", &first), ("..2", &second)] {
        let dir = volume.path().join(version);
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("tls.crt"), &issued.cert_pem).unwrap();
        fs::write(dir.join("tls.key"), &issued.key_pem).unwrap();
        fs::write(dir.join("ca.crt"), &ca.pem).unwrap();
    }
    let data = volume.path().join("..data");
    symlink("..1", &data).unwrap();
    let certificates = Certificates::new("test", InDirectory(data.clone()), WallClock::system());
    certificates.look().unwrap();

    symlink("..2", volume.path().join("..new")).unwrap();
    fs::rename(volume.path().join("..new"), &data).unwrap();
    look_twice(&certificates);

    assert_eq!(shown(&certificates), second.der.to_vec());
}

#[test]
fn a_pair_that_does_not_match_keeps_the_old_one_in_force_until_it_does() {
    let (ca, first, second) = node();
    let (place, certificates) = Place::with(&first, &ca);

    place.write("tls.key", &second.key_pem);
    look_twice(&certificates);
    assert_eq!(shown(&certificates), first.der.to_vec());
    place.write("tls.crt", &second.cert_pem);
    look_twice(&certificates);

    assert_eq!(shown(&certificates), second.der.to_vec());
}

#[test]
fn what_cannot_be_read_keeps_the_old_pair_in_force() {
    let (ca, first, second) = node();
    let cut = &second.cert_pem[..second.cert_pem.len() / 2];
    let (place, certificates) = Place::with(&first, &ca);
    let key = place.path().join("tls.key");

    place.write("tls.crt", cut);
    look_twice(&certificates);
    place.write("tls.crt", "");
    look_twice(&certificates);
    fs::remove_file(&key).unwrap();
    look_twice(&certificates);
    fs::create_dir(&key).unwrap();
    look_twice(&certificates);

    assert_eq!(shown(&certificates), first.der.to_vec());
    fs::remove_dir(&key).unwrap();
    place.install(&second);
    look_twice(&certificates);
    assert_eq!(shown(&certificates), second.der.to_vec());
}

/// A bundle that ends between two certificates makes sense, and would cost every agent of the
/// second CA its session.
#[test]
fn a_bundle_that_is_being_written_is_not_taken() {
    let (old, node_cert, _) = node();
    let new = Ca::new("new");
    let (place, certificates) = Place::with(&node_cert, &old);

    place.write("ca.crt", &new.pem);
    certificates.look().unwrap();
    place.write("ca.crt", &format!("{}{}", new.pem, old.pem));
    look_twice(&certificates);

    let in_force = certificates.in_force().unwrap();
    let both = roots(&[&new.pem, &old.pem]);
    assert_eq!(in_force.roots.content(), both.content());
}

#[test]
fn a_ca_is_renewed_though_the_pair_beside_it_is_broken() {
    let (old, first, second) = node();
    let new = Ca::new("new");
    let (place, certificates) = Place::with(&first, &old);

    place.write("tls.key", &second.key_pem);
    place.write("ca.crt", &new.pem);
    look_twice(&certificates);

    let in_force = certificates.in_force().unwrap();
    assert_eq!(in_force.roots.content(), new.roots().content());
    assert_eq!(shown(&certificates), first.der.to_vec());
}

#[test]
fn a_good_certificate_is_not_given_up_for_one_that_has_expired() {
    let (ca, first, _) = node();
    let expired = ca.issue(&Request::node("10.0.10.3").years(2020, 2021));
    let (place, certificates) = Place::with(&first, &ca);

    place.install(&expired);
    look_twice(&certificates);
    assert_eq!(shown(&certificates), first.der.to_vec());

    // At the start there is nothing better, and it is for the peer to refuse it.
    let fresh = place.certificates();
    fresh.look().unwrap();
    assert_eq!(shown(&fresh), expired.der.to_vec());
}

#[test]
fn without_a_certificate_each_look_says_why_and_the_first_good_one_counts() {
    let (ca, first, _) = node();
    let place = Place(TempDir::new().unwrap());
    let certificates = place.certificates();
    let why = || certificates.look().unwrap_err().to_string();

    assert!(why().ends_with("ca.crt` does not exist"), "{}", why());
    place.write("ca.crt", &ca.pem);
    assert!(why().ends_with("tls.crt` does not exist"), "{}", why());
    assert!(certificates.in_force().is_none() && certificates.expiry().is_none());
    place.install(&first);

    certificates.look().unwrap();
    assert_eq!(shown(&certificates), first.der.to_vec());
}

#[test]
fn what_is_derived_is_made_once_for_each_change() {
    let (ca, first, second) = node();
    let (place, certificates) = Place::with(&first, &ca);
    let derived = Derived::new(Arc::clone(&certificates), |credentials, _| {
        Arc::new(credentials.chain()[0].to_vec())
    });

    let before = derived.made();
    assert!(Arc::ptr_eq(&before, &derived.made()));
    place.install(&second);
    look_twice(&certificates);

    assert_eq!(*before, first.der.to_vec());
    assert_eq!(*derived.made(), second.der.to_vec());
}

#[tokio::test(start_paused = true)]
async fn expiry_is_warned_of_from_seven_days_before_and_then_once_a_day() {
    let (ca, issued, _) = node();
    let credentials = issued.credentials();
    let not_after = credentials.info().not_after;
    let mut watch = ExpiryWatch::new("test");
    let ca_roots = ca.roots();
    let mut look = |at: SystemTime| watch.look(&credentials, &ca_roots, at);

    assert_eq!(look(not_after - 7 * DAY - DAY / 24), 0);
    assert_eq!(look(not_after - 7 * DAY + DAY / 24), 1);
    assert_eq!(look(not_after - 6 * DAY), 0, "it has just been said");
    advance(DAY).await;
    assert_eq!(look(not_after - 5 * DAY), 1);
    assert_eq!(look(not_after - 4 * DAY), 0);
    // That it has happened is news at any time.
    assert_eq!(look(not_after + DAY / 24), 1);
    assert_eq!(look(not_after + DAY / 12), 0);
}

#[tokio::test(start_paused = true)]
async fn cas_are_warned_of_too_and_a_successor_anew() {
    let (ca, issued, successor) = node();
    let old = ca.intermediate("old-ca", 2030);
    let bundle = roots(&[&old.pem, &ca.pem]);
    let ca_expires = bundle.certificates()[0].not_after;
    let mut watch = ExpiryWatch::new("test");

    assert_eq!(
        watch.look(&issued.credentials(), &bundle, ca_expires - DAY),
        1
    );

    let not_after = issued.credentials().info().not_after;
    let alone = ca.roots();
    assert_eq!(
        watch.look(&issued.credentials(), &alone, not_after - DAY),
        1
    );
    assert_eq!(
        watch.look(&successor.credentials(), &alone, not_after - DAY),
        1
    );
}

#[test]
fn the_accessor_gives_the_dates_that_are_in_force() {
    let (ca, issued, _) = node();
    let old = ca.intermediate("old-ca", 2030);
    let (place, certificates) = Place::with(&issued, &ca);
    place.write("ca.crt", &format!("{}{}", ca.pem, old.pem));
    look_twice(&certificates);

    let expiry = certificates.expiry().unwrap();

    let in_force = certificates.in_force().unwrap();
    assert_eq!(expiry.certificate, in_force.credentials.info().not_after);
    assert_eq!(expiry.first_ca, in_force.roots.certificates()[1].not_after);
    assert_eq!(certificates.purpose(), "test");
}
