//! ASGI workers, uvicorn's and gunicorn's own: gated and probed in their loop, after the application has started.

use super::frameworks::site;
use super::support::{Env, Load, PATIENCE, Release, alone, free_port, http_get, wait_until};
use super::{GUNICORN, listening_inode};
use std::net::{Ipv4Addr, SocketAddr};

#[test]
fn uvicorns_worker_is_gated_and_probed_in_its_loop() {
    gated_and_probed_in_its_loop("uvicorn.workers.UvicornWorker");
}

#[test]
fn gunicorns_asgi_worker_is_gated_and_probed_in_its_loop() {
    gated_and_probed_in_its_loop("asgi");
}

fn gated_and_probed_in_its_loop(worker_class: &str) {
    let Some(env) = Env::get(GUNICORN) else { return };
    let _alone = alone();
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    let more = format!(
        "args = ['--worker-class', '{worker_class}']\nsockets.http.listen = \"{address}\"\n\
         ready.probe = {{ path = \"/healthz?x=1\", timeout = \"1500ms\" }}\nready.timeout = \"10s\"\n"
    );
    let (app, svd) = site(&env, "asgi_app:application", &more);
    svd.wait_state("web", "running");
    let socket = listening_inode(address);
    // Both write at once, perhaps on one line.
    let started = || svd.output("web").matches("lifespan.startup").count();
    assert_eq!(started(), 2, "once in each worker: {}", svd.output("web"));
    assert_eq!(svd.status("web")["traffic"]["requests"], 0, "svd's own probe is not counted");
    let load = Load::start(address);
    load.more(50);
    for (key, value, words) in [
        ("probe", "fail", "GET /healthz?x=1 answered 500"),
        ("probe", "raise", "the health check of release bad raises"),
        ("probe", "hang", "gave no answer within 1.5 s"),
        ("lifespan", "fail", "bad cannot start"),
    ] {
        app.ship(&Release::new("bad").with(key, value));
        let said = svd.fails(&["reload", "web"]);
        assert!(said.contains(words) && said.contains("generation 1 goes on"), "{key} {value}: {said}");
    }
    load.more(50);
    app.ship(&Release::new("r1"));
    svd.ok(&["reload", "web"]);
    wait_until("the new release answers", PATIENCE, || {
        http_get(address, "/").is_ok_and(|(_, body)| body.starts_with("release=r1"))
    });
    load.more(50);
    let report = load.stop();
    println!("{}", report.summary());
    assert_eq!(report.releases().into_keys().collect::<Vec<_>>(), ["r0", "r1"], "a broken release has answered");
    assert_eq!(listening_inode(address), socket);
}
