use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::LocalSet;
use tokio::time::timeout;

use super::*;
use crate::api::access::Access;
use crate::api::server::{Directory, Limits, SharedDirectory};
use crate::api::testing::{full_status, running};
use crate::api::types::{HostHealth, MetricsSnapshot, ServiceHealth};

const PATIENCE: Duration = Duration::from_secs(30);

fn context(calls: mpsc::Sender<crate::api::Call>) -> ServerContext {
    let access = Access { owner: 0, rules: Arc::from([]) };
    ServerContext {
        calls,
        directory: SharedDirectory::new(Directory { names: [].into(), access, connections_per_user: 1 }),
        numbers: Default::default(),
        audit: Arc::new(|_| panic!("nothing here is in the journal")),
        counters: Arc::default(),
        limits: Limits::default(),
    }
}

/// A daemon with `airship`, which is well, and `web`, which is drained.
async fn daemon(mut calls: mpsc::Receiver<crate::api::Call>) {
    let mut web = running("web");
    web.draining = true;
    let services = [full_status("airship"), web];
    while let Some(call) = calls.recv().await {
        match call.request {
            Request::PublicHealth { name: None } => {
                let health = HostHealth::of(&services, false);
                call.reply.health(health.ok, &health);
            }
            Request::PublicHealth { name: Some(name) } => match services.iter().find(|s| s.name == name) {
                Some(service) => {
                    let health = ServiceHealth::of(service);
                    call.reply.health(health.ok, &health);
                }
                None => call.reply.error(crate::api::resolve::unknown(&name, [].iter())),
            },
            Request::Metrics => call.reply.metrics(&MetricsSnapshot { services: services.to_vec(), svd: Vec::new() }),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn health_and_metrics_over_tcp() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, calls) = mpsc::channel(16);
        tokio::task::spawn_local(serve(listener, context(sender)));
        tokio::task::spawn_local(daemon(calls));
        let ask = async |line: &str| {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let text = format!("{line} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
            stream.write_all(text.as_bytes()).await.unwrap();
            let mut answer = String::new();
            let read = stream.read_to_string(&mut answer);
            timeout(PATIENCE, read).await.unwrap().unwrap();
            answer
        };
        for (line, status, text) in [
            ("GET /health", 503, "\"not_ok\":[\"web\"]"),
            ("GET /health/airship", 200, "\"release\":\"deploy-2026-11-22_18-40-00\""),
            ("GET /health/airship", 200, "\"p99\":250.0"),
            ("GET /health/airship/", 200, "\"workers\":1"),
            ("GET /health/web", 503, "\"draining\":true"),
            ("GET /health/nope", 404, "unknown_service"),
            ("GET /metrics", 200, "# TYPE airdock_service_up gauge"),
            ("GET /metrics", 200, "text/plain; version=0.0.4"),
            ("GET /v1/status", 404, "GET /metrics"),
            ("POST /health", 405, "allow: GET, HEAD"),
        ] {
            let answer = ask(line).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{line}: {answer}");
            assert!(answer.contains(text), "{line}: {answer}");
        }
        let answer = ask("HEAD /health/airship").await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("\r\n\r\n"), "{answer}");
        // What a stranger need not know.
        assert!(!ask("GET /health/airship").await.contains("pid"));
    });
}
