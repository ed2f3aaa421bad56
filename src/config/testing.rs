//! Short ways through the decoder for the tests beside it: one service, called `test`.

use super::load_texts;
use super::spec::Service;

pub fn service(text: &str) -> Service {
    match load_texts(None, &[("test", text)]) {
        Ok(config) => (*config.services["test"]).clone(),
        Err(errors) => panic!("{errors}"),
    }
}

fn diagnostics(text: &str) -> Vec<super::Diagnostic> {
    match load_texts(None, &[("test", text)]) {
        Ok(_) => panic!("no error in:\n{text}"),
        Err(errors) => errors.0,
    }
}

/// The messages of a text's errors.
pub fn errors(text: &str) -> Vec<String> {
    diagnostics(text).into_iter().map(|d| d.message).collect()
}

/// What each error's help says.
pub fn helps(text: &str) -> Vec<String> {
    diagnostics(text).into_iter().map(|d| d.help.unwrap_or_default()).collect()
}
