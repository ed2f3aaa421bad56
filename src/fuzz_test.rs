use super::*;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

/// Damaged seeds of each target.
const DAMAGED: u64 = 4_000;

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// As `fuzz/run` has them.
fn seeds(target: &str) -> Vec<Vec<u8>> {
    let mut folders = vec![format!("fuzz/seeds/{target}")];
    if target == "config" {
        folders.extend(["conf.d".to_owned(), "src/config/golden".to_owned()]);
    }
    let entries = folders.iter().flat_map(|folder| fs::read_dir(repository().join(folder)).expect(folder));
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    let all: Vec<Vec<u8>> = paths.iter().map(|path| fs::read(path).expect("a seed")).collect();
    assert!(all.len() >= 4, "{target} has {} seeds", all.len());
    all
}

/// A seed with some damage: bytes changed, cut out, doubled, or replaced by a part of another seed.
fn damaged(seeds: &[Vec<u8>], random: &mut fastrand::Rng) -> Vec<u8> {
    let mut input = seeds[random.usize(..seeds.len())].clone();
    for _ in 0..random.usize(1..6) {
        let at = random.usize(..=input.len());
        let end = (at + random.usize(..24)).min(input.len());
        match random.u8(..5) {
            0 if at < input.len() => input[at] = random.u8(..),
            1 if at < input.len() => input[at] ^= 1 << random.u8(..8),
            2 => drop(input.drain(at..end)),
            3 => {
                let part = input[at..end].to_vec();
                input.splice(at..at, part);
            }
            _ => {
                let other = &seeds[random.usize(..seeds.len())];
                let from = random.usize(..=other.len());
                let to = (from + random.usize(..40)).min(other.len());
                input.splice(at..end, other[from..to].iter().copied());
            }
        }
    }
    input
}

fn drive(name: &str) {
    let (_, target) = TARGETS.into_iter().find(|(n, _)| *n == name).expect("a target");
    let seeds = seeds(name);
    let survives = |input: &[u8], what: &dyn std::fmt::Display| {
        if catch_unwind(AssertUnwindSafe(|| target(input))).is_err() {
            panic!("{name} breaks a promise on {what}: {:?}", String::from_utf8_lossy(input));
        }
    };
    for (number, seed) in seeds.iter().enumerate() {
        survives(seed, &format_args!("seed {number}"));
    }
    for number in 0..DAMAGED {
        let mut random = fastrand::Rng::with_seed(number);
        survives(&damaged(&seeds, &mut random), &format_args!("damage {number}"));
    }
}

#[test]
fn config_survives() {
    drive("config");
}

#[test]
fn control_requests_survive() {
    drive("control_request");
}

#[test]
fn notify_datagrams_survive() {
    drive("notify_datagram");
}

#[test]
fn statsd_datagrams_survive() {
    drive("statsd_datagram");
}

#[test]
fn state_files_survive() {
    drive("state_file");
}

#[test]
fn run_states_survive() {
    drive("run_state");
}

/// Otherwise nothing but errors would be looked at.
#[test]
fn seeds_make_sense() {
    let mut counted = 0;
    for seed in seeds("statsd_datagram") {
        for line in statsd::lines(&seed) {
            if let Line::Ours(PREFIX, rest) = statsd::line(line) {
                statsd::read(rest, |_| counted += 1);
            }
        }
    }
    assert!(counted > 10, "{counted}");
    let texts: Vec<String> = seeds("config").into_iter().filter_map(|seed| String::from_utf8(seed).ok()).collect();
    let valid = texts.iter().filter(|text| load_texts(None, &[("a", text)]).is_ok());
    assert!(valid.count() >= 3);
}

/// A target that nobody drives would be one in name only.
#[test]
fn every_target_is_in_the_workspace() {
    let manifest = fs::read_to_string(repository().join("fuzz/Cargo.toml")).expect("a manifest");
    let script = fs::read_to_string(repository().join("fuzz/run")).expect("a script");
    for (name, _) in TARGETS {
        let program = fs::read_to_string(repository().join(format!("fuzz/targets/{name}.rs"))).expect("a program");
        assert!(program.contains(&format!("airdock::fuzz::{name}(input)")), "{name}");
        assert!(manifest.contains(&format!("path = \"targets/{name}.rs\"")) && script.contains(name), "{name}");
    }
}
