//! Of the configuration as a whole: the examples, what errors look like, the reference's text, any input, a directory.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use super::spec::*;
use super::testing::{golden, has_every_key, repository};
use super::*;
use crate::fuzz::{files, load_files};

#[test]
fn the_examples_are_a_configuration() {
    let config = load(&repository()).unwrap_or_else(|e| panic!("{e}"));
    let names: Vec<_> = config.services.keys().map(|name| &**name).collect();
    assert_eq!(names, ["airship", "airship-celery", "search"]);
    assert_eq!(config.daemon.access.len(), 2);

    let airship = &config.services["airship"];
    assert!(matches!(&airship.kind, Kind::Gunicorn { workers: Workers::Count(4), args, .. } if args.len() == 4));
    assert!(airship.reload.overlap);
    assert_eq!(airship.stop.grace, Some(Duration::from_secs(35)));
    assert_eq!(airship.logs.max_size, 50_000_000);

    let celery = &config.services["airship-celery"];
    assert_eq!((celery.instances, celery.reload.overlap), (2, false));
    let search = &config.services["search"];
    assert!(matches!(&search.ready.by[..], [ReadyBy::Http(probe)] if probe.port == Some(Template::new("{port}"))));
}

/// Where `airship.toml` says that it shows a default, a file without these sections means the same.
#[test]
fn the_example_shows_the_defaults() {
    let shown = load(&repository()).unwrap_or_else(|e| panic!("{e}")).services["airship"].clone();
    let bare =
        testing::service("kind = 'gunicorn'\napp = 'a:b'\nroot = '/srv/a'\n[sockets.http]\nlisten = '0.0.0.0:8000'");
    assert_eq!((&shown.restart, &shown.logs, &shown.reload), (&bare.restart, &bare.logs, &bare.reload));
    assert_eq!((shown.ready.timeout, shown.stop.signal), (bare.ready.timeout, bare.stop.signal));
}

#[test]
fn errors_read_as_agreed() {
    golden("src/config/golden", 7, |script| {
        let errors = load_files(&files(script).expect("a script begins with ==> NAME")).expect_err("it has errors");
        format!("{errors}\n{}\n", serde_json::to_string(&errors.0[0]).unwrap())
    });
}

#[test]
fn the_reference_has_every_key_and_no_other() {
    for schema in suggest::SERVICE_FILE.iter().chain(suggest::DAEMON_FILE) {
        has_every_key("docs/configuration.md", schema);
    }
}

#[test]
fn the_examples_of_all_documents_parse() {
    let pages = fs::read_dir(repository().join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let pages = pages.filter(|p| p.extension().is_some_and(|e| e == "md")).chain([repository().join("README.md")]);
    let text: String = pages.map(|page| fs::read_to_string(page).unwrap()).collect();
    let blocks = text.split("```toml\n").skip(1).filter_map(|block| block.split("```").next());
    // Those of the fleet file have a test beside its decoder.
    let blocks: Vec<_> = blocks.filter(|block| !block.starts_with("# fleet.toml")).collect();
    assert!(blocks.len() > 14);
    for block in blocks {
        let fragment = format!("kind = 'command'\ncommand = ['a']\n{block}");
        let result = match block {
            _ if block.starts_with("# svd.toml") || block.starts_with("[[access]]") => load_texts(Some(block), &[]),
            _ if block.contains("kind =") => load_texts(None, &[("example", block)]),
            _ => load_texts(None, &[("example", &fragment)]),
        };
        result.unwrap_or_else(|errors| panic!("{errors}\nin\n{block}"));
    }
}

#[test]
fn rules_grant_the_verbs_that_the_interface_has() {
    use crate::api::request::Verb;
    let mut known: Vec<_> = Verb::ALL.into_iter().filter(|v| *v != Verb::Version).map(Verb::as_str).collect();
    known.push("*");
    known.sort_unstable();
    let mut ours = daemon::VERBS.to_vec();
    ours.sort_unstable();
    assert_eq!(ours, known);
    for verb in daemon::OF_THE_HOST {
        assert!(Verb::from_name(verb).is_some_and(Verb::is_of_the_host), "{verb}");
    }
}

/// Files to begin from, and words that mean something to the decoder.
const SEEDS: &[&str] = &[
    include_str!("../../conf.d/airship.toml"),
    include_str!("../../conf.d/airship-celery.toml"),
    include_str!("../../conf.d/search.toml"),
    include_str!("../../svd.toml"),
];
const WORDS: &[&str] = &[
    "[",
    "]",
    "[[",
    "]]",
    "{",
    "}",
    "=",
    "\"",
    "'",
    "\"\"\"",
    ",",
    ".",
    "\n",
    "\r\n",
    "#",
    "\0",
    "\u{feff}",
    "é",
    "0",
    "-1",
    "1e9",
    "99999999999999999999",
    "true",
    "1979-05-27",
    "\"0s\"",
    "\"{fd.x}\"",
    "\"{{release}\"",
    "\"unix:/\"",
    "[sockets.ready]",
    "[sockets]\n",
    "kind = \"jvm\"\n",
    "limit = 3\n",
    "[stop.signal]\n",
    "headers",
    "\\u0000",
    "\\",
];

fn survives(text: &str) {
    crate::fuzz::config(text.as_bytes());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_text_is_survived(text in any::<String>()) {
        survives(&text);
    }

    #[test]
    fn any_mixture_of_words_is_survived(words in prop::collection::vec(prop::sample::select(WORDS), 0..30)) {
        survives(&words.concat());
    }

    #[test]
    fn damaged_files_are_survived(
        seed in prop::sample::select(SEEDS),
        damage in prop::collection::vec((any::<prop::sample::Index>(), 0usize..20, prop::sample::select(WORDS)), 1..8),
    ) {
        let mut text: Vec<char> = seed.chars().collect();
        for (at, length, word) in damage {
            let at = at.index(text.len() + 1);
            let end = (at + length).min(text.len());
            text.splice(at..end, word.chars());
        }
        survives(&text.into_iter().collect::<String>());
    }
}

#[test]
fn deep_nesting_is_survived() {
    for (open, close) in [("[", "]"), ("{a=", "}"), ("a.", "b")] {
        for depth in [100, 100_000] {
            survives(&format!("x = {}{}", open.repeat(depth), close.repeat(depth)));
            survives(&open.repeat(depth));
        }
    }
}

#[test]
fn many_errors_are_counted_beyond_a_limit() {
    let text: String = (0..1_000).map(|i| format!("x{i} = 1\n")).collect();
    let errors = load_texts(None, &[("a", &text)]).unwrap_err();
    assert_eq!(errors.0.len(), 101);
    // Without a position it stands before the others of its file.
    assert_eq!(errors.0[0].message, "901 more errors in this file are not shown");
}

#[test]
fn a_directory_is_read_without_backups() {
    let dir = tempfile::tempdir().unwrap();
    let conf = dir.path().join("conf.d");
    assert!(load(dir.path()).unwrap().services.is_empty(), "conf.d may be absent");
    fs::create_dir(&conf).unwrap();
    let good = "kind = 'command'\ncommand = ['a']\n";
    for name in ["b.toml", "a.toml", "a.toml~", ".#a.toml", ".hidden.toml", "a.toml.bak", "README"] {
        fs::write(conf.join(name), if name.len() == 6 { good } else { "not a configuration" }).unwrap();
    }
    let config = load(dir.path()).unwrap();
    assert_eq!(config.services.keys().map(|k| &**k).collect::<Vec<_>>(), ["a", "b"]);
}

#[test]
fn unreadable_files_are_errors_like_others() {
    let dir = tempfile::tempdir().unwrap();
    let conf = dir.path().join("conf.d");
    fs::create_dir_all(conf.join("directory.toml")).unwrap();
    fs::write(conf.join("bytes.toml"), b"kind = 'command'\ncommand = ['\xff']\n").unwrap();
    fs::write(conf.join("large.toml"), "#".repeat(2 << 20)).unwrap();
    fs::write(conf.join("wrong.toml"), "kind = 'command'\ncommand = ['a']\nx = 1\nrequires = ['large']").unwrap();
    nix::unistd::mkfifo(&conf.join("pipe.toml"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    std::os::unix::fs::symlink("/nowhere/x", conf.join("dangling.toml")).unwrap();
    fs::write(dir.path().join("svd.toml"), "y = 1").unwrap();
    let errors = load(dir.path()).unwrap_err();
    let prefix = format!("{}/", dir.path().display());
    let lines: Vec<_> =
        errors.0.iter().map(|e| format!("{}: {}", e.file.strip_prefix(&prefix).unwrap(), e.message)).collect();
    assert_eq!(
        lines,
        [
            "svd.toml: unknown key \"y\" in svd.toml",
            "conf.d/bytes.toml: this is not UTF-8",
            "conf.d/dangling.toml: cannot be read: No such file or directory (os error 2)",
            "conf.d/directory.toml: cannot be read: not a regular file",
            "conf.d/large.toml: has more than 1 MiB, and is no configuration",
            "conf.d/pipe.toml: cannot be read: not a regular file",
            "conf.d/wrong.toml: unknown key \"x\"",
        ]
    );
    let dangling = errors.0.iter().find(|e| e.file.contains("dangling")).expect("an error");
    assert_eq!(dangling.help.as_deref(), Some("it is a link that leads nowhere: mend or remove it"));
    assert!(load(&dir.path().join("nothing")).unwrap_err().to_string().contains("name the directory"));
}

#[test]
fn names_of_files_cannot_drive_a_terminal() {
    let errors = load_texts(None, &[("a\u{1b}[2J\nb", "x = 1")]).unwrap_err();
    let text = errors.to_string();
    assert!(text.starts_with("conf.d/a\u{fffd}[2J\u{fffd}b.toml: "), "{text}");
    assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
}

#[test]
fn names_of_services() {
    for good in ["a", "A1", "9", "a.b-c_d", &"x".repeat(64)] {
        assert_eq!(check_name(good), Ok(()), "{good}");
    }
    for bad in ["", ".a", "-a", "_a", "a b", "a/b", "ä", "a*", &"x".repeat(65)] {
        assert!(check_name(bad).is_err(), "{bad}");
    }
}

#[test]
fn services_share_what_they_have_equally() {
    let text = "kind = 'command'\ncommand = ['a']";
    let other = format!("{text}\n[restart]\ndelay = '1s'");
    let config = super::load_texts(None, &[("a", text), ("b", text), ("c", &other)]).unwrap_or_else(|e| panic!("{e}"));
    let [a, b, c] = ["a", "b", "c"].map(|name| &config.services[name]);
    assert!(Arc::ptr_eq(&a.ready, &b.ready) && Arc::ptr_eq(&a.restart, &b.restart) && Arc::ptr_eq(&b.ready, &c.ready));
    assert_eq!(c.restart.delay, std::time::Duration::from_secs(1));
}

#[test]
fn a_file_may_be_tried_before_it_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let good = "kind = 'command'\ncommand = ['a']\n";
    assert_eq!(load_with(dir.path(), "b", good).unwrap().services.len(), 1);
    fs::create_dir(dir.path().join("conf.d")).unwrap();
    for name in ["a", "c"] {
        fs::write(dir.path().join(format!("conf.d/{name}.toml")), good).unwrap();
    }
    let names = |config: Config| config.services.keys().map(|k| k.to_string()).collect::<Vec<_>>().join(" ");
    assert_eq!(names(load_with(dir.path(), "b", good).unwrap()), "a b c");
    assert_eq!(names(load_with(dir.path(), "c", good).unwrap()), "a c");
    let errors = load_with(dir.path(), "c", "kind = 'command'\nx = 1").unwrap_err();
    assert!(errors.0.iter().all(|e| e.file.ends_with("conf.d/c.toml")), "{errors}");
    assert_eq!(load(dir.path()).unwrap().services.len(), 2);
}
