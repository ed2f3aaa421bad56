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
        LogEvent::Failing { service, why } => {
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
    // Written again with the first output after the pause.
    std::thread::sleep(Duration::from_millis(1100));
    pipe.write_all(b"and on\n").unwrap();
    let lost = rig.event(|e| match e {
        LogEvent::Recovered { lost, .. } => Some(lost),
        _ => None,
    });
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
    std::thread::sleep(Duration::from_millis(1100));
    pipe.write_all(b" of a line\nwhole\n").unwrap();
    drop(pipe);
    rig.shutdown();
    assert_eq!(
        String::from_utf8(rig.file("output.log")).unwrap(),
        "airdock: 20 bytes (2 lines) of output were lost: Read-only file system\nwhole\n"
    );
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
