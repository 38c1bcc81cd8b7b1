//! What a figure was measured on: without that it means nothing to anybody else.
//!
//! Owns reading the facts from `/proc`. The load average is the one before the bench began, so
//! that a run beside other work can be told by its own output.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// The machine, before anything was measured.
#[derive(Clone, Debug)]
pub(super) struct Machine {
    cpu: String,
    cores: usize,
    kernel: String,
    memory_mib: u64,
    /// Of the namespaces that are made here; one that paces costs timers.
    congestion_control: String,
    load_average: [f64; 3],
}

impl Machine {
    pub(super) fn look() -> Result<Self> {
        let cpuinfo = read("/proc/cpuinfo")?;
        let meminfo = read("/proc/meminfo")?;
        let loadavg = read("/proc/loadavg")?;
        Ok(Self {
            cpu: field(&cpuinfo, "model name")
                .unwrap_or("unknown")
                .to_owned(),
            cores: std::thread::available_parallelism()
                .context("cannot count the processors")?
                .get(),
            kernel: read("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            memory_mib: kib(&meminfo, "MemTotal").context("no MemTotal in /proc/meminfo")? / 1024,
            congestion_control: read("/proc/sys/net/ipv4/tcp_congestion_control")?
                .trim()
                .to_owned(),
            load_average: loads(&loadavg)
                .with_context(|| format!("/proc/loadavg has another form: {loadavg}"))?,
        })
    }

    pub(super) fn to_json(&self) -> Value {
        json!({
            "cpu": self.cpu,
            "cores": self.cores,
            "kernel": self.kernel,
            "memory_mib": self.memory_mib,
            "congestion_control": self.congestion_control,
            "load_average_before": self.load_average,
        })
    }

    /// One line for people.
    pub(super) fn line(&self) -> String {
        let [one, five, fifteen] = self.load_average;
        format!(
            "{}, {} cores, {} MiB, Linux {}, TCP {}, load average before {one} {five} {fifteen}",
            self.cpu, self.cores, self.memory_mib, self.kernel, self.congestion_control
        )
    }
}

fn read(path: impl AsRef<Path>) -> Result<String> {
    let path = path.as_ref();
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// The value of the first line `key : value`; spaces around the colon do not matter.
pub(super) fn field<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        (name.trim() == key).then(|| value.trim())
    })
}

/// A size that `/proc` gives in KiB.
pub(super) fn kib(text: &str, key: &str) -> Option<u64> {
    field(text, key)?.split_whitespace().next()?.parse().ok()
}

fn loads(loadavg: &str) -> Option<[f64; 3]> {
    let mut fields = loadavg.split_whitespace().map(|field| field.parse().ok());
    Some([fields.next()??, fields.next()??, fields.next()??])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let text = "model\t\t: 17\nmodel name\t: AMD EPYC\nRssFile:\t    5120 kB\n";
        assert_eq!(field(text, "model name"), Some("AMD EPYC"));
        assert_eq!(kib(text, "RssFile"), Some(5120));
        assert_eq!(kib(text, "Rss"), None);
    }

    #[test]
    fn load_averages_are_the_first_three_numbers() {
        assert_eq!(
            loads("0.52 1.26 0.06 2/190 4711\n"),
            Some([0.52, 1.26, 0.06])
        );
        assert_eq!(loads("0.52"), None);
    }

    #[test]
    fn this_machine_has_a_name_and_a_size() {
        let machine = Machine::look().expect("/proc is there");
        assert!(machine.cores >= 1 && machine.memory_mib > 16, "{machine:?}");
        assert!(machine.line().contains("Linux "), "{}", machine.line());
    }
}
