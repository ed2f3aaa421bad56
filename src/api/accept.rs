//! The loop of both servers: takes connections, gives them places, turns away whom there is no room for.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;

use super::connections::{Connections, Place, Rooms};
use super::http::Refusals;
use super::reply::Counters;
use super::server::{ServerContext, too_many};

/// Where connections come in, and what is done for them.
pub(super) trait Door: 'static {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;
    /// What is known of who comes.
    type Guest: 'static;
    /// Said to those for whom there is no place.
    const FULL: &'static str;

    async fn accept(&self) -> io::Result<Self::Stream>;

    /// The guest, and the user whose places it takes. `None`: it is gone already.
    fn guest(&self, stream: &Self::Stream) -> Option<(Self::Guest, u32)>;

    fn context(&self) -> &ServerContext;

    fn rooms(&self) -> Rooms;

    /// Until the connection ends, or the future is dropped as its place is somebody else's.
    async fn serve(&self, stream: Self::Stream, guest: Self::Guest, place: Rc<Place>);
}

/// Takes connections until the future is dropped, on the current thread ([`tokio::task::LocalSet`] needed).
pub(super) async fn receive<D: Door>(door: D) {
    let door = Rc::new(door);
    let counters = &door.context().counters;
    let connections = Connections::default();
    let refusals = Refusals::default();
    let mut tasks = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = door.accept() => accepted,
            // Ended tasks are taken out as they end.
            Some(_) = tasks.join_next() => continue,
        };
        let stream = match accepted {
            Ok(stream) => stream,
            Err(error) => {
                wait_after(&error).await;
                continue;
            }
        };
        let Some((guest, user)) = door.guest(&stream) else { continue };
        Counters::add(&counters.connections);
        let Some(place) = connections.admit(user, door.rooms()) else {
            Counters::add(&counters.connections_refused);
            refusals.refuse(stream, &too_many(D::FULL));
            continue;
        };
        let door = Rc::clone(&door);
        tasks.spawn_local(async move {
            let place = Rc::new(place);
            tokio::select! {
                () = door.serve(stream, guest, Rc::clone(&place)) => {}
                () = place.lost() => {}
            }
        });
    }
}

/// When descriptors have run out, the connection stays in the queue and accept would spin.
async fn wait_after(error: &io::Error) {
    if error.kind() != io::ErrorKind::ConnectionAborted {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
