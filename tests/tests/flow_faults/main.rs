//! What goes wrong with fast paths, and that nobody who asks for a kubelet notices.
//!
//! Real daemons in namespaces, which use flows: `aborts` has clients that give up, `fallback` takes the paths away one after the
//! other, `floods` has strangers at both ports that take flows, `payload` what must not or cannot
//! go on a flow, `masters` several masters, and one that is not root. What works when nothing is
//! wrong is tested elsewhere.

mod aborts;
mod exhaustion;
mod fallback;
mod floods;
mod masters;
mod payload;
mod stage;
