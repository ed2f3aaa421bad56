//! What the log thread keeps of a service's output in memory: the end of it, and a search for the line that means ready.

use std::collections::VecDeque;

use super::handle::WatchId;
use super::names::Stream;

/// The last bytes of a generation, for error messages: some hundred lines at most, and 8 MB for 1,000 talkative services.
pub const TAIL_MAX: usize = 8 * 1024;

/// The longest text that can be watched for: a bound for what is carried from one read to the next.
pub const WATCH_MAX: usize = 1024;

/// The last [`TAIL_MAX`] bytes. It grows with what there is; one that never got any has no memory.
#[derive(Debug, Default)]
pub(super) struct Tail(VecDeque<u8>);

impl Tail {
    pub fn push(&mut self, data: &[u8]) {
        let data = &data[data.len().saturating_sub(TAIL_MAX)..];
        let over = (self.0.len() + data.len()).saturating_sub(TAIL_MAX);
        self.0.drain(..over);
        self.0.extend(data);
    }

    /// At most the last `max` bytes.
    pub fn last(&self, max: usize) -> Vec<u8> {
        let skip = self.0.len().saturating_sub(max);
        self.0.iter().skip(skip).copied().collect()
    }
}

/// Looks for a text in the output of one worker, however the reads cut it.
#[derive(Debug)]
pub(super) struct Watch {
    pub id: WatchId,
    pub generation: u64,
    /// `None`: any worker of the generation.
    pub worker: Option<u32>,
    text: Box<[u8]>,
    /// The end of what was seen of each pipe, one byte shorter than the text.
    carried: Vec<((u32, Stream), Vec<u8>)>,
}

impl Watch {
    /// A text beyond [`WATCH_MAX`] is searched for by its first bytes.
    pub fn new(id: WatchId, generation: u64, worker: Option<u32>, text: &[u8]) -> Watch {
        Watch { id, generation, worker, text: text[..text.len().min(WATCH_MAX)].into(), carried: Vec::new() }
    }

    /// Has the text come, now that `data` has?
    pub fn sees(&mut self, generation: u64, worker: u32, stream: Stream, data: &[u8]) -> bool {
        if generation != self.generation || self.worker.is_some_and(|w| w != worker) {
            return false;
        }
        let Some(keep) = self.text.len().checked_sub(1) else {
            return true; // any output holds the empty text
        };
        let at = match self.carried.iter().position(|(k, _)| *k == (worker, stream)) {
            Some(at) => at,
            None => {
                self.carried.push(((worker, stream), Vec::new()));
                self.carried.len() - 1
            }
        };
        let carried = &mut self.carried[at].1;
        // The seam: the carried end with as much of the new data as a match across it can reach.
        let seam = data.len().min(keep);
        carried.extend_from_slice(&data[..seam]);
        if contains(carried, &self.text) || contains(data, &self.text) {
            return true;
        }
        if data.len() > keep {
            carried.clear();
            carried.extend_from_slice(&data[data.len() - keep..]);
        } else {
            let over = carried.len().saturating_sub(keep);
            carried.drain(..over);
        }
        false
    }
}

fn contains(hay: &[u8], needle: &[u8]) -> bool {
    let Some((&first, _)) = needle.split_first() else {
        return true;
    };
    let mut from = 0;
    while let Some(at) = hay[from..].iter().position(|b| *b == first) {
        if hay[from + at..].starts_with(needle) {
            return true;
        }
        from += at + 1;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_watch_sees_what_a_search_of_the_whole_would(
            whole in proptest::collection::vec(0u8..3, 0..60),
            text in proptest::collection::vec(0u8..3, 1..6),
            cuts in proptest::collection::vec(1usize..7, 1..60),
        ) {
            let mut watch = Watch::new(WatchId(1), 1, None, &text);
            let (mut rest, mut seen) = (&whole[..], false);
            for cut in cuts.iter().cycle() {
                if rest.is_empty() || seen { break; }
                let (now, later) = rest.split_at((*cut).min(rest.len()));
                seen = watch.sees(1, 0, Stream::Joined, now);
                rest = later;
            }
            prop_assert_eq!(seen, whole.windows(text.len()).any(|w| w == text));
        }

        #[test]
        fn a_tail_is_the_end(pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..5000), 0..8), max in 0usize..10_000) {
            let mut tail = Tail::default();
            for p in &pieces { tail.push(p); }
            let whole = pieces.concat();
            let keep = max.min(TAIL_MAX).min(whole.len());
            prop_assert_eq!(tail.last(max), &whole[whole.len() - keep..]);
        }
    }
}
