//! Files and their names, under writers that do not stop.

use super::*;
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;

/// Numbered lines, so that a lost, doubled, torn or mixed one shows.
fn write_lines(mut pipe: File, writer: u32, count: u32) {
    let mut block = Vec::new();
    for i in 0..count {
        let pad = "x".repeat((i % 97) as usize);
        writeln!(block, "w{writer} {i} {pad} .").unwrap();
        // Blocks of all sizes, so that reads cut lines everywhere.
        if block.len() > (i as usize * 37) % 9000 {
            pipe.write_all(&block).unwrap();
            block.clear();
        }
    }
    pipe.write_all(&block).unwrap();
}

/// Each writer's lines, all of them once and in order; true lines only.
fn check_lines(whole: &[u8], writers: u32, count: u32) {
    let mut next: BTreeMap<u32, u32> = (0..writers).map(|w| (w, 0)).collect();
    for line in std::str::from_utf8(whole).unwrap().lines() {
        let mut words = line.split(' ');
        let mut number = |prefix: &str| -> u32 {
            words
                .next()
                .and_then(|w| w.strip_prefix(prefix))
                .and_then(|w| w.parse().ok())
                .unwrap_or_else(|| panic!("not a line of ours: {line:?}"))
        };
        let (writer, i) = (number("w"), number(""));
        let pad = "x".repeat((i % 97) as usize);
        assert_eq!(line, format!("w{writer} {i} {pad} ."));
        let expected = next.get_mut(&writer).unwrap();
        assert_eq!(i, *expected, "writer {writer}");
        *expected += 1;
    }
    for (writer, n) in next {
        assert_eq!(n, count, "writer {writer}");
    }
}

#[test]
fn nothing_is_lost_torn_or_doubled_over_many_rotations() {
    let mut rig = Rig::new(Logs { max_size: 100_000, keep: 10_000, ..logs() });
    let (writers, count) = (4, 20_000);
    let threads: Vec<_> = (0..writers)
        .map(|w| {
            let (_, pipe) = rig.attach(1, w, Stream::Joined);
            std::thread::spawn(move || write_lines(pipe, w, count))
        })
        .collect();
    for t in threads {
        t.join().unwrap();
    }
    rig.shutdown();
    let files = std::fs::read_dir(rig.dir()).unwrap().count();
    assert!(files > 60, "{files} files: that many rotations were wanted");
    check_lines(&rig.whole(), writers, count);
    // Each file ends with a line.
    for number in 1..20 {
        let file = rig.file(&format!("output.log.{number}"));
        assert_eq!(file.last(), Some(&b'\n'));
        assert!(file.len() >= 100_000 && file.len() < 100_000 + 64 * 1024);
    }
}

#[test]
fn a_follower_sees_every_byte_through_rotations_and_compression() {
    let mut rig = Rig::new(Logs { max_size: 200_000, keep: 10_000, compress: true, ..logs() });
    let subscription = rig.handle.subscribe(NAME.into(), Stream::Joined).unwrap();
    let reader = LogReader::open(&rig.dir(), Stream::Joined, Start::End).unwrap();
    let mut follow = Follow::new(subscription, reader);
    let follower = std::thread::spawn(move || {
        let (mut seen, mut buf) = (Vec::new(), vec![0u8; 10_000]);
        loop {
            match follow.next(&mut buf, LIMIT).unwrap() {
                Step::Data(n) => seen.extend_from_slice(&buf[..n]),
                Step::Idle => panic!("nobody woke the follower"),
                Step::Closed => return (seen, follow.missed()),
            }
        }
    });
    let (id, pipe) = rig.attach(1, 0, Stream::Joined);
    write_lines(pipe, 0, 80_000);
    rig.drained(id);
    let compressed = until(|| rig.dir().join("output.log.2.gz").exists());
    assert!(compressed, "number 2 is compressed");
    rig.shutdown();
    let (seen, missed) = follower.join().unwrap();
    assert_eq!(missed, 0);
    check_lines(&seen, 1, 80_000);
    check_lines(&rig.whole(), 1, 80_000);
    assert!(rig.dir().join("output.log.20").exists() || rig.dir().join("output.log.20.gz").exists());
}

#[test]
fn only_keep_files_stay_compressed_ones_included() {
    let mut rig = Rig::new(Logs { max_size: 1000, keep: 3, compress: true, ..logs() });
    let (id, mut pipe) = rig.attach(1, 0, Stream::Joined);
    for i in 0..10u8 {
        let mut block = vec![b'a' + i; 1000];
        block.push(b'\n');
        pipe.write_all(&block).unwrap();
    }
    drop(pipe);
    rig.drained(id);
    let visible = || {
        let mut names: Vec<String> = std::fs::read_dir(rig.dir())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .filter(|n| !n.starts_with('.'))
            .collect();
        names.sort();
        names
    };
    let expected = ["output.log", "output.log.1", "output.log.2.gz", "output.log.3.gz"];
    assert!(until(|| visible() == expected), "{:?}", visible());
    assert_eq!(gunzip(&rig.dir().join("output.log.3.gz"))[0], b'a' + 7);
    assert_eq!(std::fs::metadata(rig.dir().join("output.log.2.gz")).unwrap().mode() & 0o777, 0o640);
    // A lower limit holds at once.
    rig.handle.configure(NAME.into(), Logs { max_size: 1000, keep: 1, compress: true, ..logs() }).unwrap();
    assert!(until(|| visible() == ["output.log", "output.log.1"]));
    rig.shutdown();
    // Four indexes would be two too many.
    let indexes = std::fs::read_dir(rig.dir())
        .unwrap()
        .filter(|e| {
            let name = e.as_ref().unwrap().file_name();
            name.to_str().unwrap().ends_with(".idx")
        })
        .count();
    assert_eq!(indexes, 2);
}

#[test]
fn an_interrupted_compression_leaves_the_plain_file() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Logs { max_size: 1000, compress: true, ..logs() };
    let folder = dir.path().join(NAME);
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("output.log.2"), "older\n").unwrap();
    std::fs::write(folder.join("output.log.1"), "old\n").unwrap();
    std::fs::write(folder.join(".output.log.17.tmp"), "half of a gz").unwrap();
    let mut rig = Rig::at(dir.path().to_path_buf(), limits);
    let (id, mut pipe) = rig.attach(1, 0, Stream::Joined);
    pipe.write_all(b"new\n").unwrap();
    drop(pipe);
    rig.drained(id);
    assert!(until(|| folder.join("output.log.2.gz").exists() && !folder.join("output.log.2").exists()));
    rig.shutdown();
    assert!(!folder.join(".output.log.17.tmp").exists());
    assert_eq!(gunzip(&folder.join("output.log.2.gz")), b"older\n");
    assert_eq!(rig.whole(), b"older\nold\nnew\n");
}

#[test]
fn a_compression_that_is_cancelled_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join(NAME);
    std::fs::create_dir_all(&folder).unwrap();
    // Large enough that the end comes in the middle of it.
    std::fs::write(folder.join("output.log.2"), vec![b'z'; 200_000_000]).unwrap();
    let mut rig = Rig::at(dir.path().to_path_buf(), Logs { compress: true, ..logs() });
    let (_, mut pipe) = rig.attach(1, 0, Stream::Joined);
    pipe.write_all(b"new\n").unwrap();
    let temporary = |e: std::fs::DirEntry| e.file_name().to_str().unwrap().ends_with(".tmp");
    let any = || std::fs::read_dir(&folder).unwrap().any(|e| temporary(e.unwrap()));
    assert!(until(any), "a compression has begun");
    rig.shutdown();
    assert!(!any());
    assert!(folder.join("output.log.2").exists() && !folder.join("output.log.2.gz").exists());
}

#[test]
fn reopening_finds_the_name_again() {
    let mut rig = Rig::new(logs());
    let subscription = rig.handle.subscribe(NAME.into(), Stream::Joined).unwrap();
    let reader = LogReader::open(&rig.dir(), Stream::Joined, Start::End).unwrap();
    let mut follow = Follow::new(subscription, reader);
    let (_, mut pipe) = rig.attach(1, 0, Stream::Joined);
    pipe.write_all(b"before\n").unwrap();
    assert!(until(|| rig.file("output.log") == b"before\n"));
    let mut seen = Vec::new();
    let mut buf = [0u8; 100];
    let mut follow_to = |seen: &mut Vec<u8>, end: &[u8]| {
        while !seen.ends_with(end) {
            match follow.next(&mut buf, LIMIT).unwrap() {
                Step::Data(n) => seen.extend_from_slice(&buf[..n]),
                other => panic!("{other:?}"),
            }
        }
    };
    follow_to(&mut seen, b"before\n");
    // As logrotate does it: the old file is written on until the signal.
    std::fs::rename(rig.dir().join("output.log"), rig.dir().join("moved")).unwrap();
    pipe.write_all(b"between\n").unwrap();
    follow_to(&mut seen, b"between\n");
    rig.handle.reopen().unwrap();
    rig.sync();
    pipe.write_all(b"after\n").unwrap();
    follow_to(&mut seen, b"after\n");
    rig.shutdown();
    assert_eq!(rig.file("moved"), b"before\nbetween\n");
    assert_eq!(rig.file("output.log"), b"after\n");
    assert_eq!(seen, b"before\nbetween\nafter\n");
}

#[test]
fn age_rotates_a_file_with_content_and_counts_from_its_first_byte_across_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let limits = |ms| Logs { max_age: Some(Duration::from_millis(ms)), ..logs() };
    let mut rig = Rig::at(dir.path().to_path_buf(), limits(3_600_000));
    let (_, mut pipe) = rig.attach(1, 0, Stream::Joined);
    pipe.write_all(b"old\n").unwrap();
    drop(pipe);
    rig.shutdown();
    std::thread::sleep(Duration::from_millis(50));
    // The file is 50 ms old when it is opened: due before the first byte goes in.
    let mut rig = Rig::at(dir.path().to_path_buf(), limits(40));
    let (_, mut pipe) = rig.attach(2, 0, Stream::Joined);
    pipe.write_all(b"new\n").unwrap();
    assert!(until(|| rig.file("output.log.1") == b"old\n"));
    // And without any further output the timer does it.
    assert!(until(|| rig.file("output.log.1") == b"new\n"));
    assert_eq!(rig.file("output.log.2"), b"old\n");
    // An empty file is left alone.
    std::thread::sleep(Duration::from_millis(1200));
    assert!(rig.dir().join("output.log").exists());
    assert!(!rig.dir().join("output.log.3").exists());
    rig.shutdown();
}

#[test]
fn rotation_on_request() {
    let rig = Rig::new(logs());
    let rotate = || rig.handle.rotate(NAME.into()).unwrap().blocking_recv().unwrap();
    assert!(!rotate(), "there is nothing yet");
    let (id, mut pipe) = rig.attach(1, 0, Stream::Joined);
    pipe.write_all(b"x\n").unwrap();
    drop(pipe);
    rig.drained(id);
    assert!(rotate());
    assert!(!rotate(), "an empty file stays");
    assert_eq!(rig.file("output.log.1"), b"x\n");
    assert_eq!(rig.file("output.log"), b"");
}

#[test]
fn a_file_without_line_ends_is_cut_all_the_same() {
    let mut rig = Rig::new(Logs { max_size: 50_000, keep: 1000, ..logs() });
    let (_, mut pipe) = rig.attach(1, 0, Stream::Joined);
    let data: Vec<u8> = (0..1_000_000u32).map(|i| b'a' + (i % 26) as u8).collect();
    pipe.write_all(&data).unwrap();
    drop(pipe);
    rig.shutdown();
    assert!(rig.file("output.log.1").len() <= 50_000 + 64 * 1024);
    assert!(rig.dir().join("output.log.5").exists());
    assert!(rig.whole() == data);
}
