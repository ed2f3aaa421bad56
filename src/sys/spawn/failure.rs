//! The steps between fork and exec, and what is said when one of them fails.

use std::fmt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::Prepared;

/// What a child does before its program runs, in this order. The numbers are written into the slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Step {
    Cgroup = 1,
    Session,
    Descriptor,
    Terminal,
    Nice,
    Io,
    Cpus,
    OomScore,
    Limit,
    Groups,
    Gid,
    Uid,
    Directory,
    Exec,
    /// In the stub: becoming a sub-reaper, opening its descriptors.
    Stub,
    /// In the stub: forking the worker.
    StubFork,
}

impl Step {
    pub(super) fn from_number(number: u8) -> Option<Step> {
        use Step::*;
        [
            Cgroup, Session, Descriptor, Terminal, Nice, Io, Cpus, OomScore, Limit, Groups, Gid, Uid, Directory, Exec,
            Stub, StubFork,
        ]
        .into_iter()
        .find(|step| *step as u8 == number)
    }
}

/// A step that failed in the child. Its `Display` knows no names; [`ExecFailure::describe`] adds them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExecFailure {
    pub step: Step,
    /// As in `errno(3)`.
    pub errno: i32,
    /// The descriptor's number for [`Step::Descriptor`], the resource for [`Step::Limit`], else 0.
    pub detail: u32,
}

impl fmt::Display for ExecFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.subject(None), self.reason())
    }
}

impl ExecFailure {
    fn reason(&self) -> &'static str {
        Errno::from_raw(self.errno).desc()
    }

    fn subject(&self, prepared: Option<&Prepared>) -> String {
        let ids = prepared.and_then(|p| p.ids.as_ref());
        match self.step {
            Step::Cgroup => "cannot join its cgroup".into(),
            Step::Session => "cannot start a new session".into(),
            Step::Descriptor => match prepared.and_then(|p| p.wire_text(self.detail as i32)) {
                Some(path) => format!("cannot open {path} as descriptor {}", self.detail),
                None => format!("cannot put descriptor {} in place", self.detail),
            },
            Step::Terminal => "cannot make its terminal the controlling one".into(),
            Step::Nice => match prepared.and_then(|p| p.nice) {
                Some(nice) => format!("cannot set the nice value {nice} ([limits] nice)"),
                None => "cannot set the nice value".into(),
            },
            Step::Io => "cannot set the priority of its I/O ([limits] io)".into(),
            Step::Cpus => "cannot bind it to its CPUs ([limits] cpus)".into(),
            Step::OomScore => match prepared.and_then(|p| p.oom_score_adj) {
                Some(score) => format!("cannot set oom_score_adj to {score} ([limits] oom_score)"),
                None => "cannot set oom_score_adj".into(),
            },
            Step::Limit => format!("cannot set the limit {}", limit_name(self.detail)),
            Step::Groups => "cannot set the supplementary groups".into(),
            Step::Gid => match ids {
                Some(ids) => format!("cannot change to group {}", ids.gid),
                None => "cannot change the group".into(),
            },
            Step::Uid => match ids {
                Some(ids) => format!("cannot change to user {}", ids.uid),
                None => "cannot change the user".into(),
            },
            Step::Directory => match prepared {
                Some(p) => format!("cannot change to directory {}", p.directory.to_string_lossy()),
                None => "cannot change the directory".into(),
            },
            Step::Exec => match prepared {
                Some(p) => format!("cannot execute {}", p.program.to_string_lossy()),
                None => "cannot execute the program".into(),
            },
            Step::Stub => "cannot prepare the process that keeps the worker's descendants".into(),
            Step::StubFork => "cannot fork".into(),
        }
    }

    /// One sentence with the names: "cannot change to directory /srv/x: No such file or directory".
    ///
    /// Looks at the file system to tell, for example, a missing interpreter from a missing program.
    pub fn describe(&self, prepared: &Prepared) -> String {
        let sentence = format!("{}: {}", self.subject(Some(prepared)), self.reason());
        match self.hint(prepared) {
            Some(hint) => format!("{sentence} ({hint})"),
            None => sentence,
        }
    }

    fn hint(&self, prepared: &Prepared) -> Option<String> {
        let errno = Errno::from_raw(self.errno);
        match (self.step, errno) {
            (Step::Groups | Step::Gid | Step::Uid, Errno::EPERM) => {
                Some("only root can start programs as another user; run svd as root, or leave `user` out".into())
            }
            // Linux counts at the change of user, and says so at the exec.
            (Step::Uid | Step::Exec, Errno::EAGAIN) => {
                Some("the user has as many processes as its limit allows".into())
            }
            (Step::Directory, Errno::EACCES) => prepared
                .ids
                .as_ref()
                .map(|ids| format!("user {} needs search permission on every directory of the path", ids.uid)),
            (Step::Nice, Errno::EPERM | Errno::EACCES) => Some("only root may lower the nice value".into()),
            (Step::Limit, Errno::EPERM) if self.detail == libc::RLIMIT_NOFILE => {
                Some("only root may raise a hard limit, and nobody beyond the kernel's fs.nr_open".into())
            }
            (Step::Limit, Errno::EPERM) => Some("only root may raise a hard limit".into()),
            (Step::OomScore, Errno::EACCES) => Some("only root may go below svd's own".into()),
            (Step::Io, Errno::EPERM) => Some("only root may use the realtime class".into()),
            (Step::Cpus, Errno::EINVAL) => {
                Some("svd may run on none of them: see Cpus_allowed_list of /proc/self/status".into())
            }
            (Step::Exec, errno) => exec_hint(&path_of(&prepared.program), errno),
            _ => None,
        }
    }
}

fn path_of(text: &std::ffi::CStr) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    PathBuf::from(std::ffi::OsStr::from_bytes(text.to_bytes()))
}

/// `execve(2)` says "No such file" for a missing interpreter, too; that has cost many people an evening.
fn exec_hint(program: &Path, errno: Errno) -> Option<String> {
    let meta = std::fs::metadata(program).ok();
    match (errno, meta) {
        (Errno::ENOENT, Some(_)) => Some(match interpreter(program) {
            Some(name) => format!("the file is there, but its interpreter {name} is not"),
            None => "the file is there, but the loader or library it needs is not".into(),
        }),
        (Errno::EACCES, Some(meta)) if meta.is_dir() => Some("it is a directory".into()),
        (Errno::EACCES, Some(meta)) if meta.permissions().mode() & 0o111 == 0 => {
            Some(format!("it is not executable; chmod +x {}", program.display()))
        }
        (Errno::EACCES, Some(_)) => Some("the user may not execute it, or its file system is mounted noexec".into()),
        (Errno::ENOEXEC, _) => Some("it is no program of this machine, and has no #! line".into()),
        (Errno::E2BIG, _) => Some("arguments and environment are too long together".into()),
        _ => None,
    }
}

fn interpreter(program: &Path) -> Option<String> {
    use std::io::Read;
    let mut start = [0_u8; 256];
    let n = std::fs::File::open(program).ok()?.read(&mut start).ok()?;
    let line = start[..n].strip_prefix(b"#!")?.split(|b| *b == b'\n').next()?;
    let text = String::from_utf8_lossy(line);
    text.split_whitespace().next().map(str::to_string)
}

pub(in crate::sys) fn limit_name(resource: u32) -> String {
    let (name, key) = match resource {
        libc::RLIMIT_NOFILE => ("NOFILE", "open_files"),
        libc::RLIMIT_CORE => ("CORE", "core"),
        libc::RLIMIT_NPROC => ("NPROC", "user_processes"),
        libc::RLIMIT_AS => ("AS", "address_space"),
        libc::RLIMIT_MEMLOCK => ("MEMLOCK", "locked_memory"),
        libc::RLIMIT_STACK => ("STACK", "stack"),
        libc::RLIMIT_CPU => ("CPU", "cpu_time"),
        libc::RLIMIT_FSIZE => ("FSIZE", "file_size"),
        libc::RLIMIT_DATA => ("DATA", "data"),
        libc::RLIMIT_MSGQUEUE => ("MSGQUEUE", "message_queues"),
        libc::RLIMIT_RTTIME => ("RTTIME", "realtime_time"),
        libc::RLIMIT_RTPRIO => ("RTPRIO", "realtime_priority"),
        libc::RLIMIT_SIGPENDING => ("SIGPENDING", "pending_signals"),
        other => return format!("number {other}"),
    };
    format!("RLIMIT_{name} ([limits] {key})")
}

/// The child could not even be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpawnError {
    #[error("cannot fork: {}{}", .0.desc(), fork_hint(.0))]
    Fork(Errno),
    #[error("cannot start a process in its cgroup: {}", .0.desc())]
    Cgroup(Errno),
    #[error("cannot hand over what the process is to be shut in: {}", .0.desc())]
    Entrance(Errno),
    /// The cgroup itself, or a limit of it, as a sentence.
    #[error("{0}")]
    Limited(String),
    #[error("cannot map memory for a child's report: {}", .0.desc())]
    Slot(Errno),
    #[error("cannot lay out the arguments and the environment: {}{}", .0.desc(), layout_hint(.0))]
    Layout(Errno),
    #[error("cannot make the socket pair to the process that keeps the worker: {}", .0.desc())]
    Socket(Errno),
    #[error("cannot make the socket by which that process is reached again: {}", .0.desc())]
    Listener(Errno),
}

fn layout_hint(errno: &Errno) -> &'static str {
    if *errno == Errno::E2BIG { " (together they may have 8 MiB)" } else { "" }
}

fn fork_hint(errno: &Errno) -> &'static str {
    match errno {
        Errno::EAGAIN => " (a limit on processes is reached: ulimit -u, pids.max or kernel.pid_max)",
        Errno::ENOMEM => " (the host has no memory left for another process)",
        Errno::EMFILE => " (svd's limit of open files is reached: ulimit -n)",
        _ => "",
    }
}
