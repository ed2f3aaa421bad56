//! What a process is shut in, beside the sandbox that it was started with.

use super::Gathered;
use crate::config::capability::Capability;
use crate::sys::inspect::Seen;
use crate::sys::sandbox::{Mount, Sandbox};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Places that are named.
const PLACES: usize = 12;

/// `svd`: what svd itself has, and what it starts begins with.
pub(super) fn compare(all: &mut Gathered<'_>, seen: &Seen, svd: &Seen) {
    let nothing = Sandbox::default();
    let sandbox = all.wanted.sandbox.clone();
    let sandbox = sandbox.as_deref().unwrap_or(&nothing);
    capabilities(all, seen, svd, sandbox);
    let has = seen.says("NoNewPrivs") == "1";
    let wanted = (sandbox.no_new_privileges && !has).then_some("true");
    all.by_others("isolation.no_new_privileges", has.to_string(), wanted);
    system_calls(all, seen, svd, sandbox);
    let own = match &seen.namespaces[..] {
        [] => "none: svd's own".to_owned(),
        names => names.join(", "),
    };
    let wanted = sandbox.namespaces();
    let lacks = wanted.iter().any(|name| !seen.namespaces.contains(name));
    all.by_others("namespaces of its own", own, lacks.then(|| wanted.join(", ")).as_deref());
    files(all, seen, sandbox);
}

/// Those that this kernel has.
fn known() -> u64 {
    let last = std::fs::read_to_string("/proc/sys/kernel/cap_last_cap").ok().and_then(|text| text.trim().parse().ok());
    let count: u32 = last.map_or(41, |last: u32| last.saturating_add(1)).min(64);
    u64::MAX.checked_shr(64 - count).unwrap_or(u64::MAX)
}

/// What it has now, what it could get by a program with more rights, and what its children keep.
fn capabilities(all: &mut Gathered<'_>, seen: &Seen, svd: &Seen, sandbox: &Sandbox) {
    let known = known();
    let shown = |set: u64| match set & known {
        0 => "none".to_owned(),
        set if set == known => "all".to_owned(),
        set => (0..64).filter(|n| set >> n & 1 == 1).map(|n| Capability(n).name()).collect::<Vec<_>>().join(" "),
    };
    let words = |effective: u64, bounding: u64, ambient: u64| {
        let mut text = shown(effective);
        if bounding & known != effective & known {
            text += &format!("; at most {}", shown(bounding));
        }
        if ambient != 0 {
            text += &format!("; kept by what it starts: {}", shown(ambient));
        }
        text
    };
    let of = |name: &str| seen.capabilities(name);
    let value = words(of("CapEff"), of("CapBnd"), of("CapAmb"));
    if seen.namespaces.contains(&"user") {
        // They are those of its own user namespace, which say nothing of the host.
        return all.by_others("isolation.capabilities", format!("{value}, in its own user namespace"), None);
    }
    let bounding = svd.capabilities("CapBnd") & sandbox.bounding.as_ref().map_or(u64::MAX, |set| mask(set));
    let ambient = match sandbox.ambient {
        true if all.wanted.ids.uid != 0 => bounding & svd.capabilities("CapPrm"),
        _ => svd.capabilities("CapAmb") & bounding,
    };
    let effective = if all.wanted.ids.uid == 0 { bounding } else { ambient };
    let beyond = of("CapPrm") & !effective | of("CapEff") & !effective | of("CapBnd") & !bounding;
    // What it was given by name it has, as long as it does not give it up by itself.
    let lacks = all.first && sandbox.ambient && effective & !of("CapPrm") != 0;
    if beyond & known == 0 && lacks {
        return all.compared("isolation.capabilities", value, Some(words(effective, bounding, ambient)));
    }
    let wanted = (beyond & known != 0).then(|| words(effective, bounding, ambient));
    all.by_others("isolation.capabilities", value, wanted.as_deref());
}

fn mask(numbers: &[u8]) -> u64 {
    numbers.iter().filter(|n| **n < 64).fold(0, |mask, n| mask | 1 << n)
}

fn system_calls(all: &mut Gathered<'_>, seen: &Seen, svd: &Seen, sandbox: &Sandbox) {
    let filters = |seen: &Seen| seen.says("Seccomp_filters").parse::<u32>().ok();
    let is_filtered = seen.says("Seccomp") == "2";
    let value = match (seen.says("Seccomp"), filters(seen)) {
        ("1", _) => "read, write and exit alone".to_owned(),
        ("2", count) => format!("filtered ({})", count.unwrap_or(1)),
        _ => "all".to_owned(),
    };
    // svd may be filtered itself, as in a container.
    let enough = match (filters(seen), filters(svd)) {
        (Some(its), Some(svds)) => its > svds,
        _ => is_filtered,
    };
    let lacks = sandbox.syscalls.is_some() && seen.says("Seccomp") != "1" && !(is_filtered && enough);
    all.by_others("isolation.syscalls", value, lacks.then_some("filtered"));
}

fn named(places: &[String]) -> String {
    let more = match places.len().saturating_sub(PLACES) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("{}{more}", places[..places.len().min(PLACES)].join(", "))
}

fn files(all: &mut Gathered<'_>, seen: &Seen, sandbox: &Sandbox) {
    let is_read_only = seen.mounts.is_root_read_only();
    let root = if is_read_only { "/ is read-only" } else { "/ as it is on the host" };
    let places = seen.mounts.writable().filter(|place| *place != Path::new("/"));
    let places: Vec<String> = places.map(|place| place.display().to_string()).collect();
    all.shown(
        "files",
        match (&places[..], is_read_only) {
            ([], _) => root.to_owned(),
            (_, true) => format!("{root}; may be written to: {}", named(&places)),
            (_, false) => format!("{root}, with {} mounts that may be written to", places.len()),
        },
    );
    if !seen.namespaces.contains(&"mnt") {
        // That it has the host's view is said.
        return;
    }
    for step in &sandbox.mounts {
        match step {
            Mount::Cover { path, .. } if is_hosts(seen, path) => {
                all.by_others("isolation.hidden", format!("{} is as on the host", path.display()), Some("hidden"));
            }
            Mount::Bind { source, target } if !is_bound(seen, source, target) => {
                let (value, wanted) = (format!("{} has something else", target.display()), source.display());
                all.by_others("isolation.bind", value, Some(&wanted.to_string()));
            }
            Mount::ReadOnly { paths, except } => {
                let ours = |place: &Path| crate::sys::sandbox::is_read_only(paths, except, place);
                let found = seen.mounts.all().filter(|mount| !mount.read_only && ours(&mount.place));
                let found: Vec<String> = found.map(|mount| mount.place.display().to_string()).collect();
                if !found.is_empty() {
                    let value = format!("{} can be written to", named(&found));
                    all.by_others("isolation.read_only", value, Some("read-only"));
                }
            }
            _ => {}
        }
    }
}

/// The path as the process sees it.
fn inside(seen: &Seen, path: &Path) -> PathBuf {
    Path::new("/proc").join(seen.pid.to_string()).join("root").join(path.strip_prefix("/").unwrap_or(path))
}

/// The file system and number of a file.
fn id(path: &Path) -> Option<(u64, u64)> {
    path.symlink_metadata().ok().map(|meta| (meta.dev(), meta.ino()))
}

/// Is there what the host has there? Not where one of them cannot be looked at.
fn is_hosts(seen: &Seen, path: &Path) -> bool {
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let hosts = id(&path);
    hosts.is_some() && hosts == id(&inside(seen, &path))
}

/// Is the source seen at the target? Where one of them cannot be looked at, nothing is said.
fn is_bound(seen: &Seen, source: &Path, target: &Path) -> bool {
    match (id(source), id(&inside(seen, target))) {
        (Some(source), Some(target)) => source == target,
        _ => true,
    }
}
