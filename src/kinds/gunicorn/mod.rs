//! gunicorn below svd: started through a launcher of ours, which leaves gunicorn's own configuration alone and adds
//! the gate, the probe inside the worker, the counters and the drain (`airdock_gunicorn.py` says how).

pub mod report;

use super::{CommandLine, Context};
use crate::config::spec::{Expect, HttpProbe, Kind, ReadyBy, Service, Template, Workers};
use serde_json::json;

/// The launcher; svd writes it into its run directory.
pub const LAUNCHER: &str = include_str!("airdock_gunicorn.py");
pub const LAUNCHER_NAME: &str = "airdock_gunicorn.py";

pub(super) fn command_line(
    context: &Context<'_>,
    app: &Template,
    python: Option<&Template>,
    workers: Workers,
    args: &[Template],
) -> Result<CommandLine, String> {
    let python = match (python, context.places.venv_python()) {
        (Some(python), _) => context.expand(python)?,
        (None, Some(python)) => python,
        (None, None) => "python3".to_owned(),
    };
    let launcher = context.launcher.to_str().ok_or("the run directory's path is not UTF-8")?.to_owned();
    let mut argv = vec![python, launcher, context.expand(app)?];
    argv.extend(context.expand_all(args)?);
    if let Some(count) = worker_count(workers, context.workers) {
        argv.extend(["--workers".to_owned(), count.to_string()]);
    }
    Ok(CommandLine { argv, socket_on_stdin: false })
}

fn worker_count(workers: Workers, scaled: Option<u32>) -> Option<u32> {
    scaled.or(match workers {
        Workers::Unset => None,
        Workers::Count(count) => Some(count),
        Workers::Auto => {
            let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
            Some(2 * cores + 1)
        }
    })
}

/// Is this service's readiness told by gunicorn's workers?
pub fn is_gunicorn(spec: &Service) -> bool {
    matches!(spec.kind, Kind::Gunicorn { .. })
}

/// Does each worker answer this probe itself, behind the gate?
pub fn answers_inside(spec: &Service, by: &ReadyBy) -> bool {
    is_gunicorn(spec) && matches!(by, ReadyBy::Http(probe) if probe.port.is_none())
}

/// The probe that each worker makes of itself behind the gate, as the launcher reads it; `None`: the file has none.
pub fn probe_inside(context: &Context<'_>) -> Result<Option<String>, String> {
    let inside = context.spec.ready.by.iter().find(|by| answers_inside(context.spec, by));
    match inside {
        Some(ReadyBy::Http(probe)) => probe_json(context, probe).map(Some),
        _ => Ok(None),
    }
}

fn probe_json(context: &Context<'_>, probe: &HttpProbe) -> Result<String, String> {
    let mut headers = serde_json::Map::new();
    for (name, value) in &probe.headers {
        headers.insert(name.to_string(), context.expand(value)?.into());
    }
    let expect = match &probe.expect {
        Expect::Success => json!("success"),
        Expect::OneOf(codes) => json!(codes),
    };
    let host = match &probe.host {
        Some(host) => context.expand(host)?,
        None => "localhost".to_owned(),
    };
    let path = context.expand(&probe.path)?;
    let timeout = probe.timeout.as_secs_f64();
    Ok(json!({"path": path, "host": host, "headers": headers, "expect": expect, "timeout": timeout}).to_string())
}
