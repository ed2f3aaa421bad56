//! The journal of the latest rollout, which whoever drives it writes here and reads from anywhere; and those of some before it, for
//! people who want to know what a verdict rested on.
//!
//! svd keeps the entries as they are. One JSON value a line, each with the number of the lock that it was written with; the
//! first line has the rollout. What a death has torn at the end was told to nobody.

use super::book::{PATIENCE, now, on_disk, within};
use super::{Task, fence};
use crate::api::apps::{AppendOptions, AppendResult, Fence, Journal, JournalMark};
use crate::api::types::{ApiError, ErrorCode};
use crate::sys::{durable, io_text};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::cell::{Cell, RefCell};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// Entries of one rollout, and bytes of its file.
const MOST: usize = 100_000;
const LARGEST: usize = 64 << 20;
/// Journals of earlier rollouts that are kept.
const EARLIER: usize = 10;

/// In memory, and how its file stands.
pub struct Kept {
    journal: RefCell<Rc<Journal>>,
    file: PathBuf,
    /// The file has something else than this at its end.
    torn: RefCell<bool>,
    /// Of the file, in bytes.
    size: Cell<usize>,
}

#[derive(Serialize, Deserialize)]
struct Head {
    rollout: Box<str>,
}

#[derive(Serialize, Deserialize)]
struct Line<V> {
    number: u64,
    entry: V,
}

impl Kept {
    /// Of an app that nothing was deployed of, or at another place. A file that is there is replaced.
    pub fn new(file: PathBuf) -> Kept {
        Kept { journal: RefCell::default(), file, torn: RefCell::new(true), size: Cell::new(0) }
    }

    /// Reads what an earlier svd has left, as far as it is whole.
    pub fn open(file: PathBuf) -> Kept {
        let text = std::fs::read(&file).unwrap_or_default();
        let (journal, whole) = decode(&text);
        Kept {
            journal: RefCell::new(Rc::new(journal)),
            file,
            torn: RefCell::new(whole < text.len()),
            size: Cell::new(whole),
        }
    }

    pub fn get(&self) -> Rc<Journal> {
        Rc::clone(&self.journal.borrow())
    }

    pub fn mark(&self) -> JournalMark {
        let journal = self.journal.borrow();
        JournalMark { rollout: journal.rollout.clone(), number: journal.number, entries: journal.entries.len() }
    }

    /// Replaces what follows the first `from` entries. On the disk when it returns; how many there are then.
    async fn append(&self, rollout: &str, number: u64, from: usize, entries: Vec<Value>) -> Result<usize, String> {
        let old = self.get();
        let same = *old.rollout == *rollout;
        let there = if same { old.entries.len() } else { 0 };
        if from > there {
            return Ok(there);
        }
        if same && old.number == number && from + entries.len() <= there {
            // It came late, and what came after it from the same driver is here.
            return Ok(there);
        }
        if from + entries.len() > MOST {
            return Err(format!("the rollout has more than {MOST} entries"));
        }
        let mut all = if same { old.entries[..from].to_vec() } else { Vec::new() };
        all.extend(entries.iter().cloned());
        let journal = Journal { rollout: rollout.into(), number, entries: all };
        let (file, count) = (self.file.clone(), journal.entries.len());
        let too_large =
            |size: usize| (size > LARGEST).then(|| format!("the rollout's journal has more than {LARGEST} bytes"));
        let size = if same && from == there && there > 0 && !*self.torn.borrow() {
            let lines = lines(number, &entries);
            let size = self.size.get() + lines.len();
            too_large(size).map_or(Ok(()), Err)?;
            // Should it fail, part of it may be there.
            self.torn.replace(true);
            on_disk(move || add(&file, &lines)).await?;
            size
        } else {
            let mut text = serde_json::to_vec(&Head { rollout: rollout.into() }).unwrap_or_default();
            text.push(b'\n');
            text.extend(lines(number, &journal.entries));
            let another = !same && !old.entries.is_empty();
            let size = text.len();
            too_large(size).map_or(Ok(()), Err)?;
            on_disk(move || {
                if another {
                    keep(&file)?;
                }
                durable::write(&file, &text, 0o600)
                    .map_err(|e| format!("cannot write {}: {}", file.display(), io_text(&e)))
            })
            .await?;
            size
        };
        self.size.set(size);
        self.torn.replace(false);
        self.journal.replace(Rc::new(journal));
        Ok(count)
    }
}

fn lines(number: u64, entries: &[Value]) -> Vec<u8> {
    let mut text = Vec::new();
    for entry in entries {
        text.extend(serde_json::to_vec(&Line { number, entry }).unwrap_or_default());
        text.push(b'\n');
    }
    text
}

/// The file that has a journal of so many rollouts before.
fn earlier(file: &Path, n: usize) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(format!(".{n}"));
    name.into()
}

/// Gives what is about to be replaced a name of its own, the first of [`EARLIER`]. It is there under its old one all the while.
fn keep(file: &Path) -> Result<(), String> {
    let tolerable = |result: std::io::Result<()>| match result {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(format!("cannot keep the journal {}: {}", file.display(), io_text(&error)))
        }
        _ => Ok(()),
    };
    for n in (1..EARLIER).rev() {
        tolerable(std::fs::rename(earlier(file, n), earlier(file, n + 1)))?;
    }
    tolerable(std::fs::hard_link(file, earlier(file, 1)))
}

/// True also of the release that the rollout ships: the newest rollout of it is meant.
fn is_meant(rollout: &str, wanted: &str) -> bool {
    rollout.strip_prefix(wanted).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}

fn add(file: &Path, lines: &[u8]) -> Result<(), String> {
    let open = std::fs::OpenOptions::new().append(true).open(file);
    let written = open.and_then(|mut open| open.write_all(lines).and_then(|()| open.sync_data()));
    written.map_err(|e| format!("cannot write {}: {}", file.display(), io_text(&e)))
}

/// As far as it is whole; and how many bytes that is.
fn decode(text: &[u8]) -> (Journal, usize) {
    let (mut journal, mut whole) = (Journal::default(), 0);
    for (at, line) in text.split_inclusive(|byte| *byte == b'\n').enumerate() {
        let Some(value) = line.strip_suffix(b"\n") else { break };
        if at == 0 {
            let Ok(Head { rollout }) = serde_json::from_slice(value) else { break };
            journal.rollout = rollout;
        } else {
            let Ok(Line { number, entry }) = serde_json::from_slice(value) else { break };
            journal.number = number;
            journal.entries.push(entry);
        }
        whole += line.len();
    }
    (journal, whole)
}

impl Task {
    pub async fn append(&self, wanted: AppendOptions) -> Result<AppendResult, ApiError> {
        let theirs = fence(&wanted.fence);
        // Nobody else may get the lock meanwhile.
        let turn = self.book.turn().await.map_err(|trouble| self.troubled(&trouble))?;
        self.book.app().admit(now(), &theirs).map_err(|refusal| self.refused(refusal))?;
        let Fence { number, rollout } = wanted.fence;
        let book = Rc::clone(&self.book);
        let append = async move { book.kept.append(&rollout, number, wanted.from, wanted.entries).await };
        let entries = within(turn, PATIENCE, append).await.map_err(|trouble| self.troubled(&trouble))?;
        Ok(AppendResult { entries })
    }
}

impl Task {
    /// `rollout`: its name, or that of its release; the latest one without.
    pub async fn journal(&self, rollout: Option<&str>) -> Result<Rc<Journal>, ApiError> {
        let latest = self.book.kept.get();
        let Some(wanted) = rollout.filter(|wanted| !is_meant(&latest.rollout, wanted)) else { return Ok(latest) };
        let (file, meant) = (self.book.kept.file.clone(), wanted.to_owned());
        let found = on_disk(move || {
            let read = |n| Some(decode(&std::fs::read(earlier(&file, n)).ok()?).0);
            Ok((1..=EARLIER).filter_map(read).find(|journal| is_meant(&journal.rollout, &meant)))
        });
        let found = found.await.map_err(|why| self.failed(why))?;
        found.map(Rc::new).ok_or_else(|| {
            let message = format!("{}: no journal of a rollout {wanted} is kept here.", self.book.name);
            ApiError::new(ErrorCode::UnknownRelease, message)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn values(numbers: std::ops::Range<u64>) -> Vec<Value> {
        numbers.map(|n| json!({ "n": n })).collect()
    }

    #[tokio::test]
    async fn entries_are_appended_replaced_and_survive() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("web.journal");
        let kept = Kept::open(file.clone());
        assert_eq!(kept.append("r", 1, 0, values(0..3)).await, Ok(3));
        assert_eq!(kept.append("r", 1, 3, values(3..5)).await, Ok(5));
        assert_eq!(kept.append("r", 1, 3, values(3..4)).await, Ok(5), "it came late: nothing gets shorter");
        assert_eq!(kept.append("r", 1, 9, values(9..10)).await, Ok(5), "there is a gap: nothing is written");
        assert_eq!(kept.append("r", 2, 4, values(14..16)).await, Ok(6), "another driver knows it otherwise");
        let expected = [values(0..4), values(14..16)].concat();
        assert_eq!((kept.mark().number, &kept.get().entries), (2, &expected));
        assert_eq!(*Kept::open(file.clone()).get(), *kept.get());
        // Torn by a death: the rest counts, and what comes then is not behind it.
        let mut text = std::fs::read(&file).expect("read");
        text.extend(b"{\"number\":2,\"ent");
        std::fs::write(&file, text).expect("write");
        let kept = Kept::open(file.clone());
        assert_eq!(kept.get().entries, expected);
        assert_eq!(kept.append("r", 2, 6, values(20..21)).await, Ok(7));
        assert_eq!(Kept::open(file.clone()).get().entries.len(), 7);
        assert_eq!(kept.append("other", 3, 0, values(0..1)).await, Ok(1), "another rollout begins a journal");
        assert_eq!(Kept::open(file.clone()).mark(), JournalMark { rollout: "other".into(), number: 3, entries: 1 });
        for n in 0..EARLIER + 2 {
            assert_eq!(kept.append(&format!("r{n}"), 4, 0, values(0..1)).await, Ok(1));
        }
        let read = |n| decode(&std::fs::read(earlier(&file, n)).unwrap_or_default()).0.rollout;
        assert_eq!(
            (&*read(1), &*read(EARLIER), &*read(EARLIER + 1)),
            ("r10", "r1", ""),
            "those before are kept, and no more"
        );
        assert!(is_meant("d-1-00ff", "d-1") && is_meant("d-1", "d-1") && !is_meant("d-10-00ff", "d-1"));
    }
}
