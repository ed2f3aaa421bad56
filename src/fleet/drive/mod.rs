//! A rollout, carried out: the pure machine's actions become calls to hosts, and their answers its events.
//!
//! | file | what |
//! |---|---|
//! | `mod.rs` | the loop: one rollout until its end |
//! | [`first`] | what is done once before any host gets files |
//! | [`link`] | one host: each [`Call`] as requests to its svd, and why one failed |
//! | [`prometheus`] | a wave's counts from the user's own Prometheus |
//! | [`facts`] | what the hosts say before a plan is made |

pub mod facts;
mod first;
pub mod link;
pub mod prometheus;

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::rollout::{Action, CallError, CallId, End, Event, Machine, Reply, Report, Watched, Wish};
use crate::api::types::Progress;
pub use first::First;
pub use link::{Cargo, Link};

/// Lines of progress that wait to be shown; further ones are left out.
const LINES: usize = 1024;

/// What is shown while it goes on.
#[derive(Clone, Debug)]
pub enum Said {
    Report(Report),
    /// Something is done to a host from here on, in a word of the plan.
    Begun {
        host: Box<str>,
        doing: &'static str,
    },
    /// … until here.
    Ended {
        host: Box<str>,
        doing: &'static str,
        done: bool,
    },
    /// After each tick of a wave that is watched.
    Watched(Watched),
    /// Of a step on one host.
    Progress {
        host: Box<str>,
        line: Progress,
    },
}

/// The hosts of a rollout, by name.
pub type Links = BTreeMap<Box<str>, Rc<Link>>;

/// Runs the machine until it ends. Must run in a [`tokio::task::LocalSet`]; dropped, it leaves what is under way to the hosts.
///
/// `wishes`: what people ask for meanwhile. `say`: hears everything, in order.
pub async fn drive(
    mut machine: Machine,
    links: &Links,
    cargo: &Rc<Cargo>,
    wishes: &mut mpsc::Receiver<Wish>,
    mut say: impl FnMut(Said),
) -> End {
    let began = Instant::now();
    let (answers, mut answered) = mpsc::unbounded_channel::<(CallId, Result<Reply, CallError>)>();
    let mut doing: BTreeMap<CallId, (Box<str>, &'static str)> = BTreeMap::new();
    let mut ticks = None;
    let (lines, mut progress) = mpsc::channel::<(Box<str>, Progress)>(LINES);
    let mut event = Event::Begin;
    loop {
        for action in machine.handle(began.elapsed(), event) {
            match action {
                Action::Report(report) => say(Said::Report(report)),
                Action::End(end) => return end,
                Action::Call { id, host, number, call } => {
                    if let Some(what) = call.doing() {
                        say(Said::Begun { host: host.clone(), doing: what });
                        doing.insert(id, (host.clone(), what));
                    }
                    let (answers, lines, cargo) = (answers.clone(), lines.clone(), Rc::clone(cargo));
                    let link = links.get(&host).map(Rc::clone);
                    // As many as the machine's own limits allow.
                    drop(tokio::task::spawn_local(async move {
                        let result = match link {
                            Some(link) => {
                                let tell = |line: &Progress| _ = lines.try_send((host.clone(), line.clone()));
                                link.call(&cargo, number, call, tell).await
                            }
                            None => Err(CallError::Unreachable("it is not in the fleet".into())),
                        };
                        // Nobody waits for it any more when the rollout is at its end.
                        let _ = answers.send((id, result));
                    }));
                }
            }
        }
        let watched = machine.watched();
        let tick = watched.as_ref().map(|watched| (watched.wave, watched.verdict.at_ms));
        if let Some(watched) = watched.filter(|_| tick != ticks) {
            say(Said::Watched(watched));
        }
        ticks = tick;
        event = loop {
            let until = machine.next_timeout().map(|at| at.saturating_sub(began.elapsed()));
            tokio::select! {
                biased;
                Some((host, line)) = progress.recv() => say(Said::Progress { host, line }),
                Some((id, result)) = answered.recv() => {
                    if let Some((host, doing)) = doing.remove(&id) {
                        say(Said::Ended { host, doing, done: result.is_ok() });
                    }
                    break Event::Answer { id, result };
                }
                Some(wish) = wishes.recv() => break Event::Wish(wish),
                () = sleep(until), if until.is_some() => break Event::Tick,
            }
        };
    }
}

async fn sleep(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}
