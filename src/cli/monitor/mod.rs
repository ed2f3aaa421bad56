//! `svctl monitor`: services as they are, again and again, on this host or on many.
//!
//! [`view`] says what is seen. Here each host is asked by a task of its own, so that one that hangs keeps no other from being
//! seen, and what they say is shown: on the whole of a terminal, or as text or objects that follow each other.

mod view;

use std::io::IsTerminal;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::{JoinSet, LocalSet};

use super::args::{Cli, MonitorArgs};
use super::context::{Context, joined};
use super::exit::{CliError, Exit};
use super::hosts;
use super::screen::{self, Whole};
use crate::api::client::{Caller, ClientError, Dial, Unix, encode, runtime};
use crate::api::types::{FullStatusList, ServiceStatus, rfc3339};
use crate::fleet::transport::local::Local;
use crate::fleet::transport::ssh::Ssh;
use crate::fleet::transport::{HostDial, Ways};
use crate::sys::poll;
use view::Seen;

/// A host that takes longer is away.
const PATIENCE: Duration = Duration::from_secs(15);
/// Lines of each service's log that are asked for: of one host, and of many.
const LINES: (usize, usize) = (50, 3);
/// Services whose logs are shown.
const LOGS: usize = 8;
/// Services whose memory is shown, and how long svd may take for all of them.
const DETAILS: (usize, Duration) = (32, Duration::from_secs(5));
/// Answers that wait to be shown.
const ANSWERS: usize = 64;
/// What a shell adds to the number of a signal.
const SIGNALLED: i32 = 128;

/// What one host has said: its services and lines of their logs.
type Answer = Result<(Vec<ServiceStatus>, Vec<(Box<str>, String)>), ClientError>;

/// Why it ends.
enum End {
    /// By a key, or as it was to be shown once.
    Asked(Exit),
    Signal(SignalKind),
}

pub fn monitor(context: &Context, cli: &Cli, args: &MonitorArgs) -> Result<Exit, CliError> {
    let mut ways = None;
    let dials: Vec<(Box<str>, Arc<dyn Dial>)> = if hosts::are_meant(cli) {
        let (settings, chosen) = hosts::chosen(cli)?;
        let _ = hosts::allow_many_files();
        let all = Arc::new(Ways::new(Local::new(&cli.socket), Ssh::new(settings)));
        let dial = |host: crate::fleet::inventory::Host| {
            let dial: Arc<dyn Dial> = Arc::new(HostDial::new(Arc::clone(&all) as _, host.clone()));
            (host.name, dial)
        };
        let dials = chosen.into_iter().map(dial).collect();
        ways = Some(Arc::clone(&all));
        dials
    } else {
        vec![("".into(), Arc::new(Unix::new(&cli.socket)))]
    };
    let done = show(context, args, dials);
    if let Some(ways) = ways {
        ways.close();
    }
    match done? {
        End::Signal(kind) => std::process::exit(SIGNALLED + kind.as_raw_value()),
        End::Asked(exit) => Ok(exit),
    }
}

fn show(context: &Context, args: &MonitorArgs, dials: Vec<(Box<str>, Arc<dyn Dial>)>) -> Result<End, CliError> {
    let runtime = runtime()?;
    let local = LocalSet::new();
    runtime.block_on(local.run_until(async {
        let (answers, answered) = mpsc::channel(ANSWERS);
        let lines = if dials.len() == 1 { LINES.0 } else { LINES.1 };
        let (mut seen, mut asking) = (Vec::with_capacity(dials.len()), JoinSet::new());
        for (index, (name, dial)) in dials.into_iter().enumerate() {
            seen.push(Seen::new(&name));
            let (answers, names) = (answers.clone(), args.names.clone());
            let interval = args.interval;
            asking.spawn_local(async move {
                let caller = Caller::new(dial);
                loop {
                    let answer = tokio::time::timeout(PATIENCE, ask(&caller, &names, lines)).await;
                    if answers.send((index, answer.unwrap_or(Err(ClientError::Lost)))).await.is_err() {
                        return;
                    }
                    tokio::time::sleep(interval).await;
                }
            });
        }
        let signals = Signals::new();
        let answered = Answers { answered, asking };
        let monitor = Monitor { context, args, seen, answered, signals, began: Instant::now() };
        monitor.run().await
    }))
}

async fn ask(caller: &Caller, names: &[String], lines: usize) -> Answer {
    let chosen = if names.is_empty() { String::new() } else { format!("&services={}", joined(names)) };
    let mut list: FullStatusList = caller.fetch(&format!("/v1/status?full=true{chosen}")).await?;
    // With their memory, which svd says of one at a time.
    let end = Instant::now() + DETAILS.1;
    for service in list.services.iter_mut().take(DETAILS.0) {
        let path = format!("/v1/services/{}", encode(&service.name));
        let left = end.saturating_duration_since(Instant::now());
        match tokio::time::timeout(left, caller.fetch::<ServiceStatus>(&path)).await {
            Ok(Ok(detailed)) => *service = detailed,
            // It has gone meanwhile, or whoever asks may not see it alone.
            Ok(Err(_)) => {}
            Err(_) => break,
        }
    }
    let mut log = Vec::new();
    for service in list.services.iter().take(LOGS) {
        let path = format!("/v1/services/{}/logs?lines={lines}", encode(&service.name));
        // Whoever may not read it sees the rest all the same.
        let Ok(text) = caller.get(&path).await else { continue };
        let text = String::from_utf8_lossy(&text);
        log.extend(text.lines().map(|line| (service.name.clone(), line.to_owned())));
    }
    Ok((list.services, log))
}

/// What the hosts say, by those who ask them.
struct Answers {
    answered: mpsc::Receiver<(usize, Answer)>,
    asking: JoinSet<()>,
}

impl Answers {
    /// A panic of somebody who asks is one here: the terminal has been given back, and is not drawn on any more.
    async fn next(&mut self) -> Option<(usize, Answer)> {
        tokio::select! {
            answer = self.answered.recv() => answer,
            Some(Err(ended)) = self.asking.join_next() => match ended.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => None,
            },
        }
    }
}

struct Monitor<'a> {
    context: &'a Context,
    args: &'a MonitorArgs,
    seen: Vec<Seen>,
    answered: Answers,
    signals: Signals,
    began: Instant,
}

impl Monitor<'_> {
    async fn run(mut self) -> Result<End, CliError> {
        if let Some(end) = self.first().await? {
            return Ok(end);
        }
        if self.args.once || self.context.json || !self.context.terminal {
            return self.stream().await;
        }
        self.in_place().await
    }

    /// Until all have said something. Of one host alone, an error is the end.
    async fn first(&mut self) -> Result<Option<End>, CliError> {
        let mut told = vec![false; self.seen.len()];
        let end = tokio::time::sleep(PATIENCE);
        tokio::pin!(end);
        while told.contains(&false) {
            tokio::select! {
                answer = self.answered.next() => {
                    let Some((index, answer)) = answer else { return Ok(None) };
                    told[index] = true;
                    match answer {
                        Err(error) if self.seen.len() == 1 => return Err(CliError::from(error).state_unknown()),
                        answer => self.note(index, answer),
                    }
                }
                kind = self.signals.next() => return Ok(Some(End::Signal(kind))),
                () = &mut end => return Ok(None),
            }
        }
        Ok(None)
    }

    fn note(&mut self, index: usize, answer: Answer) {
        let at = self.began.elapsed();
        match answer {
            Ok((services, log)) => self.seen[index].answered(at, services, log),
            Err(error) => self.seen[index].away = Some(error.to_string().into()),
        }
    }

    /// One after the other.
    async fn stream(mut self) -> Result<End, CliError> {
        let mut first = true;
        loop {
            if self.context.json {
                self.context.print_value(&self.document())?;
            } else {
                let gap = if first { "" } else { "\n" };
                let lines = view::lines(&self.seen, &now(), None);
                self.context.print(format!("{gap}{}\n", lines.join("\n")))?;
            }
            if self.args.once {
                let away = self.seen.iter().any(|seen| seen.away.is_some());
                return Ok(End::Asked(if away { Exit::Unknown } else { Exit::Ok }));
            }
            first = false;
            let rest = tokio::time::sleep(self.args.interval);
            tokio::pin!(rest);
            loop {
                tokio::select! {
                    Some((index, answer)) = self.answered.next() => self.note(index, answer),
                    kind = self.signals.next() => return Ok(End::Signal(kind)),
                    () = &mut rest => break,
                }
            }
        }
    }

    async fn in_place(mut self) -> Result<End, CliError> {
        let mut resized = signal(SignalKind::window_change()).ok();
        let whole = Whole::take();
        let mut keys = Keys::of_stdin();
        loop {
            whole.draw(&view::lines(&self.seen, &format!("{}  q ends", now()), Some(screen::size())));
            tokio::select! {
                Some((index, answer)) = self.answered.next() => self.note(index, answer),
                kind = self.signals.next() => return Ok(End::Signal(kind)),
                () = keys.end() => return Ok(End::Asked(Exit::Ok)),
                Some(()) = next(&mut resized) => {}
                // Time goes on.
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
            }
        }
    }

    fn document(&self) -> Value {
        let time = now();
        if let [seen] = &*self.seen
            && seen.host.is_empty()
        {
            return match &seen.away {
                None => json!({ "time": time, "services": seen.services }),
                Some(why) => json!({ "time": time, "error": why }),
            };
        }
        let hosts = self.seen.iter().map(|seen| match &seen.away {
            None => json!({ "host": seen.host, "services": seen.services }),
            Some(why) => json!({ "host": seen.host, "error": why }),
        });
        json!({ "time": time, "hosts": hosts.collect::<Vec<_>>() })
    }
}

fn now() -> Box<str> {
    rfc3339(SystemTime::now())
}

async fn next(signal: &mut Option<Signal>) -> Option<()> {
    match signal {
        Some(signal) => signal.recv().await,
        None => std::future::pending().await,
    }
}

/// Those that end a program.
struct Signals([Option<Signal>; 4]);

const ENDING: [fn() -> SignalKind; 4] =
    [SignalKind::interrupt, SignalKind::terminate, SignalKind::hangup, SignalKind::quit];

impl Signals {
    fn new() -> Signals {
        Signals(ENDING.map(|kind| signal(kind()).ok()))
    }

    async fn next(&mut self) -> SignalKind {
        let [interrupt, terminate, hangup, quit] = &mut self.0;
        let which = tokio::select! {
            Some(()) = next(interrupt) => 0,
            Some(()) = next(terminate) => 1,
            Some(()) = next(hangup) => 2,
            Some(()) = next(quit) => 3,
        };
        ENDING[which]()
    }
}

/// What is typed.
struct Keys(Option<AsyncFd<OwnedFd>>);

impl Keys {
    /// A file or `/dev/null` cannot be waited for, and has no keys.
    fn of_stdin() -> Keys {
        let stdin = std::io::stdin();
        let own = if stdin.is_terminal() { stdin.as_fd().try_clone_to_owned().ok() } else { None };
        Keys(own.and_then(|own| poll::for_tokio(own).ok()))
    }

    /// Until q, Ctrl-C or Ctrl-D.
    async fn end(&mut self) {
        let Some(keys) = &self.0 else { return std::future::pending().await };
        loop {
            let Ok(mut ready) = keys.readable().await else { return std::future::pending().await };
            // Readable as it is, a read does not block; a key that somebody else has read first is waited for again.
            let mut bytes = [0_u8; 64];
            let read = nix::unistd::read(keys.get_ref(), &mut bytes);
            ready.clear_ready();
            match read {
                Ok(n @ 1..) if bytes[..n].iter().any(|key| matches!(key, b'q' | b'Q' | 3 | 4)) => return,
                Ok(1..) => {}
                // The terminal is gone, which a signal says as well.
                Ok(0) | Err(_) => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "local")]
    #[should_panic(expected = "of one who asks")]
    async fn a_panic_of_one_who_asks_ends_it() {
        let (_kept, answered) = mpsc::channel(1);
        let mut asking = JoinSet::new();
        asking.spawn_local(async { panic!("of one who asks") });
        Answers { answered, asking }.next().await;
    }
}
