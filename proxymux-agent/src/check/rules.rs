//! Reading rules of netfilter, as `nft -j` and `iptables-save` print them, for what becomes of one
//! port.
//!
//! Owns finding the rules that name the port and redirect or drop it, or that redirect everything
//! that comes in. It is no model of a firewall: a rule with conditions that are not understood
//! counts if it names the port, and a rule that names other ports or addresses does not.

use std::fmt;

use serde_json::Value;

/// A rule that matters.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Rule {
    /// Where it stands, as people look for it.
    pub(super) place: String,
    pub(super) harm: Harm,
}

/// What it does to connections to the port.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Harm {
    Redirects,
    Drops,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.place)
    }
}

/// From `nft -j list ruleset`.
pub(super) fn from_nft(text: &str, port: u16) -> Result<Vec<Rule>, String> {
    let all: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let items = all.get("nftables").and_then(Value::as_array);
    let items = items.ok_or("no list of rules")?;
    let key = |item: &Value, name: &str| {
        ["family", "table", name].map(|part| {
            item.get(part)
                .and_then(Value::as_str)
                .unwrap_or("")
                .to_owned()
        })
    };
    // The hook of each chain that has one; others are jumped to from anywhere.
    let hooks: Vec<_> = items
        .iter()
        .filter_map(|item| item.get("chain"))
        .filter_map(|chain| Some((key(chain, "name"), chain.get("hook")?.as_str()?.to_owned())))
        .collect();
    let mut found = Vec::new();
    for rule in items.iter().filter_map(|item| item.get("rule")) {
        let place = key(rule, "chain");
        let hook = hooks.iter().find(|(chain, _)| *chain == place);
        let hook = hook.map(|(_, hook)| hook.as_str());
        let expressions = rule.get("expr").and_then(Value::as_array);
        let expressions = expressions.map(Vec::as_slice).unwrap_or_default();
        if let Some(harm) = nft_harm(expressions, hook, port) {
            let handle = rule
                .get("handle")
                .and_then(Value::as_u64)
                .unwrap_or_default();
            let place = format!("nft rule {} handle {handle}", place.join(" "));
            found.push(Rule { place, harm });
        }
    }
    Ok(found)
}

fn nft_harm(expressions: &[Value], hook: Option<&str>, port: u16) -> Option<Harm> {
    let has = |name: &str| {
        expressions
            .iter()
            .any(|expression| expression.get(name).is_some())
    };
    let harm = if has("redirect") || has("dnat") {
        Harm::Redirects
    } else if has("drop") || has("reject") {
        Harm::Drops
    } else {
        return None;
    };
    let on_the_way = match (harm, hook) {
        (_, None) => true,
        (Harm::Redirects, Some(hook)) => hook == "prerouting",
        (Harm::Drops, Some(hook)) => matches!(hook, "prerouting" | "input" | "ingress"),
    };
    let matches = || {
        expressions
            .iter()
            .filter_map(|expression| expression.get("match"))
    };
    let field = |condition: &Value| {
        let field = condition
            .pointer("/left/payload/field")
            .and_then(Value::as_str);
        field.unwrap_or_default().to_owned()
    };
    let ports: Vec<_> = matches()
        .filter(|condition| field(condition) == "dport")
        .collect();
    let named = !ports.is_empty()
        && ports.iter().all(|condition| {
            let holds = condition
                .get("right")
                .is_some_and(|right| holds(right, port));
            let not = condition.get("op").and_then(Value::as_str) == Some("!=");
            holds != not
        });
    // Without a port, only what takes everything, which drops nobody does on purpose.
    let everything = harm == Harm::Redirects
        && ports.is_empty()
        && hook.is_some()
        && matches().all(|condition| field(condition).is_empty() && !is_limited(condition));
    (on_the_way && (named || everything)).then_some(harm)
}

/// Whether a condition without a header's field narrows a rule down to other than what comes in.
fn is_limited(condition: &Value) -> bool {
    let key = condition.pointer("/left/meta/key").and_then(Value::as_str);
    !matches!(key, Some("l4proto" | "nfproto" | "iif" | "iifname"))
}

/// Whether a number, a set, a range or a prefix of them holds the port.
fn holds(value: &Value, port: u16) -> bool {
    let number = |value: &Value| value.as_u64();
    if let Some(one) = number(value) {
        return one == u64::from(port);
    }
    if let Some(set) = value.get("set").and_then(Value::as_array) {
        return set.iter().any(|element| holds(element, port));
    }
    if let Some([from, to]) = value
        .get("range")
        .and_then(Value::as_array)
        .map(Vec::as_slice)
    {
        let bounds = (number(from), number(to));
        return matches!(bounds, (Some(from), Some(to)) if (from..=to).contains(&u64::from(port)));
    }
    false
}

/// From `iptables-save`, which prints the rules of both kinds of iptables.
pub(super) fn from_iptables(text: &str, port: u16) -> Result<Vec<Rule>, String> {
    let mut found = Vec::new();
    let mut table = "";
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = name.trim();
        }
        let words: Vec<_> = line.split_whitespace().collect();
        let Some((&"-A", [chain, rest @ ..])) = words.split_first() else {
            continue;
        };
        if let Some(harm) = iptables_harm(chain, rest, port) {
            let place = format!("iptables rule `{line}` in table {table}");
            found.push(Rule { place, harm });
        }
    }
    Ok(found)
}

fn iptables_harm(chain: &str, words: &[&str], port: u16) -> Option<Harm> {
    let after = |flag: &str| {
        let at = words.iter().position(|word| *word == flag)?;
        let not = at.checked_sub(1).and_then(|at| words.get(at)) == Some(&"!");
        words.get(at + 1).map(|value| (*value, not))
    };
    let harm = match after("-j")?.0 {
        "REDIRECT" | "DNAT" => Harm::Redirects,
        "DROP" | "REJECT" => Harm::Drops,
        _ => return None,
    };
    let elsewhere = match harm {
        Harm::Redirects => ["OUTPUT", "POSTROUTING", "INPUT"].as_slice(),
        Harm::Drops => ["OUTPUT", "POSTROUTING", "FORWARD"].as_slice(),
    };
    if elsewhere.contains(&chain) {
        return None;
    }
    let ports = after("--dport").or_else(|| after("--dports"));
    let everything = harm == Harm::Redirects
        && chain == "PREROUTING"
        && ["-d", "-s", "-m"].iter().all(|flag| after(flag).is_none());
    let applies = match ports {
        Some((ports, not)) => {
            let holds = ports.split(',').any(|part| {
                let (from, to) = part.split_once(':').unwrap_or((part, part));
                let bounds = (from.parse::<u16>(), to.parse::<u16>());
                matches!(bounds, (Ok(from), Ok(to)) if (from..=to).contains(&port))
            });
            holds != not
        }
        None => everything,
    };
    applies.then_some(harm)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn nft(hook: &str, expressions: &Value) -> Vec<Harm> {
        let text = json!({ "nftables": [
            { "metainfo": { "version": "1.0.6" } },
            { "chain": { "family": "ip", "table": "nat", "name": "c", "type": "nat", "hook": hook } },
            { "rule": { "family": "ip", "table": "nat", "chain": "c", "handle": 4,
                        "expr": expressions } },
        ]});
        let rules = from_nft(&text.to_string(), 10250).unwrap();
        rules.into_iter().map(|rule| rule.harm).collect()
    }

    fn dport(op: &str, right: &Value) -> Value {
        json!({ "match": { "op": op, "right": right,
            "left": { "payload": { "protocol": "tcp", "field": "dport" } } } })
    }

    #[test]
    fn a_redirect_of_the_port_counts_on_its_way_in_only() {
        let rule = json!([dport("==", &json!(10250)), { "redirect": { "port": 1 } }]);
        assert_eq!(nft("prerouting", &rule), [Harm::Redirects]);
        assert_eq!(nft("output", &rule), []);
    }

    #[test]
    fn sets_ranges_and_negations_of_ports_are_understood() {
        let target = json!({ "dnat": { "addr": "192.0.2.1" } });
        for (op, right, counts) in [
            ("==", json!({ "set": [22, 10250] }), true),
            (
                "==",
                json!({ "set": [22, { "range": [10000, 11000] }] }),
                true,
            ),
            ("==", json!({ "range": [1, 1023] }), false),
            ("!=", json!(22), true),
            ("!=", json!(10250), false),
        ] {
            let found = nft("prerouting", &json!([dport(op, &right), target]));
            assert_eq!(!found.is_empty(), counts, "{op} {right}");
        }
    }

    #[test]
    fn a_redirect_of_everything_counts_and_one_of_a_services_address_does_not() {
        let target = json!({ "redirect": { "port": 1 } });
        let tcp = json!({ "match": { "op": "==", "right": "tcp",
            "left": { "meta": { "key": "l4proto" } } } });
        let service = json!({ "match": { "op": "==", "right": "10.96.0.1",
            "left": { "payload": { "protocol": "ip", "field": "daddr" } } } });
        assert_eq!(nft("prerouting", &json!([tcp, target])), [Harm::Redirects]);
        assert_eq!(nft("prerouting", &json!([tcp, service, target])), []);
    }

    #[test]
    fn a_drop_of_the_port_counts_on_input() {
        let rule = json!([dport("==", &json!(10250)), { "drop": null }]);
        assert_eq!(nft("input", &rule), [Harm::Drops]);
        assert_eq!(nft("forward", &rule), []);
        assert_eq!(nft("input", &json!([{ "drop": null }])), []);
    }

    #[test]
    fn what_is_no_ruleset_is_an_error() {
        assert!(from_nft("{}", 1).is_err());
        assert!(from_nft("no JSON", 1).is_err());
    }

    #[test]
    fn rules_of_iptables_are_read_line_by_line() {
        let text = "*nat\n:PREROUTING ACCEPT [0:0]\n\
            -A PREROUTING -p tcp -m tcp --dport 10250 -j REDIRECT --to-ports 12251\n\
            -A PREROUTING -d 10.96.0.1/32 -p tcp -m tcp --dport 443 -j DNAT --to-destination 1.1.1.1\n\
            -A OUTPUT -p tcp -m tcp --dport 10250 -j REDIRECT --to-ports 1\n\
            -A KUBE-SEP-X -p tcp -m tcp -j DNAT --to-destination 10.244.0.2:53\n\
            COMMIT\n*filter\n\
            -A INPUT -p tcp -m multiport --dports 22,10000:10300 -j DROP\n\
            -A INPUT -p tcp -m tcp ! --dport 10250 -j DROP\n\
            -A INPUT -p tcp -m tcp --dport 10250 -j ACCEPT\nCOMMIT\n";
        let rules = from_iptables(text, 10250).unwrap();
        let [redirect, drop] = rules.as_slice() else {
            panic!("{rules:?}");
        };
        assert_eq!((redirect.harm, drop.harm), (Harm::Redirects, Harm::Drops));
        assert!(redirect.place.ends_with("in table nat"), "{redirect}");
        assert!(drop.place.contains("--dports 22,10000:10300"), "{drop}");
    }
}
