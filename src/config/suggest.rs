//! What a key that does not exist was probably meant to be.

use super::section::{self, Schema};
use super::source::{Problem, Span};
use super::{
    counts, daemon, deploy, health, isolation, java, limits, logs, probe, ready, reload, restart, secrets, service,
    sockets, stop,
};

/// Tables of a service file, and of `svd.toml`: a key is looked for among its own.
pub(super) static SERVICE_FILE: &[&Schema] = &[
    &service::SCHEMA,
    &sockets::SCHEMA,
    &ready::SCHEMA,
    &health::SCHEMA,
    &probe::SCHEMA,
    &reload::SCHEMA,
    &stop::SCHEMA,
    &restart::SCHEMA,
    &restart::LIMIT,
    &limits::SCHEMA,
    &secrets::SCHEMA,
    &logs::SCHEMA,
    &counts::SCHEMA,
    &java::SCHEMA,
    &isolation::SCHEMA,
    &deploy::SCHEMA,
    &deploy::STEP,
];
pub(super) static DAEMON_FILE: &[&Schema] = &[&daemon::SCHEMA, &daemon::HTTP, &daemon::CONTROL, &daemon::ACCESS];

/// The tables of one format of files, and what other programs call their keys.
pub(crate) struct Family {
    pub tables: &'static [&'static Schema],
    pub habits: &'static [(&'static str, &'static str)],
}

pub(crate) static SERVICE: Family = Family { tables: SERVICE_FILE, habits: HABITS };
pub(crate) static DAEMON: Family = Family { tables: DAEMON_FILE, habits: HABITS };

/// What other supervisors call it.
static HABITS: &[(&str, &str)] = &[
    ("allowedcpus", "the key is cpus in [limits]"),
    ("autorestart", "the key is policy in [restart]"),
    ("bind", "the address is listen in [sockets.NAME]"),
    ("chdir", "the key is directory"),
    ("cmd", "the key is command"),
    ("cpuaffinity", "the key is cpus in [limits]"),
    ("cpuquota", "the key is cpu in [limits], such as \"150%\""),
    ("cpuweight", "the key is cpu_weight in [limits]"),
    ("capabilityboundingset", "the key is capabilities in [isolation]"),
    ("cwd", "the key is directory"),
    ("depends_on", "the key is requires (waits until ready) or after (order only)"),
    ("env", "variables stand in [environment]"),
    ("env_file", "the key is environment_files"),
    ("exec", "the key is command"),
    ("exec_start", "the key is command"),
    ("execstart", "the key is command"),
    ("exitcodes", "the key is success in [restart]"),
    ("ionice", "the key is io in [limits], such as \"best-effort:4\""),
    ("ioschedulingclass", "the key is io in [limits], such as \"best-effort:4\""),
    ("java_home", "the key is home in [java]"),
    ("java_options", "the key is options in [java]"),
    ("jvm_options", "the key is options in [java]"),
    ("killasgroup", "leave it out: a stop always ends every process of the service"),
    ("limitcore", "the key is core in [limits]"),
    ("limitnofile", "the key is open_files in [limits]"),
    ("mem_limit", "the key is memory in [limits]"),
    ("memory_limit", "the key is memory in [limits]"),
    ("memoryhigh", "the key is memory_high in [limits]"),
    ("memorymax", "the key is memory in [limits]"),
    ("memoryswapmax", "the key is swap in [limits]"),
    ("minfds", "the key is open_files in [limits]"),
    ("nofile", "the key is open_files in [limits]"),
    ("nonewprivileges", "the key is no_new_privileges in [isolation]"),
    ("inaccessiblepaths", "the key is hidden in [isolation]"),
    ("privatedevices", "the key is private_devices in [isolation]"),
    ("privatenetwork", "the key is network in [isolation]: \"none\" or \"loopback\""),
    ("privatetmp", "the key is private_tmp in [isolation]"),
    ("protectsystem", "the key is read_only in [isolation], or profile = \"standard\""),
    ("readonlypaths", "the key is read_only in [isolation]"),
    ("readwritepaths", "the key is writable in [isolation]"),
    ("rootdirectory", "the key is chroot"),
    ("systemcallfilter", "the key is syscalls in [isolation]"),
    ("numprocs", "the key is instances"),
    ("oom_score_adj", "the key is oom_score in [limits]"),
    ("oomscoreadjust", "the key is oom_score in [limits]"),
    ("pids_limit", "the key is tasks in [limits]"),
    ("priority", "order comes from after and requires; the scheduling priority is nice in [limits]"),
    ("redirect_stderr", "the key is stderr in [logs]: \"join\" or \"apart\""),
    ("replicas", "the key is instances"),
    ("startretries", "the key is limit in [restart]"),
    ("startsecs", "the key is settled in [restart]"),
    ("stdout_logfile_backups", "the key is keep in [logs]"),
    ("stdout_logfile_maxbytes", "the key is max_size in [logs]"),
    ("stopasgroup", "leave it out: a stop always ends every process of the service"),
    ("stopsignal", "the key is signal in [stop]"),
    ("stopwaitsecs", "the key is grace in [stop]"),
    ("tasksmax", "the key is tasks in [limits]"),
    ("ulimit", "the limits of processes stand in [limits]: open_files, core, stack …"),
    ("working_directory", "the key is directory"),
    ("workingdirectory", "the key is directory"),
];

/// The problem of `key`, which `schema` does not have: it belongs elsewhere, is another program's word, or is misspelt.
/// `header`: it is written `[key]`.
pub(crate) fn unknown_key(
    family: &'static Family,
    schema: &'static Schema,
    key: &str,
    span: Span,
    header: bool,
) -> Problem {
    let message = match header {
        true => format!("unknown section [{key}]"),
        false if schema.name == section::TOP => format!("unknown key {key:?}"),
        false => format!("unknown key {key:?} in {}", schema.name),
    };
    Problem::new(span, message).help(advice(family, schema, key))
}

fn advice(family: &'static Family, schema: &'static Schema, key: &str) -> String {
    let lower = key.to_ascii_lowercase().replace('-', "_");
    if let Some(places) = places(family.tables, key) {
        return format!("{key:?} belongs {places}");
    }
    if let Some((_, help)) = family.habits.iter().find(|(habit, _)| *habit == lower) {
        return (*help).to_owned();
    }
    if let Some(word) = closest(&lower, schema.keys.iter().copied()) {
        return format!("did you mean {word:?}?");
    }
    let elsewhere = closest(&lower, family.tables.iter().flat_map(|s| s.keys.iter().copied()));
    if let Some((word, places)) = elsewhere.and_then(|word| Some((word, places(family.tables, word)?))) {
        return format!("did you mean {word:?}? It belongs {places}");
    }
    format!("known here: {}", schema.keys.join(", "))
}

/// Where the key stands, if it is one.
fn places(tables: &[&Schema], key: &str) -> Option<String> {
    let places: Vec<_> = tables.iter().filter(|s| s.keys.contains(&key)).map(|s| s.place()).collect();
    let places: Vec<_> = places.iter().map(String::as_str).collect();
    (!places.is_empty()).then(|| listed(&places, "or"))
}

/// The candidate nearest to `word`, if it is near: one edit in three characters.
pub(crate) fn closest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // A name of hundreds of characters is no slip of the finger, and the distance is quadratic.
    if word.len() > 64 {
        return None;
    }
    let lower = word.to_lowercase();
    let distance = |candidate: &str| strsim::damerau_levenshtein(&lower, &candidate.to_lowercase());
    let allowed = (word.chars().count() / 3).max(1);
    let near = candidates.map(|candidate| (distance(candidate), candidate));
    near.filter(|(distance, _)| *distance <= allowed).min().map(|(_, candidate)| candidate)
}

/// `a, b or c`.
pub(crate) fn listed(words: &[&str], last: &str) -> String {
    match words {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [first @ .., end] => format!("{} {last} {end}", first.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn help(schema: &'static Schema, key: &str) -> String {
        let of_daemon = DAEMON_FILE.iter().any(|s| std::ptr::eq(*s, schema));
        let family = if of_daemon { &DAEMON } else { &SERVICE };
        unknown_key(family, schema, key, Span::default(), false).help.unwrap_or_default()
    }

    #[test]
    fn a_misspelt_key_gets_its_neighbour() {
        assert_eq!(help(&service::SCHEMA, "wokers"), "did you mean \"workers\"?");
        assert_eq!(help(&service::SCHEMA, "environment-files"), "did you mean \"environment_files\"?");
        assert_eq!(help(&logs::SCHEMA, "max_sise"), "did you mean \"max_size\"?");
    }

    #[test]
    fn a_misplaced_key_gets_its_section() {
        assert_eq!(help(&service::SCHEMA, "grace"), "\"grace\" belongs in [stop]");
        assert_eq!(
            help(&service::SCHEMA, "timeout"),
            "\"timeout\" belongs in [ready], in [health], in probe = { … } or in [deploy.STEP]"
        );
        assert!(help(&sockets::SCHEMA, "umask").contains("above the first [section]"));
        assert_eq!(help(&daemon::SCHEMA, "verbs"), "\"verbs\" belongs in [[access]]");
    }

    #[test]
    fn words_of_other_supervisors_are_understood() {
        assert_eq!(help(&service::SCHEMA, "stopwaitsecs"), "the key is grace in [stop]");
        assert!(help(&service::SCHEMA, "autorestart").contains("[restart]"));
    }

    #[test]
    fn what_resembles_nothing_gets_the_list() {
        assert_eq!(help(&stop::SCHEMA, "zebra"), "known here: signal, grace");
        assert!(closest(&"x".repeat(100_000), ["x"].into_iter()).is_none());
    }
}
