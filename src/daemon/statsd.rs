//! Counts of JVMs and plain commands: one UDP socket on loopback for all generations that asked for it, and one more in each
//! network that is a generation's own.
//!
//! Anybody local can send there. Only lines with a generation's prefix count; other datagrams are dropped and counted. The
//! socket is one more descriptor of the loop, which takes a few datagrams a turn, and in a tenth of a second no more than
//! its budget: then the socket is left alone until the next. Measured with a flood from every core, svd uses 2 % of a core
//! for it (45 % without the budget), and replaces a killed worker as fast as while the flood goes to somebody else's
//! socket. What the kernel drops meanwhile it tells, and the counts are marked as unreliable.

use super::host::Host;
use super::state::records::kept;
use super::token;
use crate::core::{GenerationId, WorkerId};
use crate::kinds::statsd::{self, Line, Prefix};
use crate::kinds::tally::Tally;
use crate::sys::poll::Interest;
use crate::sys::sandbox::Namespace;
use crate::sys::socket::{DATAGRAM_MAX, Datagrams};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// Bytes that may wait in the kernel, its own overhead included: some thousand small datagrams.
const BUFFER: usize = 4 << 20;
/// Datagrams taken before others have their turn.
const AT_ONCE: usize = 64;
/// The time that a budget is for.
const PERIOD: Duration = Duration::from_millis(100);
/// Work in a period, in datagrams of some counts.
const BUDGET: u32 = 10_000;
/// What a datagram costs in which nothing is a generation's: two thousand of them a second are taken.
const FOREIGN: u32 = 50;
/// A large datagram costs more, by the bytes.
const BYTES: usize = 512;
/// How long a loss makes counts unreliable: as long as the last minute has anything of that time.
const MINUTE_US: u64 = 65_000_000;

/// A socket's name at the guardian.
pub fn kept_as(network: Option<GenerationId>) -> String {
    network.map_or_else(|| "statsd".to_owned(), |id| kept::shared(id, "statsd"))
}

/// In the network that this is called in.
///
/// # Errors
/// As of `socket(2)` and `bind(2)`.
pub fn socket() -> std::io::Result<Datagrams> {
    Datagrams::bind(BUFFER)
}

/// Since svd began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    pub datagrams: u64,
    /// Without any generation's prefix.
    pub foreign: u64,
    /// Lines with a generation's prefix that cannot be read.
    pub malformed: u64,
    /// Dropped by the kernel, as svd did not keep up: anybody's.
    pub lost: u64,
}

/// All of it.
#[derive(Default)]
pub struct Statsd {
    /// By the network: the host's, or that of a generation.
    open: BTreeMap<Option<GenerationId>, Open>,
    /// While any is open.
    buffer: Vec<u8>,
    pub numbers: Numbers,
}

/// While any generation reports.
struct Open {
    socket: Datagrams,
    generations: BTreeMap<Prefix, Counted>,
    /// What the kernel had dropped when it was asked last.
    dropped: u32,
    period: Instant,
    spent: u32,
    /// The budget is spent: not listened to until then.
    paused: Option<Instant>,
    /// Datagrams, anybody's.
    lost: u64,
    /// CLOCK_MONOTONIC, microseconds.
    lost_at_us: Option<u64>,
}

struct Counted {
    tally: Tally,
    /// What had been lost when it began.
    lost_before: u64,
}

/// Where a generation sends its counts.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Address {
    pub port: u16,
    pub prefix: Prefix,
    /// The generation whose network has the port; `None`: the host's.
    #[serde(default)]
    pub network: Option<GenerationId>,
}

/// The variables that tell it: host, port and prefix.
pub const OURS: [&str; 3] = ["AIRDOCK_STATSD_HOST", "AIRDOCK_STATSD_PORT", "AIRDOCK_STATSD_PREFIX"];
/// Those that clients of statsd commonly read.
pub const COMMON: [&str; 3] = ["STATSD_HOST", "STATSD_PORT", "STATSD_PREFIX"];

impl Address {
    /// Under these names.
    pub fn variables(&self, [host, port, prefix]: [&str; 3]) -> [(String, String); 3] {
        [
            (host.to_owned(), "127.0.0.1".to_owned()),
            (port.to_owned(), self.port.to_string()),
            (prefix.to_owned(), self.prefix.to_string()),
        ]
    }
}

/// What a generation has reported.
pub struct Reported<'a> {
    /// For [`crate::kinds::counters::read`].
    pub words: &'a [u64],
    /// Datagrams, anybody's, that were lost since it began.
    pub lost: u64,
    /// Some were within the last minute.
    pub unreliable: bool,
}

impl Statsd {
    /// `None` before it has reported anything.
    pub fn reported(&self, address: &Address, now_us: u64) -> Option<Reported<'_>> {
        let open = self.open.get(&address.network)?;
        let counted = open.generations.get(&address.prefix)?;
        let lost = open.lost - counted.lost_before;
        let recently = open.lost_at_us.is_some_and(|at| now_us.saturating_sub(at) < MINUTE_US);
        Some(Reported { words: counted.tally.words()?, lost, unreliable: lost > 0 && recently })
    }

    /// When a socket is listened to again that is not now.
    pub fn paused_until(&self) -> Option<Instant> {
        self.open.values().filter_map(|open| open.paused).min()
    }

    /// The sockets, by the names under which the guardian keeps them.
    pub fn sockets(&self) -> impl Iterator<Item = (String, BorrowedFd<'_>)> {
        self.open.iter().map(|(network, open)| (kept_as(*network), open.socket.as_fd()))
    }
}

impl Open {
    /// Takes what has come, up to [`AT_ONCE`]; how many that were.
    fn receive(&mut self, buffer: &mut [u8], numbers: &mut Numbers, now_us: u64) -> usize {
        let now = Instant::now();
        if now.duration_since(self.period) >= PERIOD {
            (self.period, self.spent) = (now, 0);
        }
        for taken in 0..AT_ONCE {
            match self.socket.receive(buffer) {
                Ok(Some(length)) => {
                    let ours = self.count(&buffer[..length], numbers, now_us);
                    numbers.datagrams += 1;
                    numbers.foreign += u64::from(!ours);
                    self.spent += if ours { 1 } else { FOREIGN } + (length / BYTES) as u32;
                }
                Ok(None) => return taken,
                // The error was the socket's, which has told it; there may be more to read.
                Err(e) => {
                    tracing::debug!("a statsd datagram cannot be read: {}", crate::sys::io_text(&e));
                    self.spent += FOREIGN;
                }
            }
        }
        AT_ONCE
    }

    /// Counts a datagram. True if any line is a generation's.
    fn count(&mut self, datagram: &[u8], numbers: &mut Numbers, now_us: u64) -> bool {
        let mut ours = false;
        for line in statsd::lines(datagram) {
            let Line::Ours(prefix, rest) = statsd::line(line) else { continue };
            let Some(counted) = self.generations.get_mut(&prefix) else { continue };
            ours = true;
            if !statsd::read(rest, |count| counted.tally.add(count, now_us)) {
                numbers.malformed += 1;
            }
        }
        ours
    }

    /// How many the kernel has dropped since it was asked last. One that cannot be asked may have dropped some.
    fn newly_dropped(&mut self) -> u32 {
        match self.socket.dropped() {
            Ok(dropped) => dropped.wrapping_sub(std::mem::replace(&mut self.dropped, dropped)),
            Err(_) => 1,
        }
    }
}

/// For people.
pub fn cannot_listen(why: &dyn std::fmt::Display) -> String {
    format!("cannot listen for statsd on 127.0.0.1: {why}")
}

impl Host {
    /// An address for a generation that asked for one. `inside`: the socket in its own network; else the first opens the host's.
    ///
    /// # Errors
    /// A sentence.
    pub fn begin_statsd(&mut self, id: GenerationId, inside: Option<Datagrams>) -> Result<Address, String> {
        // The key is the kernel's random bytes, which makes both halves unpredictable.
        let half = |which: u8| u128::from(self.secret.hash_one((which, "statsd", id.service.0, id.number)));
        let prefix = Prefix(half(0) << 64 | half(1));
        let network = inside.is_some().then_some(id);
        let port = match (inside, self.statsd.open.get(&network)) {
            (Some(socket), _) => self.open_statsd(network, socket)?,
            (None, Some(open)) => open.socket.port(),
            (None, None) => {
                let socket = socket().map_err(|e| cannot_listen(&crate::sys::io_text(&e)))?;
                self.open_statsd(network, socket)?
            }
        };
        let address = Address { port, prefix, network };
        self.count_for(address);
        Ok(address)
    }

    /// Goes on counting for a generation that was taken over, from nothing. `kept`: the sockets that the guardian has kept;
    /// `own`: the generation's network, where the port is in that.
    ///
    /// # Errors
    /// A sentence.
    pub fn resume_statsd_of(
        &mut self,
        address: Address,
        kept: &mut BTreeMap<Box<str>, OwnedFd>,
        own: Option<&Namespace>,
    ) -> Result<(), String> {
        if !self.statsd.open.contains_key(&address.network) {
            let bind = || Datagrams::bind_to(address.port, BUFFER);
            let kept = kept.remove(kept_as(address.network).as_str());
            let socket = match (kept, own.filter(|_| address.network.is_some())) {
                (Some(kept), _) => Datagrams::from_fd(kept),
                (None, Some(own)) => own.within(bind),
                (None, None) => bind(),
            };
            self.open_statsd(address.network, socket.map_err(|e| cannot_listen(&crate::sys::io_text(&e)))?)?;
        }
        self.count_for(address);
        Ok(())
    }

    fn open_statsd(&mut self, network: Option<GenerationId>, socket: Datagrams) -> Result<u16, String> {
        self.poll.add(&socket, Interest::Read, token::of_statsd(network)).map_err(|e| cannot_listen(&e.desc()))?;
        self.keeper.store(&kept_as(network), socket.as_fd());
        let port = socket.port();
        let dropped = socket.dropped().unwrap_or(0);
        let open = Open {
            socket,
            generations: BTreeMap::new(),
            dropped,
            period: Instant::now(),
            spent: 0,
            paused: None,
            lost: 0,
            lost_at_us: None,
        };
        self.statsd.open.insert(network, open);
        self.statsd.buffer.resize(DATAGRAM_MAX, 0);
        Ok(port)
    }

    fn count_for(&mut self, address: Address) {
        if let Some(open) = self.statsd.open.get_mut(&address.network) {
            open.generations.insert(address.prefix, Counted { tally: Tally::default(), lost_before: open.lost });
        }
    }

    /// A generation is gone; with the last one the socket closes.
    pub fn end_statsd(&mut self, address: &Address) {
        let Some(open) = self.statsd.open.get_mut(&address.network) else { return };
        open.generations.remove(&address.prefix);
        if open.generations.is_empty()
            && let Some(open) = self.statsd.open.remove(&address.network)
        {
            self.keeper.remove(&kept_as(address.network));
            // Not in the set while it is paused.
            let _ = self.poll.delete(&open.socket);
            if self.statsd.open.is_empty() {
                self.statsd.buffer = Vec::new();
            }
        }
    }

    /// Takes datagrams of that network's; true if there may be more.
    pub fn handle_statsd(&mut self, network: Option<GenerationId>) -> bool {
        let now_us = crate::sys::monotonic_micros();
        let Statsd { open, buffer, numbers } = &mut self.statsd;
        let Some(open) = open.get_mut(&network) else { return false };
        let taken = open.receive(buffer, numbers, now_us);
        let spent = open.spent >= BUDGET;
        if spent && open.paused.is_none() && self.poll.delete(&open.socket).is_ok() {
            open.paused = Some(open.period + PERIOD);
        }
        let dropped = open.newly_dropped();
        if dropped > 0 {
            let before = open.lost_at_us.replace(now_us);
            open.lost += u64::from(dropped);
            numbers.lost += u64::from(dropped);
            if before.is_none_or(|at| now_us.saturating_sub(at) >= MINUTE_US) {
                let foreign = numbers.foreign;
                let text = format!(
                    "statsd datagrams come faster than they are read, and some are lost: counts are unreliable until \
                     this has stopped for a minute ({foreign} foreign datagrams so far)"
                );
                self.warn(network.map(|id| id.service), &text);
            }
        }
        taken == AT_ONCE && !spent
    }

    /// A worker has ended. Without another one of its generation, what was begun and is not finished has died with it.
    pub fn requests_died(&mut self, id: GenerationId, worker: WorkerId) {
        let Some(address) = self.generations.get(&id).and_then(|g| g.statsd.as_deref().copied()) else { return };
        if self.workers.iter().any(|(other, p)| *other != worker && p.generation == id) {
            return;
        }
        // Its last words are read first, until the budget ends it.
        while self.handle_statsd(address.network) {}
        let open = self.statsd.open.get_mut(&address.network);
        let counted = open.and_then(|open| open.generations.get_mut(&address.prefix));
        counted.into_iter().for_each(|counted| counted.tally.died());
    }

    /// A new period has begun.
    pub fn resume_statsd(&mut self) {
        for (network, open) in &mut self.statsd.open {
            if open.paused.is_none_or(|at| at > Instant::now()) {
                continue;
            }
            match self.poll.add(&open.socket, Interest::Read, token::of_statsd(*network)) {
                Ok(()) => open.paused = None,
                // Out of memory: once more in the next period.
                Err(_) => open.paused = Some(Instant::now() + PERIOD),
            }
        }
    }
}
