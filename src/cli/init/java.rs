//! What a jar is: its main class, whether Spring Boot made it, and how it gets its port.

use std::io::Read;
use std::path::{Path, PathBuf};

use flate2::read::DeflateDecoder;

use super::page::homes;
use super::project::{Project, split};
use super::{Found, Program};
use crate::sys::spawn::resolve_program;

/// A jar with all that it needs.
const MAX_JAR: u64 = 512 << 20;
/// Of one file in it.
const MAX_ENTRY: u64 = 4 << 20;
/// Where builds leave jars, the likeliest first.
const PLACES: &[&str] = &["", "target", "build/libs", "lib", "dist"];
/// Jars that nobody runs.
const NOT_RUN: &[&str] = &["-sources.jar", "-javadoc.jar", "-plain.jar", "-tests.jar"];
/// Where Spring Boot looks for its settings, in a jar and in its sources.
const SETTINGS: &[&str] = &[
    "BOOT-INF/classes/application.properties",
    "BOOT-INF/classes/application.yml",
    "BOOT-INF/classes/application.yaml",
    "src/main/resources/application.properties",
    "src/main/resources/application.yml",
    "src/main/resources/application.yaml",
];
const SPRING_PORT: u16 = 8080;

/// The JVM whose `java` is in `PATH`, where no profile hides it.
pub fn home() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let program = resolve_program("java".as_ref(), &path, Path::new("/")).ok()?.canonicalize().ok()?;
    let home = program.parent().filter(|bin| bin.ends_with("bin"))?.parent()?;
    let hidden = homes().iter().any(|hidden| home.starts_with(hidden));
    (!hidden && home.join("lib").is_dir()).then(|| home.to_owned())
}

/// `None`: no jar that says what is run.
pub fn look(project: &Project) -> Option<Found> {
    let jars = PLACES.iter().flat_map(|place| project.files.iter().filter(move |file| split(file).0 == *place));
    let runs = |file: &&String| {
        let name = split(file).1;
        name.ends_with(".jar") && !name.starts_with("original-") && !NOT_RUN.iter().any(|end| name.ends_with(end))
    };
    jars.filter(runs).find_map(|file| of_jar(project, file))
}

fn of_jar(project: &Project, file: &str) -> Option<Found> {
    let jar = Jar { bytes: project.bytes(file, MAX_JAR)? };
    let entries = jar.entries()?;
    let text = |name: &str| {
        let entry = entries.iter().find(|entry| entry.name == name)?;
        Some(String::from_utf8_lossy(&jar.read(entry)?).into_owned())
    };
    let manifest = text("META-INF/MANIFEST.MF")?;
    let main = attribute(&manifest, "Main-Class")?;
    let start = attribute(&manifest, "Start-Class");
    let spring = main.starts_with("org.springframework.boot.loader");
    let inherits =
        !spring && entries.iter().filter(|e| e.name.ends_with(".class")).any(|e| jar.has(e, b"inheritedChannel"));
    let said = SETTINGS.iter().find_map(|name| {
        let (settings, place) = match text(name) {
            Some(settings) => (settings, format!("{file}, {name}")),
            None => (project.read(name)?, (*name).to_owned()),
        };
        Some((port_of(&settings)?, place))
    });
    let mut facts = vec![match &start {
        Some(start) => format!("{file}: Spring Boot, which runs {start}"),
        None => format!("{file}: a jar that runs {main}"),
    }];
    let mut port = None;
    if spring {
        port = Some(said.as_ref().map_or(SPRING_PORT, |(port, _)| *port));
        facts.push(match &said {
            Some((port, place)) => format!("{place}: server.port is {port}"),
            None => format!("server.port is not set, and {SPRING_PORT} by default"),
        });
    }
    if inherits {
        facts.push(format!("{file}: it uses System.inheritedChannel, so that it can have its socket from svd"));
    }
    let actuator = entries.iter().any(|entry| entry.name.contains("spring-boot-actuator-"));
    let mut found =
        Found::new(if spring { "Spring Boot" } else { "jar" }, Program::Jar { jar: file.to_owned(), inherits, port });
    if actuator {
        let place = format!("{file}: spring-boot-actuator");
        found.probe.path = Some(("/actuator/health".to_owned(), place));
    }
    found.facts = facts;
    Some(found)
}

/// `server.port=9000`, or `port: 9000` below `server:`.
fn port_of(settings: &str) -> Option<u16> {
    let mut below_server = false;
    for line in settings.lines() {
        let flat = line.trim();
        if let Some(value) = flat.strip_prefix("server.port") {
            return number(value);
        }
        if below_server && let Some(value) = flat.strip_prefix("port:") {
            return number(value);
        }
        if !line.starts_with([' ', '\t', '#']) && !flat.is_empty() {
            below_server = flat == "server:";
        }
    }
    None
}

/// Also of `${PORT:9000}`, which has a default.
fn number(value: &str) -> Option<u16> {
    let value = value.trim_start_matches([' ', '=', ':']).trim();
    let value = match value.strip_prefix("${") {
        Some(variable) => variable.strip_suffix('}')?.split_once(':')?.1,
        None => value,
    };
    value.parse().ok().filter(|port| *port != 0)
}

/// A continued line begins with a space.
fn attribute(manifest: &str, name: &str) -> Option<String> {
    let whole = manifest.replace("\r\n", "\n").replace("\n ", "");
    let value = whole.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(value.trim().to_owned()).filter(|value| !value.is_empty())
}

/// A zip archive, read by its central directory. Anything that does not fit is none.
struct Jar {
    bytes: Vec<u8>,
}

struct Entry {
    name: String,
    method: u16,
    compressed: usize,
    header: usize,
}

impl Jar {
    fn number(&self, at: usize, bytes: usize) -> Option<usize> {
        let found = self.bytes.get(at..at.checked_add(bytes)?)?;
        Some(found.iter().rev().fold(0, |all, byte| all << 8 | usize::from(*byte)))
    }

    fn entries(&self) -> Option<Vec<Entry>> {
        // The record of the end stands before a comment of 64 KiB at most.
        let from = self.bytes.len().saturating_sub(22 + 65_535);
        let end = from + self.bytes.get(from..)?.windows(4).rposition(|four| four == b"PK\x05\x06")?;
        let (count, mut at) = (self.number(end + 10, 2)?, self.number(end + 16, 4)?);
        let mut entries = Vec::new();
        for _ in 0..count {
            if self.bytes.get(at..at + 4)? != b"PK\x01\x02" {
                return None;
            }
            let lengths = [self.number(at + 28, 2)?, self.number(at + 30, 2)?, self.number(at + 32, 2)?];
            let name = self.bytes.get(at + 46..at + 46 + lengths[0])?;
            entries.push(Entry {
                name: String::from_utf8_lossy(name).into_owned(),
                method: u16::try_from(self.number(at + 10, 2)?).ok()?,
                compressed: self.number(at + 20, 4)?,
                header: self.number(at + 42, 4)?,
            });
            at += 46 + lengths.iter().sum::<usize>();
        }
        Some(entries)
    }

    fn read(&self, entry: &Entry) -> Option<Vec<u8>> {
        let from = entry.header + 30 + self.number(entry.header + 26, 2)? + self.number(entry.header + 28, 2)?;
        let content = self.bytes.get(from..from.checked_add(entry.compressed)?)?;
        match entry.method {
            0 => Some(content.to_vec()),
            8 => {
                let mut out = Vec::new();
                DeflateDecoder::new(content).take(MAX_ENTRY).read_to_end(&mut out).ok()?;
                Some(out)
            }
            _ => None,
        }
    }

    fn has(&self, entry: &Entry, word: &[u8]) -> bool {
        self.read(entry).is_some_and(|bytes| bytes.windows(word.len()).any(|part| part == word))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_of_spring() {
        assert_eq!(port_of("a=1\nserver.port = 9000\n"), Some(9000));
        assert_eq!(port_of("server:\n  port: ${PORT:9001}\n"), Some(9001));
        assert_eq!(port_of("management:\n  port: 1\nserver:\n  ssl: x\n"), None);
        assert_eq!(port_of("server.port=0"), None);
    }

    #[test]
    fn long_lines_of_a_manifest_are_continued() {
        let text = "Manifest-Version: 1.0\r\nMain-Class: org.exam\r\n ple.Main\r\n\r\n";
        assert_eq!(attribute(text, "Main-Class").as_deref(), Some("org.example.Main"));
        assert_eq!(attribute(text, "Start-Class"), None);
    }

    #[test]
    fn what_is_no_archive_has_no_entries() {
        for bytes in
            [&b""[..], b"PK\x05\x06", &[0; 70_000], b"PK\x05\x06\0\0\0\0\xff\xff\xff\xff\0\0\0\0\xff\xff\xff\xff\0\0"]
        {
            assert!(Jar { bytes: bytes.to_vec() }.entries().is_none_or(|e| e.is_empty()), "{bytes:?}");
        }
    }
}
