//! What the guardian keeps, and how far it has told svd of it. No waiting and no process in here.
//!
//! Nothing is queued for svd: each message is made from what is kept when there is room for it in the socket. So a svd that
//! does not read costs nothing, and what it has not acknowledged is there for the next one.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;

use super::protocol::ToSvd;
use super::{Ended, Refused};
use crate::sys::process::ExitStatus;

/// So many statuses are kept that svd has not acknowledged.
pub(super) const STATUSES: usize = 65_536;
/// So many names at most.
pub(super) const NAMES: usize = 65_536;

#[derive(Debug)]
pub(super) struct Keeper {
    descriptors: BTreeMap<Box<str>, OwnedFd>,
    /// How many descriptors this process may keep.
    room: usize,
    /// Ascending by number.
    exits: VecDeque<(u64, Ended)>,
    last_number: u64,
    refused: Refused,
    /// Why an older svd runs than the one that was wanted.
    pub(super) fallback: Option<String>,
    pub(super) deaths: u32,
    pub(super) last_death: Option<ExitStatus>,
    stage: Stage,
    /// The number of the last status that this svd was told.
    told: u64,
    told_refused: u64,
}

#[derive(Debug)]
enum Stage {
    /// svd has not asked yet.
    Silent,
    Begin(u64),
    /// The name that was told last.
    Descriptors(Option<Box<str>>),
    Statuses,
    Fallback,
    Complete,
    /// It knows everything, and is told what is new.
    Live,
}

impl Keeper {
    /// `room`: how many descriptors this process may keep.
    pub(super) fn new(room: usize) -> Keeper {
        Keeper {
            descriptors: BTreeMap::new(),
            room: room.min(NAMES),
            exits: VecDeque::new(),
            last_number: 0,
            refused: Refused::default(),
            fallback: None,
            deaths: 0,
            last_death: None,
            stage: Stage::Silent,
            told: 0,
            told_refused: 0,
        }
    }

    pub(super) fn store(&mut self, name: &str, descriptor: Option<OwnedFd>) {
        // Without a descriptor there was no room for it in this process.
        let full = self.descriptors.len() >= self.room && !self.descriptors.contains_key(name);
        match descriptor.filter(|_| !full) {
            Some(descriptor) => drop(self.descriptors.insert(name.into(), descriptor)),
            None => {
                self.refused.descriptors += 1;
                self.refused.last = name.into();
            }
        }
    }

    pub(super) fn remove(&mut self, name: &str) {
        self.descriptors.remove(name);
    }

    pub(super) fn ended(&mut self, ended: Ended) {
        if self.exits.len() >= STATUSES {
            self.refused.statuses += 1;
            return;
        }
        self.last_number += 1;
        self.exits.push_back((self.last_number, ended));
    }

    /// svd has recorded all up to this number.
    pub(super) fn acknowledge(&mut self, number: u64) {
        // What was not told to this svd cannot have been recorded by it.
        let number = number.min(self.told);
        while self.exits.front().is_some_and(|(first, _)| *first <= number) {
            self.exits.pop_front();
        }
        if self.exits.is_empty() {
            self.exits.shrink_to(64);
        }
    }

    /// svd asks for everything from the start.
    pub(super) fn begin(&mut self, nonce: u64) {
        self.silence();
        self.stage = Stage::Begin(nonce);
    }

    /// This svd is not told anything any more.
    pub(super) fn silence(&mut self) {
        self.stage = Stage::Silent;
        self.told = 0;
        self.told_refused = 0;
    }

    /// Tells what is to be told, until nothing is left or `send` fails; what failed is told the next time.
    pub(super) fn tell(
        &mut self,
        mut send: impl FnMut(&[u8], Option<BorrowedFd<'_>>) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        loop {
            let next = match &self.stage {
                Stage::Silent => return Ok(()),
                Stage::Begin(nonce) => {
                    send(&ToSvd::Begin { nonce: *nonce }.encode(), None)?;
                    Stage::Descriptors(None)
                }
                Stage::Descriptors(last) => {
                    let from = last.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
                    match self.descriptors.range::<str, _>((from, Bound::Unbounded)).next() {
                        Some((name, fd)) => {
                            send(&ToSvd::Descriptor { name }.encode(), Some(fd.as_fd()))?;
                            Stage::Descriptors(Some(name.clone()))
                        }
                        None => Stage::Statuses,
                    }
                }
                Stage::Statuses => {
                    self.tell_statuses(&mut send)?;
                    Stage::Fallback
                }
                Stage::Fallback => {
                    if let Some(why) = &self.fallback {
                        send(&ToSvd::Fallback { why }.encode(), None)?;
                    }
                    Stage::Complete
                }
                Stage::Complete => {
                    self.tell_refused(&mut send)?;
                    send(&ToSvd::Complete { deaths: self.deaths, last: self.last_death }.encode(), None)?;
                    Stage::Live
                }
                Stage::Live => {
                    self.tell_statuses(&mut send)?;
                    return self.tell_refused(&mut send);
                }
            };
            self.stage = next;
        }
    }

    fn tell_statuses(
        &mut self,
        send: &mut impl FnMut(&[u8], Option<BorrowedFd<'_>>) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        let first = self.exits.partition_point(|(number, _)| *number <= self.told);
        for (number, ended) in self.exits.range(first..) {
            send(&ToSvd::Exit { number: *number, ended: *ended }.encode(), None)?;
            self.told = *number;
        }
        Ok(())
    }

    fn tell_refused(
        &mut self,
        send: &mut impl FnMut(&[u8], Option<BorrowedFd<'_>>) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        let Refused { descriptors, statuses, last } = &self.refused;
        let total = descriptors + statuses;
        if total != self.told_refused {
            let message = ToSvd::Refused { descriptors: *descriptors, statuses: *statuses, name: last };
            send(&message.encode(), None)?;
            self.told_refused = total;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pipe() -> OwnedFd {
        crate::sys::fifo::pipe().expect("a pipe").0
    }

    fn exit(pid: i32) -> Ended {
        Ended { pid, start_time: 1, status: ExitStatus::Code(pid & 0x7f) }
    }

    /// What is told, up to so many messages, in words.
    fn told(keeper: &mut Keeper, room: usize) -> Vec<String> {
        let mut said = Vec::new();
        let _full = keeper.tell(|packet, fd| {
            if said.len() == room {
                return Err(Errno::EAGAIN);
            }
            let text = match ToSvd::decode(packet).expect("a message") {
                ToSvd::Begin { nonce } => format!("begin {nonce}"),
                ToSvd::Descriptor { name } => format!("{name} {}", fd.is_some()),
                ToSvd::Exit { number, ended } => format!("{number}: {}", ended.pid),
                ToSvd::Fallback { why } => why.to_owned(),
                ToSvd::Refused { descriptors, statuses, name } => format!("refused {descriptors} {statuses} {name}"),
                ToSvd::Complete { deaths, .. } => format!("complete {deaths}"),
            };
            said.push(text);
            Ok(())
        });
        said
    }

    #[test]
    fn everything_is_told_however_little_room_there_is() {
        for room in 1..8 {
            let mut keeper = Keeper::new(100);
            keeper.store("b", Some(pipe()));
            keeper.store("a", Some(pipe()));
            keeper.store("gone", Some(pipe()));
            keeper.remove("gone");
            keeper.ended(exit(10));
            keeper.ended(exit(11));
            keeper.fallback = Some("it died".into());
            assert!(told(&mut keeper, room).is_empty(), "nobody has asked");
            keeper.begin(5);
            let mut said = Vec::new();
            while said.len() < 7 {
                said.extend(told(&mut keeper, room));
            }
            assert_eq!(said, ["begin 5", "a true", "b true", "1: 10", "2: 11", "it died", "complete 0"]);
            assert!(told(&mut keeper, room).is_empty());
            keeper.ended(exit(12));
            assert_eq!(told(&mut keeper, 2), ["3: 12"]);
        }
    }

    #[test]
    fn statuses_are_kept_until_acknowledged() {
        let mut keeper = Keeper::new(100);
        keeper.ended(exit(10));
        keeper.begin(1);
        assert_eq!(told(&mut keeper, 9), ["begin 1", "1: 10", "complete 0"]);
        keeper.ended(exit(11));
        // It acknowledges what it has seen; the second one was not told yet.
        keeper.acknowledge(2);
        keeper.begin(2);
        assert_eq!(told(&mut keeper, 9), ["begin 2", "2: 11", "complete 0"]);
        keeper.silence();
        keeper.acknowledge(2);
        keeper.begin(3);
        assert_eq!(told(&mut keeper, 9), ["begin 3", "2: 11", "complete 0"]);
        keeper.acknowledge(2);
        keeper.begin(4);
        assert_eq!(told(&mut keeper, 9), ["begin 4", "complete 0"]);
    }

    #[test]
    fn a_name_has_one_descriptor_and_limits_are_told() {
        let mut keeper = Keeper::new(2);
        let (first, second) = (pipe(), pipe());
        let inode = |fd: BorrowedFd<'_>| nix::sys::stat::fstat(fd).expect("stat").st_ino;
        let wanted = inode(second.as_fd());
        keeper.store("a", Some(first));
        keeper.store("b", Some(pipe()));
        keeper.store("c", Some(pipe()));
        keeper.store("a", Some(second));
        keeper.store("lost", None);
        for pid in 1..=STATUSES as i32 + 3 {
            keeper.ended(exit(pid));
        }
        keeper.begin(1);
        let mut found = None;
        let (mut count, mut last) = (0, String::new());
        keeper
            .tell(|packet, fd| {
                match ToSvd::decode(packet) {
                    Some(ToSvd::Descriptor { name: "a" }) => found = fd.map(inode),
                    Some(ToSvd::Descriptor { name }) => assert_eq!(name, "b"),
                    Some(ToSvd::Exit { .. }) => count += 1,
                    Some(ToSvd::Refused { descriptors, statuses, name }) => {
                        last = format!("{descriptors} {statuses} {name}");
                    }
                    _ => {}
                }
                Ok(())
            })
            .expect("told");
        assert_eq!(found, Some(wanted), "the later one");
        assert_eq!(count, STATUSES);
        assert_eq!(last, "2 3 lost");
        assert!(told(&mut keeper, 1).is_empty(), "told once");
    }
}
