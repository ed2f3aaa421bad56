//! What a running process really has, as `/proc` and the kernel tell. Reading waits for what the process does at the moment (its
//! page faults, its disk): not for the event loop.

mod mounts;

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::process::{Identity, ProcStat};
pub use mounts::{Mount, Mounts};

/// Of one file in `/proc`.
const MOST: u64 = 1 << 20;
/// Descriptors, sockets and mounts of one process.
const MANY: usize = 4096;

/// A process as it was at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    pub pid: i32,
    pub parent: i32,
    pub command: Vec<String>,
    /// `Name: value` of `status`.
    status: BTreeMap<String, String>,
    /// Soft and hard, by the kernel's words (`Max open files`); `None` is unlimited.
    pub rlimits: BTreeMap<String, [Option<u64>; 2]>,
    pub nice: i32,
    pub io: Option<String>,
    pub oom_score: Option<i32>,
    /// Its program's file; `None` where that may not be known.
    pub executable: Option<PathBuf>,
    pub directory: Option<PathBuf>,
    pub root: Option<PathBuf>,
    /// Of these kinds its namespaces are others than ours.
    pub namespaces: Vec<&'static str>,
    pub mounts: Mounts,
    /// `127.0.0.1:8000`, `unix:/run/a.sock`.
    pub listens: Vec<String>,
    /// Names of variables at the start; `None` where they may not be read.
    pub environment: Option<Vec<String>>,
}

const NAMESPACES: [&str; 7] = ["mnt", "pid", "net", "user", "ipc", "uts", "cgroup"];
impl Seen {
    /// `None` if there is no such process any more, or another one has its number.
    pub fn of(pid: i32) -> Option<Seen> {
        let identity = Identity::of(pid)?;
        let stat = ProcStat::read(pid)?;
        let mut seen = Seen { pid, parent: stat.parent, command: words(&read(pid, "cmdline")?), ..Seen::default() };
        if seen.command.is_empty() {
            seen.command.push(stat.comm);
        }
        let status = text(pid, "status")?;
        let pairs = status.lines().filter_map(|line| line.split_once(':'));
        seen.status = pairs.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect();
        seen.rlimits = rlimits(&text(pid, "limits").unwrap_or_default());
        seen.nice = nice(&text(pid, "stat")?)?;
        seen.io = io_priority(pid);
        seen.oom_score = text(pid, "oom_score_adj").and_then(|text| text.trim().parse().ok());
        let link = |name: &str| fs::read_link(format!("/proc/{pid}/{name}")).ok();
        (seen.executable, seen.directory, seen.root) = (link("exe"), link("cwd"), link("root"));
        let own = |name: &str| fs::read_link(format!("/proc/self/ns/{name}")).ok();
        let other = |name: &&str| link(&format!("ns/{name}")).is_some_and(|it| Some(it) != own(name));
        seen.namespaces = NAMESPACES.into_iter().filter(other).collect();
        seen.mounts = Mounts::parse(&text(pid, "mountinfo").unwrap_or_default(), MANY);
        seen.listens = listens(pid);
        let names =
            |bytes: Vec<u8>| words(&bytes).iter().filter_map(|v| Some(v.split_once('=')?.0.to_owned())).collect();
        seen.environment = read(pid, "environ").map(names);
        // Else it was two of them.
        identity.is(super::process::start_time(pid)).then_some(seen)
    }

    /// Of `status`.
    pub fn says(&self, name: &str) -> &str {
        self.status.get(name).map_or("", String::as_str)
    }

    /// Numbers of `status`: `Uid`, `Gid`, `Groups`.
    pub fn numbers(&self, name: &str) -> Vec<u32> {
        self.says(name).split_ascii_whitespace().filter_map(|n| n.parse().ok()).collect()
    }

    /// A set of capabilities of `status`: `CapEff`, `CapBnd`, `CapAmb`.
    pub fn capabilities(&self, name: &str) -> u64 {
        u64::from_str_radix(self.says(name), 16).unwrap_or(0)
    }
}

fn read(pid: i32, name: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::open(format!("/proc/{pid}/{name}")).ok()?.take(MOST).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

fn text(pid: i32, name: &str) -> Option<String> {
    read(pid, name).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// Behind each of them is a NUL.
fn words(bytes: &[u8]) -> Vec<String> {
    let all = bytes.split(|c| *c == 0).map(|word| String::from_utf8_lossy(word).into_owned());
    let mut all: Vec<String> = all.collect();
    while all.last().is_some_and(String::is_empty) {
        all.pop();
    }
    all
}

/// Columns have a fixed width; the first word that is a number or `unlimited` begins the second.
fn rlimits(text: &str) -> BTreeMap<String, [Option<u64>; 2]> {
    let number = |word: &str| if word == "unlimited" { Some(None) } else { word.parse().ok().map(Some) };
    let line = |line: &str| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let at = words.iter().position(|word| number(word).is_some())?;
        Some((words[..at].join(" "), [number(words[at])?, number(words.get(at + 1)?)?]))
    };
    text.lines().skip(1).filter_map(line).collect()
}

/// Field 19 of `stat`; the name before it may have anything in it.
fn nice(stat: &str) -> Option<i32> {
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(16)?.parse().ok()
}

/// `best-effort:4`, as `[limits]` has it; `None` where it follows from the nice value.
fn io_priority(pid: i32) -> Option<String> {
    const WHO_PROCESS: i32 = 1;
    // SAFETY: numbers only.
    let got = unsafe { libc::syscall(libc::SYS_ioprio_get, WHO_PROCESS, pid) };
    let (class, level) = (got >> 13, got & 7);
    match class {
        1 => Some(format!("realtime:{level}")),
        2 => Some(format!("best-effort:{level}")),
        3 => Some("idle".to_owned()),
        _ => None,
    }
}

/// The listening sockets among its descriptors, by the tables of its network namespace.
fn listens(pid: i32) -> Vec<String> {
    let fds = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten().take(MANY);
    let inode = |path: PathBuf| {
        let to = fs::read_link(path).ok()?;
        let text = to.as_os_str().as_bytes().strip_prefix(b"socket:[")?.strip_suffix(b"]")?;
        std::str::from_utf8(text).ok()?.parse::<u64>().ok()
    };
    let open: Vec<u64> = fds.filter_map(|fd| inode(fd.path())).collect();
    if open.is_empty() {
        return Vec::new();
    }
    let mut found = Vec::new();
    for (table, six) in [("net/tcp", false), ("net/tcp6", true)] {
        for line in text(pid, table).unwrap_or_default().lines().skip(1) {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            let (Some(local), Some(&"0A"), Some(inode)) = (fields.get(1), fields.get(3), fields.get(9)) else {
                continue;
            };
            if inode.parse().is_ok_and(|inode: u64| open.contains(&inode)) {
                found.extend(address(local, six));
            }
        }
    }
    for line in text(pid, "net/unix").unwrap_or_default().lines().skip(1) {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        // __SO_ACCEPTCON
        let (Some(&"00010000"), Some(inode)) = (fields.get(3), fields.get(6)) else { continue };
        if inode.parse().is_ok_and(|inode: u64| open.contains(&inode)) {
            found.push(format!("unix:{}", fields.get(7).unwrap_or(&"(no name)")));
        }
    }
    found.sort_unstable();
    found.dedup();
    found
}

/// `0100007F:1F90`, the address in the machine's order of bytes, four at a time.
fn address(text: &str, six: bool) -> Option<String> {
    let (host, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| Some(u32::from_str_radix(host.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    if !six {
        return Some(format!("{}:{port}", std::net::Ipv4Addr::from(word(0)?)));
    }
    let mut bytes = [0; 16];
    for (at, four) in bytes.chunks_mut(4).enumerate() {
        four.copy_from_slice(&word(at * 8)?);
    }
    Some(format!("[{}]:{port}", std::net::Ipv6Addr::from(bytes)))
}

/// What the control groups above a process, its own included, limit it to: the least number in files of this name (`memory.max`).
pub fn group_limit(group: &Path, file: &str) -> Option<u64> {
    let number = |dir: &Path| fs::read_to_string(dir.join(file)).ok()?.trim().parse().ok();
    let within = |dir: &&Path| dir.starts_with("/sys/fs/cgroup");
    group.ancestors().take_while(within).filter_map(number).min()
}

/// As [`group_limit`], of `cpu.max`, in hundredths of one CPU.
pub fn group_cpu(group: &Path) -> Option<u64> {
    let share = |dir: &Path| {
        let text = fs::read_to_string(dir.join("cpu.max")).ok()?;
        let (quota, period) = text.trim().split_once(' ')?;
        quota.parse::<u64>().ok()?.checked_mul(100)?.checked_div(period.parse().ok()?)
    };
    group.ancestors().take_while(|dir| dir.starts_with("/sys/fs/cgroup")).filter_map(share).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_sees_itself() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let six = std::net::TcpListener::bind("[::1]:0").ok();
        let own = i32::try_from(std::process::id()).expect("a pid");
        let seen = Seen::of(own).expect("it lives");
        assert_eq!(seen.numbers("Uid").first().copied(), Some(nix::unistd::getuid().as_raw()));
        assert!(seen.listens.contains(&listener.local_addr().expect("bound").to_string()), "{:?}", seen.listens);
        if let Some(six) = six {
            assert!(seen.listens.contains(&six.local_addr().expect("bound").to_string()), "{:?}", seen.listens);
        }
        assert_eq!(seen.directory, std::env::current_dir().ok());
        assert!(seen.namespaces.is_empty() && seen.rlimits.contains_key("Max open files"), "{seen:?}");
        assert!(seen.environment.as_ref().is_some_and(|names| names.iter().any(|name| name == "PATH")));
        assert_eq!(Seen::of(i32::MAX), None);
    }

    #[test]
    fn tables_of_the_kernel_are_understood() {
        let text = "Limit                     Soft Limit           Hard Limit           Units\nMax open files            1024                 unlimited            files\nMax nice priority         0                    0\n";
        assert_eq!(rlimits(text)["Max open files"], [Some(1024), None]);
        assert_eq!(nice("7 (a) b)) S 1 1 1 0 -1 4 1 0 0 0 1 2 3 4 20 -5 1 0 9"), Some(-5));
    }
}
