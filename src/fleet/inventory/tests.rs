//! Of the fleet file as a whole: the example, what errors look like, the reference's text, any input, a directory.

use std::fs;
use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;

use super::decode::TABLES;
use super::list::parse;
use super::*;
use crate::config::Diagnostics;
use crate::config::testing::{golden, has_every_key, repository};
use crate::fleet::run::RunError;
use crate::fleet::verdict;
use crate::fleet::waves::Wave;

fn decode_only(text: &str) -> Result<Fleet, Diagnostics> {
    decode("fleet.toml", text, &mut |_| panic!("no command is to be run"))
}

fn fleet(text: &str) -> Fleet {
    decode_only(text).unwrap_or_else(|e| panic!("{e}"))
}

fn errors(text: &str) -> Vec<String> {
    decode_only(text).expect_err("errors").0.into_iter().map(|d| d.message).collect()
}

fn names(fleet: &Fleet, wanted: &[&str]) -> Vec<String> {
    fleet.select(wanted).unwrap_or_else(|e| panic!("{e}")).iter().map(|host| host.name.to_string()).collect()
}

const EXAMPLE: &str = r#"
hosts = ["web-0", "web-1", "web-2", "web-3"]        # names as ssh knows them; or inventory = ["ansible-inventory", "--list"]
groups = { canary = ["web-0"] }
[host.web-3]
ssh = "deploy@10.1.0.13"                            # when it differs from the name

[app.airship]                                       # what is deployed together: one release, lock, migration, verdict, rollback
repository = "git@git.example.org:airship.git"      # or artifact = "build/app.jar"
branch = "production"
services = ["airship", "airship-celery"]            # default: the app's own name
hosts = ["web-*"]
paths = ["airship/**", "requirements.txt"]          # what of the repository concerns this app; default: all
waves = [1, "50%", "100%"]                          # cumulative: of 10 hosts 1, then 5, then all; or a group first: ["canary", "50%", "100%"]
bake = "5m"
parallel = 20
max_unreachable = 1
lease = "10m"
verdict = { false_alarm = 0.01, tolerate = 1.5, min_difference = "0.2%", min_requests = 300, too_few = "pause" }   # pause | pass | fail
"#;

#[test]
fn the_example_works_as_it_stands() {
    let fleet = fleet(EXAMPLE);
    assert_eq!(fleet.hosts.iter().map(|h| &*h.name).collect::<Vec<_>>(), ["web-0", "web-1", "web-2", "web-3"]);
    assert_eq!((fleet.hosts[0].destination(), fleet.hosts[3].destination()), ("web-0", "deploy@10.1.0.13"));
    assert_eq!(fleet.groups["canary"], ["web-0".into()]);
    let app = &fleet.apps["airship"];
    assert_eq!(
        app.source,
        Source::Git {
            repository: "git@git.example.org:airship.git".into(),
            branch: "production".into(),
            trunk: None,
            only_branch: false,
            tag: true
        }
    );
    assert_eq!(app.services, ["airship".into(), "airship-celery".into()]);
    assert_eq!((app.hosts.len(), app.paths.len()), (4, 2));
    assert_eq!(app.waves, [Wave::Hosts(1), Wave::Percent(50), Wave::Percent(100)]);
    assert_eq!((app.bake, app.lease), (Duration::from_secs(300), Duration::from_secs(600)));
    assert_eq!((app.parallel, app.max_unreachable), (20, 1));
    assert_eq!(app.verdict, verdict::Settings::default());
}

/// What the example spells out is what an app gets without it, but for the hosts that may be away.
#[test]
fn defaults() {
    let shown = fleet(EXAMPLE);
    let bare = fleet("hosts = ['web-0', 'web-1', 'web-2', 'web-3']\n[app.airship]\nrepository = 'x'");
    let (shown, bare) = (&shown.apps["airship"], &bare.apps["airship"]);
    assert_eq!(
        (&bare.waves, bare.bake, bare.lease, bare.parallel),
        (&shown.waves, shown.bake, shown.lease, shown.parallel)
    );
    let text = "hosts = ['a', 'b']\n[app.x]\nartifact = 'x.jar'\nwaves = ['1', '50%', '100%']";
    assert_eq!(fleet(text).apps["x"].waves, bare.waves);
    assert_eq!((&bare.verdict, bare.max_unreachable), (&shown.verdict, 0));
    assert_eq!((&*bare.services, bare.hosts.len()), (&["airship".into()][..], 4));
}

#[test]
fn a_prometheus_has_an_address_and_two_queries() {
    let app = |verdict: &str| format!("hosts = ['a']\n[app.x]\nartifact = 'x.jar'\nverdict.prometheus = {verdict}");
    let whole = fleet(&app("{ url = 'https://p', requests = 'r', errors = 'e' }"));
    let from = whole.apps["x"].prometheus.as_ref().expect("one");
    assert_eq!(
        (&*from.url, &*from.requests, &*from.errors, from.every),
        ("https://p", "r", "e", Duration::from_secs(30))
    );
    let told = errors(&app("{ url = '-o/x', every = '1s', error = 'e' }")).join("\n");
    for part in [
        "\"-o/x\" is no address",
        "\"requests\" is missing",
        "\"errors\" is missing",
        "looked at so often",
        "\"error\"",
    ] {
        assert!(told.contains(part), "{part} in {told}");
    }
    assert_eq!(told.lines().count(), 5, "each once: {told}");
}

#[test]
fn errors_read_as_agreed() {
    golden("src/fleet/inventory/golden", 4, |script| decode_only(script).expect_err("it has errors").to_string());
}

#[test]
fn the_reference_has_every_key_and_no_other() {
    let document = fs::read_to_string(repository().join("docs/fleet.md")).unwrap();
    for schema in TABLES {
        has_every_key("docs/fleet.md", schema);
    }
    let blocks: Vec<_> = document.split("```toml\n").skip(1).filter_map(|block| block.split("```").next()).collect();
    assert!(blocks.len() >= 2);
    for block in blocks {
        assert!(block.starts_with("# fleet.toml"), "{block}");
        decode("fleet.toml", block, &mut |_| parse("web-0\nweb-1\n")).unwrap_or_else(|e| panic!("{e}\nin\n{block}"));
    }
}

#[test]
fn hosts_are_chosen_by_name_group_pattern_and_all() {
    let fleet =
        fleet("hosts = ['web-0', 'web-1', 'web-10', 'db']\n[groups]\ncanary = ['web-1', 'web-0']\nlate = ['*0']");
    assert_eq!(names(&fleet, &["web-1", "web-0"]), ["web-0", "web-1"]);
    assert_eq!(names(&fleet, &["canary", "web-1"]), ["web-0", "web-1"]);
    assert_eq!(names(&fleet, &["late"]), ["web-0", "web-10"]);
    assert_eq!(names(&fleet, &["web-*", "db"]), names(&fleet, &["all"]));
    let unknown = |name: &str| fleet.select(&["web-0", name]).unwrap_err();
    assert_eq!(unknown("web-2").to_string(), "The fleet has no host or group \"web-2\".");
    assert_eq!(unknown("canray").near.as_deref(), Some("canary"));
    assert_eq!(unknown("x*").to_string(), "\"x*\" fits no host of the fleet.");
    assert!(names(&fleet, &[]).is_empty());
}

#[test]
fn nothing_that_a_program_could_take_for_an_option() {
    for good in ["web-0", "10.1.0.13", "deploy@10.1.0.13", "fe80::1%eth0", "büro"] {
        assert_eq!(check_host_name(good), Ok(()), "{good}");
    }
    for bad in
        ["", "-x", "-oProxyCommand=x", "a@-x", "@a", "a@", "a b", "a\nb", "a;b", "$(a)", "a/b", "a,b", "a*", "all"]
    {
        assert!(check_host_name(bad).is_err(), "{bad}");
        assert!(!errors(&format!("hosts = ['ok', {bad:?}]")).is_empty(), "{bad}");
    }
    let app = |line: &str| errors(&format!("hosts = ['a']\n[app.x]\n{line}"));
    for line in ["repository = '--upload-pack=x'", "repository = 'ext::sh'", "repository = 'x'\nbranch = '-x'"] {
        assert_eq!(app(line).len(), 1, "{line}");
    }
    for line in ["ssh = '-x'", "user = '-x'", "svctl = '-x'", "socket = 'x'", "port = 0"] {
        assert_eq!(errors(&format!("hosts = ['a']\n[host.a]\n{line}")).len(), 1, "{line}");
    }
}

const ANSIBLE: &str = r#"{
    "web": {"hosts": ["web-1", "web-0"], "vars": {"x": 1}},
    "_meta": {"hostvars": {
        "web-1": {"ansible_host": "10.0.0.1", "ansible_user": "deploy", "ansible_port": 2222},
        "web-0": {"ansible_host": "web-0", "ansible_port": "22"},
        "here": {"ansible_connection": "local"}}},
    "all": {"children": ["web", "both", "ungrouped"]},
    "both": {"children": ["web", "both", "nobody"], "hosts": ["db"]}
}"#;

#[test]
fn ansibles_inventory_is_understood() {
    let listing = parse(ANSIBLE).unwrap();
    let hosts: Vec<_> = listing.hosts.iter().map(|h| (&*h.name, h.address.as_deref(), h.port)).collect();
    assert_eq!(
        hosts,
        [("web-1", Some("10.0.0.1"), Some(2222)), ("web-0", None, Some(22)), ("db", None, None), ("here", None, None)]
    );
    assert_eq!(listing.hosts[0].user.as_deref(), Some("deploy"));
    assert!(listing.hosts[3].local && !listing.hosts[0].local);
    assert_eq!(listing.groups.keys().map(|g| &**g).collect::<Vec<_>>(), ["both", "web"]);
    assert_eq!(listing.groups["both"], ["db".into(), "web-1".into(), "web-0".into()]);

    let text = "inventory = ['list']\nhosts = ['extra', 'web-1']\n[groups]\nweb = ['web-0']\n[host.web-1]\nport = 23\n\
                [app.x]\nrepository = 'r'\nhosts = ['both']\nwaves = ['web', '100%']";
    let fleet = decode("fleet.toml", text, &mut |command| {
        assert_eq!(command, ["list".into()]);
        parse(ANSIBLE)
    })
    .unwrap();
    assert_eq!(names(&fleet, &["all"]), ["extra", "web-1", "web-0", "db", "here"]);
    assert_eq!((fleet.hosts[1].destination(), fleet.hosts[1].port), ("10.0.0.1", Some(23)));
    assert_eq!(names(&fleet, &["web"]), ["web-0"], "the file's own word counts");
    assert_eq!(fleet.apps["x"].hosts, ["web-1".into(), "web-0".into(), "db".into()]);
}

#[test]
fn plain_lists_are_understood() {
    let listing = parse("# all\nweb-0  10.0.0.1\n\nweb-1 # new\nweb-0\n").unwrap();
    assert_eq!(listing.hosts.iter().map(|h| &*h.name).collect::<Vec<_>>(), ["web-0", "web-1"]);
    let why = |text: &str| parse(text).unwrap_err().to_string();
    assert_eq!(why("\n# none\n"), "the command that lists hosts has listed none");
    assert!(why("-oProxyCommand=x").contains("is an option to ssh"));
    assert!(why("{\"web\": 3}").contains("is no inventory"), "{}", why("{\"web\": 3}"));
    assert!(
        why("{\"web\": {\"hosts\": [\"a\"]}, \"_meta\": {\"hostvars\": {\"a\": {\"ansible_host\": \"-x\"}}}}")
            .contains("-x")
    );
    assert!(why("{").contains("is no inventory"));
}

#[test]
fn a_command_that_fails_is_one_error_at_its_place() {
    let text = "inventory = ['list']\n[host.x]\nport = 1\n[app.x]\nrepository = 'r'\nwaves = ['c', '100%']";
    let errors = decode("fleet.toml", text, &mut |_| {
        Err(ListingError::Command(RunError::Start(std::io::Error::from_raw_os_error(2))))
    })
    .unwrap_err();
    let told: Vec<_> = errors.0.iter().map(|d| d.line()).collect();
    assert_eq!(told, ["fleet.toml:1:13: the command that lists hosts cannot be run: No such file or directory"]);
}

#[test]
fn the_file_is_found_upward() {
    let dir = tempfile::tempdir().unwrap();
    let below = dir.path().join("a/b");
    fs::create_dir_all(&below).unwrap();
    let missing = find(&below, None).unwrap_err().to_string();
    assert!(missing.starts_with("There is no fleet.toml in "), "{missing}");
    for (file, environment) in [("fleet.toml", None), ("a/fleet.staging.toml", Some("staging"))] {
        fs::write(dir.path().join(file), "").unwrap();
        assert_eq!(find(&below, environment), Ok(dir.path().join(file)));
    }
    assert!(matches!(find(&below, Some("../x")), Err(NotFound::Name { .. })));
}

#[test]
fn a_file_that_others_may_write_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let (file, list, ssh) = (dir.path().join("fleet.toml"), dir.path().join("list"), dir.path().join("ssh"));
    let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    fs::write(&list, "#!/bin/sh\npwd >ran\necho web-0\n").unwrap();
    fs::write(&ssh, "").unwrap();
    mode(&list, 0o755);
    fs::write(&file, "inventory = ['./list']\nssh_config = 'ssh'").unwrap();
    mode(&file, 0o666);
    let refused = load(&file).unwrap_err().to_string();
    assert!(
        refused.contains("may be written to by others (mode 0666)") && refused.contains("help: chmod go-w"),
        "{refused}"
    );
    assert!(!dir.path().join("ran").exists(), "its command was run");
    mode(&file, 0o644);
    let fleet = load(&file).unwrap();
    assert_eq!((names(&fleet, &["all"]), fleet.ssh_config), (vec!["web-0".to_owned()], Some(ssh.clone())));
    assert!(dir.path().join("ran").exists());
    mode(&ssh, 0o602);
    assert!(load(&file).unwrap_err().to_string().contains("ssh may be written to by others"));
    assert!(load(&dir.path().join("none.toml")).unwrap_err().to_string().contains("cannot be read"));
}

/// Words that mean something to the decoder.
const WORDS: &[&str] = &[
    "[",
    "]",
    "{",
    "}",
    "=",
    "\"",
    "'",
    ",",
    ".",
    "\n",
    "#",
    "\0",
    "é",
    "0",
    "1.5",
    "true",
    "\"50%\"",
    "\"all\"",
    "\"web-*\"",
    "hosts = [\"web-0\"]\n",
    "groups",
    "[host.web-0]\n",
    "[app.a]\n",
    "waves = ",
    "verdict = ",
    "inventory = [\"x\"]\n",
];

fn survives(text: &str) {
    let result = decode("fleet.toml", text, &mut |_| parse(ANSIBLE));
    match result {
        Ok(fleet) => {
            for host in &fleet.hosts {
                assert_eq!(check_host_name(&host.name), Ok(()));
                assert_eq!(check_host_name(host.destination()), Ok(()));
            }
            for app in fleet.apps.values() {
                assert!(!app.hosts.is_empty() && app.waves.last() == Some(&Wave::Percent(100)));
                assert!(app.hosts.iter().all(|name| fleet.host(name).is_some()));
            }
        }
        Err(errors) => {
            assert!(!errors.0.is_empty() && !errors.to_string().chars().any(|c| c.is_control() && c != '\n'));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_text_is_survived(text in any::<String>()) {
        survives(&text);
        let _ = parse(&text);
    }

    #[test]
    fn any_mixture_of_words_is_survived(words in prop::collection::vec(prop::sample::select(WORDS), 0..30)) {
        survives(&words.concat());
    }

    #[test]
    fn damaged_files_are_survived(
        damage in prop::collection::vec((any::<prop::sample::Index>(), 0usize..20, prop::sample::select(WORDS)), 1..8),
    ) {
        let mut text: Vec<char> = EXAMPLE.chars().collect();
        for (at, length, word) in damage {
            let at = at.index(text.len() + 1);
            let end = (at + length).min(text.len());
            text.splice(at..end, word.chars());
        }
        survives(&text.into_iter().collect::<String>());
    }
}

#[test]
fn hooks_are_commands_and_addresses() {
    let fleet = fleet(
        "hosts = [\"a\"]\n[app.web]\nrepository = \"r\"\n[app.web.hooks]\nstart = [\"./ask\", \"-v\"]\nevery = \"https://x.example/h\"\ntimeout = \"3s\"\n",
    );
    let hooks = &fleet.apps["web"].hooks;
    assert_eq!(hooks.asked(), Some(&Hook::Command(vec!["./ask".into(), "-v".into()])));
    let every = Hook::Webhook("https://x.example/h".into());
    assert_eq!(hooks.of(Occasion::Wave).collect::<Vec<_>>(), [&every]);
    assert_eq!(hooks.of(Occasion::Start).count(), 2);
    assert_eq!(hooks.timeout, Duration::from_secs(3));
    for (odd, told) in [
        ("start = \"ftp://x\"", "no address"),
        ("start = \"https://\"", "no address"),
        ("start = []", "must name a program"),
        ("wave = 3", "a hook is a command"),
        ("timeout = \"1h\"", "from 1s to 10m"),
        ("begin = [\"x\"]", "begin"),
    ] {
        let errors = errors(&format!("hosts = [\"a\"]\n[app.web]\nrepository = \"r\"\n[app.web.hooks]\n{odd}\n"));
        assert!(errors.len() == 1 && errors[0].contains(told), "{odd}: {errors:?}");
    }
}
