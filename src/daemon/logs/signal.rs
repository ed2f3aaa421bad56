//! How the log thread tells a reader that its file has grown or was rotated: one pending flag, raised at most once until
//! the reader takes it, so that a slow reader costs the thread nothing.

use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

/// What a wait ended with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// There may be more to read.
    Changed,
    /// Nothing happened in the time given.
    TimedOut,
    /// Nothing more will be told: the log thread ended, the service was removed, or too many follow it already.
    Closed,
}

#[derive(Debug, Default)]
struct Waiting {
    closed: bool,
    waker: Option<Waker>,
}

#[derive(Debug, Default)]
pub(super) struct Signal {
    pending: AtomicBool,
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

impl Signal {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Nothing panics while it is held; the flag and the waker are valid in any case.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn raise(&self) {
        if !self.pending.swap(true, Ordering::AcqRel) {
            self.wake(false);
        }
    }

    pub fn close(&self) {
        self.wake(true);
    }

    fn wake(&self, close: bool) {
        let waker = {
            let mut waiting = self.lock();
            waiting.closed |= close;
            waiting.waker.take()
        };
        self.changed.notify_all();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// A raised flag goes first: what was written before the close is still read.
    fn take(&self, waiting: &Waiting) -> Option<Wake> {
        if self.pending.swap(false, Ordering::AcqRel) {
            return Some(Wake::Changed);
        }
        waiting.closed.then_some(Wake::Closed)
    }
}

/// A reader's end. Dropping it ends the subscription.
#[derive(Debug)]
pub struct Subscription(pub(super) Arc<Signal>);

impl Subscription {
    /// Blocks, at most for `limit`.
    pub fn wait(&self, limit: Duration) -> Wake {
        let deadline = Instant::now().checked_add(limit);
        let mut waiting = self.0.lock();
        loop {
            if let Some(wake) = self.0.take(&waiting) {
                return wake;
            }
            let left = match deadline {
                Some(d) => d.saturating_duration_since(Instant::now()),
                None => limit,
            };
            if left.is_zero() {
                return Wake::TimedOut;
            }
            waiting = self.0.changed.wait_timeout(waiting, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// As [`Subscription::wait`], without a limit and without blocking the thread; never [`Wake::TimedOut`].
    pub async fn changed(&self) -> Wake {
        poll_fn(|cx| {
            let mut waiting = self.0.lock();
            match self.0.take(&waiting) {
                Some(wake) => Poll::Ready(wake),
                None => {
                    waiting.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_merge_and_the_close_comes_last() {
        let signal = Arc::new(Signal::default());
        let sub = Subscription(signal.clone());
        assert_eq!(sub.wait(Duration::ZERO), Wake::TimedOut);
        signal.raise();
        signal.raise();
        signal.close();
        assert_eq!(sub.wait(Duration::ZERO), Wake::Changed);
        assert_eq!(sub.wait(Duration::ZERO), Wake::Closed);
    }
}
