//! `svctl pid`.

use super::context::{Context, joined, need_names};
use super::exit::{CliError, Exit};
use super::host::understand;
use crate::api::types::{PidList, Version};
use serde_json::value::RawValue;

/// One name: its pids, one a line. Several: with the name before. None: svd's own.
pub fn pid(context: &Context, names: &[String]) -> Result<Exit, CliError> {
    let client = context.client()?;
    if names.is_empty() {
        let svd: Version = client.fetch("/v1/version")?;
        if context.json {
            context.print_value(&serde_json::json!({ "pid": svd.pid }))?;
        } else {
            context.print(format!("{}\n", svd.pid))?;
        }
        return Ok(Exit::Ok);
    }
    need_names(names, "pid")?;
    let text: Box<RawValue> = client.fetch(&format!("/v1/services/{}/pid", joined(names)))?;
    let list: PidList = understand(&text)?;
    if context.json {
        context.print_json(text.get().as_bytes())?;
    } else {
        let single = names.len() == 1 && !names[0].contains('*');
        let mut out = String::new();
        for entry in &list.services {
            for pid in &entry.pids {
                if !single {
                    out.push_str(&entry.service);
                    out.push(' ');
                }
                out.push_str(&format!("{pid}\n"));
            }
        }
        context.print(out)?;
    }
    Ok(match list.services.iter().any(|e| e.pids.is_empty()) {
        true => Exit::NotRunning,
        false => Exit::Ok,
    })
}
