//! svd asks itself: a task that does something larger uses the same requests as everybody else.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use std::sync::Arc;
use tokio::sync::mpsc;

use super::reply::{Answer, Reply};
use super::types::{ApiError, ErrorCode, Progress};
use super::{Call, Peer, Request};

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(default)]
    progress: Option<Progress>,
    #[serde(borrow, default)]
    result: Option<&'a RawValue>,
    #[serde(default)]
    error: Option<ApiError>,
}

fn odd(what: impl std::fmt::Display) -> ApiError {
    ApiError::new(ErrorCode::Internal, format!("svd gave itself an answer that it does not understand: {what}."))
}

/// Asks, and waits for the end. What is asked for goes on when the future is dropped. It is not in the audit journal: the
/// request that it is a part of is.
///
/// # Errors
/// The answer's own, or svd is about to end.
pub async fn ask<T: DeserializeOwned>(
    calls: &mpsc::Sender<Call>,
    request: Request,
    progress: &mut impl FnMut(&Progress),
) -> Result<T, ApiError> {
    let ending = || ApiError::new(ErrorCode::Unavailable, "svd is about to end.");
    let (reply, answer) = Reply::new(request.has_lines(), Arc::default(), None);
    calls.send(Call { peer: Peer::nobody(), request, reply }).await.map_err(|_| ending())?;
    match answer.await.map_err(|_| ending())? {
        Answer::Whole { body, .. } => read(&body, progress)?.ok_or_else(|| odd("it is empty")),
        Answer::Stream { mut blocks, last, .. } => {
            while let Some(block) = blocks.recv().await {
                if let Some(result) = read(&block, progress)? {
                    return Ok(result);
                }
            }
            let last = last.ok_or_else(ending)?.await.map_err(|_| ending())?;
            read(&last, progress)?.ok_or_else(|| odd("it has no end"))
        }
        Answer::Switch => Err(odd("it goes on in another way")),
    }
}

/// One line, or an answer that is no line but the value itself.
fn read<T: DeserializeOwned>(text: &[u8], progress: &mut impl FnMut(&Progress)) -> Result<Option<T>, ApiError> {
    let line: Line<'_> = serde_json::from_slice(text).map_err(odd)?;
    match line {
        Line { error: Some(error), .. } => Err(error),
        Line { progress: Some(line), .. } => {
            progress(&line);
            Ok(None)
        }
        Line { result: Some(result), .. } => serde_json::from_str(result.get()).map(Some).map_err(odd),
        _ => serde_json::from_slice(text).map(Some).map_err(odd),
    }
}
