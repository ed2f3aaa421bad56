//! What svd and its guardian say to each other: one message a packet, its kind in the first byte, numbers in the
//! machine's own order. A descriptor travels beside its message.
//!
//! The two may be of different versions, as a guardian outlives upgrades: kinds that one does not know are passed over, and
//! what a message has beyond what is known is ignored. Numbers of kinds are never used again for something else.

use super::Ended;
use crate::sys::process::ExitStatus;

/// Longest name of a descriptor, in bytes.
pub const NAME_MAX: usize = 255;
/// Longest reason in [`ToSvd::Fallback`], in bytes.
pub(super) const WHY_MAX: usize = 900;
/// No packet is longer.
pub(super) const PACKET_MAX: usize = 1024;

/// From svd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ToGuardian<'a> {
    /// A new image of svd is there and wants to be told everything; the answer begins with the same number.
    Hello {
        nonce: u64,
    },
    /// With a descriptor. One that has this name already is replaced.
    Store {
        name: &'a str,
    },
    Remove {
        name: &'a str,
    },
    Ready,
    /// All statuses up to this number are recorded.
    Acknowledge {
        number: u64,
    },
    End {
        code: i32,
    },
    /// With a descriptor of the file.
    Executable,
    /// For the service manager, which listens to the process that it has started, and to no other.
    Notify {
        text: &'a str,
    },
}

/// From the guardian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ToSvd<'a> {
    Begin {
        nonce: u64,
    },
    /// With the descriptor.
    Descriptor {
        name: &'a str,
    },
    Exit {
        number: u64,
        ended: Ended,
    },
    Fallback {
        why: &'a str,
    },
    /// How often something could not be kept so far; the name is that of the last descriptor.
    Refused {
        descriptors: u64,
        statuses: u64,
        name: &'a str,
    },
    /// Everything that was kept has been told. `deaths`: of svd, since this guardian began.
    Complete {
        deaths: u32,
        last: Option<ExitStatus>,
    },
}

mod kind {
    pub const HELLO: u8 = 1;
    pub const STORE: u8 = 2;
    pub const REMOVE: u8 = 3;
    pub const READY: u8 = 4;
    pub const ACKNOWLEDGE: u8 = 5;
    pub const END: u8 = 6;
    pub const EXECUTABLE: u8 = 7;
    pub const NOTIFY: u8 = 8;
    pub const BEGIN: u8 = 65;
    pub const DESCRIPTOR: u8 = 66;
    pub const EXIT: u8 = 67;
    pub const FALLBACK: u8 = 68;
    pub const REFUSED: u8 = 69;
    pub const COMPLETE: u8 = 70;
}

impl<'a> ToGuardian<'a> {
    pub(super) fn encode(&self) -> Vec<u8> {
        match self {
            ToGuardian::Hello { nonce } => packet(kind::HELLO, &[&nonce.to_ne_bytes()]),
            ToGuardian::Store { name } => packet(kind::STORE, &[name.as_bytes()]),
            ToGuardian::Remove { name } => packet(kind::REMOVE, &[name.as_bytes()]),
            ToGuardian::Ready => packet(kind::READY, &[]),
            ToGuardian::Acknowledge { number } => packet(kind::ACKNOWLEDGE, &[&number.to_ne_bytes()]),
            ToGuardian::End { code } => packet(kind::END, &[&code.to_ne_bytes()]),
            ToGuardian::Executable => packet(kind::EXECUTABLE, &[]),
            ToGuardian::Notify { text } => packet(kind::NOTIFY, &[cut(text, WHY_MAX).as_bytes()]),
        }
    }

    /// `None`: not known here, or cut short.
    pub(super) fn decode(packet: &'a [u8]) -> Option<ToGuardian<'a>> {
        let (kind, mut rest) = packet.split_first().map(|(kind, rest)| (*kind, Reader(rest)))?;
        Some(match kind {
            kind::HELLO => ToGuardian::Hello { nonce: rest.u64()? },
            kind::STORE => ToGuardian::Store { name: rest.text(NAME_MAX)? },
            kind::REMOVE => ToGuardian::Remove { name: rest.text(NAME_MAX)? },
            kind::READY => ToGuardian::Ready,
            kind::ACKNOWLEDGE => ToGuardian::Acknowledge { number: rest.u64()? },
            kind::END => ToGuardian::End { code: rest.i32()? },
            kind::EXECUTABLE => ToGuardian::Executable,
            kind::NOTIFY => ToGuardian::Notify { text: rest.text(WHY_MAX)? },
            _ => return None,
        })
    }
}

impl<'a> ToSvd<'a> {
    pub(super) fn encode(&self) -> Vec<u8> {
        match self {
            ToSvd::Begin { nonce } => packet(kind::BEGIN, &[&nonce.to_ne_bytes()]),
            ToSvd::Descriptor { name } => packet(kind::DESCRIPTOR, &[name.as_bytes()]),
            ToSvd::Exit { number, ended } => {
                let status = ended.status.to_wait_status().unwrap_or(UNKNOWN);
                let parts: [&[u8]; 4] = [
                    &number.to_ne_bytes(),
                    &ended.pid.to_ne_bytes(),
                    &status.to_ne_bytes(),
                    &ended.start_time.to_ne_bytes(),
                ];
                packet(kind::EXIT, &parts)
            }
            ToSvd::Fallback { why } => packet(kind::FALLBACK, &[cut(why, WHY_MAX).as_bytes()]),
            ToSvd::Refused { descriptors, statuses, name } => {
                packet(kind::REFUSED, &[&descriptors.to_ne_bytes(), &statuses.to_ne_bytes(), name.as_bytes()])
            }
            ToSvd::Complete { deaths, last } => {
                let status = last.and_then(ExitStatus::to_wait_status).unwrap_or(UNKNOWN);
                packet(kind::COMPLETE, &[&deaths.to_ne_bytes(), &status.to_ne_bytes()])
            }
        }
    }

    /// `None`: not known here, or cut short.
    pub(super) fn decode(packet: &'a [u8]) -> Option<ToSvd<'a>> {
        let (kind, mut rest) = packet.split_first().map(|(kind, rest)| (*kind, Reader(rest)))?;
        Some(match kind {
            kind::BEGIN => ToSvd::Begin { nonce: rest.u64()? },
            kind::DESCRIPTOR => ToSvd::Descriptor { name: rest.text(NAME_MAX)? },
            kind::EXIT => {
                let (number, pid, status) = (rest.u64()?, rest.i32()?, rest.i32()?);
                let status = known(status).unwrap_or(ExitStatus::Unknown);
                ToSvd::Exit { number, ended: Ended { pid, start_time: rest.u64()?, status } }
            }
            kind::FALLBACK => ToSvd::Fallback { why: rest.text(WHY_MAX)? },
            kind::REFUSED => {
                ToSvd::Refused { descriptors: rest.u64()?, statuses: rest.u64()?, name: rest.text(NAME_MAX)? }
            }
            kind::COMPLETE => ToSvd::Complete { deaths: rest.u32()?, last: known(rest.i32()?) },
            _ => return None,
        })
    }
}

/// In the place of a wait status; no status is negative.
const UNKNOWN: i32 = -1;

fn known(status: i32) -> Option<ExitStatus> {
    (status != UNKNOWN).then(|| ExitStatus::from_wait_status(status))
}

fn packet(kind: u8, parts: &[&[u8]]) -> Vec<u8> {
    let mut packet = Vec::with_capacity(1 + parts.iter().map(|part| part.len()).sum::<usize>());
    packet.push(kind);
    parts.iter().for_each(|part| packet.extend_from_slice(part));
    packet
}

/// At most so many bytes of it, whole characters only.
fn cut(text: &str, bytes: usize) -> &str {
    let mut end = bytes.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_ne_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_ne_bytes)
    }

    fn i32(&mut self) -> Option<i32> {
        self.array().map(i32::from_ne_bytes)
    }

    /// All that is left.
    fn text(&mut self, max: usize) -> Option<&'a str> {
        std::str::from_utf8(std::mem::take(&mut self.0)).ok().filter(|text| text.len() <= max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_comes_back() {
        let name = "x".repeat(NAME_MAX);
        let from_svd = [
            ToGuardian::Hello { nonce: u64::MAX },
            ToGuardian::Store { name: &name },
            ToGuardian::Remove { name: "a" },
            ToGuardian::Ready,
            ToGuardian::Acknowledge { number: 7 },
            ToGuardian::End { code: -1 },
            ToGuardian::Executable,
            ToGuardian::Notify { text: "READY=1" },
        ];
        for message in from_svd {
            let packet = message.encode();
            assert!(packet.len() <= PACKET_MAX);
            assert_eq!(ToGuardian::decode(&packet), Some(message));
            assert_eq!(ToSvd::decode(&packet), None, "the two directions share no kind");
        }
        let ended = |status| Ended { pid: 42, start_time: 99, status };
        let from_guardian = [
            ToSvd::Begin { nonce: 1 },
            ToSvd::Descriptor { name: &name },
            ToSvd::Exit { number: 3, ended: ended(ExitStatus::Code(7)) },
            ToSvd::Exit { number: 3, ended: ended(ExitStatus::Signal { signal: 11, core_dumped: true }) },
            ToSvd::Exit { number: 3, ended: ended(ExitStatus::Unknown) },
            ToSvd::Fallback { why: "it died" },
            ToSvd::Refused { descriptors: 1, statuses: 2, name: &name },
            ToSvd::Complete { deaths: 3, last: Some(ExitStatus::Code(0)) },
            ToSvd::Complete { deaths: 0, last: None },
        ];
        for message in from_guardian {
            let packet = message.encode();
            assert!(packet.len() <= PACKET_MAX);
            assert_eq!(ToSvd::decode(&packet), Some(message));
        }
    }

    #[test]
    fn nonsense_is_passed_over() {
        assert_eq!(ToGuardian::decode(&[]), None);
        assert_eq!(ToGuardian::decode(&[200, 1, 2]), None);
        assert_eq!(ToGuardian::decode(&[kind::ACKNOWLEDGE, 1, 2, 3]), None);
        assert_eq!(ToGuardian::decode(&[kind::STORE, 0xff]), None);
        let long = [vec![kind::STORE], vec![b'x'; NAME_MAX + 1]].concat();
        assert_eq!(ToGuardian::decode(&long), None);
        let why = "ä".repeat(WHY_MAX);
        let packet = ToSvd::Fallback { why: &why }.encode();
        assert!(packet.len() <= PACKET_MAX && ToSvd::decode(&packet).is_some(), "cut between two characters");
    }
}
