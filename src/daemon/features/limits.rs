//! What `[limits]` needs: controllers of cgroup v2, and rights.

use super::Missing;
use crate::config::spec::{CpuList, Io, Limits, Rlimit};
use crate::sys::cgroup::Tree;
use crate::sys::cgroup::control::Setting;
use crate::sys::limits::{self as rights, Capability};
use crate::sys::worker::Containment;
use std::sync::Arc;

/// The controllers that limits use.
const CONTROLLERS: [&str; 4] = ["memory", "cpu", "pids", "cpuset"];

/// Of `cpu.max`, in microseconds.
const PERIOD: u64 = 100_000;

pub struct Features {
    tree: Result<Arc<Tree>, String>,
    /// Generations get a directory of their own, which can be limited at any time.
    pub together: bool,
    /// CPUs can be taken away from processes, and not only be left by them.
    cpuset: bool,
    nice: i32,
    pub oom_score: i32,
    cpus: Option<CpuList>,
    /// `fs.nr_open`
    most_open_files: u64,
    resource: bool,
    schedule: bool,
    admin: bool,
}

/// Of a control group: key, file, value, and what takes the limit away again.
type Group = (&'static str, &'static str, Option<String>, &'static str);

/// All limits of control groups.
fn all(limits: &Limits) -> [Group; 7] {
    let number = |bytes: Option<u64>| bytes.map(|bytes| bytes.to_string());
    let share = limits.cpu.map(|percent| format!("{} {PERIOD}", u64::from(percent) * PERIOD / 100));
    [
        ("limits.memory_high", "memory.high", number(limits.memory_high), "max"),
        ("limits.memory", "memory.max", number(limits.memory), "max"),
        ("limits.swap", "memory.swap.max", number(limits.swap), "max"),
        ("limits.cpu", "cpu.max", share, "max 100000"),
        ("limits.cpu_weight", "cpu.weight", limits.cpu_weight.map(|weight| weight.to_string()), "100"),
        ("limits.tasks", "pids.max", limits.tasks.map(|tasks| tasks.to_string()), "max"),
        ("limits.cpus", "cpuset.cpus", limits.cpus.as_ref().map(ToString::to_string), ""),
    ]
}

impl Features {
    pub fn probe(containment: &Containment, no_tree: Option<String>) -> Features {
        let tree = match containment {
            Containment::Cgroup(tree) => Ok(Arc::clone(tree)),
            Containment::Stub(_) => Err(no_tree.unwrap_or_else(|| "svd has none".to_owned())),
        };
        let offers = |controllers: &[&str]| tree.as_ref().is_ok_and(|tree| tree.offers(controllers));
        let read = |path: &str| std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
        Features {
            together: offers(&CONTROLLERS),
            cpuset: offers(&["cpuset"]),
            nice: rights::nice(),
            oom_score: read("/proc/self/oom_score_adj").and_then(|text| text.parse().ok()).unwrap_or(0),
            cpus: read("/sys/devices/system/cpu/online").as_deref().and_then(cpu_list),
            most_open_files: read("/proc/sys/fs/nr_open").and_then(|text| text.parse().ok()).unwrap_or(u64::MAX),
            resource: rights::has(Capability::SysResource),
            schedule: rights::has(Capability::SysNice),
            admin: rights::has(Capability::SysAdmin),
            tree,
        }
    }

    /// What a control group is to be limited to.
    pub fn settings(&self, limits: &Limits) -> Vec<Setting> {
        let used = all(limits).into_iter().filter(|(_, file, ..)| self.uses(file));
        used.filter_map(|(_, file, value, _)| Some(Setting { file, value: value?.into() })).collect()
    }

    /// What is to be written for `new`, where `old` was: by key.
    pub fn changed(&self, old: &Limits, new: &Limits) -> Vec<(&'static str, Setting)> {
        let pairs = all(old).into_iter().zip(all(new));
        let changed = pairs.filter(|((_, file, old, _), (_, _, new, _))| old != new && self.uses(file));
        let setting = |(_, (key, file, new, none)): (Group, Group)| {
            (key, Setting { file, value: new.unwrap_or_else(|| none.to_owned()).into() })
        };
        changed.map(setting).collect()
    }

    /// CPUs are bound in another way as well.
    fn uses(&self, file: &str) -> bool {
        file != "cpuset.cpus" || self.cpuset
    }

    /// What cannot be had, as far as that is seen. Changes nothing.
    pub fn missing(&self, limits: &Limits) -> Vec<Missing> {
        let looks = |tree: &Tree, controller: &str, file: &str| {
            tree.can_enable(controller).map(|()| tree.may_have(file)).map_err(|why| why.0)
        };
        self.missing_by(limits, looks)
    }

    /// What cannot be had, after the controllers of all else were switched on.
    pub fn lacking(&self, limits: &Limits) -> Vec<Missing> {
        let switches_on = |tree: &Tree, controller: &str, file: &str| {
            tree.enable(controller).map(|()| tree.path().join(file).exists()).map_err(|why| why.0)
        };
        self.missing_by(limits, switches_on)
    }

    /// `has`: whether the tree has the file of a controller, or why it cannot have the controller.
    fn missing_by(&self, limits: &Limits, has: impl Fn(&Tree, &str, &str) -> Result<bool, String>) -> Vec<Missing> {
        if *limits == Limits::default() {
            return Vec::new();
        }
        let mut missing = Vec::new();
        for (key, file, value, _) in all(limits) {
            if value.is_none() || file == "cpuset.cpus" {
                continue;
            }
            if let Some(why) = self.no_group(key, file, &has) {
                missing.push(Missing { key, why });
            }
        }
        missing.extend(self.no_rights(limits));
        missing
    }

    fn no_group(
        &self,
        key: &'static str,
        file: &'static str,
        has: impl Fn(&Tree, &str, &str) -> Result<bool, String>,
    ) -> Option<String> {
        let (controller, name) =
            (file.split_once('.').map_or(file, |(name, _)| name), key.replace("limits.", "[limits] "));
        let needs = format!("{name} needs the {controller} controller of cgroup v2");
        let instead = match key {
            "limits.memory" => "; or use restart_above, which svd watches by itself",
            _ => "",
        };
        match &self.tree {
            Err(why) => Some(format!("{needs}, and there are no control groups: {why}{instead}")),
            Ok(tree) => match has(tree, controller, file) {
                Err(why) => Some(format!("{needs}, {why}{instead}")),
                Ok(true) => None,
                Ok(false) => {
                    Some(format!("{name} needs {file}, which this kernel has not (CONFIG_SWAP, swapaccount=1)"))
                }
            },
        }
    }

    fn no_rights(&self, limits: &Limits) -> Vec<Missing> {
        let mut missing = Vec::new();
        let mut lacks = |key, why: String| missing.push(Missing { key, why });
        if let Some(nice) = limits.nice.filter(|nice| *nice < self.nice.min(rights::nice_floor()) && !self.schedule) {
            lacks(
                "limits.nice",
                format!(
                    "[limits] nice = {nice} needs CAP_SYS_NICE: svd may go down to {} only",
                    self.nice.min(rights::nice_floor())
                ),
            );
        }
        if matches!(limits.io, Some(Io::Realtime(_))) && !self.admin && !self.schedule {
            lacks("limits.io", "[limits] io of the class realtime needs CAP_SYS_NICE, which svd has not".to_owned());
        }
        if let Some(score) = limits.oom_score.filter(|score| *score < self.oom_score && !self.resource) {
            let own = self.oom_score;
            lacks(
                "limits.oom_score",
                format!("[limits] oom_score = {score} needs CAP_SYS_RESOURCE: below svd's own, {own}, it cannot go"),
            );
        }
        if let (Some(wanted), Some(there)) = (&limits.cpus, &self.cpus)
            && !wanted.ranges().iter().all(|range| there.has(*range))
        {
            lacks(
                "limits.cpus",
                format!("[limits] cpus = \"{wanted}\" names CPUs that this host has not: it has {there}"),
            );
        }
        for limit in &limits.rlimits {
            if let Some(why) = self.no_right_to(limit) {
                lacks(limit.resource.full_key(), why);
            }
        }
        missing
    }

    fn no_right_to(&self, limit: &Rlimit) -> Option<String> {
        let key = limit.resource.key();
        let files = limit.resource == crate::config::spec::Resource::OpenFiles;
        if files && limit.hard > self.most_open_files {
            let most = self.most_open_files;
            return Some(format!(
                "[limits] {key} is above what the kernel allows, which is {most}: raise fs.nr_open (sysctl)"
            ));
        }
        let own = rights::hard_limit(limit.resource.number())?;
        (limit.hard > own && !self.resource).then(|| {
            format!("[limits] {key} is above svd's own hard limit, which is {own}: only root (CAP_SYS_RESOURCE) may raise it")
        })
    }
}

/// As the kernel writes it.
fn cpu_list(text: &str) -> Option<CpuList> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some((first.parse().ok()?, last.parse().ok()?))
    };
    text.split(',').map(range).collect::<Option<Vec<_>>>().map(CpuList::of)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::spec::Resource;

    fn nothing() -> Features {
        Features {
            tree: Err("no cgroup v2 tree is mounted".into()),
            together: false,
            cpuset: false,
            nice: 0,
            oom_score: 0,
            cpus: cpu_list("0-1"),
            most_open_files: 1 << 20,
            resource: false,
            schedule: false,
            admin: false,
        }
    }

    #[test]
    fn every_key_that_cannot_be_had_is_named_with_what_it_needs() {
        let hard = rights::hard_limit(Resource::OpenFiles.number()).expect("a limit");
        let limits = Limits {
            memory: Some(1 << 30),
            tasks: Some(3),
            nice: Some(-21),
            io: Some(Io::Realtime(0)),
            oom_score: Some(-1),
            cpus: Some(CpuList::of(vec![(1, 2)])),
            rlimits: vec![
                Rlimit { resource: Resource::OpenFiles, soft: 1, hard: hard.saturating_add(1) },
                Rlimit { resource: Resource::OpenFiles, soft: 1, hard: (1 << 20) + 1 },
            ],
            ..Limits::default()
        };
        let missing = nothing().missing(&limits);
        let keys: Vec<_> = missing.iter().map(|missing| missing.key).collect();
        let all = ["limits.memory", "limits.tasks", "limits.nice", "limits.io", "limits.oom_score", "limits.cpus"];
        assert_eq!(keys[..6], all);
        assert_eq!(keys[6..], ["limits.open_files"; 2]);
        assert!(
            missing[0]
                .why
                .contains("the memory controller of cgroup v2, and there are no control groups: no cgroup v2")
        );
        assert!(missing[0].why.contains("restart_above") && missing[5].why.contains("it has 0-1"));
        assert_eq!(nothing().missing(&Limits { restart_above: Some(1), nice: Some(3), ..Limits::default() }), []);
    }

    #[test]
    fn what_is_written_is_what_the_kernel_reads() {
        let limits = Limits {
            memory: Some(1 << 20),
            cpu: Some(150),
            swap: Some(0),
            cpus: Some(CpuList::of(vec![(0, 1)])),
            ..Limits::default()
        };
        let mut features = nothing();
        let shown = |settings: Vec<Setting>| {
            settings.iter().map(|s| format!("{}={}", s.file, s.value)).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(shown(features.settings(&limits)), "memory.max=1048576 memory.swap.max=0 cpu.max=150000 100000");
        features.cpuset = true;
        let changed = features.changed(&limits, &Limits { memory: Some(2 << 20), ..Limits::default() });
        let settings = changed.into_iter().map(|(_, setting)| setting).collect();
        assert_eq!(shown(settings), "memory.max=2097152 memory.swap.max=max cpu.max=max 100000 cpuset.cpus=");
    }
}
