//! Why a connection does not take a faster path: the words for logs, metrics and people.
//!
//! Owns the closed list. Who decides is `choose` and `commit`; why the direct path is not proven is
//! `direct`.

/// Why a connection to a node goes by the session, or by the reverse path and not the direct one.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Why {
    /// The master's configuration says so.
    Off,
    /// Nobody has said that kube-apiserver verifies kubelets' certificates.
    Unverified,
    /// The agent uses no fast paths.
    AgentOff,
    /// The target is not the node's kubelet.
    NotKubelet,
    /// No flow is ready.
    NoFlow,
    /// The node has as many flows as it may have.
    Limit,
    /// The flow had not answered when the session's stream was open.
    Slow,
    /// The flow failed before it was open.
    Failed,
    /// The agent did not want to open it.
    Refused,
    /// The client does not begin with TLS.
    NotTls,
    /// The flow ended before the client's first byte.
    FlowLost,
    /// Nodes are not dialled, as the configuration says.
    DirectOff,
    /// The agent has not said where its kubelet is to be dialled, or the address is another
    /// node's.
    NoAddress,
    /// The agent's steering does not stand.
    NotSteered,
    /// No probe has found the agent on the direct path lately.
    Unproven,
}

impl Why {
    /// Every word of [`Why::as_str`].
    pub(crate) const WORDS: &[&str] = &[
        "off",
        "unverified",
        "agent-off",
        "not-kubelet",
        "no-flow",
        "limit",
        "slow",
        "failed",
        "refused",
        "not-tls",
        "flow-lost",
        "direct-off",
        "no-address",
        "not-steered",
        "unproven",
    ];

    /// The word for logs and metric labels, from a closed list.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Unverified => "unverified",
            Self::AgentOff => "agent-off",
            Self::NotKubelet => "not-kubelet",
            Self::NoFlow => "no-flow",
            Self::Limit => "limit",
            Self::Slow => "slow",
            Self::Failed => "failed",
            Self::Refused => "refused",
            Self::NotTls => "not-tls",
            Self::FlowLost => "flow-lost",
            Self::DirectOff => "direct-off",
            Self::NoAddress => "no-address",
            Self::NotSteered => "not-steered",
            Self::Unproven => "unproven",
        }
    }

    /// For the log's one line about a master that uses no fast paths.
    pub(super) fn in_words(self) -> &'static str {
        match self {
            Self::Off => "the configuration has `fast-path: off` or `flow-pool: 0`",
            Self::Unverified => {
                "the configuration does not say `kubelet-certificates: verified`, so only the \
                 session protects what kubelets are sent"
            }
            other => other.as_str(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_explained_to_the_operator() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/configuration.md");
        let document = std::fs::read_to_string(path).unwrap();
        let section = document.split("\n## Fast paths\n").nth(1).unwrap();
        let section = section.split("\n## ").next().unwrap();
        for word in Why::WORDS {
            assert!(section.contains(&format!("`{word}`")), "{word}");
        }
    }
}
