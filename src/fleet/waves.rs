//! Which hosts get a release in which wave. Pure.
//!
//! Waves are cumulative: `[1, "50%", "100%"]` of ten hosts are one host, then four more, then the rest. Of all hosts that
//! can be reached, each is in exactly one wave, or is the last of all: the **control**, which runs the old release until
//! the last wave was judged, and is switched then without a bake time of its own.
//!
//! - Hosts whose service is unfit come with the first wave, *beside* those that it counts: they serve nobody as they are, and a
//!   canary without requests would show nothing.
//! - Hosts that are down are in no wave, and are named.
//! - A group's hosts are those of the app's that are in it. Groups come before numbers and shares.
//! - A share is rounded up, and is one of the fit hosts that can be reached.
//! - A wave to which no host is new is left out. What the last one leaves out is added to it.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

/// How far a wave goes, counted from the first host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Wave {
    Hosts(u32),
    Percent(u32),
    Group(Box<str>),
}

impl Wave {
    /// `1`, `50%`, or a group's name.
    ///
    /// # Errors
    /// What it should have been.
    pub fn parse(text: &str) -> Result<Wave, String> {
        if let Some(share) = text.strip_suffix('%') {
            return match share.parse() {
                Ok(percent @ 1..=100) => Ok(Wave::Percent(percent)),
                _ => Err(format!("{text:?} is no share of the hosts: write \"1%\" to \"100%\"")),
            };
        }
        match text.parse() {
            Ok(0) => Err("a wave has at least one host".to_owned()),
            Ok(hosts) => Ok(Wave::Hosts(hosts)),
            Err(_) if text.is_empty() || text.bytes().all(|b| b.is_ascii_digit() || b == b'-') => {
                Err(format!("{text:?} is neither a number of hosts nor a share such as \"50%\" nor a group"))
            }
            Err(_) => Ok(Wave::Group(text.into())),
        }
    }
}

impl fmt::Display for Wave {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Wave::Hosts(n) => write!(f, "{n}"),
            Wave::Percent(n) => write!(f, "{n}%"),
            Wave::Group(name) => f.write_str(name),
        }
    }
}

/// How a host was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Condition {
    Fit,
    /// svd answers, and the service does not serve.
    Unfit,
    /// It cannot be reached.
    Down,
}

/// Who goes when.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waves {
    /// The hosts that are new in each wave; none is empty.
    pub waves: Vec<Vec<Box<str>>>,
    /// Runs the old release until the last wave was judged.
    pub control: Option<Box<str>>,
    /// Hosts that are down.
    pub down: Vec<Box<str>>,
}

impl Waves {
    /// Of the app's `hosts`, in the fleet's order. `groups`: the fleet's.
    ///
    /// # Errors
    /// No host can be reached, a group is not there, or comes after a number.
    pub fn new(
        sizes: &[Wave],
        hosts: &[(Box<str>, Condition)],
        groups: &BTreeMap<Box<str>, Vec<Box<str>>>,
    ) -> Result<Waves, String> {
        let of = |wanted: Condition| hosts.iter().filter(move |(_, is)| *is == wanted).map(|(name, _)| name.clone());
        let down: Vec<Box<str>> = of(Condition::Down).collect();
        let mut fit: Vec<Box<str>> = of(Condition::Fit).collect();
        let unfit: Vec<Box<str>> = of(Condition::Unfit).collect();
        if fit.is_empty() && unfit.is_empty() {
            return Err("no host of the app can be reached".to_owned());
        }
        let sizes = resolve(sizes, groups, &mut fit)?;
        // A host alone has nothing to be compared with.
        let control = if fit.len() + unfit.len() > 1 { fit.pop() } else { None };
        let all = fit.len() + usize::from(control.is_some());
        let mut waves = vec![unfit];
        let mut done = 0;
        for size in sizes {
            let until = size.of(all).min(fit.len());
            if until > done {
                waves.push(fit[done..until].to_vec());
                done = until;
            }
        }
        // The unfit are part of the first wave; what the last one left out is part of it.
        if waves.len() > 1 {
            let first = waves.remove(1);
            waves[0].extend(first);
        }
        match waves.last_mut() {
            Some(last) => last.extend(fit.drain(done..)),
            None => waves.push(fit),
        }
        waves.retain(|wave| !wave.is_empty());
        Ok(Waves { waves, control, down })
    }

    /// All that can be reached together, and no control.
    pub fn at_once(hosts: &[(Box<str>, Condition)]) -> Waves {
        let of = |down: bool| {
            hosts.iter().filter(move |(_, is)| (*is == Condition::Down) == down).map(|(name, _)| name.clone()).collect()
        };
        Waves { waves: vec![of(false)], control: None, down: of(true) }
    }

    /// The wave of a host, counted from 0; the control's is one after the last.
    pub fn wave_of(&self, host: &str) -> Option<usize> {
        let in_wave = self.waves.iter().position(|wave| wave.iter().any(|name| **name == *host));
        in_wave.or_else(|| (self.control.as_deref() == Some(host)).then_some(self.waves.len()))
    }

    /// As [`Waves::wave_of`], of all that are in one.
    pub fn by_host(&self) -> BTreeMap<&str, usize> {
        let control = self.control.iter().map(|name| (&**name, self.waves.len()));
        let waves = self.waves.iter().enumerate().flat_map(|(n, wave)| wave.iter().map(move |name| (&**name, n)));
        control.chain(waves).collect()
    }

    /// All that get the release, in the order in which they do.
    pub fn hosts(&self) -> impl Iterator<Item = &str> {
        self.waves.iter().flatten().chain(&self.control).map(|name| &**name)
    }
}

/// A wave's size where groups are done with.
#[derive(Clone, Copy)]
enum Size {
    Hosts(usize),
    Percent(usize),
}

impl Size {
    fn of(self, hosts: usize) -> usize {
        match self {
            Size::Hosts(n) => n,
            Size::Percent(percent) => (hosts * percent).div_ceil(100),
        }
    }
}

/// Brings the groups' hosts to the front and counts them.
fn resolve(
    sizes: &[Wave],
    groups: &BTreeMap<Box<str>, Vec<Box<str>>>,
    fit: &mut Vec<Box<str>>,
) -> Result<Vec<Size>, String> {
    let mut resolved = Vec::new();
    let mut first: Vec<Box<str>> = Vec::new();
    for (n, size) in sizes.iter().enumerate() {
        match size {
            Wave::Hosts(count) => resolved.push(Size::Hosts(*count as usize)),
            Wave::Percent(percent) => resolved.push(Size::Percent(*percent as usize)),
            Wave::Group(name) if sizes[..n].iter().all(|s| matches!(s, Wave::Group(_))) => {
                let members =
                    groups.get(name).ok_or_else(|| format!("waves name the group {name:?}, which is not there"))?;
                let members: BTreeSet<&str> = members.iter().map(|host| &**host).collect();
                first.extend(fit.extract_if(.., |host| members.contains(&**host)));
                resolved.push(Size::Hosts(first.len()));
            }
            Wave::Group(name) => {
                return Err(format!("waves name the group {name:?} after a number or a share: groups come first"));
            }
        }
    }
    first.append(fit);
    *fit = first;
    Ok(resolved)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn names(list: &str) -> Vec<Box<str>> {
        list.split_whitespace().map(Into::into).collect()
    }

    /// `a b! c?`: `!` is unfit, `?` is down.
    fn hosts(list: &str) -> Vec<(Box<str>, Condition)> {
        let host = |word: &str| match (word.strip_suffix('!'), word.strip_suffix('?')) {
            (Some(name), _) => (name.into(), Condition::Unfit),
            (_, Some(name)) => (name.into(), Condition::Down),
            _ => (word.into(), Condition::Fit),
        };
        list.split_whitespace().map(host).collect()
    }

    /// `a | b c | d (e) ?f`
    fn shown(waves: &Waves) -> String {
        let mut text = waves.waves.iter().map(|wave| wave.join(" ")).collect::<Vec<_>>().join(" | ");
        if let Some(control) = &waves.control {
            text += &format!(" ({control})");
        }
        for down in &waves.down {
            text += &format!(" ?{down}");
        }
        text
    }

    fn waves(sizes: &str, list: &str) -> String {
        let sizes: Vec<Wave> = sizes.split_whitespace().map(|s| Wave::parse(s).unwrap()).collect();
        let groups = BTreeMap::from([("canary".into(), names("c h x")), ("next".into(), names("a c"))]);
        Waves::new(&sizes, &hosts(list), &groups).map_or_else(|why| why, |waves| shown(&waves))
    }

    #[test]
    fn grow_and_leave_a_control() {
        let cases = [
            ("1 50% 100%", "a b c d e f g h i j", "a | b c d e | f g h i (j)"),
            ("1 50% 100%", "a", "a"),
            ("1 50% 100%", "a b", "a (b)"),
            ("1 50% 100%", "a b c", "a | b (c)"),
            ("1 50% 100%", "a b c d", "a | b | c (d)"),
            ("100%", "a b c", "a b (c)"),
            ("2 3", "a b c d e", "a b | c d (e)"),
            ("10% 10% 100%", "a b c", "a | b (c)"),
            ("", "a b c", "a b (c)"),
            ("canary 50% 100%", "a b c d e f g h", "c h | a b | d e f (g)"),
            ("canary next 100%", "a b c d", "c | a | b (d)"),
            ("canary 100%", "c h", "c (h)"),
            ("canary 100%", "a b", "a (b)"),
            ("1 50% 100%", "a b? c d e?", "a | c (d) ?b ?e"),
            ("1 50% 100%", "a b c! d", "c a | b (d)"),
            ("1 100%", "a! b! c", "a b (c)"),
            ("1 100%", "a! b!", "a b"),
            ("1 100%", "a? b", "b ?a"),
            ("1 100%", "a? b?", "no host of the app can be reached"),
            ("west 100%", "a", "waves name the group \"west\", which is not there"),
            ("1 canary", "a", "waves name the group \"canary\" after a number or a share: groups come first"),
        ];
        for (sizes, list, expected) in cases {
            assert_eq!(waves(sizes, list), expected, "{sizes} of {list}");
        }
    }

    #[test]
    fn are_numbers_shares_and_groups() {
        for text in ["1", "20", "1%", "100%", "canary", "web-0"] {
            assert_eq!(Wave::parse(text).unwrap().to_string(), text);
        }
        for odd in ["", "0", "0%", "101%", "-1", "%", "99999999999", "1.5%"] {
            assert!(Wave::parse(odd).is_err(), "{odd:?}");
        }
    }

    fn size() -> impl Strategy<Value = Wave> {
        prop_oneof![(1..30_u32).prop_map(Wave::Hosts), (1..=100_u32).prop_map(Wave::Percent)]
    }

    fn condition() -> impl Strategy<Value = Condition> {
        prop_oneof![8 => Just(Condition::Fit), 1 => Just(Condition::Unfit), 1 => Just(Condition::Down)]
    }

    proptest! {
        #[test]
        fn every_host_has_its_place(
            groups in 0..3_usize,
            sizes in prop::collection::vec(size(), 0..5),
            conditions in prop::collection::vec(condition(), 0..60),
            member in prop::collection::vec(0..4_usize, 60),
        ) {
            let hosts: Vec<(Box<str>, Condition)> =
                conditions.iter().enumerate().map(|(n, is)| (format!("web-{n}").into(), *is)).collect();
            let group = |g: usize| -> Box<str> { format!("group-{g}").into() };
            let in_group = |g: usize| hosts.iter().zip(&member).filter(|(_, m)| **m == g).map(|((name, _), _)| name.clone()).collect();
            let table: BTreeMap<Box<str>, Vec<Box<str>>> = (0..3).map(|g| (group(g), in_group(g))).collect();
            let sizes: Vec<Wave> = (0..groups).map(|g| Wave::Group(group(g))).chain(sizes).collect();
            let is = |wanted: Condition| -> Vec<&str> { hosts.iter().filter(|h| h.1 == wanted).map(|h| &*h.0).collect() };
            let (fit, unfit, down) = (is(Condition::Fit), is(Condition::Unfit), is(Condition::Down));
            let Ok(waves) = Waves::new(&sizes, &hosts, &table) else {
                prop_assert!(fit.is_empty() && unfit.is_empty());
                return Ok(());
            };
            // All that can be reached, once each.
            let mut placed: Vec<&str> = waves.hosts().collect();
            placed.sort_unstable();
            let mut reached: Vec<&str> = fit.iter().chain(&unfit).copied().collect();
            reached.sort_unstable();
            prop_assert_eq!(&placed, &reached);
            prop_assert_eq!(waves.down.iter().map(|n| &**n).collect::<Vec<_>>(), down);
            prop_assert!(waves.waves.iter().all(|wave| !wave.is_empty()));
            prop_assert!(!waves.waves.is_empty());
            // The unfit first, never as the control.
            prop_assert!(unfit.iter().all(|host| waves.wave_of(host) == Some(0)));
            prop_assert_eq!(waves.control.is_some(), reached.len() > 1 && !fit.is_empty());
            prop_assert!(waves.control.as_deref().is_none_or(|host| fit.contains(&host)));
            // No wave but the last goes further than some size allows.
            let mut reach = unfit.len();
            let members = |g: usize| hosts.iter().zip(&member).filter(|((_, is), m)| **m <= g && *is == Condition::Fit).count();
            let allowed: BTreeSet<usize> = sizes.iter().enumerate().map(|(n, size)| unfit.len() + match size {
                Wave::Hosts(n) => *n as usize,
                Wave::Percent(share) => (fit.len() * *share as usize).div_ceil(100),
                Wave::Group(_) => members(n),
            }).collect();
            for (n, wave) in waves.waves.iter().enumerate() {
                reach += if n == 0 { wave.len() - unfit.len() } else { wave.len() };
                let last = n + 1 == waves.waves.len();
                prop_assert!(last || allowed.contains(&reach), "wave {} reaches {}: {:?}", n, reach, allowed);
            }
            // Told apart by nothing but the order.
            prop_assert_eq!(Waves::new(&sizes, &hosts, &table), Ok(waves));
        }
    }
}
