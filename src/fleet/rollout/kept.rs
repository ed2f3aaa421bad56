//! Entries as hosts keep them. Every host has the whole journal, and the plan in it names all hosts: written as it is, all hosts
//! together would keep the square of their number. So hosts with the same steps for the same reasons are written down once,
//! and names that count on (`web-001`, `web-002`, …) as the first and the last of them. What is left is a few bytes a host where
//! hosts are numbered, and their names else.
//!
//! Entries that were written before this, in the form that people are shown, are read as well.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::{Arc, OnceLock};

use serde::{Deserialize, Serialize};
use serde_json::{Error, Value};

use super::journal::{Entry, Place, What};
use super::plan::{Plan, PlannedHost, PlannedStep};
use crate::fleet::waves::{Condition, Waves};

/// Names that are read out of one list: what a host says is not believed without a limit.
const MOST: usize = 100_000;

/// An entry that hosts get: written once, however many they are.
#[derive(Clone, Debug)]
pub struct Line {
    entry: Entry,
    kept: OnceLock<Value>,
}

impl Line {
    pub fn new(entry: Entry) -> Arc<Line> {
        Arc::new(Line { entry, kept: OnceLock::new() })
    }

    /// What a host keeps of it.
    ///
    /// # Errors
    /// It cannot be written as JSON.
    pub fn kept(&self) -> Result<&Value, Error> {
        if self.kept.get().is_none() {
            // Whoever was faster has written the same.
            let _ = self.kept.set(write(&self.entry)?);
        }
        self.kept.get().ok_or_else(|| serde::ser::Error::custom("it is not there"))
    }
}

impl Deref for Line {
    type Target = Entry;

    fn deref(&self) -> &Entry {
        &self.entry
    }
}

impl PartialEq for Line {
    fn eq(&self, other: &Line) -> bool {
        self.entry == other.entry
    }
}

/// Names in their order.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Names {
    One(Box<str>),
    Many(Vec<Part>),
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Part {
    Name(Box<str>),
    /// What comes before the number, the first number, the last one, and what comes after it.
    Run(Box<str>, Box<str>, Box<str>, Box<str>),
}

/// Hosts of a plan that do not differ but in their names.
#[derive(Serialize, Deserialize)]
struct Group {
    #[serde(alias = "name")]
    hosts: Names,
    condition: Condition,
    serves: Option<Box<str>>,
    steps: Vec<PlannedStep>,
}

#[derive(Serialize, Deserialize)]
struct KeptWaves {
    waves: Vec<Names>,
    control: Option<Box<str>>,
    down: Names,
}

impl Names {
    fn of<'a>(names: impl IntoIterator<Item = &'a str>) -> Names {
        let mut parts: Vec<Part> = Vec::new();
        let mut last = "";
        for name in names {
            let next = counts_on(last, name);
            match (parts.last_mut(), next) {
                (Some(Part::Run(before, _, until, after)), Some((b, n, a))) if **before == *b && **after == *a => {
                    *until = n.into();
                }
                (Some(part @ Part::Name(_)), Some((before, n, after))) => {
                    let first = &last[before.len()..last.len() - after.len()];
                    *part = Part::Run(before.into(), first.into(), n.into(), after.into());
                }
                _ => parts.push(Part::Name(name.into())),
            }
            last = name;
        }
        Names::Many(parts)
    }

    fn read(self) -> Result<Vec<Box<str>>, Error> {
        let parts = match self {
            Names::One(name) => return Ok(vec![name]),
            Names::Many(parts) => parts,
        };
        let mut names = Vec::new();
        for part in parts {
            match part {
                Part::Name(name) => names.push(name),
                Part::Run(before, first, last, after) => {
                    let (Ok(from), Ok(until)) = (first.parse::<u64>(), last.parse::<u64>()) else {
                        return Err(odd("the numbers of a run of hosts are none"));
                    };
                    if until.saturating_sub(from) >= MOST as u64 {
                        return Err(odd("it names too many hosts"));
                    }
                    let width = first.len();
                    names.extend((from..=until).map(|n| format!("{before}{n:0width$}{after}").into_boxed_str()));
                }
            }
            if names.len() > MOST {
                return Err(odd("it names too many hosts"));
            }
        }
        Ok(names)
    }
}

fn odd(why: &str) -> Error {
    serde::de::Error::custom(why)
}

/// What is before the number, the number and what is after it, where `name` is `last` with a number that is one higher.
fn counts_on<'a>(last: &str, name: &'a str) -> Option<(&'a str, &'a str, &'a str)> {
    let same = last.bytes().zip(name.bytes()).take_while(|(a, b)| a == b).count();
    let digits = |text: &str, from: usize| text.bytes().skip(from).take_while(u8::is_ascii_digit).count();
    let before = same - name.as_bytes()[..same].iter().rev().take_while(|b| b.is_ascii_digit()).count();
    let (old, new) = (before + digits(last, before), before + digits(name, before));
    // Between digits there is no half of a character.
    let (from, to) = (last.get(before..old)?, name.get(before..new)?);
    let number: u64 = from.parse().ok()?;
    let width = from.len();
    let next = format!("{:0width$}", number.checked_add(1)?);
    (last[old..] == name[new..] && *to == next).then(|| (&name[..before], to, &name[new..]))
}

fn groups(hosts: &[PlannedHost]) -> Vec<Group> {
    let mut groups: BTreeMap<_, Vec<&str>> = BTreeMap::new();
    for host in hosts {
        groups.entry((host.condition, &host.serves, &host.steps)).or_default().push(&host.name);
    }
    let group = |((condition, serves, steps), names): ((_, &Option<Box<str>>, &Vec<_>), Vec<&str>)| Group {
        hosts: Names::of(names),
        condition,
        serves: serves.clone(),
        steps: steps.clone(),
    };
    groups.into_iter().map(group).collect()
}

/// By name, as plans have them.
fn hosts(groups: Vec<Group>) -> Result<Vec<PlannedHost>, Error> {
    let mut all = Vec::new();
    for Group { hosts, condition, serves, steps } in groups {
        let host = |name| PlannedHost { name, condition, serves: serves.clone(), steps: steps.clone() };
        all.extend(hosts.read()?.into_iter().map(host));
        if all.len() > MOST {
            return Err(odd("it names too many hosts"));
        }
    }
    all.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(all)
}

fn without_hosts(plan: &Plan) -> Plan {
    Plan {
        rollout: plan.rollout.clone(),
        purpose: plan.purpose,
        app: plan.app.clone(),
        release: plan.release.clone(),
        by: plan.by.clone(),
        at: plan.at,
        hosts: Vec::new(),
        waves: Waves::default(),
        migration: plan.migration,
        limits: plan.limits.clone(),
        warnings: plan.warnings.clone(),
    }
}

fn names(list: &[Box<str>]) -> Names {
    Names::of(list.iter().map(|name| &**name))
}

fn write(entry: &Entry) -> Result<Value, Error> {
    match &entry.what {
        What::Planned(plan) => {
            let Waves { waves, control, down } = &plan.waves;
            let waves = KeptWaves {
                waves: waves.iter().map(|wave| names(wave)).collect(),
                control: control.clone(),
                down: names(down),
            };
            let what = What::Planned(Arc::new(without_hosts(plan)));
            let mut value = serde_json::to_value(Entry { what, ..*entry })?;
            let kept = &mut value["what"]["planned"];
            kept["hosts"] = serde_json::to_value(groups(&plan.hosts))?;
            kept["waves"] = serde_json::to_value(waves)?;
            Ok(value)
        }
        What::Ended { outcome, places } => {
            let mut groups: BTreeMap<&Place, Vec<&str>> = BTreeMap::new();
            for (name, place) in places {
                groups.entry(place).or_default().push(name);
            }
            let groups: Vec<(Names, &Place)> =
                groups.into_iter().map(|(place, hosts)| (Names::of(hosts), place)).collect();
            let what = What::Ended { outcome: outcome.clone(), places: Vec::new() };
            let mut value = serde_json::to_value(Entry { what, ..*entry })?;
            value["what"]["ended"]["places"] = serde_json::to_value(groups)?;
            Ok(value)
        }
        _ => serde_json::to_value(entry),
    }
}

/// An entry that a host has kept.
///
/// # Errors
/// It is none.
pub fn read(mut value: Value) -> Result<Entry, Error> {
    let mut planned = None;
    if let Some(plan) = value.pointer_mut("/what/planned").and_then(Value::as_object_mut) {
        let groups: Vec<Group> = serde_json::from_value(plan.remove("hosts").unwrap_or_default())?;
        let waves: KeptWaves = serde_json::from_value(plan.remove("waves").unwrap_or_default())?;
        let each: Result<_, _> = waves.waves.into_iter().map(Names::read).collect();
        let waves = Waves { waves: each?, control: waves.control, down: waves.down.read()? };
        plan.insert("hosts".to_owned(), Value::Array(Vec::new()));
        plan.insert("waves".to_owned(), serde_json::to_value(Waves::default())?);
        planned = Some((hosts(groups)?, waves));
    }
    let mut ended = None;
    if let Some(end) = value.pointer_mut("/what/ended").and_then(Value::as_object_mut) {
        let groups: Vec<(Names, Place)> = serde_json::from_value(end.remove("places").unwrap_or_default())?;
        let mut all = Vec::new();
        for (names, place) in groups {
            all.extend(names.read()?.into_iter().map(|name| (name, place.clone())));
        }
        all.sort_by(|a: &(Box<str>, _), b| a.0.cmp(&b.0));
        end.insert("places".to_owned(), Value::Array(Vec::new()));
        ended = Some(all);
    }
    let mut entry: Entry = serde_json::from_value(value)?;
    match (&mut entry.what, planned, ended) {
        (What::Planned(plan), Some((hosts, waves)), _) => {
            let plan = Arc::make_mut(plan);
            (plan.hosts, plan.waves) = (hosts, waves);
        }
        (What::Ended { places, .. }, _, Some(all)) => *places = all,
        _ => {}
    }
    Ok(entry)
}

#[cfg(test)]
#[path = "kept_test.rs"]
mod tests;
