//! What only a running host knows: processes, sockets that listen, mounts, use of memory and processors.
//!
//! All of it is read from `proc(5)` through [`Proc`], so that the agent on the host, a listing that a shell made, and a test
//! are one code. The far side only collects; secrets are judged and blanked on this side, before anything is shown or kept.

mod mounts;
mod process;
mod reader;
mod sockets;
mod system;

pub use mounts::Mount;
pub use process::{Container, Limit, OpenFile, Process};
pub use reader::{HostProc, Proc, SavedProc};
pub use sockets::Listening;
pub use system::{Kernel, Memory};

use serde::{Deserialize, Serialize};

/// What is wanted besides what is always told.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ask {
    /// Values of environment variables too, not only their names.
    pub with_env: bool,
    /// Paths of files and directories: who has one of them, or something below it, open for writing, and who holds a lock on
    /// it. Without a slash at the end.
    pub watch: Vec<String>,
}

/// What a running host knows of itself. What could not be read is `None` or left out, and `unseen` counts it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Live {
    /// The kernel that runs.
    pub kernel: Kernel,
    /// Seconds since the host was started.
    pub uptime: Option<u64>,
    /// Average number of runnable processes over 1, 5 and 15 minutes.
    pub load: Option<[f64; 3]>,
    /// Processors that are on line.
    pub cpus: Option<u32>,
    /// Part of the processors' time since the start that was not idle, 0 to 1.
    pub cpu_busy: Option<f64>,
    /// Use of memory.
    pub memory: Memory,
    /// Processes by number; threads of the kernel and this program's own are left out.
    pub processes: Vec<Process>,
    /// Sockets that wait for others, by protocol, address and port.
    pub listening: Vec<Listening>,
    /// What is mounted, in the order of mounting.
    pub mounts: Vec<Mount>,
    /// Containers that run on the host already.
    pub containers: Vec<Container>,
    /// Watched files that somebody has open for writing or has locked.
    pub open: Vec<OpenFile>,
    /// Processes whose open files could not be seen: it takes root's rights.
    pub unseen: u32,
    /// True if there was more than a list has room for.
    pub cut: bool,
}

/// Most processes, sockets and mounts that are told.
pub(crate) const MOST: usize = 50_000;

/// Reads all of it.
pub fn collect(proc: &dyn Proc, ask: &Ask) -> Live {
    let mut live = Live::default();
    system::read(proc, &mut live);
    live.mounts = mounts::read(proc);
    let sockets = process::read(proc, ask, &mut live);
    live.listening = sockets::read(proc, &sockets);
    for cut in [live.mounts.len(), live.listening.len(), live.processes.len()] {
        live.cut |= cut >= MOST;
    }
    live.mounts.truncate(MOST);
    live.listening.truncate(MOST);
    live
}

/// Bytes of the host as text: as they are if they are UTF-8, else escaped.
pub(crate) fn text(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => crate::error::Escaped(bytes).to_string(),
    }
}

#[cfg(all(test, feature = "full"))]
mod tests;
