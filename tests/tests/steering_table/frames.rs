//! Frames that a program could mistake for what it steers.

use anyhow::Result;
use proxymux_testkit::{frame::Syn, wait::eventually};
use proxymux_tests::{
    limits::SOON,
    visitors::{Family, KUBELET_PORT},
};

use crate::stage::{self, attach_kinds};

/// The frame is that of a control plane's first packet but for its tag; without the tag it is
/// assigned, so that it is the tag that makes the difference.
#[test]
fn a_tagged_frame_passes_as_it_is() -> Result<()> {
    for attach in attach_kinds()? {
        let stage = stage::start(attach)?;
        let topology = stage.cluster.topology();
        let (router, node) = (topology.router(), stage.node());
        for (family, port) in Family::ALL.into_iter().zip([20_011, 20_012]) {
            let from = (family.of(topology.master()), port).into();
            let to = (family.of(node), KUBELET_PORT).into();
            let syn = Syn::new((router.mac("nodes")?, from), (node.mac("ens3")?, to));
            let (assigned, opaque) = (stage.count("assigned")?, stage.count("opaque")?);

            router.send_frame("nodes", &syn.tagged(7).frame())?;
            eventually(SOON, || stage.count("opaque").is_ok_and(|now| now > opaque));
            assert_eq!(stage.count("assigned")?, assigned, "{attach} {family:?}");

            router.send_frame("nodes", &syn.frame())?;
            let more = || stage.count("assigned").is_ok_and(|now| now > assigned);
            eventually(SOON, more);
        }
    }
    Ok(())
}
