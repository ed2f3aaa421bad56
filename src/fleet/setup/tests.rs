use super::*;
use std::process::Command;

fn wanted() -> Wanted {
    Wanted {
        system: "Linux x86_64".to_owned(),
        program: "aa".to_owned(),
        version: "0.1.0".to_owned(),
        users: BTreeMap::from([("airship".to_owned(), Some("/srv/airship".to_owned()))]),
        directories: BTreeMap::from([
            ("/srv/airship".to_owned(), None),
            ("/srv/airship/shared/media".to_owned(), Some("airship".to_owned())),
        ]),
        files: BTreeMap::from([("conf.d/airship.toml".to_owned(), "kind = 'command'\n".to_owned())]),
        standard: Some(standard("deploy")),
        socket: "/run/airdock/svd.sock".to_owned(),
    }
}

fn shown(todo: &Todo) -> Vec<String> {
    todo.changes.iter().map(ToString::to_string).collect()
}

#[test]
fn an_empty_host_gets_everything_in_order_and_a_full_one_nothing() {
    let empty = Found::parse("Welcome!\nsystem\tLinux x86_64\ninit\tsysv\n");
    let all = todo(&wanted(), &empty).unwrap();
    assert_eq!(
        shown(&all),
        [
            "install /usr/local/sbin/svd, and /usr/local/bin/svctl as a link to it",
            "make the user airship",
            "make the directory /etc/airdock",
            "make the directory /etc/airdock/conf.d",
            "make the directory /srv/airship",
            "make the directory /srv/airship/shared/media, airship's",
            "write /etc/airdock/conf.d/airship.toml",
            "write /etc/airdock/svd.toml",
            "install svd's files for sysv",
            "start svd, now and at boot",
        ]
    );
    let sum = sha256(b"kind = 'command'\n");
    let full = format!(
        "system\tLinux x86_64\nsvd\taa\t/usr/local/sbin/svd\ninit\tsysv\nhas-init\nrunning\nuser\tairship\ndirectory\t/etc/airdock\n\
         directory\t/etc/airdock/conf.d\ndirectory\t/srv/airship\ndirectory\t/srv/airship/shared/media\n\
         rsync\nfile\t{sum}\tconf.d/airship.toml\nfile\tbb\tsvd.toml\n"
    );
    let none = todo(&wanted(), &Found::parse(&full)).unwrap();
    assert!(none.changes.is_empty() && none.notes.len() == 1, "{none:?}");
    let elsewhere = Found::parse("system\tLinux x86_64\ninit\tsysv\nconfiguration\t/opt/airdock\n");
    let shown_elsewhere = shown(&todo(&wanted(), &elsewhere).unwrap()).join("\n");
    assert!(shown_elsewhere.contains("write /opt/airdock/conf.d/airship.toml"), "{shown_elsewhere}");
    assert!(!shown_elsewhere.contains("/etc/airdock"), "{shown_elsewhere}");
    let other = full.replace(&sum, "cc").replace("svd\taa", "svd\tdd");
    let some = todo(&wanted(), &Found::parse(&other)).unwrap();
    assert_eq!(
        shown(&some),
        [
            "replace /etc/airdock/conf.d/airship.toml, and keep the old one as /etc/airdock/conf.d/airship.toml.before",
            "let svd apply the changed files (svctl update)",
        ]
    );
    assert!(some.notes.iter().any(|note| note.contains("another build")), "{some:?}");
    let foreign = Found::parse("system\tLinux aarch64\ninit\tsysv\n");
    assert!(todo(&wanted(), &foreign).unwrap_err().contains("Linux aarch64"));
}

#[test]
fn the_rule_for_whoever_deploys_is_one_that_svd_reads() {
    for name in ["deploy", "od\"d"] {
        let config = crate::config::load_texts(Some(&standard(name)), &[]).unwrap();
        assert_eq!(*config.daemon.access[0].users, [name.into()]);
    }
}

/// The scripts are `sh`'s, whatever names are in them.
#[test]
fn scripts_can_be_parsed() {
    let mut odd = wanted();
    odd.directories.insert("/srv/it's \"odd\" $HOME".to_owned(), Some("o'dd".to_owned()));
    let all = todo(&odd, &Found::parse("system\tLinux x86_64\ninit\tsystemd\n")).unwrap();
    let remove = remove("web", "/run/s'x", true, Some("/srv/web"));
    let replace = replace("aa", "0.1.0", b"program").script;
    for script in [replace, program_there(), probe(&odd), apply(&all.changes, &odd, b"program").script, remove] {
        for text in [script.clone(), as_root(&script)] {
            let parsed = Command::new("sh").args(["-n", "-c", &text]).output().unwrap();
            assert!(parsed.status.success(), "{}\n{text}", String::from_utf8_lossy(&parsed.stderr));
        }
    }
}
