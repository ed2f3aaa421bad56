//! `sd_notify(3)`: what services say about themselves.

use super::host::Host;
use super::unit::Need;
use crate::core::{Event, WorkerId};
use std::time::Duration;

/// Longest datagram taken.
const DATAGRAM_MAX: usize = 4096;
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

impl Host {
    pub fn handle_notify(&mut self, id: WorkerId) {
        let mut buffer = [0_u8; DATAGRAM_MAX];
        loop {
            let Some(process) = self.workers.get_mut(&id) else { return };
            let Some(socket) = &mut process.notify else { return };
            match socket.receive(&mut buffer) {
                Ok(Some(message)) => {
                    // Anybody who can reach the socket may send; only the service's own processes count.
                    let Some(sender) = message.sender else { continue };
                    if process.worker.pid() != Some(sender.pid) && !process.worker.contains(sender.pid) {
                        tracing::debug!("a notification of process {} is ignored: not of this service", sender.pid);
                        continue;
                    }
                    let said = parse(&buffer[..message.length]);
                    for said in said {
                        self.said(id, said);
                    }
                }
                Ok(None) => return,
                Err(e) => return tracing::debug!("a notify socket cannot be read: {e}"),
            }
        }
    }

    fn said(&mut self, id: WorkerId, said: Said) {
        let Some(process) = self.workers.get_mut(&id) else { return };
        let service = process.generation.service;
        match said {
            Said::Ready => self.satisfied(id, Need::Notify),
            Said::Reloading => self.info(Some(service), "reloads itself"),
            Said::Stopping => self.info(Some(service), "stops by itself"),
            Said::Status(text) => process.status = Some(text.into()),
            Said::MainPid(pid) => {
                if process.worker.contains(pid) {
                    process.main_pid = Some(pid);
                }
            }
            Said::Watchdog => self.feed_watchdog(id),
            Said::WatchdogInterval(interval) => {
                process.watchdog_every = Some(interval);
                self.feed_watchdog(id);
            }
            Said::WatchdogTrigger => self.watchdog_due(id),
            Said::Extend(by) => self.tell(Event::Extend { worker: id, by }),
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
