//! `svctl check [DIR]`: the configuration's errors, without a daemon.

use std::path::Path;

use serde_json::json;

use super::context::Context;
use super::exit::CliError;
use super::files;
use crate::api::types::ErrorCode;
use crate::config::{self, counted};
use crate::sys::trust;

/// The outcome of a check: what belongs on standard output, and whether the configuration can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// With its final newline.
    pub text: String,
    pub valid: bool,
}

/// Reads the configuration below `dir` and says what is wrong with it; nothing is changed, and no svd is asked (see [`ask_host`]).
///
/// As text: one paragraph an error, then a count; one line where all is well, after what is allowed and hardly meant. As JSON one object: `valid`, the names of
/// the `services` (where valid), `errors` and `warnings`, each with file, line, column, length, text, message and help.
pub fn check_dir(dir: &Path, json: bool) -> Checked {
    let mut result = config::load(dir);
    if let Ok(config) = &mut result {
        // Of whoever checks, and perhaps not of the files where they will be used: no reason to call them wrong.
        config.warnings.extend(config::distrusted(dir, trust::in_words));
        let weak = super::security::warnings(dir, config);
        config.warnings.extend(weak);
    }
    let valid = result.is_ok();
    let text = match (result, json) {
        (Ok(config), true) => {
            let names: Vec<_> = config.services.keys().collect();
            format!("{}\n", json!({ "valid": true, "services": names, "errors": [], "warnings": config.warnings }))
        }
        (Err(errors), true) => {
            format!("{}\n", json!({ "valid": false, "services": [], "errors": errors.0, "warnings": [] }))
        }
        (Ok(config), false) => {
            let mut text: String = config.warnings.iter().map(|w| format!("warning: {w}\n")).collect();
            text += &match config.services.len() {
                0 => format!("{}: no error, and no service: there is no file conf.d/*.toml", dir.display()),
                count => format!("{}: no error in {}", dir.display(), counted(count, "service")),
            };
            if !config.warnings.is_empty() {
                text += &format!(", {}", counted(config.warnings.len(), "warning"));
            }
            text + "\n"
        }
        (Err(errors), false) => format!("{errors}\n{}: {}\n", dir.display(), counted(errors.0.len(), "error")),
    };
    Checked { text, valid }
}

/// Where a svd runs with this very directory, it says what its host cannot do. Whoever may not ask it, is told nothing.
pub fn ask_host(context: &Context, dir: &Path, checked: &mut Checked) {
    let same = |a: &Path, b: &Path| a.canonicalize().is_ok_and(|a| b.canonicalize().is_ok_and(|b| a == b));
    if !same(&files::directory(context, None), dir) {
        return;
    }
    let Err(CliError::Said { error, .. }) = context.act("/v1/update", Some(&json!({ "dry_run": true }))) else {
        return;
    };
    if error.code == ErrorCode::BadConfiguration && !error.details.is_empty() {
        refuse(checked, &error.details, context.json);
    }
}

fn refuse(checked: &mut Checked, lacks: &[Box<str>], as_json: bool) {
    checked.valid = false;
    if !as_json {
        let lines: String = lacks.iter().map(|lack| format!("error: {lack}\n")).collect();
        checked.text = format!("{lines}{}: the svd that runs here refuses it\n", checked.text.trim_end());
        return;
    }
    if let Ok(serde_json::Value::Object(mut object)) = serde_json::from_str(&checked.text) {
        object.insert("valid".into(), false.into());
        object.insert("refused".into(), json!(lacks));
        checked.text = format!("{}\n", serde_json::Value::Object(object));
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn directory(text: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("conf.d")).unwrap();
        fs::write(dir.path().join("conf.d/web.toml"), text).unwrap();
        dir
    }

    #[test]
    fn a_valid_configuration_is_one_line() {
        let dir = directory("kind = 'command'\ncommand = ['a']");
        let shown = dir.path().display();
        assert_eq!(
            check_dir(dir.path(), false),
            Checked { text: format!("{shown}: no error in 1 service\n"), valid: true }
        );
        let empty = tempfile::tempdir().unwrap();
        assert!(check_dir(empty.path(), false).text.contains("no service"));
    }

    #[test]
    fn errors_are_shown_and_counted() {
        let dir = directory("kind = 'command'\ncommand = ['a']\nusr = 'x'");
        let shown = dir.path().display();
        let checked = check_dir(dir.path(), false);
        assert!(!checked.valid);
        assert_eq!(
            checked.text,
            format!(
                "{shown}/conf.d/web.toml:3:1: unknown key \"usr\"\n 3 | usr = 'x'\n   | ^^^\nhelp: did you mean \"user\"?\n\n{shown}: 1 error\n"
            )
        );
    }

    #[test]
    fn what_is_hardly_meant_is_a_warning() {
        let dir = directory("kind = 'command'\nroot = '/srv/x'\ncommand = ['{relase}/run', '{\"a\": 1}']");
        let shown = dir.path().display();
        let checked = check_dir(dir.path(), false);
        assert!(checked.valid);
        assert_eq!(
            checked.text,
            format!(
                "warning: {shown}/conf.d/web.toml:3:12: {{relase}} is no placeholder and stays as it is\n 3 | command = ['{{relase}}/run', '{{\"a\": 1}}']\n   |            ^^^^^^^^^^^^^^\nhelp: did you mean {{release}}?\n\n{shown}: no error in 1 service, 1 warning\n"
            )
        );
    }

    #[test]
    fn what_the_host_lacks_makes_it_unusable_there() {
        for as_json in [false, true] {
            let mut checked = check_dir(directory("kind = 'command'\ncommand = ['a']").path(), as_json);
            refuse(&mut checked, &["web: [limits] memory needs more".into()], as_json);
            assert!(!checked.valid && checked.text.contains("web: [limits] memory needs more"), "{}", checked.text);
            assert!(!as_json || checked.text.starts_with("{") && checked.text.contains("\"valid\":false"));
        }
    }

    #[test]
    fn programs_get_one_object() {
        let parse = |text: &str| -> serde_json::Value {
            serde_json::from_str(&check_dir(directory(text).path(), true).text).unwrap()
        };
        let good = parse("kind = 'command'\ncommand = ['a']");
        assert_eq!((good["valid"].as_bool(), good["services"][0].as_str()), (Some(true), Some("web")));
        let bad = parse("kind = 'command'\ncommand = ['a']\numask = 22");
        assert_eq!(bad["valid"], false);
        let error = &bad["errors"][0];
        assert_eq!(
            (error["line"].as_u64(), error["column"].as_u64(), error["text"].as_str()),
            (Some(3), Some(9), Some("22"))
        );
        assert_eq!(error["help"], "write \"0022\"");
    }
}
