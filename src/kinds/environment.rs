//! A worker's environment: it starts clean, and is the same at boot and from a shell.

use super::Context;
use crate::config::spec::{Java, Kind};

/// Whom the worker runs as.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Login {
    pub name: String,
    pub home: String,
    pub shell: String,
}

/// What the daemon hands over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HandedOver {
    /// Descriptors, notify socket and the like: nobody else can know them.
    pub fixed: Vec<(String, String)>,
    /// None of them where the user has set any of the same names.
    pub offered: Vec<(String, String)>,
}

/// What every worker finds in `PATH`, behind its virtual environment.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The variables of a worker: a login's, Airdock's, the virtual environment's, those of the environment files, and the
/// file's own, later ones winning.
///
/// # Errors
/// A sentence: a placeholder without a value.
pub fn variables(
    context: &Context<'_>,
    login: &Login,
    directory: &str,
    from_files: &[(String, String)],
    handed: HandedOver,
) -> Result<Vec<(String, String)>, String> {
    let mut all: Vec<(String, String)> = Vec::with_capacity(24);
    let mut set = |name: &str, value: String| match all.iter_mut().find(|(n, _)| n == name) {
        Some((_, old)) => *old = value,
        None => all.push((name.to_owned(), value)),
    };
    set("PATH", PATH.to_owned());
    set("HOME", login.home.clone());
    set("USER", login.name.clone());
    set("LOGNAME", login.name.clone());
    set("SHELL", login.shell.clone());
    set("LANG", "C.UTF-8".to_owned());
    set("PWD", directory.to_owned());
    set("AIRDOCK_SERVICE", context.spec.name.to_string());
    set("AIRDOCK_GENERATION", context.generation.to_string());
    set("AIRDOCK_WORKER", context.worker.to_string());
    if let Some(id) = &context.places.id {
        set("AIRDOCK_RELEASE", id.to_string());
    }
    let mut path = PATH.to_owned();
    if let Some(venv) = context.places.real_venv().and_then(|v| v.to_str()) {
        set("VIRTUAL_ENV", venv.to_owned());
        path = format!("{venv}/bin:{PATH}");
        set("PATH", path.clone());
    }
    if let Kind::Jvm { java: Java { home: Some(home), .. }, .. } = &context.spec.kind {
        let home = context.expand(home)?;
        let home = home.trim_end_matches('/');
        set("JAVA_HOME", home.to_owned());
        set("PATH", format!("{home}/bin:{}", path));
    }
    if super::gunicorn::is_gunicorn(context.spec) {
        set("PYTHONUNBUFFERED", "1".to_owned());
    }
    // All or none of them: half of them would mix two addresses.
    let theirs = |(name, _): &(String, String)| {
        from_files.iter().any(|(n, _)| n == name) || context.spec.environment.iter().any(|(n, _)| **n == **name)
    };
    if !handed.offered.iter().any(theirs) {
        for (name, value) in handed.offered {
            set(&name, value);
        }
    }
    for (name, value) in from_files {
        set(name, value.clone());
    }
    for (name, value) in &context.spec.environment {
        set(name, context.expand(value)?);
    }
    for (name, value) in handed.fixed {
        set(&name, value);
    }
    Ok(all)
}

/// Reads `NAME=value` lines: comments and empty lines are passed over, `export ` and one pair of quotes around the
/// value are taken off.
///
/// # Errors
/// The number of the first line that is none of these, and why.
pub fn parse_file(text: &str) -> Result<Vec<(String, String)>, String> {
    let mut all = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        let line = line.strip_prefix("export ").unwrap_or(line).trim_start();
        let Some((name, value)) = line.split_once('=') else {
            return Err(format!("line {number} is not NAME=value"));
        };
        let name = name.trim_end();
        let fits = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if name.is_empty() || !name.chars().all(fits) || name.starts_with(|c: char| c.is_ascii_digit()) {
            return Err(format!("line {number}: {name:?} is no name of a variable"));
        }
        let value = value.trim();
        let unquoted = ['"', '\''].iter().find_map(|q| value.strip_prefix(*q)?.strip_suffix(*q));
        all.push((name.to_owned(), unquoted.unwrap_or(value).to_owned()));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn environment_files_are_read_as_people_write_them() {
        let text = "# comment\n\nA=1\nexport B = \"two words\"\nC='=x='\n; other comment\nD=\n";
        let read = parse_file(text).expect("valid");
        let expect = [("A", "1"), ("B", "two words"), ("C", "=x="), ("D", "")];
        assert_eq!(read, expect.map(|(n, v)| (n.to_owned(), v.to_owned())));
        assert!(parse_file("A=1\nnonsense\n").is_err_and(|e| e.contains("line 2")));
        assert!(parse_file("1A=1\n").is_err());
    }
}
