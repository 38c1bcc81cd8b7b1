//! Which programs see a packet before ours.
//!
//! Owns their names for people. Whether a program ends the chain cannot be asked of the kernel: one
//! that returns "ok" hides the packets from all that come after it, one that returns "next" does not.
//! So all of them are named, and people told that it is not known.

use aya::programs::{SchedClassifier, TcAttachType};
use proxymux_common::{
    names,
    user::{TcxEntry, tcx_ingress},
};

use super::{
    AttachKind, Device,
    attach::Attachment,
    rtnetlink::{self, Filter, Hook},
};

/// What runs before `ours` on its device, in that order.
pub(super) fn before(ours: &Attachment) -> std::io::Result<Vec<String>> {
    let index = ours.device.index;
    // A kernel without TCX has none of its programs.
    let mut entries = tcx_ingress(index).unwrap_or_default();
    if ours.kind() == AttachKind::Tcx {
        let at = entries
            .iter()
            .position(|entry| entry.link == ours.link_id());
        entries.truncate(at.unwrap_or_default());
        return Ok(tcx_names(&ours.device.name, &entries));
    }
    // All of TCX runs before any filter.
    let mut names = tcx_names(&ours.device.name, &entries);
    let filters = rtnetlink::filters(index, Hook::Ingress)?;
    let earlier = filters.iter().take_while(|filter| !ours.is(filter));
    names.extend(earlier.map(filter_name));
    Ok(names)
}

/// A program of somebody else on a device.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Other {
    pub(crate) name: String,
    /// Whether it would see packets before ours.
    pub(crate) before: bool,
}

/// What others have on a device. `tcx` is whether ours is attached that way, which makes it the
/// first; else it is a filter of this priority.
pub(crate) fn others(device: &Device, tcx: bool, priority: u16) -> std::io::Result<Vec<Other>> {
    let entries = tcx_ingress(device.index).unwrap_or_default();
    let chain = tcx_names(&device.name, &entries).into_iter();
    let mut all: Vec<_> = chain.map(|name| (name, !tcx)).collect();
    let filters = rtnetlink::filters(device.index, Hook::Ingress)?;
    let filters = filters.iter();
    all.extend(filters.map(|filter| (filter_name(filter), !tcx && filter.priority < priority)));
    let ours = |name: &str| {
        [names::STEER, names::GUARD]
            .iter()
            .any(|own| name.contains(own))
    };
    let others = all.into_iter().filter(|(name, _)| !ours(name));
    Ok(others
        .map(|(name, before)| Other { name, before })
        .collect())
}

fn tcx_names(device: &str, entries: &[TcxEntry]) -> Vec<String> {
    if entries.is_empty() {
        return Vec::new();
    }
    // Names need CAP_SYS_ADMIN; without it there are the ids, which `bpftool prog` knows.
    let programs = SchedClassifier::query_tcx(device, TcAttachType::Ingress);
    let programs = programs.map(|(_, programs)| programs).unwrap_or_default();
    let name = |entry: &TcxEntry| {
        let info = programs.iter().find(|info| info.id() == entry.program);
        match info.and_then(|info| info.name_as_str()) {
            Some(name) if !name.is_empty() => format!("tcx {name} (id {})", entry.program),
            _ => format!("tcx program with id {}", entry.program),
        }
    };
    entries.iter().map(name).collect()
}

fn filter_name(filter: &Filter) -> String {
    let Filter { priority, kind, .. } = filter;
    match filter.name.as_deref() {
        Some(name) if !name.is_empty() => format!("filter {name} (priority {priority})"),
        _ => format!("{kind} filter (priority {priority})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_called_by_its_name_or_by_its_kind() {
        let mut filter = Filter {
            priority: 7,
            kind: "flower".to_owned(),
            ..Filter::default()
        };
        assert_eq!(filter_name(&filter), "flower filter (priority 7)");
        filter.name = Some("cil_from_netdev".to_owned());
        assert_eq!(filter_name(&filter), "filter cil_from_netdev (priority 7)");
    }
}
