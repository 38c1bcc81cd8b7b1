//! Certificates, keys and CAs that are replaced while a daemon runs.
//!
//! Owns what is in force ([`Certificates`]), the looking for something newer, and what is said
//! about it: what was renewed, what cannot be used, what is about to expire. Leaves to a
//! [`Source`] where the files are, and to sessions and doors what follows from a change.
//! Read [`Certificates::look`] first.
//!
//! Files are compared by content, every [`LOOK_EVERY`]. What is new is only taken once two looks
//! in a row have found the same, since a file that is just being written may well make sense; and
//! what cannot be used changes nothing, so that the last good pair stays in force.

mod expiry;
mod part;

use std::{
    fmt,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::{
    expiry::ExpiryWatch,
    part::{Looked, Part},
};
use crate::{
    clock::WallClock,
    credentials::{Credentials, Roots},
    telemetry::chain,
};

/// Where certificates come from. All functions block on the file system.
pub trait Source: Send + Sync + 'static {
    /// Why something cannot be used.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Every file that decides what [`Source::credentials`] gives.
    fn credential_files(&self) -> Vec<PathBuf>;

    /// The file that decides what [`Source::roots`] gives.
    fn roots_file(&self) -> PathBuf;

    /// Reads certificate and key.
    ///
    /// # Errors
    ///
    /// When they cannot be used.
    fn credentials(&self) -> Result<Credentials, Self::Error>;

    /// Reads the CAs.
    ///
    /// # Errors
    ///
    /// When they cannot be used.
    fn roots(&self) -> Result<Roots, Self::Error>;
}

/// What is in force at one moment.
#[derive(Clone, Debug)]
pub struct InForce {
    /// What we show.
    pub credentials: Credentials,
    /// Whom we believe.
    pub roots: Roots,
}

/// When what is in force expires.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Expiry {
    /// Our own certificate.
    pub certificate: SystemTime,
    /// The first of the CAs: the one that a rotation is about to take out, if there is one.
    pub first_ca: SystemTime,
}

/// What one end shows and believes, renewed while it runs.
pub struct Certificates {
    /// What they are for, in logs.
    purpose: String,
    clock: WallClock,
    reader: Mutex<Box<dyn Reader>>,
    /// The last look has found something that the next one is to confirm.
    unsettled: AtomicBool,
    in_force: watch::Sender<Option<Arc<InForce>>>,
}

/// The files' side, with the source's own type of error taken out.
trait Reader: Send {
    fn look(&mut self, clock: &WallClock) -> Look;
    fn warn_of_expiry(&mut self, clock: &WallClock);
}

/// What a look has found.
struct Look {
    changed: bool,
    unsettled: bool,
    in_force: Option<InForce>,
    /// Why there is nothing in force, or not what the files say.
    trouble: Option<Trouble>,
}

type Trouble = Box<dyn std::error::Error + Send + Sync>;

impl Certificates {
    /// Certificates that have not been looked for yet. `purpose` names them in logs.
    pub fn new(purpose: impl Into<String>, source: impl Source, clock: WallClock) -> Arc<Self> {
        let purpose = purpose.into();
        let files = Files {
            credentials: Part::new("certificate", &purpose),
            roots: Part::new("CA", &purpose),
            expiry: ExpiryWatch::new(&purpose),
            source,
        };
        Arc::new(Self {
            purpose,
            clock,
            reader: Mutex::new(Box::new(files)),
            unsettled: AtomicBool::new(false),
            in_force: watch::Sender::new(None),
        })
    }

    /// What is in force, if anything is.
    #[must_use]
    pub fn in_force(&self) -> Option<Arc<InForce>> {
        self.in_force.borrow().clone()
    }

    /// Becomes ready at each change of what is in force.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<Option<Arc<InForce>>> {
        self.in_force.subscribe()
    }

    /// The clock that certificates are compared with.
    #[must_use]
    pub fn clock(&self) -> &WallClock {
        &self.clock
    }

    /// What these certificates are for.
    #[must_use]
    pub fn purpose(&self) -> &str {
        &self.purpose
    }

    /// When what is in force expires.
    #[must_use]
    pub fn expiry(&self) -> Option<Expiry> {
        let in_force = self.in_force()?;
        let cas = in_force.roots.certificates().iter();
        let certificate = in_force.credentials.info().not_after;
        Some(Expiry {
            certificate,
            first_ca: cas.map(|ca| ca.not_after).min().unwrap_or(certificate),
        })
    }

    /// Looks at the files, and puts in force what is new and good in them.
    ///
    /// The first good content is taken at once; later content when a second look finds it too.
    /// Blocks on the file system.
    ///
    /// # Errors
    ///
    /// When there is still nothing in force: why. If something is, trouble is only logged, when
    /// it begins and when it is over.
    pub fn look(&self) -> Result<Arc<InForce>, Trouble> {
        let mut reader = self.lock();
        let look = reader.look(&self.clock);
        self.unsettled.store(look.unsettled, Ordering::Relaxed);
        if look.changed {
            self.in_force.send_replace(look.in_force.map(Arc::new));
        }
        if self.in_force.borrow().is_some() {
            reader.warn_of_expiry(&self.clock);
        }
        drop(reader);
        match (self.in_force(), look.trouble) {
            (Some(in_force), _) => Ok(in_force),
            (None, Some(trouble)) => Err(trouble),
            (None, None) => Err(Box::new(NotYet)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Box<dyn Reader>> {
        // What a panic can leave half-done here is judged again at the next look.
        self.reader.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Looks at the files of all these every few seconds, until `stop`. `looked` is called at the
/// beginning and after each look.
///
/// On one of the runtime's blocking threads: a directory may be on a file system that hangs.
pub async fn watch(all: Vec<Arc<Certificates>>, looked: impl Fn(), stop: CancellationToken) {
    loop {
        looked();
        let unsettled = all.iter().any(|c| c.unsettled.load(Ordering::Relaxed));
        let pause = if unsettled { SETTLE } else { LOOK_EVERY };
        let slept = stop.run_until_cancelled(tokio::time::sleep(pause)).await;
        if slept.is_none() {
            return;
        }
        let all = all.clone();
        let looking = tokio::task::spawn_blocking(move || {
            for certificates in &all {
                // Logged where it begins; while nothing is in force, whoever needs it says so.
                let _ = certificates.look();
            }
        });
        match stop.run_until_cancelled(looking).await {
            Some(Ok(())) => {}
            Some(Err(error)) => tracing::error!(%error, "looking for new certificates failed"),
            None => return,
        }
    }
}

/// Something made of what is in force, and made again when that changes: settings of TLS.
pub struct Derived<T> {
    certificates: Arc<Certificates>,
    make: fn(&Credentials, &Roots) -> Arc<T>,
    made: Mutex<Option<(Arc<InForce>, Arc<T>)>>,
}

impl<T> Derived<T> {
    /// Something that is made when it is first asked for. Something must be in force by then.
    pub fn new(
        certificates: Arc<Certificates>,
        make: fn(&Credentials, &Roots) -> Arc<T>,
    ) -> Arc<Self> {
        Arc::new(Self {
            certificates,
            make,
            made: Mutex::new(None),
        })
    }

    /// What is in force now, and what was made of it.
    ///
    /// # Panics
    ///
    /// If nothing has ever been in force.
    #[must_use]
    pub fn current(&self) -> (Arc<InForce>, Arc<T>) {
        let in_force = self.certificates.in_force();
        let in_force = in_force.expect("whoever makes a `Derived` has had a first look succeed");
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, value)) = made.as_ref()
            && Arc::ptr_eq(of, &in_force)
        {
            return (in_force, Arc::clone(value));
        }
        let value = (self.make)(&in_force.credentials, &in_force.roots);
        *made = Some((Arc::clone(&in_force), Arc::clone(&value)));
        (in_force, value)
    }

    /// What was made of what is in force now.
    ///
    /// # Panics
    ///
    /// As [`Self::current`].
    #[must_use]
    pub fn made(&self) -> Arc<T> {
        self.current().1
    }
}

struct Files<S> {
    source: S,
    credentials: Part<Credentials>,
    roots: Part<Roots>,
    expiry: ExpiryWatch,
}

impl<S: Source> Reader for Files<S> {
    fn look(&mut self, clock: &WallClock) -> Look {
        let Self {
            source,
            credentials,
            roots,
            ..
        } = self;
        let first = credentials.look(&source.credential_files(), clock, || {
            source.credentials().map_err(Trouble::from)
        });
        let second = roots.look(&[source.roots_file()], clock, || {
            source.roots().map_err(Trouble::from)
        });
        let in_force = match (credentials.in_force(), roots.in_force()) {
            (Some(credentials), Some(roots)) => Some(InForce {
                credentials: credentials.clone(),
                roots: roots.clone(),
            }),
            _ => None,
        };
        let changed = matches!(first, Looked::Changed) || matches!(second, Looked::Changed);
        let unsettled = matches!(first, Looked::Unsettled) || matches!(second, Looked::Unsettled);
        let trouble = match (first, second) {
            // An agent on a new node waits for its certificate; the CA is there before.
            (_, Looked::Bad(trouble)) | (Looked::Bad(trouble), _) => Some(trouble),
            _ => None,
        };
        Look {
            changed: changed && in_force.is_some(),
            unsettled,
            in_force,
            trouble,
        }
    }

    fn warn_of_expiry(&mut self, clock: &WallClock) {
        if let (Some(credentials), Some(roots)) =
            (self.credentials.in_force(), self.roots.in_force())
        {
            self.expiry.look(credentials, roots, clock.now());
        }
    }
}

/// Nothing was found wrong, and nothing is in force: files changed while they were read.
#[derive(Debug, thiserror::Error)]
#[error("certificates are being replaced at this moment")]
struct NotYet;

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificates")
            .field("purpose", &self.purpose)
            .field("in_force", &self.in_force())
            .finish_non_exhaustive()
    }
}

impl<T> fmt::Debug for Derived<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Derived")
            .field("certificates", &self.certificates)
            .finish_non_exhaustive()
    }
}

/// How often files are looked at. A certificate is renewed days before it expires; a look costs
/// an idle agent three wake-ups.
pub const LOOK_EVERY: Duration = Duration::from_secs(5);

/// How long new content must have been the same: no program takes so long between two writes to
/// a file of a few kilobytes.
const SETTLE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests;
