//! Work that may block, on threads, shared out so that what hangs for one service leaves the others theirs.
//!
//! A [`Lane`] has one job at a time; further ones wait for their turn, and fail when it does not come. A thread that
//! hangs in the kernel can be neither ended nor waited for: its lane stays closed until it comes back, and says so at once,
//! while its place among those that work is given on after a moment.

use crate::core::ServiceId;
use crate::sys::blocking;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// For one job, with its wait for a turn.
const LIMIT: Duration = Duration::from_secs(60);
/// A job that takes longer hangs, most likely, and counts no more as one of those that work.
const SLOW: Duration = Duration::from_secs(2);
/// Jobs that work at once.
const AT_ONCE: usize = 8;

/// What one job at a time is done for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lane {
    /// Release, program, environment files, users and groups of a service.
    Files(ServiceId),
    /// The memory of its processes: reading it waits for their page faults.
    Memory(ServiceId),
    /// Limits of its processes and control groups that are changed.
    Limits(ServiceId),
    /// Its log, for `svctl logs`.
    Log(ServiceId),
    /// Its file and what its processes have, for `svctl show` and `svctl inspect`.
    Look(ServiceId),
    /// svd's own state file.
    State,
}

impl Lane {
    fn failed(self, limit: Duration) -> String {
        let what = match self {
            Lane::Files(_) => "its files or its user could not be read",
            Lane::Memory(_) => "the memory of its processes could not be read",
            Lane::Limits(_) => "limits of what runs could not be changed",
            Lane::Log(_) | Lane::Look(_) => "it could not be read",
            Lane::State => "svd's state directory could not be written",
        };
        format!("{what} within {} s: does a disk or a name service hang?", limit.as_secs_f32().ceil())
    }
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Pool {
    lanes: Rc<RefCell<BTreeMap<Lane, Arc<Turn>>>>,
    working: Arc<Semaphore>,
    limit: Duration,
    slow: Duration,
}

impl Default for Pool {
    fn default() -> Pool {
        Pool { lanes: Rc::default(), working: Arc::new(Semaphore::new(AT_ONCE)), limit: LIMIT, slow: SLOW }
    }
}

struct Turn {
    free: Arc<Semaphore>,
    /// Of the job that has the turn.
    began: Mutex<Option<Instant>>,
}

/// Held by the thread: the turn ends with the work, whoever has given up waiting for it.
struct Held {
    turn: Arc<Turn>,
    _permit: OwnedSemaphorePermit,
}

impl Turn {
    fn set(&self, began: Option<Instant>) {
        *self.began.lock().unwrap_or_else(PoisonError::into_inner) = began;
    }

    fn hangs(&self, limit: Duration) -> bool {
        let began = *self.began.lock().unwrap_or_else(PoisonError::into_inner);
        began.is_some_and(|began| began.elapsed() >= limit)
    }
}

/// For people.
pub fn no_thread(error: std::io::Error) -> String {
    format!("no thread can be had for it ({}): a limit on processes or memory is reached", crate::sys::io_text(&error))
}

impl Drop for Held {
    fn drop(&mut self) {
        self.turn.set(None);
    }
}

/// A lane is forgotten when nobody uses it: most services need none for days.
struct Used<'a> {
    pool: &'a Pool,
    lane: Lane,
    turn: Arc<Turn>,
}

impl Drop for Used<'_> {
    fn drop(&mut self) {
        // The table's own and this one: neither another job nor a thread that hangs has it.
        if Arc::strong_count(&self.turn) == 2 {
            self.pool.lanes.borrow_mut().remove(&self.lane);
        }
    }
}

impl Pool {
    /// Runs the work on a thread when it is its turn. Work that hangs stays there when this has failed.
    ///
    /// # Errors
    /// The work's own, or a sentence: it did not come to its end in time, or one before it hangs.
    pub async fn run<T: Send + 'static>(
        &self,
        lane: Lane,
        work: impl FnOnce() -> Result<T, String> + Send + 'static,
    ) -> Result<T, String> {
        let used = Used { pool: self, lane, turn: self.turn(lane) };
        let turn = &used.turn;
        if turn.hangs(self.limit) {
            return Err(lane.failed(self.limit));
        }
        let job = async {
            // Neither semaphore is ever closed.
            let permit = Arc::clone(&turn.free).acquire_owned().await.map_err(|e| e.to_string())?;
            let place = self.working.acquire().await.map_err(|e| e.to_string())?;
            turn.set(Some(Instant::now()));
            let held = Held { turn: Arc::clone(turn), _permit: permit };
            let mut done = blocking::start(move || {
                let result = work();
                drop(held);
                result
            })
            .map_err(no_thread)?;
            let result = match timeout(self.slow, &mut done).await {
                Ok(result) => result,
                Err(_) => {
                    drop(place);
                    done.await
                }
            };
            result.unwrap_or_else(|_| Err("svd's own task failed".to_owned()))
        };
        timeout(self.limit, job).await.unwrap_or_else(|_| Err(lane.failed(self.limit)))
    }

    /// The service is gone; what still hangs ends by itself.
    pub fn forget(&self, service: ServiceId) {
        let mut lanes = self.lanes.borrow_mut();
        for lane in [Lane::Files(service), Lane::Memory(service), Lane::Log(service), Lane::Look(service)] {
            lanes.remove(&lane);
        }
    }

    fn turn(&self, lane: Lane) -> Arc<Turn> {
        let mut lanes = self.lanes.borrow_mut();
        let new = || Arc::new(Turn { free: Arc::new(Semaphore::new(1)), began: Mutex::default() });
        Arc::clone(lanes.entry(lane).or_insert_with(new))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, Sender, channel};

    /// A job that hangs until the sender is dropped.
    fn hanging() -> (Sender<()>, impl FnOnce() -> Result<(), String> + Send + 'static) {
        let (sender, receiver): (_, Receiver<()>) = channel();
        (sender, move || {
            let _ = receiver.recv();
            Ok(())
        })
    }

    fn files(number: u32) -> Lane {
        Lane::Files(ServiceId(number))
    }

    fn run(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime");
        runtime.block_on(test);
    }

    fn pool(limit: u64, slow: u64) -> Pool {
        let ms = Duration::from_millis;
        Pool { limit: ms(limit), slow: ms(slow), ..Pool::default() }
    }

    #[test]
    fn what_hangs_for_many_services_keeps_no_other_from_working() {
        run(async {
            let pool = pool(30_000, 10);
            let mut hold = Vec::new();
            let set = tokio::task::LocalSet::new();
            for number in 0..3 * AT_ONCE as u32 {
                let (sender, job) = hanging();
                hold.push(sender);
                let pool = pool.clone();
                set.spawn_local(async move { pool.run(files(number), job).await });
            }
            let healthy = set.run_until(async {
                tokio::task::yield_now().await;
                pool.run(files(1000), || Ok(7)).await
            });
            assert_eq!(healthy.await, Ok(7));
            let state = set.run_until(pool.run(Lane::State, || Ok("written")));
            assert_eq!(state.await, Ok("written"));
            drop(hold);
            set.await;
        });
    }

    #[test]
    fn a_lane_that_hangs_says_so_and_takes_one_thread() {
        run(async {
            let pool = pool(50, 10);
            let (hold, job) = hanging();
            let first = pool.run(files(1), job).await.expect_err("it hangs");
            assert!(first.contains("within 1 s"), "{first}");
            let begun = Arc::new(Mutex::new(0));
            let counted = Arc::clone(&begun);
            let next = move || {
                *counted.lock().expect("a counter") += 1;
                Ok(())
            };
            assert!(pool.run(files(1), next.clone()).await.is_err());
            assert_eq!(*begun.lock().expect("a counter"), 0, "nothing else of it was begun");
            drop(hold);
            let end = Instant::now() + Duration::from_secs(20);
            while pool.run(files(1), next.clone()).await.is_err() {
                assert!(Instant::now() < end, "the lane stays closed");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
    }

    #[test]
    fn a_lane_is_forgotten_when_it_is_free() {
        run(async {
            let pool = pool(50, 10);
            let job = || pool.run(files(1), || Ok(()));
            assert_eq!(tokio::join!(job(), job()), (Ok(()), Ok(())));
            assert!(pool.lanes.borrow().is_empty());
            let (hold, hangs) = hanging();
            assert!(pool.run(files(1), hangs).await.is_err());
            assert_eq!(pool.lanes.borrow().len(), 1, "it stays closed");
            drop(hold);
        });
    }

    #[test]
    fn jobs_of_a_lane_come_one_after_the_other() {
        run(async {
            let pool = pool(30_000, 1000);
            let said = Arc::new(Mutex::new(Vec::new()));
            let job = |n: u32| {
                let said = Arc::clone(&said);
                pool.run(files(1), move || {
                    said.lock().expect("a list").push(n);
                    std::thread::yield_now();
                    said.lock().expect("a list").push(n);
                    Ok(())
                })
            };
            let (a, b, c) = tokio::join!(job(1), job(2), job(3));
            assert!(a.is_ok() && b.is_ok() && c.is_ok());
            assert_eq!(*said.lock().expect("a list"), [1, 1, 2, 2, 3, 3]);
        });
    }
}
