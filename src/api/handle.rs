//! One request: from HTTP over names, rights and journal to a [`Call`], and back.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::header::{ALLOW, HeaderValue, UPGRADE};
use hyper::{Request as HttpRequest, Response};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::Call;
use super::audit::{Outcome, Pending};
use super::connections::Place;
use super::frames::PROTOCOL;
use super::http::{Blocks, respond, respond_error};
use super::peer::Peer;
use super::reply::{Counters, Reply, Upgrade};
use super::request::{Request, Verb};
use super::resolve::resolve;
use super::routes;
use super::server::{ServerContext, too_many};
use super::types::{ApiError, ErrorCode};

/// How long a request waits for the supervising loop to take it.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(10);
/// Of one request that writes entries of a rollout's journal.
const JOURNAL_BYTES: usize = 8 << 20;

#[derive(Clone)]
pub(super) struct Handler {
    context: ServerContext,
}

impl Handler {
    pub fn new(context: ServerContext) -> Handler {
        Handler { context }
    }

    pub async fn handle(&self, request: HttpRequest<Incoming>, peer: Peer, place: Rc<Place>) -> Response<Blocks> {
        let work = place.work();
        Counters::add(&self.context.counters.requests);
        let path = request.uri().path().to_string();
        let mut response = match self.answer(request, peer, place).await {
            Ok(response) => response,
            Err(error) => {
                let mut response = respond_error(&error);
                if error.code == ErrorCode::MethodNotAllowed
                    && let Ok(value) = HeaderValue::from_str(&routes::allowed(&path))
                {
                    response.headers_mut().insert(ALLOW, value);
                }
                response
            }
        };
        response.body_mut().hold(work);
        response
    }

    async fn answer(
        &self,
        mut request: HttpRequest<Incoming>,
        peer: Peer,
        place: Rc<Place>,
    ) -> Result<Response<Blocks>, ApiError> {
        let wanted = request.headers().get(UPGRADE).is_some_and(|name| name.as_bytes() == PROTOCOL.as_bytes());
        let upgrade = wanted.then(|| Upgrade { connection: hyper::upgrade::on(&mut request), place });
        let found = routes::find(request.method().as_str(), request.uri().path())?;
        let (head, body) = request.into_parts();
        let most = self.most_bytes(&found, &peer)?;
        let body = read_body(body, most, self.context.limits.request_timeout).await?;
        let mut request = routes::parse(found, head.uri.query(), &body, SystemTime::now())?;
        let directory = self.context.directory.get();
        let audit = Pending::new(&request, &peer, &self.context.numbers, &self.context.audit);
        if let Err(error) = resolve(&mut request, &directory.names, &directory.access, &peer) {
            if error.code == ErrorCode::Forbidden {
                Counters::add(&self.context.counters.requests_refused);
                if let Some(audit) = audit {
                    audit.write(Outcome::Refused);
                }
            }
            return Err(error);
        }
        let audit = audit.map(|mut audit| {
            let one = || request.single_name().map(Into::into).into_iter().collect();
            audit.record.services = request.services().cloned().unwrap_or_else(one);
            audit.clone().write(Outcome::Begun);
            audit
        });
        ask(&self.context, request, peer, audit, upgrade).await
    }
}

impl Handler {
    /// Of the request's body. Journals of large fleets are long, and read for those alone who may write them.
    fn most_bytes(&self, found: &routes::Found, peer: &Peer) -> Result<usize, ApiError> {
        if found.route.endpoint != routes::Endpoint::AppAppend {
            return Ok(self.context.limits.body);
        }
        let name = found.names.first().map_or("", |name| name);
        let access = self.context.directory.get().access;
        match access.allows(peer, Verb::Deploy, name) {
            true => Ok(JOURNAL_BYTES),
            false => Err(super::resolve::forbidden(peer, Verb::Deploy, name)),
        }
    }
}

/// Hands a request to the daemon and waits for the beginning of its answer.
pub(super) async fn ask(
    context: &ServerContext,
    request: Request,
    peer: Peer,
    audit: Option<Pending>,
    upgrade: Option<Upgrade>,
) -> Result<Response<Blocks>, ApiError> {
    let (reply, answer) = Reply::new(request.has_lines(), Arc::clone(&context.counters), audit);
    let call = Call { peer, request, reply: reply.may_upgrade(upgrade) };
    if let Err(error) = context.calls.try_send(call) {
        let ending = || ApiError::new(ErrorCode::Unavailable, "svd is about to end.");
        let call = match error {
            mpsc::error::TrySendError::Full(call) => call,
            mpsc::error::TrySendError::Closed(call) => {
                call.reply.error(ending());
                return Err(ending());
            }
        };
        match timeout(QUEUE_TIMEOUT, context.calls.reserve()).await {
            Ok(Ok(permit)) => permit.send(call),
            Ok(Err(_)) => call.reply.error(ending()),
            Err(_) => call.reply.error(too_many("svd has too many requests to do.")),
        }
    }
    match answer.await {
        Ok(answer) => Ok(respond(answer)),
        // A reply that is dropped answers; see its Drop.
        Err(_) => Err(ApiError::new(ErrorCode::Internal, "svd gave no answer.")),
    }
}

async fn read_body(body: Incoming, most: usize, limit: Duration) -> Result<Bytes, ApiError> {
    let bad = |message: String| ApiError::new(ErrorCode::BadRequest, message);
    let whole = timeout(limit, Limited::new(body, most).collect());
    match whole.await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            Err(ApiError::new(ErrorCode::TooLarge, format!("The body has more than {} bytes.", most)))
        }
        Ok(Err(error)) => Err(bad(format!("The body did not arrive: {error}."))),
        Err(_) => Err(bad(format!("The body did not arrive within {} seconds.", limit.as_secs()))),
    }
}
