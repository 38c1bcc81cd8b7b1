//! Warnings of certificates that are about to expire.
//!
//! Owns how early and how often: from seven days before, when a certificate is first seen to be
//! that old, and once a day from then on. Read [`ExpiryWatch::look`].

use std::{
    collections::HashMap,
    time::{Duration, SystemTime},
};

use tokio::time::Instant;

use crate::{
    certificate::{CertificateInfo, Validity, utc},
    credentials::{Credentials, Roots},
};

/// Which certificates have been warned of, and when.
#[derive(Debug)]
pub(super) struct ExpiryWatch {
    purpose: String,
    /// By subject and serial number; only those that are in force.
    warned: HashMap<(String, String), Warned>,
}

#[derive(Clone, Copy, Debug)]
struct Warned {
    at: Instant,
    /// Whether it had expired: then it is news.
    expired: bool,
}

impl ExpiryWatch {
    pub(super) fn new(purpose: &str) -> Self {
        Self {
            purpose: purpose.to_owned(),
            warned: HashMap::new(),
        }
    }

    /// Warns of what has to be warned of at `now`; how often it did.
    pub(super) fn look(
        &mut self,
        credentials: &Credentials,
        roots: &Roots,
        now: SystemTime,
    ) -> usize {
        let all = || {
            let cas = roots.certificates().iter().map(|ca| ("CA", ca));
            std::iter::once(("certificate", credentials.info())).chain(cas)
        };
        self.warned
            .retain(|key, _| all().any(|(_, certificate)| *key == key_of(certificate)));
        all()
            .filter(|(what, certificate)| self.warn(what, certificate, now))
            .count()
    }

    fn warn(&mut self, what: &str, certificate: &CertificateInfo, now: SystemTime) -> bool {
        let validity = certificate.validity_at(now);
        let expired = match validity {
            Validity::Current { remaining } if remaining > WARN_BEFORE => return false,
            Validity::Current { .. } | Validity::NotYetValid { .. } => false,
            Validity::Expired { .. } => true,
        };
        let key = key_of(certificate);
        let is_news = self
            .warned
            .get(&key)
            .is_none_or(|warned| warned.at.elapsed() >= WARN_EVERY || (expired && !warned.expired));
        if !is_news {
            return false;
        }
        let at = Instant::now();
        self.warned.insert(key, Warned { at, expired });
        let (purpose, subject, not_after) = (
            &self.purpose,
            &certificate.subject,
            utc(certificate.not_after),
        );
        let message = match validity {
            Validity::NotYetValid { .. } => "not valid yet by this host's clock",
            Validity::Current { .. } => "expires soon, renew it",
            Validity::Expired { .. } => "has expired, renew it",
        };
        tracing::warn!(what, purpose, subject, %validity, not_after, "{message}");
        true
    }
}

fn key_of(certificate: &CertificateInfo) -> (String, String) {
    (certificate.subject.clone(), certificate.serial.clone())
}

/// A week leaves time to find whoever can renew it.
const WARN_BEFORE: Duration = Duration::from_secs(7 * 24 * 3600);

/// Often enough to be seen, not so often that it is filtered out.
const WARN_EVERY: Duration = Duration::from_secs(24 * 3600);
