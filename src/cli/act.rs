//! Verbs that act on services: start, stop, restart, reload, enable, disable, drain, undrain, scale, signal.

use serde_json::{Value, json};

use super::args::{ReloadArgs, ScaleArgs, SignalArgs};
use super::context::{Context, joined, need_names};
use super::exit::{CliError, Exit};
use super::render;
use crate::api::types::{ActionResult, ErrorCode, ServiceResult};

pub fn simple(context: &Context, verb: &str, names: &[String]) -> Result<Exit, CliError> {
    act(context, verb, names, None)
}

pub fn reload(context: &Context, args: &ReloadArgs) -> Result<Exit, CliError> {
    let mut body = json!({});
    if let Some(id) = &args.release {
        body["release"] = id.as_str().into();
    }
    if args.force {
        body["force"] = true.into();
    }
    act(context, "reload", &args.names, Some(&body))
}

pub fn scale(context: &Context, args: &ScaleArgs) -> Result<Exit, CliError> {
    let body = json!({ "count": args.count });
    act(context, "scale", std::slice::from_ref(&args.name), Some(&body))
}

pub fn signal(context: &Context, args: &SignalArgs) -> Result<Exit, CliError> {
    if args.names.is_empty() {
        return Err(CliError::usage(
            "signal needs a signal and the name of a service.",
            "For example: svctl signal HUP airship",
        ));
    }
    let mut body = json!({ "signal": args.signal });
    if let Some(worker) = args.worker {
        body["worker"] = worker.into();
    }
    act(context, "signal", &args.names, Some(&body))
}

fn act(context: &Context, verb: &str, names: &[String], body: Option<&Value>) -> Result<Exit, CliError> {
    need_names(names, verb)?;
    let path = format!("/v1/services/{}/{verb}", joined(names));
    let result = context.act(&path, body)?;
    let done: ActionResult = super::host::understand(&result)?;
    if context.json {
        context.print_json(result.get().as_bytes())?;
    } else {
        show(context, &done.services)?;
    }
    Ok(exit_of(&done.services))
}

/// One line for each service that is well on stdout, errors on stderr.
pub fn show(context: &Context, services: &[ServiceResult]) -> Result<(), CliError> {
    for service in services {
        let text = render::service_result(service);
        if service.ok {
            context.print(text)?;
        } else {
            context.say(text.trim_end());
        }
    }
    Ok(())
}

/// A single failure keeps its own code; of several services one that failed is a failure.
pub fn exit_of(services: &[ServiceResult]) -> Exit {
    match services {
        [one] if !one.ok => {
            let code = one.error.as_ref().map_or(ErrorCode::Failed, |e| e.code);
            Exit::of(code)
        }
        many if many.iter().any(|s| !s.ok) => Exit::Failed,
        _ => Exit::Ok,
    }
}
