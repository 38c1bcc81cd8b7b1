//! What is found of certificates: each mistake with its level and its fix, and of good ones no
//! complaint.

use super::*;
use crate::{
    certificate::test_pki::{Ca, Issued, Request, roots},
    command::Level,
};

fn year(year: u64) -> SystemTime {
    // To the day is close enough for dates that are years apart.
    SystemTime::UNIX_EPOCH + Duration::from_secs((year - 1970) * 31_556_952 + 86_400)
}

fn node(ca: &Ca) -> Issued {
    ca.issue(&Request::node("n").years(2026, 2028))
}

/// Level, text and fix of the only finding.
fn only(look: impl FnOnce(&mut Report)) -> (Level, String, String) {
    let mut report = Report::default();
    look(&mut report);
    let [finding] = report.findings() else {
        panic!("{report:?}");
    };
    let fix = finding.fix.clone().unwrap_or_default();
    (finding.level, finding.found.clone(), fix)
}

/// Without the file's name, which is another one each time.
fn of_pair(holder: Holder, issued: &Issued, now: SystemTime) -> (Level, String, String) {
    let credentials = issued.credentials();
    let (level, found, fix) = only(|report| pair(report, "c", holder, &credentials, now));
    let file = credentials.cert_file().display().to_string();
    (level, found.replace(&file, "FILE"), fix)
}

#[test]
fn a_good_pair_is_told_with_its_dates() {
    let issued = node(&Ca::new("kubernetes"));
    let (level, found, _) = of_pair(Holder::Agent, &issued, year(2027));
    assert_eq!(level, Level::Ok);
    let expected = "`O=system:nodes, CN=system:node:n` in `FILE`, from 2026-01-01T00:00:00Z until \
                    2028-01-01T00:00:00Z: valid for ";
    assert!(found.starts_with(expected), "{found}");
}

#[test]
fn a_pair_that_has_expired_or_is_not_valid_yet_is_an_error() {
    let issued = node(&Ca::new("kubernetes"));
    let (level, found, fix) = of_pair(Holder::Agent, &issued, year(2030));
    assert_eq!(level, Level::Error);
    assert!(found.contains("expired "), "{found}");
    assert!(fix.contains("renew it"), "{fix}");

    let (level, found, fix) = of_pair(Holder::Agent, &issued, year(2020));
    assert_eq!(level, Level::Error);
    assert!(found.contains("not valid for "), "{found}");
    assert!(fix.contains("clock"), "{fix}");
}

#[test]
fn a_pair_that_expires_within_days_is_a_warning() {
    let issued = node(&Ca::new("kubernetes"));
    let end = issued.credentials().info().not_after;
    let before = |days: u64| end - Duration::from_secs(days * 24 * 3600);
    assert_eq!(of_pair(Holder::Agent, &issued, before(8)).0, Level::Ok);
    assert_eq!(of_pair(Holder::Agent, &issued, before(6)).0, Level::Warning);
}

#[test]
fn a_certificate_for_the_other_side_is_an_error() {
    let ca = Ca::new("kubernetes");
    let mut report = Report::default();
    let server = ca.issue(&Request::master("m")).credentials();
    pair(&mut report, "c", Holder::Agent, &server, year(2027));
    let [wrong, dates] = report.findings() else {
        panic!("{report:?}");
    };
    assert_eq!((wrong.level, dates.level), (Level::Error, Level::Ok));
    assert!(wrong.found.contains("is not for client authentication"));
    assert!(
        wrong
            .fix
            .as_ref()
            .is_some_and(|fix| fix.contains("clientAuth"))
    );
}

#[test]
fn a_master_without_names_or_with_a_nodes_certificate_is_an_error() {
    let ca = Ca::new("kubernetes");
    let kubelet = Request::new("system:node:n", &["system:nodes"]);
    let mut report = Report::default();
    let issued = ca.issue(&kubelet).credentials();
    pair(&mut report, "c", Holder::Master, &issued, year(2027));
    let [nameless, of_node, _dates] = report.findings() else {
        panic!("{report:?}");
    };
    assert!(nameless.found.contains("no subject alternative names"));
    assert!(of_node.found.contains("belongs to a node"));
    // A front door may show what it likes.
    let kubelet = ca.issue(&Request::new("system:node:n", &["system:nodes"]).dns("n"));
    assert_eq!(
        of_pair(Holder::FrontDoor, &kubelet, year(2027)).0,
        Level::Ok
    );
}

#[test]
fn what_is_sent_along_is_looked_at_too() {
    let root = Ca::new("root");
    let between = root.intermediate("between", 2026);
    let issued = node(&between).credentials_with(&between);
    let mut report = Report::default();
    pair(&mut report, "c", Holder::Agent, &issued, year(2027));
    let [own, along] = report.findings() else {
        panic!("{report:?}");
    };
    assert_eq!((own.level, along.level), (Level::Ok, Level::Error));
    assert!(along.found.contains("`CN=between`"), "{along:?}");
    assert!(along.found.contains("sent along"), "{along:?}");
}

#[test]
fn a_pair_of_another_ca_is_a_warning_that_says_where_to_look() {
    let ca = Ca::new("kubernetes");
    let issued = node(&ca).credentials();
    let told = |roots: &Roots| {
        only(|report| issuer(report, "c", Holder::Agent, &issued, roots, year(2027)))
    };

    assert_eq!(told(&ca.roots()).0, Level::Ok);

    let (level, found, fix) = told(&Ca::new("another").roots());
    assert_eq!(level, Level::Warning);
    assert!(found.contains("issued by `CN=kubernetes`"), "{found}");
    assert!(fix.contains("client-ca"), "{fix}");

    let (level, found, fix) = told(&Ca::new("kubernetes").roots());
    assert_eq!(level, Level::Warning);
    assert!(found.contains("only with one of the same name"), "{found}");
    assert!(fix.contains("made anew"), "{fix}");
}

#[test]
fn a_masters_issuer_is_found_by_any_of_its_names() {
    let ca = Ca::new("kubernetes");
    let told = |request: Request, roots: &Roots| {
        let issued = ca.issue(&request).credentials();
        only(|report| issuer(report, "c", Holder::Master, &issued, roots, year(2027))).0
    };
    let with = |request: fn(Request) -> Request| request(Request::new("m", &[]));
    assert_eq!(told(with(|r| r.ip("192.0.2.10")), &ca.roots()), Level::Ok);
    assert_eq!(told(with(|r| r.dns("*.m")), &ca.roots()), Level::Ok);
    let other = Ca::new("another").roots();
    assert_eq!(told(with(|r| r.dns("m")), &other), Level::Warning);
}

#[test]
fn an_expired_certificate_still_has_its_issuer() {
    let ca = Ca::new("kubernetes");
    let issued = node(&ca).credentials();
    let told = only(|report| issuer(report, "c", Holder::Agent, &issued, &ca.roots(), year(2040)));
    assert_eq!(told.0, Level::Ok);
}

#[test]
fn cas_are_told_one_by_one_and_what_is_none_is_a_warning() {
    let ca = Ca::new("kubernetes");
    let old = ca.intermediate("old", 2026);
    let roots = roots(&[&ca.pem, &old.pem, &node(&ca).cert_pem]);
    let mut report = Report::default();
    cas(&mut report, "ca", &roots, year(2027));
    let [good, expired, none] = report.findings() else {
        panic!("{report:?}");
    };
    assert_eq!(good.level, Level::Ok);
    assert_eq!(expired.level, Level::Warning);
    assert!(expired.found.contains("expired "), "{expired:?}");
    assert_eq!(none.level, Level::Warning);
    assert!(none.found.contains("is no CA"), "{none:?}");
}

#[test]
fn the_clock_is_doubted_by_its_date_and_by_certificates_of_others() {
    let ca = Ca::new("kubernetes");
    let master = ca.issue(&Request::master("m").years(2028, 2030));
    let master = master.credentials();
    let told = |now| only(|report| clock(report, "clock", [("the master's", master.info())], now));

    assert_eq!(told(year(2029)).0, Level::Ok);
    let (level, found, fix) = told(year(2027));
    assert_eq!(level, Level::Error);
    assert!(
        found.contains("yet the master's `CN=proxymux-master`"),
        "{found}"
    );
    assert!(fix.contains("NTP"), "{fix}");
    let (level, found, _) = told(year(2001));
    assert_eq!(level, Level::Error);
    assert!(found.contains("before this program was made"), "{found}");
}

#[test]
fn a_file_that_cannot_be_used_says_what_to_do() {
    let missing = CredentialsError::Missing {
        path: "/nowhere/tls.pem".into(),
    };
    let (level, found, fix) = only(|report| unusable(report, "c", &missing));
    assert_eq!(level, Level::Error);
    assert_eq!(found, "`/nowhere/tls.pem` does not exist");
    assert!(fix.contains("put the file there"), "{fix}");
}
