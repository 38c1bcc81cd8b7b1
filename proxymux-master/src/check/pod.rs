//! The form of a static pod's manifest, as far as a check of kube-apiserver needs it.
//!
//! Owns reading it ([`Pod`]): the container, its flags, the user it runs as, and where a path in
//! it is on the host. Keys that are not looked at may be anything, since the manifest is
//! kubeadm's and the kubelet's. What the flags mean for a master is left to `apiserver`.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use proxymux_transport::config_file::{
    ConfigError, Document, Entry, Mistakes, Refused, Section, UnknownKeys,
};

/// A pod with the one container that was looked for.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Pod {
    pub(super) kind: String,
    pub(super) host_network: bool,
    /// Whether it has the container at all.
    pub(super) has_container: bool,
    pub(super) run_as: RunAs,
    /// Later ones count, as for the program itself.
    flags: HashMap<String, String>,
    mounts: Vec<Mount>,
    /// By name; `None` for what is not a directory or file of the host.
    volumes: HashMap<String, Option<PathBuf>>,
}

/// The user that a container's process runs as.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct RunAs {
    /// `None` is the image's, which is root in kube-apiserver's.
    pub(super) user: Option<u64>,
    pub(super) group: Option<u64>,
    /// `supplementalGroups` and `fsGroup`.
    pub(super) more_groups: Vec<u64>,
}

/// Where a path of the container is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Seen {
    /// On the host.
    At(PathBuf),
    /// No volume is mounted there.
    NotMounted,
    /// A volume is, which is not a part of the host's file system.
    NotOfHost {
        /// Its name.
        volume: String,
    },
}

#[derive(Clone, Debug, Default, Eq, PartialEq)]
struct Mount {
    volume: String,
    path: PathBuf,
    sub_path: String,
}

#[derive(Clone, Debug, Default, Eq, PartialEq)]
struct Container {
    name: String,
    words: Vec<String>,
    mounts: Vec<Mount>,
    run_as: RunAs,
}

impl Pod {
    /// Reads a manifest and looks for the container in which `program` runs.
    pub(super) fn load(path: &Path, program: &str) -> Result<Self, ConfigError> {
        Self::from_document(Document::load(path)?, program)
    }

    fn from_document(document: Document, program: &str) -> Result<Self, ConfigError> {
        let (pod, _) = document.read(KEYS, UnknownKeys::Data, |root, m| {
            Ok::<_, Refused>(Self::read(root, m, program))
        })?;
        Ok(pod)
    }

    fn read(root: &mut Section, m: &mut Mistakes, program: &str) -> Self {
        let kind = scalar(root.take("kind"), m);
        let spec = root.take("spec");
        let mut pod = mapping(spec, SPEC_KEYS, m, |spec, m| {
            Self::read_spec(spec, m, program)
        });
        pod.kind = kind;
        pod
    }

    fn read_spec(spec: &mut Section, m: &mut Mistakes, program: &str) -> Self {
        let of_pod = mapping(spec.take("securityContext"), CONTEXT_KEYS, m, RunAs::read);
        let containers = list(spec.take("containers"), m, |item, m| {
            mapping(item, CONTAINER_KEYS, m, Container::read)
        });
        let volumes = list(spec.take("volumes"), m, |item, m| {
            mapping(item, VOLUME_KEYS, m, read_volume)
        });
        let mut pod = Self {
            host_network: scalar(spec.take("hostNetwork"), m) == "true",
            volumes: volumes.into_iter().collect(),
            ..Self::default()
        };
        let runs =
            |container: &&Container| container.words.iter().any(|word| is_call(word, program));
        let named = |container: &&Container| container.name == program;
        let found = containers.iter().find(runs);
        let Some(container) = found.or_else(|| containers.iter().find(named)) else {
            return pod;
        };
        pod.has_container = true;
        pod.flags = flags(&container.words);
        pod.mounts.clone_from(&container.mounts);
        pod.run_as = RunAs {
            user: container.run_as.user.or(of_pod.user),
            group: container.run_as.group.or(of_pod.group),
            more_groups: of_pod.more_groups,
        };
        pod
    }

    /// The value of a flag, which is empty for one that has none.
    pub(super) fn flag(&self, name: &str) -> Option<&str> {
        self.flags.get(name).map(String::as_str)
    }

    /// Where a path of the container is on the host.
    pub(super) fn seen(&self, path: &Path) -> Seen {
        let below = |mount: &&Mount| path.starts_with(&mount.path);
        let innermost = self.mounts.iter().filter(below);
        let Some(mount) = innermost.max_by_key(|mount| mount.path.components().count()) else {
            return Seen::NotMounted;
        };
        let Some(Some(of_host)) = self.volumes.get(&mount.volume) else {
            let volume = mount.volume.clone();
            return Seen::NotOfHost { volume };
        };
        let mut at = of_host.clone();
        at.extend(Path::new(&mount.sub_path).components());
        // Joining nothing would leave a slash behind a file's name.
        let rest = path.strip_prefix(&mount.path).unwrap_or(Path::new(""));
        at.extend(rest.components());
        Seen::At(at)
    }

    /// Whether a volume is mounted at exactly this path.
    pub(super) fn has_mount_at(&self, path: &Path) -> bool {
        self.mounts.iter().any(|mount| mount.path == path)
    }
}

impl Container {
    fn read(section: &mut Section, m: &mut Mistakes) -> Self {
        let mut words = list(section.take("command"), m, scalar);
        words.extend(list(section.take("args"), m, scalar));
        let context = section.take("securityContext");
        Self {
            name: scalar(section.take("name"), m),
            words,
            mounts: list(section.take("volumeMounts"), m, |item, m| {
                mapping(item, MOUNT_KEYS, m, |section, m| Mount {
                    volume: scalar(section.take("name"), m),
                    path: scalar(section.take("mountPath"), m).into(),
                    sub_path: scalar(section.take("subPath"), m),
                })
            }),
            run_as: mapping(context, CONTEXT_KEYS, m, RunAs::read),
        }
    }
}

impl RunAs {
    fn read(section: &mut Section, m: &mut Mistakes) -> Self {
        let more = section.take("supplementalGroups");
        let more = list(more, m, number);
        let fs_group = number(section.take("fsGroup"), m);
        Self {
            user: number(section.take("runAsUser"), m),
            group: number(section.take("runAsGroup"), m),
            more_groups: more.into_iter().flatten().chain(fs_group).collect(),
        }
    }
}

fn read_volume(section: &mut Section, m: &mut Mistakes) -> (String, Option<PathBuf>) {
    let name = scalar(section.take("name"), m);
    let host_path = section.take("hostPath");
    let path = host_path.is_mapping().then(|| {
        mapping(host_path, HOST_PATH_KEYS, m, |section, m| {
            PathBuf::from(scalar(section.take("path"), m))
        })
    });
    (name, path)
}

/// Whether a word of a command line is a call of the program: its name or path, or a line of a
/// shell in which that stands.
fn is_call(word: &str, program: &str) -> bool {
    let mut parts = word.split_whitespace();
    parts.any(|part| {
        Path::new(part)
            .file_name()
            .is_some_and(|name| name == program)
    })
}

/// The flags of a command line, in the forms that Go programs take: `--name=value`, `--name value`
/// and `--name`; an underscore is as good as a dash.
fn flags(words: &[String]) -> HashMap<String, String> {
    // A line for a shell has several words in one.
    let words: Vec<&str> = words
        .iter()
        .flat_map(|word| {
            let is_line = word.contains(char::is_whitespace) && !word.starts_with("--");
            if is_line {
                word.split_whitespace().collect()
            } else {
                vec![word.as_str()]
            }
        })
        .collect();
    let mut flags = HashMap::new();
    let mut words = words.into_iter().peekable();
    while let Some(word) = words.next() {
        let Some(flag) = word.strip_prefix("--") else {
            continue;
        };
        let (name, value) = match flag.split_once('=') {
            Some((name, value)) => (name, value),
            None => (
                flag,
                words
                    .next_if(|next| !next.starts_with("--"))
                    .unwrap_or_default(),
            ),
        };
        flags.insert(name.replace('_', "-"), value.to_owned());
    }
    flags
}

fn mapping<T: Default + Clone>(
    entry: Entry,
    keys: &'static [&'static str],
    m: &mut Mistakes,
    read: impl FnOnce(&mut Section, &mut Mistakes) -> T,
) -> T {
    let setting = entry.mapping(keys, UnknownKeys::Data, "a mapping", m, read);
    setting.given().cloned().unwrap_or_default()
}

fn list<T: Clone>(
    entry: Entry,
    m: &mut Mistakes,
    item: impl FnMut(Entry, &mut Mistakes) -> T,
) -> Vec<T> {
    let setting = entry.list("a list", m, item);
    setting.given().cloned().unwrap_or_default()
}

fn scalar(entry: Entry, m: &mut Mistakes) -> String {
    let setting = entry.scalar("a string", m);
    setting.given().cloned().unwrap_or_default()
}

fn number(entry: Entry, m: &mut Mistakes) -> Option<u64> {
    entry.number("a whole number", m).given().copied()
}

const KEYS: &[&str] = &["kind", "spec"];
const SPEC_KEYS: &[&str] = &["securityContext", "containers", "volumes", "hostNetwork"];
const CONTEXT_KEYS: &[&str] = &["runAsUser", "runAsGroup", "supplementalGroups", "fsGroup"];
const CONTAINER_KEYS: &[&str] = &["name", "command", "args", "volumeMounts", "securityContext"];
const MOUNT_KEYS: &[&str] = &["name", "mountPath", "subPath"];
const VOLUME_KEYS: &[&str] = &["name", "hostPath"];
const HOST_PATH_KEYS: &[&str] = &["path"];

#[cfg(test)]
mod tests;
