//! Threads for work that may block, made when they are needed and gone soon after.
//!
//! As `tokio::task::spawn_blocking`, which panics where no thread can be had; here that is an error as any.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Threads in all, those that hang included; what comes then waits.
pub const THREADS: usize = 512;
/// How long a thread waits for more.
const IDLE: Duration = Duration::from_secs(1);

type Job = Box<dyn FnOnce() + Send>;

struct Shared {
    queue: VecDeque<Job>,
    threads: usize,
    /// Threads that wait and were not notified.
    idle: usize,
    /// Notified, and not awake yet.
    notified: usize,
}

static SHARED: Mutex<Shared> = Mutex::new(Shared { queue: VecDeque::new(), threads: 0, idle: 0, notified: 0 });
static MORE: Condvar = Condvar::new();
static DONE: Condvar = Condvar::new();

fn shared() -> MutexGuard<'static, Shared> {
    SHARED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Begins the work. Its result; an error there: it has panicked.
///
/// # Errors
/// `EAGAIN`: no thread can be had (`pthread_create(3)`), and there is none that could do it later.
pub fn start<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<oneshot::Receiver<T>> {
    let (done, result) = oneshot::channel();
    let job: Job = Box::new(move || {
        // Nobody may wait for it any more.
        let _ = done.send(work());
    });
    let mut shared = shared();
    shared.queue.push_back(job);
    if shared.idle > 0 {
        shared.idle -= 1;
        shared.notified += 1;
        MORE.notify_one();
    } else if shared.threads < THREADS {
        match std::thread::Builder::new().name("svd-pool".into()).spawn(serve) {
            Ok(_) => shared.threads += 1,
            Err(e) if shared.threads == 0 => {
                shared.queue.pop_back();
                return Err(e);
            }
            // One of those that work takes it.
            Err(_) => {}
        }
    }
    Ok(result)
}

fn serve() {
    let mut shared = shared();
    loop {
        while let Some(job) = shared.queue.pop_front() {
            drop(shared);
            // Whoever waits for it hears of the panic.
            let _ = catch_unwind(AssertUnwindSafe(job));
            shared = self::shared();
        }
        shared.idle += 1;
        DONE.notify_all();
        loop {
            let (now, waited) = MORE.wait_timeout(shared, IDLE).unwrap_or_else(PoisonError::into_inner);
            shared = now;
            if shared.notified > 0 {
                shared.notified -= 1;
                break;
            }
            if waited.timed_out() {
                shared.idle -= 1;
                shared.threads -= 1;
                return;
            }
        }
    }
}

/// Waits for all that was begun, but no longer than that: what hangs is left behind.
pub fn finish(limit: Duration) {
    let until = Instant::now() + limit;
    let mut shared = shared();
    while shared.threads > shared.idle {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        (shared, _) = DONE.wait_timeout(shared, left).unwrap_or_else(PoisonError::into_inner);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn work_is_done_beside_other_work_and_a_panic_is_told() {
        let (go, wait) = channel::<()>();
        let slow = start(move || wait.recv().is_ok()).expect("a thread");
        let quick: Vec<_> = (0..100).map(|n| start(move || n * 2).expect("a thread")).collect();
        for (n, result) in (0..).zip(quick) {
            assert_eq!(result.blocking_recv(), Ok(n * 2));
        }
        assert!(start(|| panic!("a test")).expect("a thread").blocking_recv().is_err());
        go.send(()).expect("somebody waits");
        assert_eq!(slow.blocking_recv(), Ok(true));
        finish(Duration::from_secs(20));
        assert_eq!(start(|| 7).expect("a thread").blocking_recv(), Ok(7));
    }
}
