//! Arbitrary messages for property tests, in the form in which they arrive.
//!
//! What a decoder would put into another form (long text, an address of two forms) is not made
//! here: `limits.rs` has those cases.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use ipnet::IpNet;
use proptest::{collection, option, prelude::*};
use proxymux_proto::{
    AbortCode, AddressRefusal, Addresses, AllowedRange, ControlMessage, Drain, EndCode, FlowAbort,
    FlowDirection, Host, InstanceId, MAX_ADDRESSES, MAX_ALLOWED_RANGES, MAX_FLOW_POOL, MAX_LABELS,
    MAX_PADDING, MAX_RETRY_AFTER, MAX_STREAMS, Measure, NodeName, OpenAnswer, OpenRequest,
    PaddedPing, RefuseCode, Registered, Registration, SessionEnd, SteeringStatus, TargetAddr,
};

pub(crate) fn control_message() -> impl Strategy<Value = ControlMessage> {
    prop_oneof![
        registration().prop_map(ControlMessage::Register),
        registered().prop_map(ControlMessage::Registered),
        addresses().prop_map(ControlMessage::Addresses),
        session_end().prop_map(ControlMessage::End),
        any::<u64>().prop_map(ControlMessage::Ping),
        any::<u64>().prop_map(ControlMessage::Pong),
        (any::<u64>(), 0..=MAX_PADDING, 1..=MAX_PADDING).prop_map(|(number, padding, answer)| {
            ControlMessage::PaddedPing(PaddedPing {
                number,
                padding,
                answer,
            })
        }),
        (any::<u64>(), 1..=MAX_PADDING)
            .prop_map(|(number, padding)| ControlMessage::PaddedPong { number, padding }),
        drain().prop_map(ControlMessage::Drain),
        (any::<u32>(), abort_code())
            .prop_map(|(stream, code)| ControlMessage::Abort { stream, code }),
        (0..=MAX_FLOW_POOL).prop_map(ControlMessage::FlowPool),
        (any::<bool>(), shown_text()).prop_map(|(stands, reason)| {
            ControlMessage::Steering(SteeringStatus { stands, reason })
        }),
        (flow_direction(), any::<u64>(), abort_code()).prop_map(|(direction, counter, code)| {
            ControlMessage::FlowAbort(FlowAbort {
                direction,
                counter,
                code,
            })
        }),
        Just(ControlMessage::Unknown),
    ]
}

pub(crate) fn open_request() -> impl Strategy<Value = OpenRequest> {
    (target(), 1..=u32::MAX, option::of(measure())).prop_map(|(target, ms, measure)| OpenRequest {
        target,
        budget: millis(ms),
        measure,
    })
}

pub(crate) fn open_answer() -> impl Strategy<Value = OpenAnswer> {
    prop_oneof![
        Just(OpenAnswer::Dialing),
        Just(OpenAnswer::Opened),
        (refuse_code(), shown_text())
            .prop_map(|(code, message)| OpenAnswer::Refused { code, message }),
        Just(OpenAnswer::Unknown),
    ]
}

pub(crate) fn abort_code() -> impl Strategy<Value = AbortCode> {
    any::<u8>().prop_map(AbortCode::from_wire)
}

fn measure() -> impl Strategy<Value = Measure> {
    prop_oneof![
        Just(Measure::Source),
        Just(Measure::Sink),
        Just(Measure::Echo),
        Just(Measure::Usage),
        (5..=u32::MAX).prop_map(Measure::Other),
    ]
}

fn flow_direction() -> impl Strategy<Value = FlowDirection> {
    prop_oneof![Just(FlowDirection::Reverse), Just(FlowDirection::Direct)]
}

pub(crate) fn node_name() -> impl Strategy<Value = NodeName> {
    let name = "[a-z0-9]([a-z0-9.-]{0,250}[a-z0-9])?";
    prop_oneof![
        name.prop_map(|text| NodeName::parse(&text).unwrap()),
        any::<IpAddr>().prop_map(|ip| NodeName::parse(&ip.to_string()).unwrap()),
    ]
}

pub(crate) fn target() -> impl Strategy<Value = TargetAddr> {
    let host = prop_oneof![
        any::<IpAddr>().prop_map(Host::Ip),
        node_name().prop_map(Host::Name),
    ];
    (host, 1..=u16::MAX).prop_map(|(host, port)| TargetAddr::new(host, port).unwrap())
}

fn registration() -> impl Strategy<Value = Registration> {
    let labels = collection::btree_map("[ -~]{0,255}", "[ -~]{0,255}", 0..=MAX_LABELS);
    let who = (any::<u32>(), node_name(), instance_id(), any::<bool>());
    let places = (ips(), option::of(socket_addr()), allowed_ranges());
    let texts = (
        option::of("[ -~]{1,255}"),
        option::of("[ -~]{1,255}"),
        shown_text(),
        labels,
        collection::vec(instance_id(), 0..=4),
    );
    (who, places, texts).prop_map(
        |(
            (version, node, instance, fast_path),
            (addresses, kubelet, allow),
            (cluster_id, node_id, software, labels, held_masters),
        )| Registration {
            version,
            node,
            instance,
            addresses,
            kubelet,
            allow,
            cluster_id,
            node_id,
            software,
            labels,
            held_masters,
            fast_path,
        },
    )
}

fn registered() -> impl Strategy<Value = Registered> {
    let who = (
        any::<u32>(),
        instance_id(),
        1..=MAX_STREAMS,
        0..=MAX_FLOW_POOL,
    );
    (who, addresses(), ips(), option::of(target())).prop_map(
        |((version, master, max_streams, flow_pool), addresses, dial_sources, advertise)| {
            Registered {
                version,
                master,
                addresses,
                max_streams,
                dial_sources,
                advertise: advertise.map(|target| target.to_string()),
                flow_pool,
            }
        },
    )
}

fn addresses() -> impl Strategy<Value = Addresses> {
    let refusal =
        (ip(), shown_text()).prop_map(|(address, reason)| AddressRefusal { address, reason });
    (ips(), collection::vec(refusal, 0..=MAX_ADDRESSES))
        .prop_map(|(granted, refused)| Addresses { granted, refused })
}

fn session_end() -> impl Strategy<Value = SessionEnd> {
    let longest = u32::try_from(MAX_RETRY_AFTER.as_millis()).unwrap();
    let pause = option::of((1..=longest).prop_map(millis));
    (end_code(), shown_text(), pause).prop_map(|(code, message, retry_after)| SessionEnd {
        code,
        message,
        retry_after,
    })
}

fn drain() -> impl Strategy<Value = Drain> {
    (any::<u32>(), shown_text(), any::<bool>()).prop_map(|(ms, reason, takes_new)| Drain {
        deadline: millis(ms),
        reason,
        takes_new,
    })
}

fn end_code() -> impl Strategy<Value = EndCode> {
    prop_oneof![
        Just(EndCode::Identity),
        Just(EndCode::Cluster),
        Just(EndCode::Version),
        Just(EndCode::Superseded),
        Just(EndCode::Busy),
        Just(EndCode::ShuttingDown),
        Just(EndCode::Protocol),
        Just(EndCode::AlreadyConnected),
        Just(EndCode::Other(0)),
        (9..=u32::MAX).prop_map(EndCode::Other),
    ]
}

fn refuse_code() -> impl Strategy<Value = RefuseCode> {
    prop_oneof![
        Just(RefuseCode::NotAllowed),
        Just(RefuseCode::Unreachable),
        Just(RefuseCode::TimedOut),
        Just(RefuseCode::Busy),
        Just(RefuseCode::BadRequest),
        Just(RefuseCode::Draining),
        Just(RefuseCode::Other(0)),
        (7..=u32::MAX).prop_map(RefuseCode::Other),
    ]
}

fn allowed_ranges() -> impl Strategy<Value = Vec<AllowedRange>> {
    let net = (any::<IpAddr>(), 0..=128u8).prop_map(|(ip, prefix)| {
        let widest = if ip.is_ipv4() { 32 } else { 128 };
        IpNet::new(ip, prefix.min(widest)).unwrap().trunc()
    });
    let ports = (1..=u16::MAX, 1..=u16::MAX).prop_map(|(a, b)| a.min(b)..=a.max(b));
    let range = (net, ports).prop_map(|(net, ports)| AllowedRange { net, ports });
    collection::vec(range, 0..=MAX_ALLOWED_RANGES)
}

fn ips() -> impl Strategy<Value = Vec<IpAddr>> {
    collection::hash_set(ip(), 0..=MAX_ADDRESSES).prop_map(|set| set.into_iter().collect())
}

fn ip() -> impl Strategy<Value = IpAddr> {
    any::<IpAddr>().prop_map(|ip| ip.to_canonical())
}

fn socket_addr() -> impl Strategy<Value = SocketAddr> {
    (ip(), 1..=u16::MAX).prop_map(|(ip, port)| SocketAddr::new(ip, port))
}

fn instance_id() -> impl Strategy<Value = InstanceId> {
    any::<[u8; 16]>().prop_map(InstanceId::from_bytes)
}

fn shown_text() -> impl Strategy<Value = String> {
    "[ -~]{0,200}"
}

fn millis(ms: u32) -> Duration {
    Duration::from_millis(u64::from(ms))
}
