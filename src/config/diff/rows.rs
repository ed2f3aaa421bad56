//! A specification as rows of key, value and price of a change. Structures are taken apart by name, so that a new field
//! does not compile until it has a row.

use super::super::capability::Capability;
use super::super::isolation::{show_network, show_profile};
use super::super::java::Heap;
use super::super::limits::show_rlimit;
use super::super::sockets::show as show_listen;
use super::super::spec::*;
use super::super::units::{show_duration, show_signal, show_size};
use super::Needs::{self, Live, Nothing, Reload as ByReload, Restart as ByRestart, Scale};

/// What follows from other keys.
pub const HEAP: &str = "java.heap";

/// One key.
pub struct Row {
    /// As in the file, sections included: `logs.max_size`.
    pub key: String,
    pub value: String,
    /// What a change of it asks for.
    pub needs: Needs,
}

/// Rows being gathered; an absent value has none.
#[derive(Default)]
struct Rows(Vec<Row>);

impl Rows {
    fn add(&mut self, key: impl Into<String>, value: impl ToString, needs: Needs) {
        self.0.push(Row { key: key.into(), value: value.to_string(), needs });
    }

    fn some(&mut self, key: &str, value: Option<impl ToString>, needs: Needs) {
        if let Some(value) = value {
            self.add(key, value, needs);
        }
    }

    fn list(&mut self, key: &str, values: &[Template], needs: Needs) {
        if !values.is_empty() {
            self.add(key, list(values.iter().map(|t| &*t.0)), needs);
        }
    }

    fn names(&mut self, key: &str, values: &[Box<str>], needs: Needs) {
        if !values.is_empty() {
            self.add(key, list(values.iter().map(|s| &**s)), needs);
        }
    }
}

fn list<'a>(values: impl Iterator<Item = &'a str>) -> String {
    format!("{:?}", values.collect::<Vec<_>>())
}

fn text(template: &Template) -> &str {
    &template.0
}

fn octal(mode: u32) -> String {
    format!("{mode:04o}")
}

pub fn daemon(daemon: &Daemon) -> Vec<Row> {
    let Daemon { http, control, access } = daemon;
    let Control { mode, group, connections_per_user } = control;
    let mut rows = Rows::default();
    rows.some("http.listen", *http, Live);
    rows.some("control.mode", mode.map(octal), Live);
    rows.some("control.group", group.as_deref(), Live);
    rows.add("control.connections_per_user", connections_per_user, Live);
    if !access.is_empty() {
        let rules: Vec<_> = access.iter().map(rule).collect();
        rows.add("access", rules.join("; "), Live);
    }
    rows.0
}

fn rule(rule: &AccessRule) -> String {
    let AccessRule { users, groups, verbs, services } = rule;
    let groups = groups.iter().map(|group| format!("group {group}"));
    let who: Vec<_> = users.iter().map(|user| user.to_string()).chain(groups).collect();
    format!("{} may {} on {}", who.join(", "), verbs.join(", "), services.join(", "))
}

pub fn service(service: &Service) -> Vec<Row> {
    let Service {
        name: _,
        kind: how,
        root,
        user,
        group,
        groups,
        directory,
        chroot,
        umask,
        after,
        requires,
        sockets: listening,
        environment,
        environment_files,
        secrets,
        instances,
        autostart,
        ready: starts,
        health: checks,
        reload,
        stop,
        restart: again,
        limits: most,
        logs: output,
        counts: Counts { statsd },
        isolation: apart,
        deploy: releases,
    } = service;
    let mut rows = Rows::default();
    kind(&mut rows, how);
    java(&mut rows, service);
    rows.some("root", root.as_ref().map(|path| path.display()), ByReload);
    rows.some("user", user.as_deref(), ByReload);
    rows.some("group", group.as_deref(), ByReload);
    rows.names("groups", groups, ByReload);
    rows.some("directory", directory.as_ref().map(text), ByReload);
    rows.some("chroot", chroot.as_ref().map(|path| path.display()), ByReload);
    rows.some("umask", umask.map(octal), ByReload);
    rows.add("instances", instances, Scale);
    rows.add("autostart", autostart, Nothing);
    rows.names("after", after, Live);
    rows.names("requires", requires, Live);
    sockets(&mut rows, listening);
    for (name, value) in environment {
        rows.add(format!("environment.{name}"), text(value), ByReload);
    }
    rows.list("environment_files", environment_files, ByReload);
    secrets.iter().for_each(|one| secret(&mut rows, one));
    ready(&mut rows, starts);
    if let Some(checks) = checks {
        health(&mut rows, checks);
    }
    let Reload { overlap, drain, max_draining } = reload;
    rows.add("reload.overlap", overlap, Live);
    rows.add("reload.drain", show_duration(*drain), Live);
    rows.add("reload.max_draining", max_draining, Live);
    let Stop { signal, grace } = stop;
    rows.add("stop.signal", show_signal(*signal), Live);
    rows.some("stop.grace", grace.map(show_duration), Live);
    restart(&mut rows, again);
    limits(&mut rows, most);
    logs(&mut rows, output);
    // Where to send them is in the environment.
    rows.add("counts.statsd", statsd, ByReload);
    if let Some(apart) = apart {
        isolation(&mut rows, apart);
    }
    if let Some(releases) = releases {
        deploy(&mut rows, releases);
    }
    rows.0
}

fn secret(rows: &mut Rows, secret: &Secret) {
    let Secret { name, from, to, every } = secret;
    match from {
        SecretFrom::File(path) => rows.add(format!("secrets.{name}.file"), path.display(), ByReload),
        SecretFrom::Command(words) => rows.list(&format!("secrets.{name}.command"), words, ByReload),
    }
    let to = if *to == SecretTo::File { "file" } else { "env" };
    rows.add(format!("secrets.{name}.as"), to, ByReload);
    rows.add(format!("secrets.{name}.every"), every.map_or("never".to_owned(), show_duration), Live);
}

/// All of it matters at the next deploy.
fn deploy(rows: &mut Rows, deploy: &Deploy) {
    let Deploy { build, build_on, requirements, python, shared, keep, standby, .. } = deploy;
    let Deploy { before, verify, migrate, migrate_after, static_files, after, .. } = deploy;
    match build {
        Build::Auto => rows.add("deploy.build", "auto", Live),
        Build::Nothing => rows.add("deploy.build", "none", Live),
        Build::Command(words) => rows.list("deploy.build", words, Live),
    }
    rows.add("deploy.build_on", if *build_on == BuildOn::Here { "here" } else { "hosts" }, Live);
    rows.names("deploy.requirements", requirements, Live);
    rows.some("deploy.python", python.as_ref().map(text), Live);
    rows.names("deploy.shared", shared, Live);
    rows.add("deploy.keep", keep, Live);
    rows.some("deploy.standby", standby.map(show_duration), Live);
    let steps = [("before", before), ("verify", verify), ("static", static_files), ("after", after)];
    for (name, given) in steps.iter().filter_map(|(name, step)| Some((name, step.as_ref()?))) {
        step(rows, name, given);
    }
    let migrations = [("migrate", migrate), ("migrate_after", migrate_after)];
    for (name, given) in migrations.iter().filter_map(|(name, step)| Some((name, step.as_ref()?))) {
        let Migrate { step: how, pending, on, compatible, down } = given;
        step(rows, name, how);
        rows.list(&format!("deploy.{name}.pending"), pending, Live);
        rows.add(format!("deploy.{name}.on"), if *on == StepOn::One { "one" } else { "each host" }, Live);
        rows.add(format!("deploy.{name}.compatible"), compatible, Live);
        rows.list(&format!("deploy.{name}.down"), down, Live);
    }
}

fn step(rows: &mut Rows, name: &str, step: &Step) {
    let Step { command, timeout, when_changed } = step;
    rows.list(&format!("deploy.{name}.command"), command, Live);
    rows.add(format!("deploy.{name}.timeout"), timeout.map_or("never".to_owned(), show_duration), Live);
    rows.names(&format!("deploy.{name}.when_changed"), when_changed, Live);
}

/// All of it is settled before the program runs.
fn isolation(rows: &mut Rows, isolation: &Isolation) {
    let Isolation { profile, optional, private_tmp, read_only, writable, hidden, bind, private_devices, .. } =
        isolation;
    let Isolation { private_pids, network, capabilities, no_new_privileges, syscalls, landlock, .. } = isolation;
    rows.add("isolation.profile", show_profile(*profile), ByReload);
    rows.names("isolation.optional", optional, ByReload);
    rows.some("isolation.private_tmp", *private_tmp, ByReload);
    for (key, paths) in [("isolation.read_only", read_only), ("isolation.hidden", hidden)] {
        rows.some(key, paths.as_ref().map(|paths| list(paths.iter().map(text))), ByReload);
    }
    rows.list("isolation.writable", writable, ByReload);
    for Bind { target, source, read_only } in bind {
        let mode = if *read_only { ":ro" } else { "" };
        rows.add(format!("isolation.bind.{target}"), format!("{}{mode}", text(source)), ByReload);
    }
    rows.some("isolation.private_devices", *private_devices, ByReload);
    rows.some("isolation.private_pids", *private_pids, ByReload);
    rows.some("isolation.network", network.map(show_network), ByReload);
    let names = |all: &Vec<Capability>| all.iter().map(|c| c.name()).collect::<Vec<_>>();
    rows.some("isolation.capabilities", capabilities.as_ref().map(|all| format!("{:?}", names(all))), ByReload);
    rows.some("isolation.no_new_privileges", *no_new_privileges, ByReload);
    let rule = |r: &SyscallRule| format!("{}{}", if r.allow { "" } else { "~" }, r.name);
    let rules = |all: &Vec<SyscallRule>| format!("{:?}", all.iter().map(rule).collect::<Vec<_>>());
    rows.some("isolation.syscalls", syscalls.as_ref().map(rules), ByReload);
    rows.some("isolation.landlock", *landlock, ByReload);
}

fn kind(rows: &mut Rows, kind: &Kind) {
    match kind {
        Kind::Gunicorn { app, python, workers, args } => {
            rows.add("kind", "gunicorn", ByReload);
            rows.add("app", text(app), ByReload);
            rows.some("python", python.as_ref().map(text), ByReload);
            match workers {
                Workers::Unset => rows.add("workers", "gunicorn's", ByReload),
                Workers::Auto => rows.add("workers", "auto", ByReload),
                Workers::Count(n) => rows.add("workers", n, Scale),
            }
            rows.list("args", args, ByReload);
        }
        Kind::Jvm { program, java: _, args } => {
            rows.add("kind", "jvm", ByReload);
            match program {
                JvmProgram::Jar(jar) => rows.add("jar", text(jar), ByReload),
                JvmProgram::Main { class, classpath } => {
                    rows.add("main", text(class), ByReload);
                    rows.list("classpath", classpath, ByReload);
                }
            }
            rows.list("args", args, ByReload);
        }
        Kind::Command { command } => {
            rows.add("kind", "command", ByReload);
            rows.list("command", command, ByReload);
        }
    }
}

/// No JVM's heap grows beyond what it was started with, so that a limit that sizes it asks for another JVM.
fn java(rows: &mut Rows, service: &Service) {
    let Kind::Jvm { java, .. } = &service.kind else { return };
    let Java { home, options } = java;
    rows.some("java.home", home.as_ref().map(text), ByReload);
    rows.list("java.options", options, ByReload);
    rows.add(HEAP, Heap::of(service, java, &[]), ByReload);
}

/// A bound address stays bound as long as the service is up; its queue and its file's permissions can change meanwhile.
fn sockets(rows: &mut Rows, sockets: &[Socket]) {
    if sockets.len() > 1 {
        let names: Vec<_> = sockets.iter().map(|socket| &*socket.name).collect();
        rows.add("sockets", names.join(", "), ByReload);
    }
    for Socket { name, listen, backlog } in sockets {
        rows.add(format!("sockets.{name}.listen"), show_listen(listen), ByRestart);
        rows.add(format!("sockets.{name}.backlog"), backlog, Live);
        if let Listen::Unix { path: _, mode, owner, group } = listen {
            rows.add(format!("sockets.{name}.mode"), octal(*mode), Live);
            rows.some(&format!("sockets.{name}.owner"), owner.as_deref(), Live);
            rows.some(&format!("sockets.{name}.group"), group.as_deref(), Live);
        }
    }
}

/// What the processes are told in their environment needs new ones.
fn ready(rows: &mut Rows, ready: &Ready) {
    let Ready { timeout, by } = ready;
    rows.add("ready.timeout", show_duration(*timeout), Live);
    by.iter().for_each(|way| check(rows, "ready", way));
}

fn check(rows: &mut Rows, section: &str, by: &ReadyBy) {
    match by {
        ReadyBy::Notify => rows.add(format!("{section}.notify"), true, ByReload),
        ReadyBy::Descriptor => rows.add(format!("{section}.descriptor"), true, ByReload),
        ReadyBy::Http(http) => probe(rows, section, http),
        ReadyBy::Tcp(address) => rows.add(format!("{section}.tcp"), text(address), Live),
        ReadyBy::Command(words) => rows.list(&format!("{section}.command"), words, Live),
        ReadyBy::Log(line) => rows.add(format!("{section}.log"), line, Live),
        ReadyBy::Delay(delay) => rows.add(format!("{section}.delay"), show_duration(*delay), Live),
    }
}

fn probe(rows: &mut Rows, section: &str, probe: &HttpProbe) {
    let HttpProbe { path, host, port, headers, expect, timeout } = probe;
    let key = |name: &str| format!("{section}.probe.{name}");
    rows.add(key("path"), text(path), Live);
    rows.some(&key("host"), host.as_ref().map(text), Live);
    rows.some(&key("port"), port.as_ref().map(text), Live);
    for (name, value) in headers {
        rows.add(key(&format!("headers.{name}")), text(value), Live);
    }
    if let Expect::OneOf(statuses) = expect {
        rows.add(key("expect"), format!("{statuses:?}"), Live);
    }
    rows.add(key("timeout"), show_duration(*timeout), Live);
}

fn health(rows: &mut Rows, health: &Health) {
    let Health { by, timeout, interval, failures, action, watchdog } = health;
    if let Some(by) = by {
        check(rows, "health", by);
    }
    rows.add("health.timeout", show_duration(*timeout), Live);
    rows.add("health.interval", show_duration(*interval), Live);
    rows.add("health.failures", failures, Live);
    let action = match action {
        HealthAction::Report => "report",
        HealthAction::Restart => "restart",
    };
    rows.add("health.action", action, Live);
    rows.some("health.watchdog", watchdog.map(show_duration), ByReload);
}

fn restart(rows: &mut Rows, restart: &Restart) {
    let Restart { policy, delay, max_delay, settled, limit, success } = restart;
    let Limit { failures, within, then } = limit;
    let policy = match policy {
        Policy::Always => "always",
        Policy::OnFailure => "on-failure",
        Policy::Never => "never",
    };
    rows.add("restart.policy", policy, Live);
    rows.add("restart.delay", show_duration(*delay), Live);
    rows.add("restart.max_delay", show_duration(*max_delay), Live);
    rows.add("restart.settled", show_duration(*settled), Live);
    rows.add("restart.limit.failures", failures, Live);
    rows.add("restart.limit.within", show_duration(*within), Live);
    rows.add("restart.limit.then", then.map_or("never".to_owned(), show_duration), Live);
    if !success.is_empty() {
        rows.add("restart.success", format!("{success:?}"), Live);
    }
}

/// All of them are changed on what runs.
fn limits(rows: &mut Rows, limits: &Limits) {
    let Limits {
        memory,
        memory_high,
        swap,
        restart_above,
        worker_memory,
        cpu,
        cpu_weight,
        tasks,
        cpus,
        nice,
        io,
        oom_score,
        rlimits,
    } = limits;
    rows.some("limits.memory", memory.map(show_size), Live);
    rows.some("limits.memory_high", memory_high.map(show_size), Live);
    rows.some("limits.swap", swap.map(|bytes| if bytes == 0 { "0".to_owned() } else { show_size(bytes) }), Live);
    rows.some("limits.restart_above", restart_above.map(show_size), Live);
    rows.some("limits.worker_memory", worker_memory.map(show_size), Live);
    rows.some("limits.cpu", cpu.map(|percent| format!("{percent}%")), Live);
    rows.some("limits.cpu_weight", *cpu_weight, Live);
    rows.some("limits.tasks", *tasks, Live);
    rows.some("limits.cpus", cpus.as_ref(), Live);
    rows.some("limits.nice", *nice, Live);
    rows.some("limits.io", *io, Live);
    rows.some("limits.oom_score", *oom_score, Live);
    for limit in rlimits {
        rows.add(format!("limits.{}", limit.resource.key()), show_rlimit(limit), Live);
    }
}

fn logs(rows: &mut Rows, logs: &Logs) {
    let Logs { capture, stderr, format, max_size, max_age, keep, compress } = logs;
    rows.add("logs.capture", capture, ByReload);
    rows.add("logs.stderr", if *stderr == Stderr::Join { "join" } else { "apart" }, ByReload);
    let format = match format {
        LogFormat::Raw => "raw",
        LogFormat::Timestamps => "timestamps",
        LogFormat::Json => "json",
    };
    rows.add("logs.format", format, Live);
    rows.add("logs.max_size", show_size(*max_size), Live);
    rows.add("logs.max_age", max_age.map_or("never".to_owned(), show_duration), Live);
    rows.add("logs.keep", keep, Live);
    rows.add("logs.compress", compress, Live);
}
