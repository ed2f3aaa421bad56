use super::*;
use std::time::Duration;

/// Lanes of `web-0`, `web-1` …, and what they have printed.
fn lanes(count: usize, order: Order, json: bool) -> (Arc<Lanes>, Arc<Mutex<Vec<u8>>>) {
    let written: Arc<Mutex<Vec<u8>>> = Arc::default();
    let out = Arc::clone(&written);
    let names = (0..count).map(|n| format!("web-{n}").into()).collect();
    let write = move |bytes: &[u8]| {
        out.lock().unwrap().extend_from_slice(bytes);
        Ok(())
    };
    (Lanes::writing(names, order, json, Arc::default(), Box::new(write)), written)
}

fn text(written: &Mutex<Vec<u8>>) -> String {
    String::from_utf8(written.lock().unwrap().clone()).unwrap()
}

#[test]
fn hosts_are_printed_in_order_and_as_soon_as_possible() {
    let (lanes, out) = lanes(3, Order::OfHosts, false);
    let [a, b, c] = [0, 1, 2].map(|index| lanes.lane(index));
    c.print(b"c1\nc2").unwrap();
    c.done(Exit::Failed);
    b.print(b"b1\n").unwrap();
    assert_eq!(text(&out), "");
    a.print(b"a1\na").unwrap();
    assert_eq!(text(&out), "web-0 | a1\n");
    a.print(b"2\n").unwrap();
    a.done(Exit::Ok);
    assert_eq!(text(&out), "web-0 | a1\nweb-0 | a2\nweb-1 | b1\n");
    b.done(Exit::NotRunning);
    assert_eq!(text(&out), "web-0 | a1\nweb-0 | a2\nweb-1 | b1\nweb-2 | c1\nweb-2 | c2\n");
    lanes.wait().unwrap();
    assert_eq!(lanes.exit(), Exit::Command(3));
}

#[test]
fn one_host_is_printed_as_it_is() {
    for order in [Order::OfHosts, Order::AsItComes] {
        let (lanes, out) = lanes(1, order, false);
        lanes.lane(0).print(b"a\nb").unwrap();
        lanes.lane(0).done(Exit::Ok);
        assert_eq!((text(&out).as_str(), lanes.exit()), ("a\nb", Exit::Ok));
    }
}

#[test]
fn lines_that_come_are_whole() {
    let (lanes, out) = lanes(2, Order::AsItComes, false);
    let [a, b] = [0, 1].map(|index| lanes.lane(index));
    a.print(b"be").unwrap();
    b.print(b"whole\n").unwrap();
    a.print(b"gun\nrest").unwrap();
    a.done(Exit::Ok);
    b.done(Exit::Ok);
    assert_eq!(text(&out), "web-1 | whole\nweb-0 | begun\nweb-0 | rest\n");
}

#[test]
fn documents_are_one_object() {
    let (lanes, out) = lanes(3, Order::OfHosts, true);
    lanes.lane(1).print(b"{\"error\":{\"code\":\"unavailable\"}}\n").unwrap();
    lanes.lane(1).done(Exit::Unknown);
    lanes.lane(0).print(b"{\"services\":[],\"error\":1}\n").unwrap();
    lanes.lane(0).done(Exit::Ok);
    lanes.lane(2).done(Exit::Ok);
    assert_eq!(text(&out), "");
    assert_eq!(
        lanes.document(),
        json!({"hosts": [
            {"host": "web-0", "exit_code": 0, "result": {"services": [], "error": 1}},
            {"host": "web-1", "exit_code": 4, "error": {"code": "unavailable"}},
            {"host": "web-2", "exit_code": 0},
        ]})
    );
}

#[test]
fn documents_that_come_have_the_host_in_them() {
    let (lanes, out) = lanes(2, Order::AsItComes, true);
    lanes.lane(1).print(b"{\"line\":\"a\"}\n").unwrap();
    lanes.lane(0).print(b"{}\n").unwrap();
    lanes.lane(0).print(b"odd\n").unwrap();
    assert_eq!(
        text(&out),
        "{\"host\":\"web-1\",\"line\":\"a\"}\n{\"host\":\"web-0\"}\n{\"host\":\"web-0\",\"value\":\"odd\\n\"}\n"
    );
}

#[test]
fn what_waits_for_its_turn_has_a_limit() {
    let (lanes, out) = lanes(2, Order::OfHosts, false);
    let b = lanes.lane(1);
    let line = [vec![b'x'; 1023], b"\n".to_vec()].concat();
    let writer = std::thread::spawn(move || {
        for _ in 0..2 * HELD / 1024 {
            b.print(&line).unwrap();
        }
        b.done(Exit::Ok);
    });
    // It comes as far as it may, and no further.
    let held = |lanes: &Lanes| lanes.state().lanes[1].held.len();
    while held(&lanes) <= HELD {
        std::thread::yield_now();
    }
    assert!(lanes.changed.wait_timeout(lanes.state(), Duration::from_millis(50)).is_ok());
    assert!(held(&lanes) <= HELD + 1024);
    lanes.lane(0).done(Exit::Ok);
    lanes.wait().unwrap();
    writer.join().unwrap();
    assert_eq!(text(&out).lines().count(), 2 * HELD / 1024);
}

#[test]
fn nobody_reads() {
    let out: Out = Box::new(|_| Err(CliError::NobodyReads));
    let lanes = Lanes::writing(vec!["a".into(), "b".into()], Order::AsItComes, false, Arc::default(), out);
    assert!(matches!(lanes.lane(0).print(b"x\n"), Err(CliError::NobodyReads)));
    assert!(matches!(lanes.wait(), Err(CliError::NobodyReads)), "although b goes on");
    assert!(matches!(lanes.lane(1).print(b"x\n"), Err(CliError::NobodyReads)));
}
