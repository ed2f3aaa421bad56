//! Starting a program: everything is prepared before the fork, and between fork and exec there are only system calls.
//!
//! A child uses svd's memory until then where that is possible ([`lent`]), and is forked where not.

mod arena;
pub(super) mod child;
mod failure;
mod lent;
mod plan;
mod program;
mod raw;
mod slots;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::ffi::CString;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;

pub(super) use failure::limit_name;
pub use failure::{ExecFailure, SpawnError, Step};
pub use program::{ProgramError, resolve_program, resolve_program_within};
pub use slots::{Slot, StepSlots};

use super::cgroup::control::Limited;
use super::memory::Heap;
use super::process::PidFd;
use arena::Arena;
use child::{Forked, Way};

/// What becomes a descriptor of the child.
#[derive(Clone, Debug)]
pub enum Source {
    /// A descriptor of ours; it stays open as long as somebody keeps it.
    Fd(Arc<OwnedFd>),
    /// Opened by the child (still as svd's user), with `open(2)` flags such as `O_RDWR`; costs svd no descriptor.
    Path { path: CString, flags: i32 },
    /// `/dev/null`, for reading and writing.
    Null,
}

/// One descriptor of the child.
#[derive(Clone, Debug)]
pub struct Wire {
    pub source: Source,
    /// Its number in the child.
    pub target: RawFd,
}

/// Whom the child becomes.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Ids {
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups; all others are left.
    pub groups: Vec<u32>,
}

/// A resource limit, see `setrlimit(2)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Limit {
    /// `libc::RLIMIT_…`
    pub resource: u32,
    pub soft: u64,
    /// `None` keeps the hard limit; the soft one is then cut to it.
    pub hard: Option<u64>,
}

/// See `ioprio_set(2)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoPriority {
    /// Svd's own says nothing of it: as the nice value has it.
    None,
    /// 0 is first, 7 last, as below.
    Realtime(u8),
    BestEffort(u8),
    Idle,
}

impl IoPriority {
    /// As the kernel has it: the class above the level.
    pub(in crate::sys) fn number(self) -> u16 {
        const CLASS: u32 = 13;
        match self {
            IoPriority::None => 0,
            IoPriority::Realtime(level) => 1 << CLASS | u16::from(level & 7),
            IoPriority::BestEffort(level) => 2 << CLASS | u16::from(level & 7),
            IoPriority::Idle => 3 << CLASS,
        }
    }
}

/// CPUs, a bit for each, as `sched_setaffinity(2)` has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuMask(Vec<u64>);

impl CpuMask {
    /// Of ranges with both ends.
    pub fn of(ranges: &[(u16, u16)]) -> CpuMask {
        let mut words = Vec::new();
        for cpu in ranges.iter().flat_map(|(first, last)| *first..=*last) {
            let (word, bit) = (usize::from(cpu) / 64, u32::from(cpu) % 64);
            if words.len() <= word {
                words.resize(word + 1, 0);
            }
            words[word] |= 1 << bit;
        }
        CpuMask(words)
    }

    pub(in crate::sys) fn of_words(words: Vec<u64>) -> CpuMask {
        CpuMask(words)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(in crate::sys) fn words(&self) -> &[u64] {
        &self.0
    }
}

impl Limit {
    /// For this process.
    pub(super) fn apply(self) -> Result<(), Errno> {
        let mut old = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: the structure is written by the kernel.
        let result = unsafe { libc::prlimit(0, self.resource, std::ptr::null(), &raw mut old) };
        Errno::result(result)?;
        let hard = self.hard.unwrap_or(old.rlim_max);
        let new = libc::rlimit { rlim_cur: self.soft.min(hard), rlim_max: hard };
        // SAFETY: the structure is read by the kernel.
        let result = unsafe { libc::prlimit(0, self.resource, &raw const new, std::ptr::null_mut()) };
        Errno::result(result).map(drop)
    }
}

/// Everything a child needs. Plain data; keep it and use it for every restart.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// The file to execute, see [`resolve_program`].
    pub program: CString,
    /// With `argv[0]`.
    pub argv: Vec<CString>,
    /// `NAME=value`. Without `LISTEN_PID` and `WATCHDOG_PID` when the flags below ask for them.
    pub environment: Vec<CString>,
    /// Where it runs; entered as the child's user.
    pub directory: CString,
    /// `None`: svd's own.
    pub ids: Option<Ids>,
    pub umask: u32,
    /// `None`: svd's own.
    pub nice: Option<i32>,
    /// `None`: svd's own.
    pub io: Option<IoPriority>,
    /// The CPUs that it may run on; none: all that svd may.
    pub cpus: CpuMask,
    pub limits: Vec<Limit>,
    /// Of its control group.
    pub limited: Limited,
    /// Written to `oom_score_adj`; see [`fresh_oom_score`].
    pub oom_score_adj: Option<i32>,
    /// What of 0, 1 and 2 is missing becomes `/dev/null`; everything that is not named is closed.
    pub descriptors: Vec<Wire>,
    /// Adds `LISTEN_PID=` with the child's own pid (`sd_listen_fds(3)`).
    pub listen_pid: bool,
    /// Adds `WATCHDOG_PID=` with the child's own pid (`sd_watchdog_enabled(3)`).
    pub watchdog_pid: bool,
    /// A session of its own (`setsid(2)`), without a terminal.
    pub session: bool,
    /// Descriptor 0 is a terminal, which becomes that of the new session.
    pub terminal: bool,
    /// What [`super::worker::Worker::start`] shuts it in.
    pub sandbox: Option<Arc<super::sandbox::Sandbox>>,
    /// The network that it enters with the sandbox; `None`: one of its own, where the sandbox has that.
    pub network: Option<super::sandbox::Namespace>,
    /// The process whose sandbox it enters; `None`: one of its own.
    pub neighbour: Option<super::sandbox::Neighbour>,
}

impl Prepared {
    /// A program with its arguments (`argv[0]` included), an empty environment, in `/`, in a session of its own.
    pub fn new(program: CString, argv: Vec<CString>) -> Prepared {
        Prepared {
            program,
            argv,
            environment: Vec::new(),
            directory: c"/".into(),
            ids: None,
            umask: 0o022,
            nice: None,
            io: None,
            cpus: CpuMask::default(),
            limits: Vec::new(),
            limited: Limited::default(),
            oom_score_adj: None,
            descriptors: Vec::new(),
            listen_pid: false,
            watchdog_pid: false,
            session: true,
            terminal: false,
            sandbox: None,
            network: None,
            neighbour: None,
        }
    }

    /// The path that was to become descriptor `target`.
    fn wire_text(&self, target: RawFd) -> Option<String> {
        let wire = self.descriptors.iter().find(|w| w.target == target);
        match wire.map(|w| &w.source) {
            Some(Source::Path { path, .. }) => Some(path.to_string_lossy().into_owned()),
            Some(Source::Fd(_)) => None,
            Some(Source::Null) => Some("/dev/null".into()),
            None => (0..3).contains(&target).then(|| "/dev/null".into()),
        }
    }
}

/// Text for the kernel; `None` if it has a NUL inside, which no program could receive.
pub fn c_string(text: impl AsRef<std::ffi::OsStr>) -> Option<CString> {
    CString::new(text.as_ref().as_bytes()).ok()
}

/// As [`c_string`], for paths.
pub fn c_path(path: &Path) -> Option<CString> {
    c_string(path)
}

/// A child that was just started.
#[derive(Debug)]
pub struct Child {
    pub pidfd: PidFd,
    /// Says after an exit with 127 whether the program ever ran.
    pub slot: Slot,
}

impl Child {
    pub fn pid(&self) -> i32 {
        self.pidfd.pid()
    }
}

/// What failed before the program ran; `None` if it ran. Ask after the child ended.
pub fn exec_failure(slot: &Slot) -> Option<ExecFailure> {
    slot.exec_failure()
}

/// Children that may be on their way to their program at once without memory of their own.
const MOST_ARENAS: usize = 16;

/// Starts children, and remembers which way the kernel allows.
#[derive(Debug)]
pub struct Spawner {
    slots: Arc<StepSlots>,
    way: AtomicU8,
    ignored_signals: u64,
    layout: Mutex<Layout>,
}

#[derive(Debug, Default)]
struct Layout {
    arenas: Vec<Arena>,
    heap: Option<Heap>,
    setting: lent::Setting,
}

impl Spawner {
    /// Begins with the best way; a kernel or seccomp filter that refuses it makes it fall back once and for all.
    pub fn new() -> Spawner {
        Spawner::with_way(if lent::works() { Way::Lent } else { Way::Lent.forking() })
    }

    /// As [`Spawner::new`], with children that have no copy of the heap where they are forked: that costs less then, and so
    /// does every page that this process changes afterwards.
    ///
    /// From its first child on the process must start others by this spawner only, or by what copies no memory (`vfork(2)`,
    /// `posix_spawn(3)`).
    pub fn without_heap() -> Spawner {
        let spawner = Spawner::new();
        spawner.layout().heap = Heap::find();
        spawner
    }

    pub(super) fn with_way(way: Way) -> Spawner {
        Spawner {
            slots: StepSlots::new(),
            way: AtomicU8::new(way as u8),
            ignored_signals: child::ignored_signals(),
            layout: Mutex::default(),
        }
    }

    fn way(&self) -> Way {
        Way::from_number(self.way.load(Ordering::Relaxed))
    }

    fn layout(&self) -> MutexGuard<'_, Layout> {
        self.layout.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the program, in the cgroup whose directory is given. Errors in the child come by its exit with 127.
    pub fn spawn(&self, prepared: &Prepared, cgroup: Option<BorrowedFd<'_>>) -> Result<Child, SpawnError> {
        // A child that takes over none of our descriptors need not copy them all.
        let takes_over = prepared.descriptors.iter().any(|w| matches!(w.source, Source::Fd(_)));
        self.start(prepared, cgroup, !takes_over, None::<fn(&mut child::Plan<'_>, Way) -> Infallible>)
    }

    /// Forks a process that runs `stub` (system calls only!) with the plan of the worker.
    pub(super) fn spawn_stub(
        &self,
        prepared: &Prepared,
        stub: impl Fn(&mut child::Plan<'_>, Way) -> Infallible,
    ) -> Result<Child, SpawnError> {
        self.start(prepared, None, false, Some(stub))
    }

    /// Gives back memory that only many starts at once needed.
    pub fn trim(&self) {
        let mut kept = 0;
        self.layout().arenas.retain(|arena| {
            kept += 1;
            kept == 1 || arena.is_lent()
        });
    }

    fn start(
        &self,
        prepared: &Prepared,
        cgroup: Option<BorrowedFd<'_>>,
        share_files: bool,
        stub: Option<impl Fn(&mut child::Plan<'_>, Way) -> Infallible>,
    ) -> Result<Child, SpawnError> {
        let slot = self.slots.take().map_err(SpawnError::Slot)?;
        let mut layout = self.layout();
        let Layout { arenas, heap, setting } = &mut *layout;
        // Where children that hang hold too many, this one gets an arena that goes away, and is forked.
        let mut made = None;
        let free = arenas.iter().position(|arena| !arena.is_lent());
        let lent = arenas.iter().filter(|arena| arena.is_lent()).count();
        let arena = match free.and_then(|free| arenas.get_mut(free)) {
            Some(arena) => arena,
            None => made.insert(Arena::map().map_err(SpawnError::Layout)?),
        };
        arena.clear();
        arena.keep(slot.clone());
        let mut plan = plan::lay_out(prepared, &slot, arena).map_err(SpawnError::Layout)?;
        plan.ignored_signals = self.ignored_signals;
        let most = if prepared.ids.is_some() { setting.most_of_other_users() } else { MOST_ARENAS };
        // What the kernel kills for its memory must not be svd's.
        let forked = prepared.oom_score_adj.is_some() || prepared.limited.memory();
        let may_lend = lent < most && stub.is_none() && !forked;
        let plan = arena.place(plan).map_err(SpawnError::Layout)?;
        let cgroup = cgroup.map(|fd| fd.as_raw_fd());
        let pidfd = loop {
            let best = self.way();
            let way = if may_lend { best } else { best.forking() };
            let into = cgroup.filter(|_| matches!(way, Way::Lent | Way::Clone3IntoCgroup));
            plan.join_cgroup = cgroup.filter(|_| into.is_none());
            plan.share_files = into.is_some() && share_files;
            // The child's are as ours: none is delivered until right before the exec.
            let unblocked = child::replace_signal_mask(u64::MAX);
            let begun = if way == Way::Lent {
                // SAFETY: `lay_out` and `place` have put all of it there, except for the slot, which the arena keeps; the arena
                // is free, and the first thing that happens to it again is that this is asked.
                unsafe { lent::start(plan, arena, into) }
            } else {
                heap.as_mut().map(Heap::leave_behind);
                self.fork(plan, way, into, stub.as_ref())
            };
            child::replace_signal_mask(unblocked);
            match begun {
                Ok(child) => break child,
                Err(errno) => match way.without(errno, into.is_some()) {
                    Some(next) => self.way.store(next as u8, Ordering::Relaxed),
                    None if into.is_some() && !is_shortage(errno) => return Err(SpawnError::Cgroup(errno)),
                    None => return Err(SpawnError::Fork(errno)),
                },
            }
        };
        arenas.extend(made.filter(|_| arenas.len() < MOST_ARENAS));
        Ok(Child { pidfd, slot })
    }

    fn fork(
        &self,
        plan: &mut child::Plan<'_>,
        way: Way,
        into_cgroup: Option<RawFd>,
        stub: Option<&impl Fn(&mut child::Plan<'_>, Way) -> Infallible>,
    ) -> Result<PidFd, Errno> {
        // SAFETY: the child makes raw system calls only, and never returns; where it shares our descriptors it leaves them
        // first.
        match unsafe { child::fork(way, into_cgroup, plan.share_files) }? {
            Forked::Parent { pid, pidfd } => Ok(PidFd::from_parts(pid, pidfd)),
            Forked::Child => {
                if let Some(stub) = stub {
                    stub(plan, way);
                }
                child::run(plan)
            }
        }
    }
}

impl Default for Spawner {
    fn default() -> Self {
        Spawner::new()
    }
}

fn is_shortage(errno: Errno) -> bool {
    matches!(errno, Errno::EAGAIN | Errno::ENOMEM | Errno::EMFILE)
}

/// svd's own soft limit of open files, raised at its start, and what its children get back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenFiles {
    pub original_soft: u64,
    pub hard: u64,
}

impl OpenFiles {
    /// Raises the soft limit of this process to its hard one, but not beyond 1,048,576.
    pub fn raise() -> Result<OpenFiles, Errno> {
        use nix::sys::resource::{Resource, getrlimit, setrlimit};
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        let wanted = hard.min(1 << 20).max(soft);
        setrlimit(Resource::RLIMIT_NOFILE, wanted, hard)?;
        Ok(OpenFiles { original_soft: soft, hard })
    }

    /// Back to what this process was started with; what is open beyond it stays open. Before another program is executed in
    /// its place.
    pub fn lower(self) -> Result<(), Errno> {
        use nix::sys::resource::{Resource, setrlimit};
        setrlimit(Resource::RLIMIT_NOFILE, self.original_soft, self.hard)
    }

    /// What a child gets: the soft limit that svd was started with, as a fresh login would have.
    pub fn for_children(self) -> Limit {
        Limit { resource: libc::RLIMIT_NOFILE, soft: self.original_soft, hard: None }
    }
}

/// `Some(0)` if svd's own `oom_score_adj` differs from a login's, so that children must be set back.
pub fn fresh_oom_score() -> Option<i32> {
    let text = std::fs::read_to_string("/proc/self/oom_score_adj").ok()?;
    (text.trim().parse::<i32>().ok()? < 0).then_some(0)
}
