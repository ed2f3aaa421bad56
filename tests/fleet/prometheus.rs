//! A verdict on what a Prometheus has counted: here a small server that answers its queries.

use super::bed::Bed;
use super::site::Site;
use super::support::app::Release;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// What is asked, as it was written in the fleet file, with hosts and releases in it.
struct Fake {
    port: u16,
    asked: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Fake {
    /// In the network that svctl goes out from. Each host has 20 requests a second; of those of a release that is not `good`, half fail.
    fn start(bed: &Bed, good: &str) -> Fake {
        let listener = Mutex::new(None);
        bed.inside(|| *listener.lock().expect("no panic") = Some(TcpListener::bind("127.0.0.1:0").expect("a port")));
        let listener = listener.into_inner().expect("no panic").expect("a listener");
        let port = listener.local_addr().expect("an address").port();
        let (asked, stop, good) = (Arc::<Mutex<Vec<String>>>::default(), Arc::<AtomicBool>::default(), good.to_owned());
        let (heard, ends, began) = (Arc::clone(&asked), Arc::clone(&stop), Instant::now());
        listener.set_nonblocking(true).expect("its mode");
        let serve = move || {
            while !ends.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, _)) => answer(stream, &good, began, &heard),
                    Err(_) => std::thread::sleep(std::time::Duration::from_millis(2)),
                }
            }
        };
        Fake { port, asked, stop, thread: Some(std::thread::spawn(serve)) }
    }

    fn queries(&self) -> Vec<String> {
        self.asked.lock().expect("no panic").clone()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().map(std::thread::JoinHandle::join);
    }
}

fn answer(mut stream: TcpStream, good: &str, began: Instant, heard: &Mutex<Vec<String>>) {
    stream.set_nonblocking(false).expect("its mode");
    let lines: Vec<String> =
        BufReader::new(&stream).lines().map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
    let path = lines.first().and_then(|line| line.split(' ').nth(1)).unwrap_or_default();
    let query = decoded(path.strip_prefix("/api/v1/query?query=").unwrap_or_default());
    let requests = began.elapsed().as_millis() as u64 / 50;
    let value = match (query.starts_with("errors"), query.contains(good)) {
        (false, _) => requests,
        (true, true) => 0,
        (true, false) => requests / 2,
    };
    heard.lock().expect("no panic").push(query);
    let body = format!(
        r#"{{"status":"success","data":{{"resultType":"vector","result":[{{"metric":{{}},"value":[1.5,"{value}"]}}]}}}}"#
    );
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    let _ = stream.write_all((head + &body).as_bytes());
}

/// Percent signs and what follows them.
fn decoded(text: &str) -> String {
    let (mut out, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((&byte, after)) = rest.split_first() {
        let code = if byte == b'%' { after.get(..2).and_then(|two| std::str::from_utf8(two).ok()) } else { None };
        match code.and_then(|code| u8::from_str_radix(code, 16).ok()) {
            Some(code) => {
                out.push(code);
                rest = &after[2..];
            }
            None => {
                out.push(if byte == b'+' { b' ' } else { byte });
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[test]
fn a_release_is_judged_by_what_prometheus_has_counted() {
    let Some(bed) = Bed::start(2) else { return };
    let Some(site) = Site::new(&bed, "") else { return };
    let first = bed.hosts[0].svd.json(&["releases", "web"])["confirmed"].as_str().expect("a release").to_owned();
    let fake = Fake::start(&bed, &first);
    let fleet = |port: u16| {
        site.fleet(&format!(
            "waves = [1, \"100%\"]\nbake = \"60s\"\nverdict.min_requests = 50\n\
             verdict.prometheus = {{ url = \"http://127.0.0.1:{port}/\", every = \"5s\", \
             requests = 'requests{{host=\"{{host}}\", release=\"{{release}}\"}}', \
             errors = 'errors{{host=\"{{host}}\", release=\"{{release}}\"}}' }}\n"
        ));
    };
    fleet(fake.port);
    // Nobody asks the hosts for anything: svd itself has counted nothing.
    site.commit(&Release::new("second"));
    let (code, out, err) = site.deploy();
    assert_eq!(code, 7, "{out}{err}");
    // Half of them, but for what was counted between two questions.
    let half = err.contains("(49.") || err.contains("(50.");
    assert!(err.contains("no good: too many errors") && half, "{err}");
    let queries = fake.queries();
    let second =
        queries.iter().find(|query| query.contains("web-0") && !query.contains(&*first)).expect("the canary's");
    assert!(second.starts_with("errors{host=\"web-0\", release=\"deploy-"), "{second}");
    let old = format!("requests{{host=\"web-1\", release=\"{first}\"}}");
    assert!(queries.contains(&old), "{old} in {queries:?}");
    assert_eq!(site.serves(), ["first", "first"]);
}

#[test]
fn a_prometheus_that_does_not_answer_lets_nothing_pass() {
    let Some(bed) = Bed::start(2) else { return };
    let Some(site) = Site::new(&bed, "") else { return };
    // Nobody listens there; and no request at all is enough.
    site.fleet(
        "waves = [1, \"100%\"]\nbake = \"5s\"\nverdict.min_requests = 0\n\
         verdict.prometheus = { url = \"http://127.0.0.1:1/\", every = \"5s\", requests = 'requests', errors = 'errors' }\n",
    );
    site.commit(&Release::new("second"));
    let (code, out, err) = site.deploy();
    assert_eq!(code, 8, "it waits for somebody: {out}{err}");
    assert!(err.contains("these seconds do not count") && err.contains("too little is known"), "{err}");
    assert_eq!(site.serves(), ["second", "first"], "no other wave was switched");
    let (code, out, err) = site.verb("abort");
    assert_eq!(code, 7, "{out}{err}");
    assert_eq!(site.serves(), ["first", "first"]);
}
