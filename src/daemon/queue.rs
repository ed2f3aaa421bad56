//! A bounded queue to a thread that takes memory only for what waits in it: `sync_channel` has its whole length from the
//! beginning, and touches all of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvError, TrySendError};

#[derive(Debug)]
pub struct Sender<T> {
    values: mpsc::Sender<T>,
    waiting: Arc<AtomicUsize>,
    limit: usize,
}

#[derive(Debug)]
pub struct Receiver<T> {
    values: mpsc::Receiver<T>,
    waiting: Arc<AtomicUsize>,
}

/// At most `limit` values wait.
pub fn queue<T>(limit: usize) -> (Sender<T>, Receiver<T>) {
    let (sender, receiver) = mpsc::channel();
    let waiting = Arc::<AtomicUsize>::default();
    let sender = Sender { values: sender, waiting: Arc::clone(&waiting), limit };
    (sender, Receiver { values: receiver, waiting })
}

impl<T> Sender<T> {
    /// Never blocks.
    ///
    /// # Errors
    /// Too many wait, or nobody takes them any more.
    pub fn try_send(&self, value: T) -> Result<(), TrySendError<T>> {
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= self.limit {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return Err(TrySendError::Full(value));
        }
        self.values.send(value).map_err(|refused| TrySendError::Disconnected(refused.0))
    }
}

impl<T> Receiver<T> {
    /// # Errors
    /// Nobody can send any more.
    pub fn recv(&self) -> Result<T, RecvError> {
        let value = self.values.recv()?;
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        Ok(value)
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Sender { values: self.values.clone(), waiting: Arc::clone(&self.waiting), limit: self.limit }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_wait_and_no_more() {
        let (sender, receiver) = queue(2);
        let other = sender.clone();
        assert_eq!((sender.try_send(1), other.try_send(2)), (Ok(()), Ok(())));
        assert_eq!((sender.try_send(3), other.try_send(3)), (Err(TrySendError::Full(3)), Err(TrySendError::Full(3))));
        assert_eq!(receiver.recv(), Ok(1));
        assert_eq!(sender.try_send(3), Ok(()));
        assert_eq!((receiver.recv(), receiver.recv()), (Ok(2), Ok(3)));
        drop(receiver);
        assert_eq!(sender.try_send(4), Err(TrySendError::Disconnected(4)));
        let (sender, receiver) = queue::<u8>(1);
        drop(sender);
        assert_eq!(receiver.recv(), Err(RecvError));
    }
}
