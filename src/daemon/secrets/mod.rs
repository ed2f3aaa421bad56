//! `[secrets]`: read when a generation is prepared, given to all that runs for it, and looked at again while it serves.
//!
//! The values are in memory only, and in the files of [`place`]. What is written down of them is a keyed hash, by which the next svd
//! sees whether one has changed meanwhile.

pub mod place;
pub mod read;
pub mod watch;

use place::Place;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// By the secret's name: a keyed hash of its value.
pub type Marks = BTreeMap<Box<str>, u64>;

/// What a generation is given.
pub struct Secrets {
    /// Where those are that are delivered as files.
    place: Option<Place>,
    /// Of those that are delivered as variables; unset: svd was killed, and has not read them again yet.
    variables: OnceLock<Vec<(String, String)>>,
    marks: Marks,
}

/// What the next svd is to know of it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Record {
    place: Option<PathBuf>,
    marks: Marks,
}

impl Secrets {
    fn new(place: Option<Place>, variables: Vec<(String, String)>, marks: Marks) -> Secrets {
        Secrets { place, variables: OnceLock::from(variables), marks }
    }

    pub fn of_record(record: Record) -> Secrets {
        Secrets { place: record.place.map(Place::take_over), variables: OnceLock::new(), marks: record.marks }
    }

    pub fn record(&self) -> Record {
        Record { place: self.path().map(Path::to_owned), marks: self.marks.clone() }
    }

    /// The directory of the files.
    pub fn path(&self) -> Option<&Path> {
        self.place.as_ref().map(Place::path)
    }

    pub fn marks(&self) -> &Marks {
        &self.marks
    }

    /// # Errors
    /// A sentence: they are not known yet.
    pub fn variables(&self) -> Result<&[(String, String)], String> {
        let known = self.variables.get().map(Vec::as_slice);
        known.ok_or_else(|| "its secrets are being read again, as svd was killed or upgraded".to_owned())
    }

    fn read_again(&self, variables: Vec<(String, String)>) {
        // Else they are known, and it does not matter.
        let _ = self.variables.set(variables);
    }
}

impl Record {
    pub fn place(&self) -> Option<&Path> {
        self.place.as_deref()
    }

    /// Of one that runs, and of which nothing else is known.
    pub fn at(place: PathBuf) -> Record {
        Record { place: Some(place), marks: Marks::new() }
    }
}

/// Names only.
impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secrets").field("names", &self.marks.keys()).finish_non_exhaustive()
    }
}
