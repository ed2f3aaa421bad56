//! A disk without room: needs a small tmpfs, and so root.

use super::*;
use std::path::Path;
use std::process::Command;

struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    fn mount(size: &str) -> Option<Tmpfs> {
        let dir = tempfile::tempdir().unwrap();
        let status =
            Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={size}"), "none"]).arg(dir.path()).status();
        if status.is_ok_and(|s| s.success()) {
            return Some(Tmpfs(dir));
        }
        eprintln!("skipped: a tmpfs cannot be mounted (needs root and CAP_SYS_ADMIN)");
        None
    }

    fn remount(&self, options: &str) {
        let status = Command::new("mount").args(["-o", &format!("remount,{options}")]).arg(self.0.path()).status();
        assert!(status.unwrap().success());
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

fn fill(path: &Path) {
    let mut file = File::create(path).unwrap();
    while file.write_all(&[0u8; 4096]).is_ok() {}
    while file.write_all(b"x").is_ok() {}
}

fn recovered(rig: &Rig, of: Stream) -> Lost {
    rig.event(|e| match e {
        LogEvent::Recovered { stream, lost, .. } if stream == of => Some(lost),
        LogEvent::Recovered { .. } => panic!("{e:?}, not of {of:?}"),
        _ => None,
    })
}

#[test]
fn a_full_disk_costs_counted_lines_and_no_service() {
    let Some(disk) = Tmpfs::mount("1m") else { return };
    let mut rig = Rig::at(disk.0.path().to_path_buf(), logs());
    let (_, mut pipe) = rig.attach(1, 0, Stream::Joined);
    pipe.write_all(b"line 0\n").unwrap();
    assert!(until(|| rig.file("output.log") == b"line 0\n"));
    let ballast = disk.0.path().join("ballast");
    fill(&ballast);
    // More than the rest of the last page takes: written in part, and then lines that are wholly lost.
    let mut sent = b"line 0\n".to_vec();
    for i in 1..5000u32 {
        let line = format!("line {i}\n");
        pipe.write_all(line.as_bytes()).unwrap();
        sent.extend_from_slice(line.as_bytes());
    }
    let text = rig.event(|e| match e {
        LogEvent::Failing { service, stream: Stream::Joined, why } => {
            assert_eq!(&*service, NAME);
            Some(why)
        }
        _ => None,
    });
    assert!(text.contains("No space left on device"), "{text}");
    assert!(until(|| {
        let status = rig.sync();
        status.trouble.is_some() && status.lost.bytes as usize + rig.file("output.log").len() == sent.len()
    }));
    std::fs::remove_file(&ballast).unwrap();
    // The service says nothing more until then.
    let lost = recovered(&rig, Stream::Joined);
    assert_eq!(rig.sync().trouble, None);
    pipe.write_all(b"and on\n").unwrap();
    drop(pipe);
    rig.shutdown();
    let whole = rig.file("output.log");
    let text = String::from_utf8(whole).unwrap();
    let (kept, rest) = text.split_once("airdock: ").unwrap();
    let kept = kept.strip_suffix('\n').filter(|k| !k.is_empty() && sent.starts_with(k.as_bytes()));
    let kept = kept.unwrap_or_else(|| panic!("{text}"));
    // A torn line got a newline of ours.
    let kept = if sent.starts_with(format!("{kept}\n").as_bytes()) && lost.bytes as usize + kept.len() < sent.len() {
        kept.len() + 1
    } else {
        kept.len()
    };
    assert_eq!(kept + lost.bytes as usize, sent.len());
    assert!(rest.ends_with("of output were lost: No space left on device\nand on\n"), "{rest}");
}

#[test]
fn a_read_only_disk_is_reported_and_taken_up_again() {
    let Some(disk) = Tmpfs::mount("1m") else { return };
    disk.remount("ro");
    let mut rig = Rig::at(disk.0.path().to_path_buf(), logs());
    let (_, mut pipe) = rig.attach(1, 0, Stream::Joined);
    pipe.write_all(b"lost\nhalf").unwrap();
    let text = rig.event(|e| match e {
        LogEvent::Failing { why, .. } => Some(why),
        _ => None,
    });
    assert!(text.contains("Read-only file system") && text.contains("output.log"), "{text}");
    disk.remount("rw");
    assert_eq!(recovered(&rig, Stream::Joined), Lost { bytes: 9, lines: 1 });
    // A line without its beginning is not kept: one more loss, which is told and counted as well.
    pipe.write_all(b" of a line\nwhole\n").unwrap();
    assert_eq!(recovered(&rig, Stream::Joined), Lost { bytes: 11, lines: 1 });
    drop(pipe);
    rig.shutdown();
    assert_eq!(
        String::from_utf8(rig.file("output.log")).unwrap(),
        "airdock: 9 bytes (1 lines) of output were lost: Read-only file system\n\
         airdock: 11 bytes (1 lines) of output were lost: Read-only file system\nwhole\n"
    );
}

/// What cannot be written: a directory has the file's name.
fn block(rig: &Rig, stream: Stream) -> PathBuf {
    let path = rig.dir().join(stream.file_name());
    std::fs::create_dir_all(&path).unwrap();
    path
}

#[test]
fn each_file_has_its_own_trouble_and_ends_it_without_output() {
    let mut rig = Rig::new(Logs { stderr: Stderr::Apart, ..logs() });
    let blocked = [Stream::Stdout, Stream::Stderr].map(|stream| block(&rig, stream));
    let (_, mut stdout) = rig.attach(1, 0, Stream::Stdout);
    let (_, mut stderr) = rig.attach(1, 0, Stream::Stderr);
    stdout.write_all(b"one\n").unwrap();
    stderr.write_all(b"two!\n").unwrap();
    let mut failing = vec![];
    while failing.len() < 2 {
        failing.push(rig.event(|e| match e {
            LogEvent::Failing { stream, .. } => Some(stream),
            _ => None,
        }));
    }
    failing.sort();
    assert_eq!(failing, [Stream::Stdout, Stream::Stderr]);
    // Who printed has gone meanwhile: the line about the loss comes all the same.
    drop((stdout, stderr));
    std::fs::remove_dir(&blocked[0]).unwrap();
    assert_eq!(recovered(&rig, Stream::Stdout), Lost { bytes: 4, lines: 1 });
    assert!(rig.sync().trouble.is_some(), "stderr still fails");
    std::fs::remove_dir(&blocked[1]).unwrap();
    assert_eq!(recovered(&rig, Stream::Stderr), Lost { bytes: 5, lines: 1 });
    assert_eq!(rig.sync().trouble, None);
    rig.shutdown();
    assert!(rig.file("stdout.log").starts_with(b"airdock: 4 bytes (1 lines) of output were lost: "));
    assert!(rig.file("stderr.log").starts_with(b"airdock: 5 bytes (1 lines) of output were lost: "));
}

#[test]
fn trouble_that_comes_back_in_the_midst_of_a_line_is_told_again() {
    let rig = Rig::new(logs());
    let blocked = block(&rig, Stream::Joined);
    let (_, mut pipe) = rig.attach(1, 0, Stream::Joined);
    let failing = || rig.event(|e| matches!(e, LogEvent::Failing { .. }).then_some(()));
    pipe.write_all(b"half").unwrap();
    failing();
    std::fs::remove_dir(&blocked).unwrap();
    assert_eq!(recovered(&rig, Stream::Joined), Lost { bytes: 4, lines: 0 });
    std::fs::rename(&blocked, rig.dir().join("aside")).unwrap();
    block(&rig, Stream::Joined);
    rig.handle.reopen().unwrap();
    pipe.write_all(b" line\nmore\n").unwrap();
    failing();
    std::fs::remove_dir(&blocked).unwrap();
    assert_eq!(recovered(&rig, Stream::Joined), Lost { bytes: 11, lines: 2 });
}

#[test]
fn who_is_forgotten_has_no_trouble_any_more() {
    let rig = Rig::new(logs());
    block(&rig, Stream::Joined);
    let (_, mut pipe) = rig.attach(1, 0, Stream::Joined);
    pipe.write_all(b"one\n").unwrap();
    rig.event(|e| matches!(e, LogEvent::Failing { .. }).then_some(()));
    rig.handle.remove(NAME.into()).unwrap();
    let lost = rig.event(|e| match e {
        LogEvent::GivenUp { stream: Stream::Joined, lost, .. } => Some(lost),
        _ => None,
    });
    assert_eq!(lost, Lost { bytes: 4, lines: 1 });
}

#[test]
fn a_rotation_that_fails_leaves_the_file_growing() {
    let Some(disk) = Tmpfs::mount("1m,nr_inodes=5") else { return };
    // The root, the folder, the log, its index; the next log takes the last one and its index has none.
    let mut rig = Rig::at(disk.0.path().to_path_buf(), Logs { max_size: 100, keep: 5, ..logs() });
    let (_, mut pipe) = rig.attach(1, 0, Stream::Joined);
    let mut sent = Vec::new();
    for i in 0..100u32 {
        let line = format!("line {i}\n");
        pipe.write_all(line.as_bytes()).unwrap();
        sent.extend_from_slice(line.as_bytes());
        rig.sync();
    }
    drop(pipe);
    rig.shutdown();
    assert_eq!(String::from_utf8(rig.whole()).unwrap(), String::from_utf8(sent).unwrap());
    let told =
        rig.events.try_iter().any(|e| matches!(&e, LogEvent::Trouble { text, .. } if text.contains("cannot rotate")));
    assert!(told);
}
