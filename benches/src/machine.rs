//! What processes and the machine have spent, from `/proc`.

use std::env;
use std::fs;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};

/// Kernel ticks per second in `/proc/stat`; fixed by the kernel's ABI.
const CLK_TCK: f64 = 100.0;

/// Set in a process that already runs in a network namespace of its own.
const OWN_NETWORK: &str = "TIDINGS_BENCH_OWN_NETWORK";

/// CPU time that all live threads of a process have used, in nanoseconds.
///
/// `schedstat` rather than `stat`, because the latter counts in ticks of 10 ms: a paced run uses few of them. Threads
/// that ended are missing, so compare two readings between which none ends.
///
/// # Errors
/// If the process is gone.
pub fn cpu_ns(pid: u32) -> Result<u64> {
    let mut total = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task")).with_context(|| format!("process {pid} is gone"))? {
        // A thread may end after it was listed.
        let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) else { continue };
        total += text.split(' ').next().and_then(|field| field.parse::<u64>().ok()).context("schedstat")?;
    }
    Ok(total)
}

/// Resident memory of a process, in bytes.
///
/// # Errors
/// If the process is gone.
pub fn resident_bytes(pid: u32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find(|line| line.starts_with("VmRSS:")).context("no VmRSS")?;
    let kib: u64 = line.split_whitespace().nth(1).context("VmRSS")?.parse()?;
    Ok(kib * 1024)
}

/// CPU time that the whole machine has spent on anything, in seconds.
///
/// # Errors
/// If `/proc/stat` cannot be read.
pub fn busy_seconds() -> Result<f64> {
    let text = fs::read_to_string("/proc/stat")?;
    let line = text.lines().next().context("empty /proc/stat")?;
    let fields: Vec<f64> = line.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal
    let busy =
        fields.iter().take(8).enumerate().filter(|(at, _)| !matches!(at, 3 | 4)).map(|(_, ticks)| ticks);
    Ok(busy.sum::<f64>() / CLK_TCK)
}

/// Bytes sent over the loopback interface of this network namespace.
///
/// A segmentation-offloaded packet counts once, with one set of headers: payload is exact, headers are a lower bound.
///
/// # Errors
/// If `/proc/net/dev` cannot be read.
pub fn loopback_bytes() -> Result<u64> {
    let text = fs::read_to_string("/proc/net/dev")?;
    let line =
        text.lines().find_map(|line| line.trim().strip_prefix("lo:")).context("no loopback interface")?;
    line.split_whitespace().nth(8).context("/proc/net/dev")?.parse().context("/proc/net/dev")
}

/// Continues in a network namespace of its own, where the loopback counters see nothing but this run. Returns whether
/// it is in one; as another user than root it is not, and byte counts include other traffic.
pub fn enter_own_network() -> bool {
    if env::var_os(OWN_NETWORK).is_some() {
        return true;
    }
    let allowed =
        Command::new("unshare").args(["--net", "true"]).output().is_ok_and(|out| out.status.success());
    if allowed && let Ok(program) = env::current_exe() {
        let failure = Command::new("unshare")
            .args(["--net", "sh", "-c", "ip link set lo up && exec \"$0\" \"$@\""])
            .arg(program)
            .args(env::args_os().skip(1))
            .env(OWN_NETWORK, "1")
            .exec();
        eprintln!("no network namespace of its own: {failure}");
    }
    false
}

/// Model of the processor and number of cores, kernel and load: what a reader needs beside any figure.
#[must_use]
pub fn describe() -> String {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let models: Vec<_> = cpuinfo.lines().filter_map(|line| line.strip_prefix("model name")).collect();
    let model = models.first().map_or("unknown processor", |line| line.trim_start_matches([' ', '\t', ':']));
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').take(3).collect::<Vec<_>>().join(" ");
    format!("{} × {model}, Linux {}, load {load}", models.len(), kernel.trim())
}
