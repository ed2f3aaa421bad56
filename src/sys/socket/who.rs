//! Which process holds a port, for the message that it is taken.

use crate::sys::process::{ProcStat, all_pids};

/// "nginx (pid 812)" for the process that listens on this TCP port, as far as `/proc` tells us.
pub fn holder_of_port(port: u16) -> Option<String> {
    let inodes: Vec<String> = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|file| std::fs::read_to_string(file).ok())
        .flat_map(|text| listeners(&text, port))
        .collect();
    let wanted: Vec<String> = inodes.iter().map(|i| format!("socket:[{i}]")).collect();
    if wanted.is_empty() {
        return None;
    }
    let pid = all_pids().into_iter().find(|pid| holds(*pid, &wanted))?;
    let comm = ProcStat::read(pid)?.comm;
    Some(format!("{comm} (pid {pid})"))
}

/// Inodes of the sockets that listen on this port, from the text of `/proc/net/tcp` (`proc_pid_net(5)`).
fn listeners(text: &str, port: u16) -> Vec<String> {
    const LISTEN: &str = "0A";
    let suffix = format!(":{port:04X}");
    text.lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            let ours = fields.get(1)?.ends_with(&suffix) && *fields.get(3)? == LISTEN;
            ours.then(|| fields.get(9).map(|inode| (*inode).to_string()))?
        })
        .collect()
}

fn holds(pid: i32, wanted: &[String]) -> bool {
    let Ok(entries) = std::fs::read_dir(format!("/proc/{pid}/fd")) else {
        return false;
    };
    entries.flatten().any(|entry| {
        std::fs::read_link(entry.path()).is_ok_and(|link| link.to_str().is_some_and(|l| wanted.iter().any(|w| w == l)))
    })
}
