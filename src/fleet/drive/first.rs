//! What must be done once, and has a result that all hosts share, before any of them gets files: the tag of a deploy, for which the
//! lock must be held.

use std::cell::RefCell;

use tokio::sync::OnceCell;

type Work = Box<dyn FnOnce() -> Result<(), String> + Send>;

/// Begun by whoever waits for it first; by default there is nothing to do.
#[derive(Default)]
pub struct First {
    work: RefCell<Option<Work>>,
    done: OnceCell<Result<(), Box<str>>>,
}

impl First {
    pub fn new(work: impl FnOnce() -> Result<(), String> + Send + 'static) -> First {
        First { work: RefCell::new(Some(Box::new(work))), done: OnceCell::new() }
    }

    /// Waits until it is done. The work blocks a thread of its own, and must have a limit.
    ///
    /// # Errors
    /// The work's, for everybody.
    pub async fn done(&self) -> Result<(), Box<str>> {
        let begin = || async {
            let Some(work) = self.work.take() else { return Ok(()) };
            let done = tokio::task::spawn_blocking(work).await;
            done.unwrap_or_else(|_| Err("svctl's own task failed".to_owned())).map_err(Into::into)
        };
        self.done.get_or_init(begin).await.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[tokio::test]
    async fn it_is_done_once_and_all_hear_how_it_went() {
        assert_eq!(First::default().done().await, Ok(()));
        let count = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&count);
        let first = First::new(move || {
            counted.fetch_add(1, Ordering::SeqCst);
            Err("no right to push".to_owned())
        });
        let (one, other) = tokio::join!(first.done(), first.done());
        assert_eq!((&one, &other), (&Err("no right to push".into()), &one));
        assert_eq!(count.load(Ordering::SeqCst), 1);
    }
}
