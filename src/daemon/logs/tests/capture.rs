//! What arrives in the file.

use super::*;
use proptest::prelude::*;

#[test]
fn a_line_arrives_at_once_and_the_rest_with_the_end() {
    let rig = Rig::new(logs());
    let (id, mut pipe) = rig.attach(1, 0, Stream::Joined);
    rig.sync();
    // An idle service's line: within 5 ms nearly always; the best of some tries, as other tests run beside this one.
    let mut best = Duration::MAX;
    let mut expected = Vec::new();
    for i in 0..20 {
        std::thread::sleep(Duration::from_millis(5));
        let line = format!("line {i}\n");
        expected.extend_from_slice(line.as_bytes());
        let begin = Instant::now();
        pipe.write_all(line.as_bytes()).unwrap();
        assert!(until(|| rig.file("output.log") == expected));
        best = best.min(begin.elapsed());
    }
    assert!(best < Duration::from_millis(5), "{best:?}");
    pipe.write_all(b"without end").unwrap();
    expected.extend_from_slice(b"without end");
    drop(pipe);
    rig.drained(id);
    assert_eq!(rig.file("output.log"), expected);
}

#[test]
fn a_detached_pipe_is_emptied_although_a_descendant_holds_it() {
    let rig = Rig::new(logs());
    let (id, mut pipe) = rig.attach(1, 0, Stream::Joined);
    pipe.write_all(b"last words\n").unwrap();
    rig.handle.detach(id).unwrap();
    rig.drained(id);
    assert_eq!(rig.file("output.log"), b"last words\n");
    // Children that other tests fork hold a copy until they execute.
    assert!(until(|| pipe.write(b"x").is_err()));
}

/// A pipe is not watched while its output streams: it must be again when the stream pauses.
#[test]
fn after_a_stream_a_line_arrives_at_once_and_the_end_is_seen() {
    let rig = Rig::new(logs());
    let (pipe, mut writer) = rig.attach(1, 0, Stream::Joined);
    let stream = format!("{}\n", "x".repeat(99));
    let (next, turns) = channel::<usize>();
    // On a thread of its own: it blocks for ever if nobody reads.
    let thread = std::thread::spawn(move || {
        while let Ok(lines) = turns.recv() {
            (0..lines).for_each(|_| writer.write_all(stream.as_bytes()).unwrap());
        }
    });
    let mut written = 0;
    for lines in [20_000, 1, 20_000, 1, 1, 50_000, 1, 20_000] {
        next.send(lines).unwrap();
        written += lines * 100;
        assert!(until(|| rig.file("output.log").len() == written), "{lines} lines have arrived");
    }
    drop(next);
    thread.join().unwrap();
    rig.drained(pipe);
}

#[test]
fn a_fifo_that_nobody_has_opened_is_waited_for() {
    let rig = Rig::new(logs());
    std::fs::create_dir_all(&rig.root).unwrap();
    let path = rig.root.join("fifo");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    let read: OwnedFd = {
        use std::os::unix::fs::OpenOptionsExt;
        std::fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path).unwrap().into()
    };
    let origin = Attach { service: NAME.into(), generation: 1, worker: 0, stream: Stream::Joined, adopted: false };
    let id = rig.handle.attach(origin, read).unwrap();
    // Another one makes the thread look at it while nobody holds it open.
    let (other, _pipe) = rig.attach(1, 1, Stream::Joined);
    rig.sync();
    let mut both = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    both.write_all(b"here\n").unwrap();
    assert!(until(|| rig.file("output.log") == b"here\n"));
    drop(both);
    rig.drained(id);
    rig.handle.detach(other).unwrap();
    rig.drained(other);
}

#[test]
fn stdout_and_stderr_apart() {
    let mut rig = Rig::new(logs());
    let (_, mut out) = rig.attach(1, 0, Stream::Stdout);
    let (_, mut err) = rig.attach(1, 0, Stream::Stderr);
    out.write_all(b"o\n").unwrap();
    err.write_all(b"e\n").unwrap();
    rig.shutdown();
    assert_eq!(rig.file("stdout.log"), b"o\n");
    assert_eq!(rig.file("stderr.log"), b"e\n");
    assert!(!rig.dir().join("output.log").exists());
}

#[test]
fn lines_of_two_pipes_stay_whole() {
    let rig = Rig::new(logs());
    let (a, mut pa) = rig.attach(1, 0, Stream::Joined);
    let (b, mut pb) = rig.attach(1, 1, Stream::Joined);
    pa.write_all(b"first half, ").unwrap();
    rig.sync();
    pb.write_all(b"other\nand more, ").unwrap();
    assert!(until(|| rig.file("output.log") == b"other\n"));
    pa.write_all(b"second half\n").unwrap();
    assert!(until(|| rig.file("output.log") == b"other\nfirst half, second half\n"));
    // What nobody finishes is written all the same, after a second or when its pipe goes, on a line of its own.
    drop(pb);
    rig.drained(b);
    pa.write_all(b"end\n").unwrap();
    drop(pa);
    rig.drained(a);
    assert_eq!(String::from_utf8(rig.file("output.log")).unwrap(), "other\nfirst half, second half\nand more, \nend\n");
}

#[test]
fn a_write_longer_than_the_pipe_does_not_wait_behind_a_held_line() {
    let mut rig = Rig::new(logs());
    let (_a, mut pa) = rig.attach(1, 0, Stream::Joined);
    let (_b, _pb) = rig.attach(1, 1, Stream::Joined);
    rig.sync();
    let lines: Vec<u8> = (0..400_000).flat_map(|n| format!("line {n}\n").into_bytes()).collect();
    let begin = Instant::now();
    let mut sent = Vec::new();
    // In the middle of a line again and again.
    for piece in lines.chunks(1_000_003) {
        pa.write_all(&piece[..3]).unwrap();
        std::thread::sleep(Duration::from_millis(30));
        pa.write_all(&piece[3..]).unwrap();
        sent.extend_from_slice(piece);
    }
    assert!(begin.elapsed() < Duration::from_secs(4), "{:?}", begin.elapsed());
    drop(pa);
    rig.shutdown();
    assert!(rig.whole() == sent);
}

#[test]
fn a_prompt_appears_within_the_limit() {
    let rig = Rig::new(logs());
    let (_a, mut pa) = rig.attach(1, 0, Stream::Joined);
    let (_b, _pb) = rig.attach(1, 1, Stream::Joined);
    let begin = Instant::now();
    pa.write_all(b"password: ").unwrap();
    assert!(until(|| rig.file("output.log") == b"password: "));
    assert!(begin.elapsed() >= Duration::from_millis(900), "held back first");
}

#[test]
fn a_line_begun_alone_is_finished_before_the_newcomer_writes() {
    let rig = Rig::new(logs());
    let (_a, mut pa) = rig.attach(1, 0, Stream::Joined);
    pa.write_all(b"begun ").unwrap();
    assert!(until(|| rig.file("output.log") == b"begun "));
    let (_b, mut pb) = rig.attach(2, 0, Stream::Joined);
    pb.write_all(b"new\n").unwrap();
    rig.sync();
    pa.write_all(b"and finished\n").unwrap();
    assert!(until(|| rig.file("output.log") == b"begun and finished\nnew\n"));
}

#[test]
fn each_generation_has_its_mark_once_and_its_own_memory() {
    let mut rig = Rig::new(logs());
    let began = SystemTime::UNIX_EPOCH + Duration::from_millis(1_795_378_145_000);
    let h = rig.handle.clone();
    h.begin_generation(NAME.into(), begins(7, Some("deploy-1".into()), began)).unwrap();
    let (a, mut pa) = rig.attach(7, 0, Stream::Joined);
    pa.write_all(b"old").unwrap();
    drop(pa);
    rig.drained(a);
    h.begin_generation(NAME.into(), begins(8, None, began)).unwrap();
    let (b, mut pb) = rig.attach(8, 0, Stream::Joined);
    pb.write_all(b"new\n").unwrap();
    drop(pb);
    rig.drained(b);
    let tail = |g| h.tail(NAME.into(), g, 100).unwrap().blocking_recv().unwrap();
    assert_eq!(tail(Some(7)), b"old");
    assert_eq!(tail(None), b"new\n");
    assert_eq!(tail(Some(9)), b"");
    rig.shutdown();
    assert_eq!(
        String::from_utf8(rig.file("output.log")).unwrap(),
        "-- airship: generation 7, release deploy-1, 2026-11-22T20:09:05.000Z --\nold\n\
         -- airship: generation 8, 2026-11-22T20:09:05.000Z --\nnew\n"
    );
}

#[test]
fn a_watched_text_is_told_once() {
    let mut rig = Rig::new(logs());
    let id = rig.handle.watch(NAME.into(), 2, Some(1), b"server is up").unwrap();
    let (_o, mut old) = rig.attach(1, 1, Stream::Joined);
    let (_w, mut other) = rig.attach(2, 0, Stream::Joined);
    let (_n, mut new) = rig.attach(2, 1, Stream::Joined);
    old.write_all(b"server is up\n").unwrap();
    other.write_all(b"server is up\n").unwrap();
    new.write_all(b"the server i").unwrap();
    rig.sync();
    new.write_all(b"s up now\n").unwrap();
    rig.event(|e| (e == LogEvent::Matched { watch: id }).then_some(()));
    new.write_all(b"server is up\n").unwrap();
    rig.shutdown();
    assert!(!rig.events.try_iter().any(|e| matches!(e, LogEvent::Matched { .. })));
}

#[test]
fn json_lines_whatever_comes() {
    let mut rig = Rig::new(Logs { format: LogFormat::Json, ..logs() });
    rig.handle.begin_generation(NAME.into(), begins(3, Some("r".into()), SystemTime::now())).unwrap();
    let (_, mut pipe) = rig.attach(3, 2, Stream::Joined);
    let long = vec![b'x'; 200_000];
    pipe.write_all(b"plain\n\xff\xfe\"\\\x01\n").unwrap();
    pipe.write_all(&long).unwrap();
    pipe.write_all(b"\nno end").unwrap();
    drop(pipe);
    rig.shutdown();
    let text = String::from_utf8(rig.file("output.log")).unwrap();
    let lines: Vec<serde_json::Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(lines[0]["event"], "generation");
    assert_eq!(lines[1]["message"], "plain");
    assert_eq!((&lines[1]["generation"], &lines[1]["worker"]), (&3.into(), &2.into()));
    assert_eq!(lines[2]["message"], "\u{fffd}\u{fffd}\"\\\u{1}");
    let (mut joined, mut i) = (String::new(), 3);
    loop {
        joined.push_str(lines[i]["message"].as_str().unwrap());
        if lines[i]["partial"] != true {
            break;
        }
        i += 1;
    }
    assert_eq!(joined.len(), long.len());
    assert!(i > 3, "a long line is split");
    assert_eq!(lines[i + 1]["message"], "no end");
}

#[test]
fn times_before_lines() {
    let mut rig = Rig::new(Logs { format: LogFormat::Timestamps, ..logs() });
    let (_, mut pipe) = rig.attach(1, 0, Stream::Joined);
    pipe.write_all(b"one\ntw").unwrap();
    assert!(until(|| rig.file("output.log").ends_with(b"tw")));
    pipe.write_all(b"o\n\n").unwrap();
    drop(pipe);
    rig.shutdown();
    let text = String::from_utf8(rig.file("output.log")).unwrap();
    let rest: Vec<&str> = text
        .lines()
        .map(|l| {
            let (time, rest) = l.split_once(' ').unwrap();
            humantime::parse_rfc3339(time).unwrap();
            assert_eq!(time.len(), "2026-11-22T20:09:05.123Z".len());
            rest
        })
        .collect();
    assert_eq!(rest, ["one", "two", ""]);
}

#[test]
fn limits_change_while_it_runs() {
    let mut rig = Rig::new(logs());
    let (_, mut pipe) = rig.attach(1, 0, Stream::Joined);
    pipe.write_all(b"raw\n").unwrap();
    assert!(until(|| rig.file("output.log") == b"raw\n"));
    rig.handle.configure(NAME.into(), Logs { format: LogFormat::Json, ..logs() }).unwrap();
    rig.sync();
    pipe.write_all(b"json\n").unwrap();
    drop(pipe);
    rig.shutdown();
    let text = String::from_utf8(rig.file("output.log")).unwrap();
    assert!(text.starts_with("raw\n{\"time\""), "{text}");
}

#[test]
fn an_existing_file_is_appended_to() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..3u32 {
        let mut rig = Rig::at(dir.path().to_path_buf(), logs());
        let (_, mut pipe) = rig.attach(round.into(), 0, Stream::Joined);
        pipe.write_all(format!("round {round}\n").as_bytes()).unwrap();
        drop(pipe);
        rig.shutdown();
        assert_eq!(rig.file("output.log").iter().filter(|b| **b == b'\n').count(), round as usize + 1);
    }
}

#[test]
fn a_removed_service_is_drained_and_forgotten() {
    let rig = Rig::new(logs());
    let (id, mut pipe) = rig.attach(1, 0, Stream::Joined);
    pipe.write_all(b"bye\n").unwrap();
    rig.handle.remove(NAME.into()).unwrap();
    rig.drained(id);
    assert_eq!(rig.file("output.log"), b"bye\n");
    rig.handle.configure(NAME.into(), logs()).unwrap();
    let (id, mut pipe) = rig.attach(2, 0, Stream::Joined);
    pipe.write_all(b"back\n").unwrap();
    drop(pipe);
    rig.drained(id);
    assert_eq!(rig.file("output.log"), b"bye\nback\n");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn raw_output_is_the_input(
        pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..5000), 1..20),
        max_size in prop_oneof![Just(0u64), 1u64..20_000],
    ) {
        let mut rig = Rig::new(Logs { max_size, keep: 1000, ..logs() });
        let (_, mut pipe) = rig.attach(1, 0, Stream::Joined);
        for piece in &pieces {
            pipe.write_all(piece).unwrap();
        }
        drop(pipe);
        rig.shutdown();
        prop_assert!(rig.whole() == pieces.concat());
    }
}
