//! What the programs are told to do.

/// The one entry of [`crate::names::SETTINGS`]. All zero, as before the agent has filled it, means
/// that every packet passes.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C)]
pub struct Settings {
    /// `SETTINGS_FLAG_*`.
    pub flags: u32,
    /// A [`Guard`].
    pub guard: u32,
    /// The kubelet's port.
    pub kubelet_port: u16,
    /// The port of the masters, for counting the packets of sessions; the first one of
    /// `server-addr`.
    pub master_port: u16,
    /// Always zero.
    pub padding: u32,
}

const _: () = assert!(size_of::<Settings>() == 16);

/// Connections from the listed sources are given to the agent's listeners.
pub const SETTINGS_FLAG_STEER: u32 = 1;
/// The guard works on the NIC too, and not only on other devices.
pub const SETTINGS_FLAG_GUARD_NIC: u32 = 2;

/// What is done about kubelet-bound connections from elsewhere, as [`Settings::guard`] has it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u32)]
pub enum Guard {
    /// Nothing.
    Off = 0,
    /// They are counted and remembered.
    Audit = 1,
    /// They are dropped, counted and remembered.
    Enforce = 2,
}
