//! What a `check` of either daemon says of certificates, CAs and the clock that they are read by.
//!
//! Owns the findings that both ends have alike: a pair and what it is for ([`pair`]), the CAs
//! ([`cas`]), whether one leads to the other ([`issuer`]), a file that cannot be used
//! ([`unusable`]), any certificate's dates ([`dates`]), and the wall clock ([`clock`]).
//! Leaves to the daemons where the files are and which names must stand in a certificate.
//! Nothing here reads a file or a clock: the moment to judge by is handed in.

use std::time::{Duration, SystemTime};

use rustls::pki_types::ServerName;

use super::{Credentials, CredentialsError, Roots};
use crate::{
    certificate::{CertificateInfo, Validity, utc},
    command::Report,
    telemetry::chain,
    tls::{TlsFault, verify_agent_chain, verify_master_chain},
};

/// Who shows a certificate, which decides what it must be for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Holder {
    /// An agent, to a master.
    Agent,
    /// A master, to agents.
    Master,
    /// A front door, to kube-apiserver.
    FrontDoor,
}

/// A certificate with its key: whose it is, its dates, and whether it is for what `holder` does
/// with it. Also looks at the certificates that are sent along with it.
pub fn pair(
    report: &mut Report,
    topic: &'static str,
    holder: Holder,
    credentials: &Credentials,
    now: SystemTime,
) {
    let info = credentials.info();
    let file = credentials.cert_file().display();
    if !holder.permitted(info) {
        let (purpose, word) = (holder.purpose(), holder.usage());
        report.error(
            topic,
            format!("`{}` in `{file}` is not for {purpose}", info.subject),
            format!("have a certificate issued whose extended key usage holds {word}"),
        );
    }
    if holder.is_server() && info.server_names().is_empty() {
        report.error(
            topic,
            format!(
                "`{}` in `{file}` has no subject alternative names, without which nobody accepts it",
                info.subject
            ),
            "have it issued for the names and addresses under which it is dialled",
        );
    }
    if holder == Holder::Master && info.is_in_nodes_group() {
        report.error(
            topic,
            format!(
                "`{}` in `{file}` belongs to a node (organization `system:nodes`), which agents \
                 refuse",
                info.subject
            ),
            "have a certificate issued for the master alone",
        );
    }
    let names = if holder.is_server() {
        format!(", for {}", list(&info.server_names()))
    } else {
        String::new()
    };
    dates(report, topic, &format!("in `{file}`{names}"), info, now);
    for der in credentials.chain().iter().skip(1) {
        // `Credentials::load` has read each of them.
        if let Ok(info) = CertificateInfo::parse(der)
            && !matches!(info.validity_at(now), Validity::Current { .. })
        {
            let what = format!("in `{file}`, sent along with the first");
            dates(report, topic, &what, &info, now);
        }
    }
}

/// One certificate and its dates; `what` says where it was seen.
pub fn dates(
    report: &mut Report,
    topic: &'static str,
    what: &str,
    info: &CertificateInfo,
    now: SystemTime,
) {
    let validity = info.validity_at(now);
    let found = format!(
        "`{}` {what}, from {} until {}: {validity}",
        info.subject,
        utc(info.not_before),
        utc(info.not_after)
    );
    match validity {
        Validity::Current { remaining } if remaining > warn_before(info) => {
            report.ok(topic, found);
        }
        Validity::Current { .. } => report.warning(
            topic,
            found,
            "renew it, or see why what renews it has not done so",
        ),
        Validity::Expired { .. } => report.error(
            topic,
            found,
            "renew it; it is read again within seconds, without a restart",
        ),
        Validity::NotYetValid { .. } => report.error(
            topic,
            found,
            "set this host's clock if it is behind; else wait, or have the certificate issued anew \
             by a host whose clock is right",
        ),
    }
}

/// The CAs of one file.
///
/// One that has expired is a warning: a CA's own dates are not looked at in a handshake here, yet
/// other programs do, and it is due to be replaced.
pub fn cas(report: &mut Report, topic: &'static str, roots: &Roots, now: SystemTime) {
    let file = roots.file().display();
    for ca in roots.certificates() {
        let validity = ca.validity_at(now);
        let found = format!(
            "`{}` in `{file}`, from {} until {}: {validity}",
            ca.subject,
            utc(ca.not_before),
            utc(ca.not_after)
        );
        match validity {
            Validity::Current { remaining } if remaining > warn_before(ca) => {
                report.ok(topic, found);
            }
            Validity::Current { .. } | Validity::Expired { .. } => report.warning(
                topic,
                found,
                "put the next CA beside it in the file, renew what it has issued, then take it out",
            ),
            Validity::NotYetValid { .. } => report.warning(
                topic,
                found,
                "set this host's clock if it is behind; certificates of this CA are refused where \
                 they begin no earlier",
            ),
        }
    }
    for subject in roots.ignored() {
        report.warning(
            topic,
            format!("`{subject}` in `{file}` is no CA, and is left out"),
            "take it out of the file, or have the CA issued with basic constraints CA:TRUE",
        );
    }
}

/// Whether a pair was issued by one of these CAs.
///
/// In a cluster with one CA it always is; where client and server certificates have different
/// ones it need not be, so that this is a warning at most. Dates and purposes, which [`pair`]
/// tells of, do not count here.
pub fn issuer(
    report: &mut Report,
    topic: &'static str,
    holder: Holder,
    credentials: &Credentials,
    roots: &Roots,
    now: SystemTime,
) {
    let (info, file) = (credentials.info(), roots.file().display());
    let (subject, issuer) = (&info.subject, &info.issuer);
    match chain_fault(holder, credentials, roots, now) {
        None => report.ok(
            topic,
            format!("`{subject}` leads to a CA in `{file}`, by way of `{issuer}`"),
        ),
        // Said by `pair` already.
        Some(
            TlsFault::PeerWrongPurpose { .. }
            | TlsFault::PeerIsNode { .. }
            | TlsFault::PeerCertificateExpired { .. }
            | TlsFault::PeerCertificateNotYetValid { .. },
        ) => {}
        Some(TlsFault::PeerOtherCaKey { .. }) => report.warning(
            topic,
            format!(
                "`{subject}` was not signed with the key of the CA `{issuer}` in `{file}`, only \
                 with one of the same name"
            ),
            format!(
                "if that CA was made anew, have the certificate issued by the new one, and keep \
                 both in {} until all have been",
                holder.judge()
            ),
        ),
        Some(TlsFault::PeerUnknownCa { .. }) => report.warning(
            topic,
            format!("no CA in `{file}` leads to `{subject}`, issued by `{issuer}`"),
            format!("see that {} leads to `{issuer}`", holder.judge()),
        ),
        Some(other) => report.warning(
            topic,
            format!("`{subject}`, issued by `{issuer}`: {}", chain(&other)),
            format!(
                "have it issued anew by a CA in `{file}`, or see that {} leads to it",
                holder.judge()
            ),
        ),
    }
}

/// A file that cannot be used, and what to do about it.
pub fn unusable(report: &mut Report, topic: &'static str, error: &CredentialsError) {
    report.error(topic, chain(error), error.fix());
}

/// The wall clock, as far as certificates and the age of this program tell.
///
/// `certificates` are all that were seen, each with a word for whose it is, those of peers among
/// them: one that is not valid yet was made by somebody whose clock is ahead of this one.
pub fn clock<'a>(
    report: &mut Report,
    topic: &'static str,
    certificates: impl IntoIterator<Item = (&'a str, &'a CertificateInfo)>,
    now: SystemTime,
) {
    let shown = utc(now);
    if now < oldest_plausible() {
        return report.error(
            topic,
            format!("{shown} is before this program was made"),
            SET_CLOCK,
        );
    }
    let begin = certificates
        .into_iter()
        .filter(|(_, info)| info.not_before > now);
    match begin.max_by_key(|(_, info)| info.not_before) {
        None => report.ok(topic, format!("{shown}; no certificate contradicts it")),
        Some((whose, info)) => report.error(
            topic,
            format!(
                "{shown}, yet {whose} `{}` says it was made after {}",
                info.subject,
                utc(info.not_before)
            ),
            SET_CLOCK,
        ),
    }
}

impl Holder {
    fn is_server(self) -> bool {
        match self {
            Self::Agent => false,
            Self::Master | Self::FrontDoor => true,
        }
    }

    fn permitted(self, info: &CertificateInfo) -> bool {
        if self.is_server() {
            info.permits_server_auth
        } else {
            info.permits_client_auth
        }
    }

    fn purpose(self) -> &'static str {
        if self.is_server() {
            "server authentication"
        } else {
            "client authentication"
        }
    }

    /// As openssl has it.
    fn usage(self) -> &'static str {
        if self.is_server() {
            "serverAuth"
        } else {
            "clientAuth"
        }
    }

    /// Where the CAs are by which the certificate is judged.
    fn judge(self) -> &'static str {
        match self {
            Self::Agent => "the master's `client-ca`",
            Self::Master => "the agents' `ca-file`",
            Self::FrontDoor => "the `caBundle` of kube-apiserver's egress selector configuration",
        }
    }
}

/// What the other side would say of the pair if its own dates were no matter.
fn chain_fault(
    holder: Holder,
    credentials: &Credentials,
    roots: &Roots,
    now: SystemTime,
) -> Option<TlsFault> {
    let info = credentials.info();
    let moment = now.min(info.not_after).max(info.not_before);
    let verified = if holder.is_server() {
        // Any name will do that it has: which ones it must have is not asked here.
        let names = info
            .dns_names
            .iter()
            .map(|name| name.replacen('*', "any", 1));
        let addresses = info.ip_addresses.iter().map(ToString::to_string);
        let mut names = names.chain(addresses);
        let name = names.find_map(|name| ServerName::try_from(name).ok())?;
        verify_master_chain(credentials.chain(), &name, roots, moment)
    } else {
        verify_agent_chain(credentials.chain(), roots, moment)
    };
    match verified {
        // Names are looked at when the chain is proven. A name of its own that it is not valid
        // for is one that no client could ask for: a wildcard of one label, say.
        Ok(()) | Err(TlsFault::PeerWrongName { .. }) => None,
        Err(fault) => Some(fault),
    }
}

/// Seven days, which leave time to find whoever can renew it, and less for a certificate that is
/// made to live for hours or days: what renews those begins at a tenth of their life at the latest.
fn warn_before(info: &CertificateInfo) -> Duration {
    let life = info.not_after.duration_since(info.not_before);
    (life.unwrap_or_default() / 10).min(WARN_BEFORE)
}

fn list(names: &[String]) -> String {
    match names {
        [] => "no names".to_owned(),
        names => names.join(", "),
    }
}

/// No host has run this program before.
fn oldest_plausible() -> SystemTime {
    SystemTime::UNIX_EPOCH + OLDEST_PLAUSIBLE
}

/// The beginning of 2026.
const OLDEST_PLAUSIBLE: Duration = Duration::from_secs(1_767_225_600);

const WARN_BEFORE: Duration = Duration::from_secs(7 * 24 * 3600);

const SET_CLOCK: &str = "set the clock and keep it right by NTP (`chronyc tracking`, `timedatectl`); else the host \
     that issued the certificate had a wrong one";

#[cfg(test)]
mod tests;
