//! A whole Node object as kube-apiserver writes it, of the little that a test says about a node.
//!
//! Most of a real one is of no interest to whoever watches nodes: the images that a kubelet has
//! (the 50 largest), conditions, capacity, and who manages which field. It is all there, because
//! how long a list takes and what it costs depends on it: some 19 kB for each node. It is the same
//! for all nodes and written once, so that the stand-in costs less than what is measured with it.

use std::sync::LazyLock;

use serde_json::{Value, json};

use super::NodeFields;

/// The object of a node in a version, as text.
pub(super) fn object(name: &str, fields: &NodeFields, version: u64) -> String {
    let addresses: Vec<_> = fields
        .addresses
        .iter()
        .map(|(kind, address)| json!({ "type": kind, "address": address }))
        .collect();
    let metadata = json!({
        "name": name,
        "uid": format!("uid-of-{name}"),
        "resourceVersion": version.to_string(),
        "creationTimestamp": "2026-01-02T03:04:05Z",
        "labels": { "kubernetes.io/hostname": name, "kubernetes.io/os": "linux" },
    });
    let spec = json!({
        "podCIDR": fields.pod_cidrs.first(),
        "podCIDRs": fields.pod_cidrs,
        "providerID": format!("example://region-1/{name}"),
    });
    let status = json!({
        "addresses": addresses,
        "daemonEndpoints": {
            "kubeletEndpoint": { "Port": fields.kubelet_port.unwrap_or(10250) },
        },
    });
    let (metadata, status) = (with(&metadata, &MORE_METADATA), with(&status, &MORE_STATUS));
    format!(
        "{{\"kind\":\"Node\",\"apiVersion\":\"v1\",\"metadata\":{metadata},\"spec\":{spec},\
         \"status\":{status}}}"
    )
}

/// An object with more fields, which are text already.
fn with(object: &Value, more: &str) -> String {
    let mut text = object.to_string();
    let closing = text.pop();
    debug_assert_eq!(closing, Some('}'));
    text.push(',');
    text.push_str(more);
    text.push('}');
    text
}

/// What is between the braces of an object.
fn fields_of(object: &Value) -> String {
    let text = object.to_string();
    let inner = text
        .strip_prefix('{')
        .and_then(|text| text.strip_suffix('}'));
    inner.unwrap_or_default().to_owned()
}

static MORE_METADATA: LazyLock<String> = LazyLock::new(|| {
    fields_of(&json!({
        "annotations": {
            "node.alpha.kubernetes.io/ttl": "0",
            "volumes.kubernetes.io/controller-managed-attach-detach": "true",
        },
        "managedFields": managed_fields(),
    }))
});

static MORE_STATUS: LazyLock<String> = LazyLock::new(|| {
    let resources = json!({
        "cpu": "8", "ephemeral-storage": "101430960Ki", "hugepages-1Gi": "0", "hugepages-2Mi": "0",
        "memory": "32855964Ki", "pods": "110",
    });
    fields_of(&json!({
        "capacity": resources,
        "allocatable": resources,
        "conditions": conditions(),
        "nodeInfo": {
            "machineID": "0123456789abcdef0123456789abcdef",
            "systemUUID": "01234567-89ab-cdef-0123-456789abcdef",
            "bootID": "01234567-89ab-cdef-0123-456789abcdef",
            "kernelVersion": "6.12.0-100.28.2.el9uek.x86_64",
            "osImage": "Oracle Linux Server 9.5", "operatingSystem": "linux",
            "architecture": "amd64", "containerRuntimeVersion": "cri-o://1.34.1",
            "kubeletVersion": "v1.34.1", "kubeProxyVersion": "",
        },
        "images": images(),
    }))
});

fn images() -> Vec<Value> {
    let image = |i: u64| {
        let name = format!("registry.example/platform/services/component-{i:02}");
        json!({
            "names": [format!("{name}@sha256:{i:064x}"), format!("{name}:v1.{i}.0-build.20260102")],
            "sizeBytes": 400_000_000 - i * 1_000_000,
        })
    };
    (0..IMAGES).map(image).collect()
}

fn conditions() -> Vec<Value> {
    let all = [
        (
            "MemoryPressure",
            "KubeletHasSufficientMemory",
            "sufficient memory available",
        ),
        (
            "DiskPressure",
            "KubeletHasNoDiskPressure",
            "no disk pressure",
        ),
        (
            "PIDPressure",
            "KubeletHasSufficientPID",
            "sufficient PID available",
        ),
        ("Ready", "KubeletReady", "posting ready status"),
    ];
    let condition = |(kind, reason, message)| {
        json!({
            "type": kind,
            "status": if kind == "Ready" { "True" } else { "False" },
            "lastHeartbeatTime": "2026-01-02T03:04:05Z",
            "lastTransitionTime": "2026-01-02T03:04:05Z",
            "reason": reason,
            "message": format!("kubelet has {message}"),
        })
    };
    all.into_iter().map(condition).collect()
}

fn managed_fields() -> Vec<Value> {
    let managers = ["kubelet", "kube-controller-manager", "kubelet"];
    let managed = |manager| {
        let fields = [
            "addresses",
            "allocatable",
            "capacity",
            "conditions",
            "images",
            "nodeInfo",
        ];
        let fields = fields.map(|field| {
            let keys = ["Ready", "DiskPressure", "MemoryPressure", "PIDPressure"];
            let keys = keys.map(|key| {
                let key = format!("k:{{\"type\":\"{key}\"}}");
                (key, json!({ ".": {}, "f:status": {}, "f:type": {} }))
            });
            (
                format!("f:{field}"),
                Value::Object(keys.into_iter().collect()),
            )
        });
        json!({
            "manager": manager, "operation": "Update", "apiVersion": "v1",
            "time": "2026-01-02T03:04:05Z", "fieldsType": "FieldsV1",
            "fieldsV1": { "f:status": Value::Object(fields.into_iter().collect()) },
            "subresource": "status",
        })
    };
    managers.into_iter().map(managed).collect()
}

/// `--node-status-max-images` of a kubelet that was not told otherwise.
const IMAGES: u64 = 50;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_as_large_as_real_ones_and_says_what_the_test_says() {
        let fields = NodeFields::with_addresses([("InternalIP", "10.0.10.10")]);
        let text = object("a", &fields.pod_cidrs(&["10.244.1.0/24"]), 7);
        assert!((10 << 10..20 << 10).contains(&text.len()), "{}", text.len());
        let object: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(object["metadata"]["name"], "a");
        assert_eq!(object["metadata"]["resourceVersion"], "7");
        assert_eq!(object["spec"]["podCIDRs"], json!(["10.244.1.0/24"]));
        let address = json!({ "type": "InternalIP", "address": "10.0.10.10" });
        assert_eq!(object["status"]["addresses"], json!([address]));
        assert_eq!(object["status"]["images"].as_array().unwrap().len(), 50);
    }
}
