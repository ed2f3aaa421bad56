//! The end of a log, and since when.

use super::*;

fn lines(range: std::ops::Range<u32>) -> Vec<u8> {
    range.flat_map(|i| format!("line {i}\n").into_bytes()).collect()
}

/// Twelve files of some hundred lines, compressed but for the last two, all numbered.
fn many_files() -> (Rig, u32) {
    let mut rig = Rig::new(Logs { max_size: 1000, keep: 100, compress: true, ..logs() });
    let count = 1200;
    let (id, mut pipe) = rig.attach(1, 0, Stream::Joined);
    pipe.write_all(&lines(0..count)).unwrap();
    drop(pipe);
    rig.drained(id);
    assert!(until(|| {
        let names = std::fs::read_dir(rig.dir()).unwrap();
        let rest = names
            .filter_map(|e| e.unwrap().file_name().into_string().ok())
            .filter(|n| !n.starts_with('.') && !n.ends_with(".gz"))
            .count();
        rest == 2
    }));
    rig.shutdown();
    (rig, count)
}

#[test]
fn last_lines_over_files_and_compressed_ones() {
    let (rig, count) = many_files();
    for n in [0u32, 1, 2, 50, 80, 100, 101, 199, 500, 1199, 1200, 1201, 9999] {
        let reader = LogReader::open(&rig.dir(), Stream::Joined, Start::Lines(n.into())).unwrap();
        let expected = lines(count.saturating_sub(n)..count);
        let got = read_all(reader.to_the_end_only());
        assert_eq!(String::from_utf8(got).unwrap(), String::from_utf8(expected).unwrap(), "the last {n}");
    }
}

#[test]
fn a_place_stays_the_same_across_files() {
    let (rig, count) = many_files();
    let open = |start| LogReader::open(&rig.dir(), Stream::Joined, start).unwrap();
    let whole = lines(0..count);
    let (first, zero) = open(Start::Beginning).position().unwrap();
    assert_eq!(zero, 0);
    // However far it is, counted from the first file; ends of files among them.
    for from in (0..=whole.len()).step_by(97).chain([999, 1000, 1001, whole.len()]) {
        let reader = open(Start::At { sequence: first, offset: from as u64 });
        let at = reader.position().unwrap();
        let rest = read_all(reader);
        assert_eq!(String::from_utf8_lossy(&rest), String::from_utf8_lossy(&whole[from..]), "from {from}");
        // Its own place is another name of the same.
        assert_eq!(read_all(open(Start::At { sequence: at.0, offset: at.1 })), rest);
    }
    // A file that is gone: what is left.
    let path = |n: u32| rig.dir().join(format!("output.log.{n}.gz"));
    let oldest = (1..100).rev().map(path).find(|path| path.exists()).unwrap();
    std::fs::remove_file(oldest).unwrap();
    let rest = read_all(open(Start::At { sequence: first, offset: 5 }));
    assert!(!rest.is_empty() && whole.ends_with(&rest));
}

#[test]
fn a_last_line_without_its_end_counts() {
    let mut rig = Rig::new(logs());
    let (_, mut pipe) = rig.attach(1, 0, Stream::Joined);
    pipe.write_all(b"a\nb\nc").unwrap();
    drop(pipe);
    rig.shutdown();
    let last = |n| read_all(LogReader::open(&rig.dir(), Stream::Joined, Start::Lines(n)).unwrap());
    assert_eq!(last(1), b"c");
    assert_eq!(last(2), b"b\nc");
    assert_eq!(last(3), b"a\nb\nc");
}

#[test]
fn no_files_are_an_empty_log() {
    let dir = tempfile::tempdir().unwrap();
    for start in [Start::Beginning, Start::Lines(5), Start::Since(SystemTime::now()), Start::End] {
        let missing = dir.path().join("none");
        let reader = LogReader::open(&missing, Stream::Joined, start).unwrap();
        assert_eq!(read_all(reader), b"");
    }
}

#[test]
fn since_a_time_by_the_index() {
    let mut rig = Rig::new(logs());
    let (id, mut pipe) = rig.attach(1, 0, Stream::Joined);
    let mut times = Vec::new();
    for i in 0..4 {
        times.push(SystemTime::now());
        pipe.write_all(format!("line {i}\n").as_bytes()).unwrap();
        if i == 1 {
            let rotated = until(|| rig.file("output.log") == b"line 0\nline 1\n");
            assert!(rotated);
            rig.handle.rotate(NAME.into()).unwrap().blocking_recv().unwrap();
        }
        std::thread::sleep(Duration::from_millis(1100));
    }
    drop(pipe);
    rig.drained(id);
    let end = SystemTime::now();
    rig.shutdown();
    let since = |t| {
        let reader = LogReader::open(&rig.dir(), Stream::Joined, Start::Since(t)).unwrap();
        String::from_utf8(read_all(reader.to_the_end_only())).unwrap()
    };
    for (i, t) in times.iter().enumerate() {
        let expected: Vec<u8> = lines(i as u32..4);
        assert_eq!(since(*t), String::from_utf8(expected).unwrap(), "since line {i}");
    }
    assert_eq!(since(SystemTime::UNIX_EPOCH), String::from_utf8(lines(0..4)).unwrap());
    assert_eq!(since(end), "");
    let last = |count, t| {
        let reader = LogReader::open(&rig.dir(), Stream::Joined, Start::LinesSince(count, t)).unwrap();
        String::from_utf8(read_all(reader.to_the_end_only())).unwrap()
    };
    assert_eq!(last(2, SystemTime::UNIX_EPOCH), "line 2\nline 3\n");
    assert_eq!(last(2, times[3]), "line 3\n", "the later one of both");
    assert_eq!(last(9, times[1]), "line 1\nline 2\nline 3\n");
    assert_eq!(last(9, end), "");
    // Without the index the whole files of that time come.
    for e in std::fs::read_dir(rig.dir()).unwrap() {
        let e = e.unwrap();
        if e.file_name().to_str().unwrap().ends_with(".idx") {
            std::fs::remove_file(e.path()).unwrap();
        }
    }
    assert_eq!(since(times[3]), "line 2\nline 3\n");
    assert_eq!(since(SystemTime::UNIX_EPOCH), String::from_utf8(lines(0..4)).unwrap());
}

#[test]
fn a_reader_to_the_end_does_not_run_after_a_growing_log() {
    let rig = Rig::new(Logs { max_size: 100, ..logs() });
    let (_, mut pipe) = rig.attach(1, 0, Stream::Joined);
    pipe.write_all(b"before\n").unwrap();
    assert!(until(|| rig.file("output.log") == b"before\n"));
    let open = || LogReader::open(&rig.dir(), Stream::Joined, Start::Beginning).unwrap();
    let (bounded, free) = (open().to_the_end_only(), open());
    pipe.write_all(&lines(0..100)).unwrap();
    assert!(until(|| rig.dir().join("output.log.3").exists()));
    assert_eq!(read_all(bounded), b"before\n");
    assert!(read_all(free).starts_with(b"before\nline 0\n"));
}

#[test]
fn an_async_follower_is_woken() {
    let rig = Rig::new(logs());
    let subscription = rig.handle.subscribe(NAME.into(), Stream::Joined).unwrap();
    let (_, mut pipe) = rig.attach(1, 0, Stream::Joined);
    rig.sync();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let writer = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(20));
        pipe.write_all(b"x\n").unwrap();
        pipe
    });
    let wake = runtime.block_on(async { tokio::time::timeout(LIMIT, subscription.changed()).await });
    assert_eq!(wake.unwrap(), Wake::Changed);
    drop(writer.join().unwrap());
}

#[test]
fn followers_are_limited_and_gone_ones_make_room() {
    let rig = Rig::new(logs());
    let limit = super::super::service::FOLLOWERS_MAX;
    let subscribe = || rig.handle.subscribe(NAME.into(), Stream::Joined).unwrap();
    let mut all: Vec<Subscription> = (0..limit).map(|_| subscribe()).collect();
    assert_eq!(subscribe().wait(LIMIT), Wake::Closed);
    all.pop();
    let late = subscribe();
    rig.sync();
    assert_eq!(late.wait(Duration::ZERO), Wake::TimedOut);
    drop(all);
}
