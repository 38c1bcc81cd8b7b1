//! Who a client is, by its certificate, and whether it may.

use rustls::ServerConnection;
use x509_parser::{
    prelude::{FromDer, X509Certificate},
    x509::AttributeTypeAndValue,
};

/// The user that a verified client certificate stands for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Client {
    pub(crate) user: String,
    pub(crate) groups: Vec<String>,
}

impl Client {
    /// `None` without a certificate, or with one that names nobody.
    pub(crate) fn of(connection: &ServerConnection) -> Option<Self> {
        let der = connection.peer_certificates()?.first()?;
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let subject = certificate.subject();
        let text =
            |attribute: &AttributeTypeAndValue<'_>| attribute.as_str().map(str::to_owned).ok();
        Some(Self {
            user: subject.iter_common_name().find_map(text)?,
            groups: subject.iter_organization().filter_map(text).collect(),
        })
    }

    /// The one group that a cluster lets do everything without any binding.
    pub(crate) fn may_do_everything(&self) -> bool {
        self.groups.iter().any(|group| group == "system:masters")
    }
}
