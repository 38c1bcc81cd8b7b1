//! The file that says which node has which address.
//!
//! Owns its form, a mapping from node names to addresses and networks, and the rule that each is
//! listed once. What outranks what, this file or what an agent proves, is decided where addresses
//! are granted.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    path::Path,
};

use ipnet::IpNet;
use proxymux_proto::{MAX_ADDRESSES, NodeName};
use proxymux_transport::config_file::{
    ConfigError, Document, Entry, Mistakes, Refused, Section, Setting, UnknownKeys,
    values::{self, ValueError},
};

/// Which node has which addresses and networks, as somebody wrote it down.
///
/// A single address is the network of that address alone.
///
/// ```
/// use proxymux_master::config::NodeAddressFile;
/// let file = NodeAddressFile::parse("worker-1: [10.0.10.11, 10.244.2.0/24]", "nodes.yaml")?;
/// let owner = file.owner("10.0.10.11/32".parse().expect("a network")).expect("listed");
/// assert_eq!(owner.as_str(), "worker-1");
/// # Ok::<(), proxymux_transport::config_file::ConfigError>(())
/// ```
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct NodeAddressFile {
    by_node: BTreeMap<NodeName, Vec<IpNet>>,
    /// The inverse of `by_node`.
    by_net: HashMap<IpNet, NodeName>,
}

impl NodeAddressFile {
    /// Reads the file.
    ///
    /// # Errors
    ///
    /// When the file cannot be read or parsed, or with all the mistakes in it.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Self::from_document(Document::load(path)?)
    }

    /// Reads text; `file` is the name that mistakes in it will carry.
    ///
    /// # Errors
    ///
    /// When the text cannot be parsed, or with all the mistakes in it.
    pub fn parse(text: &str, file: &str) -> Result<Self, ConfigError> {
        Self::from_document(Document::parse(text, file)?)
    }

    fn from_document(document: Document) -> Result<Self, ConfigError> {
        // Data has no unknown keys, so there is nothing to warn about.
        let (file, _) = document.read(&[], UnknownKeys::Data, read)?;
        Ok(file)
    }

    /// What is listed for a node, in the order of the file.
    #[must_use]
    pub fn nets(&self, node: &NodeName) -> &[IpNet] {
        self.by_node.get(node).map_or(&[], Vec::as_slice)
    }

    /// The node that exactly this address or network is listed for.
    #[must_use]
    pub fn owner(&self, net: IpNet) -> Option<&NodeName> {
        self.by_net.get(&net)
    }

    /// All nodes and what is listed for them, in the order of the names.
    pub fn iter(&self) -> impl Iterator<Item = (&NodeName, &[IpNet])> {
        self.by_node
            .iter()
            .map(|(node, nets)| (node, nets.as_slice()))
    }

    fn add(&mut self, node: &NodeName, net: IpNet) -> Result<IpNet, AddressError> {
        match self.by_net.insert(net, node.clone()) {
            Some(other) if other == *node => Err(AddressError::Twice),
            Some(other) => Err(AddressError::OfAnother(other)),
            None => Ok(net),
        }
    }
}

fn read(section: &mut Section, mistakes: &mut Mistakes) -> Result<NodeAddressFile, Refused> {
    let mut file = NodeAddressFile::default();
    let entries = section.take_all(mistakes);
    let read: Vec<Result<(), Refused>> = entries
        .into_iter()
        .map(|(name, entry)| read_node(&mut file, &name, entry, mistakes))
        .collect();
    read.into_iter().collect::<Result<(), Refused>>()?;
    Ok(file)
}

fn read_node(
    file: &mut NodeAddressFile,
    name: &Setting<String>,
    entry: Entry,
    mistakes: &mut Mistakes,
) -> Result<(), Refused> {
    let expected = "an address, a network, or a list of these";
    let list = entry.text_or_texts(expected, mistakes);
    let node = name.required(mistakes, |text| NodeName::parse(text))?;
    if file.by_node.contains_key(&node) {
        let problem = "is listed twice, the case of letters does not count";
        return Err(name.refuse(mistakes, problem));
    }
    let nets = list.each(mistakes, |text| file.add(&node, net(text)?));
    let nets = match nets {
        Ok(nets) if nets.is_empty() => Err(list.refuse(mistakes, "must have at least one address")),
        Ok(nets) if nets.len() > MAX_ADDRESSES => {
            let problem = format!(
                "must have at most {MAX_ADDRESSES} entries, has {}",
                nets.len()
            );
            Err(list.refuse(mistakes, problem))
        }
        other => other,
    };
    file.by_node.insert(node, nets?);
    Ok(())
}

/// Reads an address of a node, or a network that it leads to.
fn net(text: &str) -> Result<IpNet, ValueError> {
    let net = values::cidr_or_ip(text)?;
    if net.prefix_len() == net.max_prefix_len() {
        values::node_ip(&net.addr().to_string())?;
    }
    Ok(net)
}

/// Why an entry cannot lead to a node.
#[derive(Debug)]
enum AddressError {
    OfAnother(NodeName),
    Twice,
    Value(ValueError),
}

impl From<ValueError> for AddressError {
    fn from(error: ValueError) -> Self {
        Self::Value(error)
    }
}

impl fmt::Display for AddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OfAnother(node) => write!(f, "is listed for {node} already"),
            Self::Twice => f.write_str("is listed twice"),
            Self::Value(error) => error.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests;
