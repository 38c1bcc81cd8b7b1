//! One thing that is read from files, and the newest good version of it.
//!
//! Owns when content is judged (once it has settled, and once only) and what is logged about it:
//! trouble when it begins and when it is over, not at every look. Read [`Part::look`].

use std::path::PathBuf;

use super::{Trouble, chain};
use crate::{
    certificate::{CertificateInfo, Validity, utc},
    clock::WallClock,
    credentials::{ContentId, Credentials, Roots, content_of},
};

/// Certificate and key, or the CAs.
#[derive(Debug)]
pub(super) struct Part<T> {
    /// What it is, and what for, in logs.
    what: &'static str,
    purpose: String,
    in_force: Option<T>,
    /// What the last look saw in the files.
    seen: Option<ContentId>,
    /// What was read last, whatever came of it.
    judged: Option<ContentId>,
    /// Why that could not be used.
    trouble: Option<String>,
}

/// What can be in force.
pub(super) trait Renewable {
    /// Stands for the content of the files that it came from.
    fn content(&self) -> ContentId;
    /// The certificates that say until when it is good.
    fn certificates(&self) -> &[CertificateInfo];
}

/// What a look came to.
#[derive(Debug)]
pub(super) enum Looked {
    /// Something new is in force.
    Changed,
    /// What was in force still is.
    Unchanged,
    /// The files hold something new that may not be complete: look again soon.
    Unsettled,
    /// What the files hold cannot be used.
    Bad(Trouble),
}

impl<T: Renewable> Part<T> {
    pub(super) fn new(what: &'static str, purpose: &str) -> Self {
        Self {
            what,
            purpose: purpose.to_owned(),
            in_force: None,
            seen: None,
            judged: None,
            trouble: None,
        }
    }

    pub(super) fn in_force(&self) -> Option<&T> {
        self.in_force.as_ref()
    }

    /// Looks at the files, and reads them with `load` if they hold something that has settled and
    /// has not been judged yet. While nothing is in force they are read at every look.
    pub(super) fn look(
        &mut self,
        files: &[PathBuf],
        clock: &WallClock,
        load: impl FnOnce() -> Result<T, Trouble>,
    ) -> Looked {
        let content = content_of(files);
        let settled = self.seen.replace(content) == Some(content);
        if self.in_force.is_some() {
            if self.judged == Some(content) {
                return Looked::Unchanged;
            }
            if !settled {
                return Looked::Unsettled;
            }
        }
        let loaded = load();
        if content_of(files) != content {
            // Read in the middle of a change: the next look will see what came of it.
            self.seen = None;
            return Looked::Unsettled;
        }
        self.judged = Some(content);
        match loaded {
            Ok(new) => self.take(new, clock),
            Err(trouble) => self.refuse(trouble),
        }
    }

    fn take(&mut self, new: T, clock: &WallClock) -> Looked {
        if self.is_step_back(&new, clock) {
            // To be judged again: it may be the clock that is wrong.
            self.judged = None;
            let expired = Expired(new.certificates().first().map(|c| c.not_after));
            return self.refuse(expired.into());
        }
        let (what, purpose) = (self.what, &self.purpose);
        if self.trouble.take().is_some() {
            tracing::info!(what, purpose, "files can be used again");
        }
        let old = self.in_force.replace(new);
        let Some(new) = &self.in_force else {
            return Looked::Unchanged;
        };
        if old
            .as_ref()
            .is_some_and(|old| old.content() == new.content())
        {
            return Looked::Unchanged;
        }
        for certificate in new.certificates() {
            let (subject, serial) = (&certificate.subject, &certificate.serial);
            let not_after = utc(certificate.not_after);
            if old.is_some() {
                tracing::info!(
                    what,
                    purpose,
                    subject,
                    serial,
                    not_after,
                    "renewed, in force"
                );
            } else {
                tracing::info!(what, purpose, subject, serial, not_after, "in force");
            }
        }
        Looked::Changed
    }

    /// Whether `new` has expired and what is in force has not: an old file was put back by mistake.
    fn is_step_back(&self, new: &T, clock: &WallClock) -> bool {
        let now = clock.now();
        let expired = |part: &T| {
            let mut all = part.certificates().iter();
            all.all(|c| matches!(c.validity_at(now), Validity::Expired { .. }))
        };
        expired(new) && self.in_force.as_ref().is_some_and(|old| !expired(old))
    }

    fn refuse(&mut self, trouble: Trouble) -> Looked {
        if self.in_force.is_some() {
            let reason = chain(trouble.as_ref());
            if self.trouble.as_ref() != Some(&reason) {
                let (what, purpose) = (self.what, &self.purpose);
                tracing::error!(
                    what,
                    purpose,
                    reason,
                    "new files cannot be used, the old ones stay in force"
                );
                self.trouble = Some(reason);
            }
        }
        Looked::Bad(trouble)
    }
}

impl Renewable for Credentials {
    fn content(&self) -> ContentId {
        self.content()
    }

    fn certificates(&self) -> &[CertificateInfo] {
        std::slice::from_ref(self.info())
    }
}

impl Renewable for Roots {
    fn content(&self) -> ContentId {
        self.content()
    }

    fn certificates(&self) -> &[CertificateInfo] {
        self.certificates()
    }
}

/// The new certificate is worse than the old one.
#[derive(Debug, thiserror::Error)]
#[error("expired{}, and the one in force has not", .0.map(|at| format!(" at {}", utc(at))).unwrap_or_default())]
struct Expired(Option<std::time::SystemTime>);
