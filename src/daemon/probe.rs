//! Probes: one HTTP request, one TCP connection, one command; each with a limit of its own.

use super::checks::{self, Check};
use super::host::Message;
use crate::config::spec::{Expect, HttpProbe, Listen, ReadyBy};
use crate::core::GenerationId;
use crate::kinds::{Argv, Context};
use crate::sys::sandbox::Namespace;
use bytes::Bytes;
use http_body_util::Empty;
use hyper::{Request, Uri};
use hyper_util::rt::TokioIo;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};

/// Of TCP and command probes of readiness, which have no key for it.
const LIMIT: Duration = Duration::from_secs(5);

/// A probe with everything filled in.
#[derive(Clone, Debug)]
pub struct Target {
    kind: Asked,
    /// Where ports are looked for, if not on the host.
    network: Option<Namespace>,
    pub limit: Duration,
}

#[derive(Clone, Debug)]
enum Asked {
    Http { address: Address, path: String, headers: Vec<(String, String)>, expect: Expect },
    Tcp(Address),
    Command { argv: Argv, generation: GenerationId, slot: u32 },
}

#[derive(Clone, Debug)]
enum Address {
    Tcp(SocketAddr),
    Name(String),
    Unix(PathBuf),
}

/// # Errors
/// A sentence: a placeholder without a value, or nothing to ask.
pub fn target(
    context: &Context<'_>,
    by: &ReadyBy,
    token: Option<Box<str>>,
    generation: GenerationId,
    slot: u32,
    network: Option<&Namespace>,
) -> Result<Target, String> {
    let (kind, limit) = match by {
        ReadyBy::Http(probe) => (http(context, probe, token)?, probe.timeout),
        ReadyBy::Tcp(address) => {
            let text = context.expand(address)?;
            let address = text.parse().map_or(Address::Name(text), Address::Tcp);
            (Asked::Tcp(address), LIMIT)
        }
        ReadyBy::Command(command) => {
            let argv = context.argv(command)?;
            (Asked::Command { argv, generation, slot }, LIMIT)
        }
        _ => return Err("it is no probe".to_owned()),
    };
    let address = match &kind {
        Asked::Http { address, .. } | Asked::Tcp(address) => Some(address),
        Asked::Command { .. } => None,
    };
    // What svd listens on for the service is the host's.
    let of_host = |address: &Address| match address {
        Address::Tcp(address) => context.spec.listens_at(*address),
        Address::Name(_) => false,
        Address::Unix(_) => true,
    };
    let network = network.filter(|_| address.is_some_and(|address| !of_host(address)));
    Ok(Target { kind, network: network.cloned(), limit })
}

fn http(context: &Context<'_>, probe: &HttpProbe, token: Option<Box<str>>) -> Result<Asked, String> {
    let address = match &probe.port {
        Some(port) => {
            let text = context.expand(port)?;
            let port = text.parse().map_err(|_| format!("{text:?} is no port"))?;
            Address::Tcp((Ipv4Addr::LOCALHOST, port).into())
        }
        None => public(context)?,
    };
    let host = probe.host.as_ref().map_or_else(|| Ok("localhost".to_owned()), |h| context.expand(h))?;
    let mut headers = vec![
        ("host".to_owned(), host),
        ("user-agent".to_owned(), "svd".to_owned()),
        ("connection".to_owned(), "close".to_owned()),
    ];
    for (name, value) in &probe.headers {
        headers.push((name.to_string(), context.expand(value)?));
    }
    if let Some(token) = token {
        headers.push(("x-airdock-probe".to_owned(), token.into()));
    }
    Ok(Asked::Http { address, path: context.expand(&probe.path)?, headers, expect: probe.expect.clone() })
}

/// The service's first socket, as a client on this host reaches it.
fn public(context: &Context<'_>) -> Result<Address, String> {
    let socket = context.spec.sockets.first().ok_or("the probe needs a socket or a port")?;
    Ok(match &socket.listen {
        Listen::Unix { path, .. } => Address::Unix(path.clone()),
        Listen::Tcp(address) if address.ip().is_unspecified() => {
            let ip = if address.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
            Address::Tcp(SocketAddr::new(ip, address.port()))
        }
        Listen::Tcp(address) => Address::Tcp(*address),
    })
}

/// One try. `None`: it could not even be tried, which says nothing about who was to be asked.
///
/// Else: what was asked and what came instead of the expected.
pub async fn run(target: &Target, messages: &mpsc::Sender<Message>) -> Option<Result<(), String>> {
    let limit = target.limit;
    let late = || format!("{} took longer than {}", target.what(), humantime::format_duration(limit));
    Some(match &target.kind {
        Asked::Http { address, path, headers, expect } => {
            let ask = ask(address, target.network.as_ref(), path, headers, expect);
            tokio::time::timeout(limit, ask).await.unwrap_or_else(|_| Err(late()))
        }
        Asked::Tcp(address) => {
            let connect = async { connect(address, target.network.as_ref()).await.map(drop) };
            tokio::time::timeout(limit, connect).await.unwrap_or_else(|_| Err(late()))
        }
        Asked::Command { argv, generation, slot } => {
            let (done, result) = oneshot::channel();
            let check = Check { generation: *generation, slot: *slot, argv: argv.clone(), limit, client: None, done };
            messages.send(Message::Check(check)).await.ok()?;
            let ended = result.await.ok()?;
            checks::verdict(&argv.shown(), ended.map_err(|why| argv.hide(&why)))
        }
    })
}

impl Target {
    fn what(&self) -> String {
        match &self.kind {
            Asked::Http { path, .. } => format!("GET {path}"),
            Asked::Tcp(address) => format!("connecting to {}", address.text()),
            Asked::Command { argv, .. } => argv.shown(),
        }
    }
}

impl Address {
    fn text(&self) -> String {
        match self {
            Address::Tcp(address) => address.to_string(),
            Address::Name(name) => name.clone(),
            Address::Unix(path) => path.display().to_string(),
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Stream for T {}

async fn connect(address: &Address, network: Option<&Namespace>) -> Result<Box<dyn Stream>, String> {
    let failed = |e: std::io::Error| format!("cannot connect to {}: {}", address.text(), crate::sys::io_text(&e));
    Ok(match address {
        Address::Tcp(to) => Box::new(connect_to(&[*to], network).await.map_err(failed)?),
        Address::Name(to) => Box::new(connect_to(&look_up(to).await?, network).await.map_err(failed)?),
        Address::Unix(path) => Box::new(UnixStream::connect(path).await.map_err(failed)?),
    })
}

/// The first that answers.
async fn connect_to(addresses: &[SocketAddr], network: Option<&Namespace>) -> io::Result<TcpStream> {
    let Some(network) = network else { return TcpStream::connect(addresses).await };
    let mut last = io::ErrorKind::AddrNotAvailable.into();
    for address in addresses.iter().copied() {
        // A socket belongs to the network in which it was made.
        let network = network.clone();
        let made = crate::sys::blocking::start(move || network.socket_for(&address))?;
        let socket = made.await.map_err(io::Error::other)??;
        match TcpSocket::from_std_stream(socket).connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(e) => last = e,
        }
    }
    Err(last)
}

/// The addresses of `HOST:PORT`. A name service that hangs keeps its thread beyond the probe's end: a few at most.
async fn look_up(name: &str) -> Result<Vec<SocketAddr>, String> {
    static AT_ONCE: Semaphore = Semaphore::const_new(8);
    let failed = |why: &dyn std::fmt::Display| format!("cannot look up {name}: {why}");
    let permit = AT_ONCE.acquire().await.map_err(|e| failed(&e))?;
    let asked = name.to_owned();
    let found = crate::sys::blocking::start(move || {
        let _permit = permit;
        std::net::ToSocketAddrs::to_socket_addrs(&asked).map(Vec::from_iter)
    });
    let found = found.map_err(|e| failed(&super::pool::no_thread(e)))?;
    found.await.map_err(|e| failed(&e))?.map_err(|e| failed(&crate::sys::io_text(&e)))
}

async fn ask(
    address: &Address,
    network: Option<&Namespace>,
    path: &str,
    headers: &[(String, String)],
    expect: &Expect,
) -> Result<(), String> {
    let stream = connect(address, network).await?;
    let uri: Uri = path.parse().map_err(|e| format!("{path:?} is no path: {e}"))?;
    let mut request = Request::get(uri);
    for (name, value) in headers {
        request = request.header(name, value);
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|e| format!("the probe's headers are wrong: {e}"))?;
    let what = |e: hyper::Error| format!("GET {path}: {e}");
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(what)?;
    let connection = async {
        // Its failure is the request's, too.
        let _ = connection.await;
        std::future::pending::<()>().await;
    };
    let response = tokio::select! {
        response = sender.send_request(request) => response.map_err(what)?,
        () = connection => return Err(format!("GET {path}: the connection ended")),
    };
    let status = response.status();
    let good = match expect {
        Expect::Success => (200..400).contains(&status.as_u16()),
        Expect::OneOf(codes) => codes.contains(&status.as_u16()),
    };
    if good { Ok(()) } else { Err(format!("GET {path} answered {status}")) }
}
