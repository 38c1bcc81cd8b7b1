//! Loading the programs, and saying why it cannot be done.
//!
//! Owns the loaded programs: they stay in the kernel while this or an attachment lives. What is
//! possible is found out by trying, never by the kernel's version: distributions carry features
//! back. The silent object needs no ring buffer and is the default; see [`Loaded::load`].

use aya::{
    Ebpf, EbpfError, EbpfLoader, VerifierLogLevel,
    maps::MapError,
    programs::{Program, ProgramError, SchedClassifier},
};
use nix::{
    errno::Errno,
    sys::resource::{RLIM_INFINITY, Resource, setrlimit},
};
use proxymux_common::{names, user::return_freed_memory};

use super::{cost::Cost, log::ProgramLog, maps::MapFault, object, privileges};

/// The programs in the kernel.
pub(super) struct Loaded {
    ebpf: Ebpf,
    /// Only of the object that logs, until somebody takes it.
    pub(super) log: Option<ProgramLog>,
}

/// Why the programs cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    /// Not allowed, and it is plain what to do.
    #[error("missing {}: eBPF programs cannot be loaded", .0.join(" and "))]
    Capabilities(Vec<&'static str>),
    /// Not allowed, though the capabilities are there.
    #[error(
        "the kernel does not allow eBPF programs although the capabilities are there: a user \
         namespace, a security policy, or before 5.11 too low a limit of locked memory"
    )]
    Forbidden,
    /// A kernel without it.
    #[error("this kernel has no bpf system call (CONFIG_BPF_SYSCALL)")]
    NoBpf,
    /// A kernel that has BPF, but too little of it.
    #[error("this kernel's TC programs have no bpf_sk_assign, which came with Linux 5.7")]
    NoAssign,
    /// What a program of this name needs is missing.
    #[error("the object has no program {0}")]
    NoProgram(&'static str),
    /// Anything else.
    #[error("the kernel does not take the eBPF program {name}: {why}")]
    Refused {
        /// The program's name.
        name: &'static str,
        /// The kernel's error, and the end of what its verifier said.
        why: String,
    },
    /// The ring buffer of its log.
    #[error("the log of the eBPF programs cannot be read: {0}")]
    Log(String),
    /// The object or its maps.
    #[error("the eBPF object cannot be loaded")]
    Object(#[source] Box<EbpfError>),
    /// One of its maps.
    #[error(transparent)]
    Map(#[from] MapFault),
}

impl Loaded {
    /// Loads the object: with `logging` the one that tells of its decisions, if that can be.
    pub(super) fn load(logging: bool) -> Result<Self, LoadError> {
        // Before 5.11 maps count as locked memory. It is the kernel that says whether it was needed.
        if let Err(error) = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY) {
            tracing::debug!(reason = %error, "the limit of locked memory stays");
        }
        let loaded = if logging {
            Self::load_object(true).or_else(|error| {
                tracing::warn!(
                    reason = %proxymux_transport::telemetry::chain(&error),
                    "eBPF programs that log cannot be loaded, they will not: that needs \
                     CAP_PERFMON and ring buffers"
                );
                Self::load_object(false)
            })
        } else {
            Self::load_object(false)
        };
        return_freed_memory();
        loaded
    }

    fn load_object(logging: bool) -> Result<Self, LoadError> {
        // What the verifier says takes megabytes and most of the time. It is wanted only of a
        // program that is refused.
        Self::load_with(logging, VerifierLogLevel::DISABLE).or_else(|error| match error {
            LoadError::Refused { .. } => Self::load_with(logging, VerifierLogLevel::default()),
            error => Err(error),
        })
    }

    fn load_with(logging: bool, level: VerifierLogLevel) -> Result<Self, LoadError> {
        // Our programs need nothing of the kernel's own types, and load where there are none. aya
        // 0.14 reads them in `new` all the same, before `btf(None)` can be said: the agent's peak
        // is 26 MiB for it, and would be 9. `return_freed_memory` gives it back.
        let mut ebpf = EbpfLoader::new()
            .verifier_log_level(level)
            .load(object::object(logging))
            .map_err(object_error)?;
        // Its map is taken before the programs are loaded, and kept.
        let log = logging.then(|| ProgramLog::take(&mut ebpf)).transpose()?;
        let mut loaded = Self { ebpf, log };
        for name in [names::STEER, names::GUARD] {
            let done = loaded.program(name)?.load();
            done.map_err(|error| program_error(name, &error))?;
        }
        Ok(loaded)
    }

    /// What a program costs, by its name.
    pub(super) fn cost(&self, program: &str) -> Cost {
        let Some(Program::SchedClassifier(program)) = self.ebpf.program(program) else {
            return Cost::default();
        };
        match program.info() {
            Ok(info) => Cost::of(info.run_time(), info.run_count()),
            Err(error) => Cost::Refused(proxymux_transport::telemetry::chain(&error)),
        }
    }

    /// The maps are in there until somebody takes them.
    pub(super) fn ebpf(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    pub(super) fn program(
        &mut self,
        name: &'static str,
    ) -> Result<&mut SchedClassifier, LoadError> {
        let program = self.ebpf.program_mut(name);
        let program = program.ok_or(LoadError::NoProgram(name))?;
        program.try_into().map_err(|_| LoadError::NoProgram(name))
    }
}

impl std::fmt::Debug for Loaded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loaded").finish_non_exhaustive()
    }
}

fn object_error(error: EbpfError) -> LoadError {
    let number = match &error {
        EbpfError::MapError(MapError::CreateError { io_error, .. }) => io_error.raw_os_error(),
        EbpfError::MapError(MapError::SyscallError(error)) => error.io_error.raw_os_error(),
        _ => None,
    };
    kernels_refusal(number).unwrap_or_else(|| LoadError::Object(Box::new(error)))
}

fn program_error(name: &'static str, error: &ProgramError) -> LoadError {
    let ProgramError::LoadError {
        io_error,
        verifier_log,
    } = error
    else {
        let why = proxymux_transport::telemetry::chain(error);
        return LoadError::Refused { name, why };
    };
    let said = verifier_log.to_string();
    if lacks_assign(&said) {
        return LoadError::NoAssign;
    }
    // The verifier answers EACCES to programs that it finds unsafe, and then says why.
    let judged = said.lines().any(|line| !line.trim().is_empty());
    let number = io_error.raw_os_error();
    // Which also stands for "not allowed", in which case the verifier has not seen the program.
    let judging =
        judged || number == Some(Errno::EACCES as i32) && privileges::missing().is_empty();
    match kernels_refusal(number) {
        Some(refusal) if !judging => refusal,
        _ => LoadError::Refused {
            name,
            why: format!("{io_error}: {}", last_words(&said)),
        },
    }
}

/// What the numbers mean that say nothing about this program.
fn kernels_refusal(number: Option<i32>) -> Option<LoadError> {
    match Errno::from_raw(number?) {
        Errno::EPERM | Errno::EACCES => {
            let missing = privileges::missing();
            Some(if missing.is_empty() {
                LoadError::Forbidden
            } else {
                LoadError::Capabilities(missing)
            })
        }
        Errno::ENOSYS => Some(LoadError::NoBpf),
        _ => None,
    }
}

/// Old kernels answer calls of helpers that they do not have, or not here, in these words.
fn lacks_assign(said: &str) -> bool {
    let unknown = said
        .lines()
        .rev()
        .take(8)
        .find(|line| line.contains("unknown func") || line.contains("invalid func unknown"));
    unknown.is_some_and(|line| {
        line.contains("sk_assign")
            || line.contains("#124")
            || line.contains("skc_lookup_tcp")
            || line.contains("#99")
    })
}

/// The verifier counts instructions after it has said what is wrong.
fn last_words(said: &str) -> String {
    let lines: Vec<_> = said
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with("processed "))
        .collect();
    let from = lines.len().saturating_sub(2);
    lines.get(from..).unwrap_or_default().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_without_the_helper_is_told_from_a_program_that_is_wrong() {
        let old = "12: (85) call unknown#124\ninvalid func unknown#124\nprocessed 13 insns\n";
        assert!(lacks_assign(old));
        assert!(lacks_assign("unknown func bpf_sk_assign#124\n"));
        assert!(!lacks_assign(
            "85: call bpf_sk_assign#124\nR1 pointer arithmetic prohibited\n"
        ));
    }

    #[test]
    fn of_the_verifiers_talk_the_end_is_told() {
        let said = "0: r1 = 1\n1: exit\nR0 !read_ok\nprocessed 2 insns (limit 1000000)\n\n";
        assert_eq!(last_words(said), "1: exit; R0 !read_ok");
        assert_eq!(last_words(""), "");
    }
}
