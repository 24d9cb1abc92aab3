//! Kernel, memory and processors as a whole.

use super::{Live, Proc, text};
use serde::{Deserialize, Serialize};

/// The kernel that runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Kernel {
    /// `Linux`.
    pub name: Option<String>,
    /// As `uname -r` prints it.
    pub release: Option<String>,
    /// As `uname -v` prints it.
    pub version: Option<String>,
    /// The host's name, as it is now.
    pub hostname: Option<String>,
    /// Names this start of the system.
    pub boot_id: Option<String>,
    /// The command line that it was started with.
    pub command_line: Option<String>,
}

/// Use of memory, in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Memory {
    /// All that the kernel has.
    pub total: Option<u64>,
    /// What programs could have without swapping; kernels before 3.14 do not say.
    pub available: Option<u64>,
    /// What is not used for anything.
    pub free: Option<u64>,
    /// Room for swapping.
    pub swap_total: Option<u64>,
    /// Room for swapping that is free.
    pub swap_free: Option<u64>,
}

pub(super) fn read(proc: &dyn Proc, live: &mut Live) {
    let line = |path: &str| {
        let content = proc.read(path, 64 << 10)?;
        let line = text(content.trim_ascii());
        (!line.is_empty()).then_some(line)
    };
    live.kernel = Kernel {
        name: line("sys/kernel/ostype"),
        release: line("sys/kernel/osrelease"),
        version: line("sys/kernel/version"),
        hostname: line("sys/kernel/hostname"),
        boot_id: line("sys/kernel/random/boot_id"),
        command_line: line("cmdline"),
    };
    live.uptime = line("uptime").and_then(|u| u.split(['.', ' ']).next()?.parse().ok());
    live.load = line("loadavg").and_then(|load| {
        let mut numbers = load
            .split(' ')
            .map(|n| n.parse::<f64>().ok().filter(|n| n.is_finite()));
        Some([numbers.next()??, numbers.next()??, numbers.next()??])
    });
    if let Some(stat) = proc.read("stat", 4 << 20).map(|s| text(&s)) {
        let cpus = stat.lines().filter(|l| {
            let number = l.strip_prefix("cpu").and_then(|l| l.split(' ').next());
            number.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
        });
        live.cpus = u32::try_from(cpus.count()).ok().filter(|n| *n > 0);
        live.cpu_busy = stat.lines().next().and_then(busy);
    }
    let memory = proc
        .read("meminfo", 1 << 20)
        .map(|m| text(&m))
        .unwrap_or_default();
    let kilobytes = |name: &str| -> Option<u64> {
        let line = memory
            .lines()
            .find_map(|l| l.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim()
            .strip_suffix("kB")?
            .trim()
            .parse::<u64>()
            .ok()?
            .checked_mul(1024)
    };
    live.memory = Memory {
        total: kilobytes("MemTotal"),
        available: kilobytes("MemAvailable"),
        free: kilobytes("MemFree"),
        swap_total: kilobytes("SwapTotal"),
        swap_free: kilobytes("SwapFree"),
    };
}

/// From `cpu user nice system idle iowait irq softirq steal ...`; guests are in user and nice already.
fn busy(line: &str) -> Option<f64> {
    let mut numbers = line.split_whitespace();
    (numbers.next()? == "cpu").then_some(())?;
    let times: Vec<u64> = numbers.take(8).filter_map(|n| n.parse().ok()).collect();
    let all = times.iter().fold(0u64, |a, b| a.saturating_add(*b));
    let idle = times.get(3)?.saturating_add(times.get(4).copied().unwrap_or(0));
    (all > 0).then(|| ((all.saturating_sub(idle)) as f64 / all as f64 * 1e4).round() / 1e4)
}
