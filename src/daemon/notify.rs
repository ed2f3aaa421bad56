//! `sd_notify(3)`: what services say about themselves.

use super::host::{Alarm, Host};
use super::state::Key;
use super::unit::{Announced, Need};
use crate::core::{Event, WorkerId};
use std::time::Duration;

/// Longest datagram taken.
const DATAGRAM_MAX: usize = 4096;
/// Datagrams taken before others have their turn: whoever sends without end must not stop svd.
const AT_ONCE: usize = 64;
/// Times that, before something is judged by what was not sent.
const DRAIN: usize = 16;
/// Of a `STATUS=` that is kept.
const STATUS_MAX: usize = 256;

/// One `NAME=value` of a datagram that svd understands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    Ready,
    Reloading,
    Stopping,
    Status(String),
    MainPid(i32),
    Watchdog,
    /// `WATCHDOG=trigger`: it knows itself that it is broken.
    WatchdogTrigger,
    WatchdogInterval(Duration),
    Extend(Duration),
    Errno(i32),
}

/// Reads a datagram; unknown names and malformed values are passed over, as `systemd` does.
pub fn parse(datagram: &[u8]) -> Vec<Said> {
    let text = String::from_utf8_lossy(datagram);
    let micros = |v: &str| v.parse().ok().map(Duration::from_micros);
    text.lines()
        .filter_map(|line| {
            let (name, value) = line.split_once('=')?;
            match name {
                "READY" => (value == "1").then_some(Said::Ready),
                "RELOADING" => (value == "1").then_some(Said::Reloading),
                "STOPPING" => (value == "1").then_some(Said::Stopping),
                "STATUS" => Some(Said::Status(value.chars().take(STATUS_MAX).collect())),
                "MAINPID" => value.parse().ok().filter(|pid| *pid > 1).map(Said::MainPid),
                "WATCHDOG" if value == "trigger" => Some(Said::WatchdogTrigger),
                "WATCHDOG" => (value == "1").then_some(Said::Watchdog),
                "WATCHDOG_USEC" => micros(value).map(Said::WatchdogInterval),
                "EXTEND_TIMEOUT_USEC" => micros(value).map(Said::Extend),
                "ERRNO" => value.parse().ok().map(Said::Errno),
                _ => None,
            }
        })
        .collect()
}

/// The promise of [`crate::fuzz::notify_datagram`].
#[cfg(any(test, feature = "fuzz"))]
pub fn check(datagram: &[u8]) {
    for said in parse(datagram) {
        match said {
            Said::Status(text) => assert!(text.chars().count() <= STATUS_MAX),
            Said::MainPid(pid) => assert!(pid > 1),
            Said::Errno(errno) => assert!(!nix::errno::Errno::from_raw(errno).desc().is_empty()),
            _ => {}
        }
    }
}

impl Host {
    /// The socket has something to say.
    pub fn handle_notify(&mut self, id: WorkerId) {
        self.read_notify(id, true);
    }

    /// Reads what was sent; `false` when nothing is left. `alone`: nothing else is being done.
    fn read_notify(&mut self, id: WorkerId, alone: bool) -> bool {
        let mut buffer = [0_u8; DATAGRAM_MAX];
        for _ in 0..AT_ONCE {
            let Some(process) = self.workers.get_mut(&id) else { return false };
            let Some(socket) = &process.notify else { return false };
            // What says that it is ready is taken when it is written down: had svd died before, the next one finds it there.
            let stays = alone && !process.ready;
            match if stays { socket.look(&mut buffer) } else { socket.receive(&mut buffer) } {
                Ok(Some(message)) => {
                    self.notified(id, message.sender.map(|sender| sender.pid), &buffer[..message.length]);
                    if stays {
                        self.deliver();
                        self.write_state();
                        let socket = self.workers.get(&id).and_then(|process| process.notify.as_ref());
                        let _ = socket.map(|socket| socket.receive(&mut buffer));
                    }
                }
                Ok(None) => return false,
                Err(e) => {
                    tracing::debug!("a notify socket cannot be read: {e}");
                    return false;
                }
            }
        }
        true
    }

    fn notified(&mut self, id: WorkerId, sender: Option<i32>, datagram: &[u8]) {
        // Anybody who can reach the socket may send; only the service's own processes count.
        let Some(process) = self.workers.get(&id) else { return };
        if !sender.is_some_and(|sender| process.is_own(sender)) {
            self.foreign_notifications += 1;
            return tracing::debug!("a notification of process {sender:?} is ignored: not of this service");
        }
        for said in parse(datagram) {
            self.said(id, said);
        }
    }

    /// Reads all that was sent until now, as far as the kernel keeps it (`net.unix.max_dgram_qlen`).
    pub fn drain_notify(&mut self, id: WorkerId) {
        for _ in 0..DRAIN {
            if !self.read_notify(id, false) {
                return;
            }
        }
    }

    /// svd slept (the host was suspended, or svd stopped): deadlines have passed, and what was sent in time waits.
    pub fn drain_all_notify(&mut self) {
        let ids: Vec<WorkerId> = self.workers.iter().filter(|(_, p)| p.notify.is_some()).map(|(id, _)| *id).collect();
        for id in ids {
            self.drain_notify(id);
        }
        self.deliver();
    }

    /// A worker that has said that it stops has the time of a stop for it, as under systemd.
    fn await_own_end(&mut self, id: WorkerId) {
        if let Some(grace) = self.machine.grace_of(id) {
            self.expect_end(id, grace);
        }
    }

    fn expect_end(&mut self, id: WorkerId, within: Duration) {
        self.alarms.retain(|(_, worker, alarm)| (*worker, *alarm) != (id, Alarm::OwnEnd));
        self.alarms.insert((self.now() + within, id, Alarm::OwnEnd));
    }

    pub fn own_end_late(&mut self, id: WorkerId) {
        let Some(process) = self.workers.get(&id) else { return };
        if process.announced == Some(Announced::Stopping) && process.signalled.is_none() {
            let reason = "has said that it stops (STOPPING=1), and not ended within the grace of [stop]".into();
            self.tell(Event::Hung { worker: id, reason });
        }
    }

    fn said(&mut self, id: WorkerId, said: Said) {
        let Some(process) = self.workers.get_mut(&id) else { return };
        let service = process.generation.service;
        match said {
            Said::Ready => {
                if process.announced.take_if(|a| *a == Announced::Reloading).is_some() {
                    self.info(Some(service), "has reloaded itself");
                }
                self.satisfied(id, Need::Notify);
            }
            Said::Reloading => {
                process.announced = Some(Announced::Reloading);
                self.info(Some(service), "reloads itself");
            }
            Said::Stopping => {
                if process.announced.replace(Announced::Stopping) != Some(Announced::Stopping) {
                    self.info(Some(service), "stops by itself");
                    self.await_own_end(id);
                }
            }
            Said::Status(text) => {
                process.status = Some(text.into());
                self.state.mark(Key::Process(id));
            }
            Said::MainPid(pid) => self.name_main(id, pid),
            Said::Watchdog => self.feed_watchdog(id),
            Said::WatchdogInterval(interval) => {
                process.watchdog_every = Some(interval);
                self.feed_watchdog(id);
            }
            Said::WatchdogTrigger => self.watchdog_failed(id, "says WATCHDOG=trigger"),
            Said::Extend(by) => {
                if process.announced == Some(Announced::Stopping) {
                    self.expect_end(id, by);
                }
                self.tell(Event::Extend { worker: id, by });
            }
            Said::Errno(errno) => {
                let text = format!("reports: {}", nix::errno::Errno::from_raw(errno).desc());
                self.warn(Some(service), &text);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_several_and_passes_over_what_it_does_not_know() {
        let said = parse(b"READY=1\nSTATUS=at work\nFDSTORE=1\nMAINPID=x\nEXTEND_TIMEOUT_USEC=1500000\nREADY=0");
        let extend = Said::Extend(Duration::from_millis(1500));
        assert_eq!(said, [Said::Ready, Said::Status("at work".into()), extend]);
        assert_eq!(parse(b"MAINPID=1"), []);
        assert_eq!(parse(b"WATCHDOG=trigger\nWATCHDOG=1"), [Said::WatchdogTrigger, Said::Watchdog]);
    }

    proptest! {
        #[test]
        fn never_panics(datagram in proptest::collection::vec(any::<u8>(), 0..512)) {
            parse(&datagram);
        }
    }
}
