//! What a descriptor of the loop's epoll set belongs to.

use crate::core::{GenerationId, ServiceId, WorkerId};

const SHIFT: u32 = 60;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token {
    Signals,
    Worker(WorkerId),
    Notify(WorkerId),
    Ready(WorkerId),
    /// A gunicorn generation's report socket.
    Report(GenerationId),
    Check(u64),
    /// A main process named by `MAINPID=`.
    Main(WorkerId),
    /// The socket for counts of the host's network, or of a generation's own.
    Statsd(Option<GenerationId>),
    Guardian,
    /// What becomes of a generation's memory.
    Memory(GenerationId),
}

pub const SIGNALS: u64 = 0;
pub const GUARDIAN: u64 = 8 << SHIFT;

pub fn of_worker(worker: WorkerId) -> u64 {
    1 << SHIFT | worker.0
}

pub fn of_notify(worker: WorkerId) -> u64 {
    2 << SHIFT | worker.0
}

pub fn of_ready(worker: WorkerId) -> u64 {
    3 << SHIFT | worker.0
}

/// Generation numbers beyond 2^28 meet an older one's, which is long gone.
pub fn of_generation(id: GenerationId) -> u64 {
    4 << SHIFT | u64::from(id.service.0) << 28 | (id.number & 0xfff_ffff)
}

pub fn of_memory(id: GenerationId) -> u64 {
    9 << SHIFT | (of_generation(id) & ((1 << SHIFT) - 1))
}

pub fn of_statsd(network: Option<GenerationId>) -> u64 {
    network.map_or(7 << SHIFT, |id| 10 << SHIFT | (of_generation(id) & ((1 << SHIFT) - 1)))
}

pub fn of_check(number: u64) -> u64 {
    5 << SHIFT | number
}

pub fn of_main(worker: WorkerId) -> u64 {
    6 << SHIFT | worker.0
}

pub fn parse(token: u64) -> Option<Token> {
    let rest = token & ((1 << SHIFT) - 1);
    let generation = || GenerationId { service: ServiceId((rest >> 28) as u32), number: rest & 0xfff_ffff };
    Some(match token >> SHIFT {
        0 => Token::Signals,
        1 => Token::Worker(WorkerId(rest)),
        2 => Token::Notify(WorkerId(rest)),
        3 => Token::Ready(WorkerId(rest)),
        4 => Token::Report(generation()),
        5 => Token::Check(rest),
        6 => Token::Main(WorkerId(rest)),
        7 => Token::Statsd(None),
        8 => Token::Guardian,
        9 => Token::Memory(generation()),
        10 => Token::Statsd(Some(generation())),
        _ => return None,
    })
}
