//! Apps of all kinds, deployed to the same three hosts at the same time, each under a load of its own that counts every answer.

use super::bed::Bed;
use super::site::{GUNICORN, Site, gunicorn, shell};
use super::support::app::Release;
use super::support::env::Env;
use super::support::load::Report;
use super::support::{PATIENCE, http_get, wait_until};
use serde_json::json;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Waves of one host, one host, and the last, which the others are compared with until then.
const SHORT: &str = "waves = [1, \"100%\"]\nbake = \"5s\"\nverdict = { min_requests = 20 }\n";

#[test]
fn apps_of_all_kinds_at_the_same_time() {
    let (Some(env), Some(jdk)) = (Env::get(GUNICORN), Env::get("jdk")) else { return };
    let Some(bed) = Bed::start(3) else { return };
    let (bed, env, jdk) = (&bed, &env, &jdk);
    std::thread::scope(|scope| {
        scope.spawn(|| django(bed, env));
        scope.spawn(|| flask(bed, env));
        scope.spawn(|| jvm(bed, jdk));
        scope.spawn(|| in_a_row(bed));
        scope.spawn(|| leaks_after_the_canary(bed));
    });
}

#[track_caller]
fn no_failure(what: &str, reports: &[Report]) {
    for (host, report) in reports.iter().enumerate() {
        println!("{what}, web-{host}: {}", report.summary());
        report.assert_no_failure();
    }
}

fn tests_apps(below: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/apps").join(below)
}

/// A page and its style sheet as a browser gets them from a fleet behind a balancer: each from another host.
#[derive(Default)]
struct Browsed {
    /// By status.
    assets: BTreeMap<u16, usize>,
    names: BTreeMap<String, usize>,
    /// The style sheet of one release, asked of a host that serves another one.
    crossed: usize,
}

fn browse(site: &Site<'_>, stop: &AtomicBool) -> Browsed {
    let word = |body: &str, name: &str| {
        let at = body.split_whitespace().find_map(|word| word.strip_prefix(&format!("{name}=")).map(str::to_owned));
        at.unwrap_or_else(|| panic!("no {name} in {body:?}"))
    };
    let mut browsed = Browsed::default();
    for turn in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let at = |n: usize| site.address(&site.bed.hosts[n % 3]);
        let (page, other) = (turn % 3, (turn + 1 + turn / 3 % 2) % 3);
        let (_, body) = http_get(at(page), "/").expect("a page");
        let asset = word(&body, "asset");
        let (status, _) = http_get(at(other), &asset).expect("an answer");
        let (_, there) = http_get(at(other), "/").expect("a page");
        *browsed.assets.entry(status).or_default() += 1;
        *browsed.names.entry(asset).or_default() += 1;
        browsed.crossed += usize::from(word(&there, "release") != word(&body, "release"));
        std::thread::sleep(Duration::from_millis(20));
    }
    browsed
}

const DJANGO: &str = r"
[environment]
AIRSHIP_DATABASE = '@DATABASE'
[deploy]
build = 'none'
shared = ['static']
[deploy.before]
command = ['mkdir', '-p', '{root}/shared/static']
[deploy.verify]
command = ['@PYTHON', 'manage.py', 'check']
[deploy.migrate]
command = ['@PYTHON', 'manage.py', 'migrate', '--noinput']
pending = ['@PYTHON', 'manage.py', 'migrate', '--check']
compatible = true
[deploy.static]
command = ['@PYTHON', 'manage.py', 'collectstatic', '--noinput']
";

/// A column that the code before knows nothing of.
const NEW_COLUMN: &str = r"
from django.db import migrations, models

class Migration(migrations.Migration):
    dependencies = [('pages', '0001_initial')]
    operations = [migrations.AddField('Visit', 'note', models.CharField(max_length=20, null=True))]
";

const FAILING: &str = r"
from django.db import migrations

def refuse(apps, schema_editor):
    raise RuntimeError('row 4711 has no owner')

class Migration(migrations.Migration):
    dependencies = [('pages', '0002_note')]
    operations = [migrations.RunPython(refuse)]
";

/// Migrations in a database that all hosts share, and static files with hashed names.
fn django(bed: &Bed, env: &Env) {
    let database = bed.path("database");
    fs::create_dir(&database).expect("a directory");
    let more = DJANGO.replace("@DATABASE", &database.join("airship.sqlite3").display().to_string());
    let more = more.replace("@PYTHON", &env.python().display().to_string());
    let site = Site::empty(bed, "django", 8001, &gunicorn(env, "airship.wsgi", &more));
    let made = bed.path("django").join("made");
    let write = |path: &str, text: &str| fs::write(made.join(path), text).expect("writing");
    shell(bed.dir(), "cp -r \"$1\" django/made", &tests_apps("django"));
    site.commit_files(&made);
    site.first(SHORT);

    write("pages/name.txt", "second\n");
    write("pages/static/pages/site.css", "body { color: navy; }\n");
    write("pages/migrations/0002_note.py", NEW_COLUMN);
    let models = fs::read_to_string(made.join("pages/models.py")).expect("reading");
    write("pages/models.py", &format!("{models}    note = models.CharField(max_length=20, null=True)\n"));
    site.commit_files(&made);
    let stop = AtomicBool::new(false);
    let (((code, out, err), browsed), reports) = site.under_load(|| {
        std::thread::scope(|scope| {
            let browser = scope.spawn(|| browse(&site, &stop));
            let told = site.deploy();
            stop.store(true, Ordering::Relaxed);
            (told, browser.join().expect("the browser"))
        })
    });
    assert_eq!(code, 0, "{out}{err}");
    assert_eq!(site.serves(), ["second", "second", "second"]);
    no_failure("django", &reports);
    println!("django: style sheets {:?}, of other releases {}: {:?}", browsed.names, browsed.crossed, browsed.assets);
    assert!(browsed.names.len() == 2 && browsed.crossed > 10, "{:?} {}", browsed.names, browsed.crossed);
    assert_eq!(browsed.assets.keys().copied().collect::<Vec<_>>(), [200], "{:?}", browsed.assets);
    let migrated: Vec<_> = err.lines().filter(|line| line.contains("Applying pages.0002_note")).collect();
    assert_eq!(migrated.len(), 1, "on one host: {err}");
    // No migration is pending.
    write("pages/name.txt", "third\n");
    site.commit_files(&made);
    let ((code, out, err), reports) = site.under_load(|| site.deploy());
    assert_eq!(code, 0, "{out}{err}");
    assert!(!err.contains("Applying") && err.contains("no migration is pending"), "{err}");
    no_failure("django", &reports);

    write("pages/migrations/0003_refuses.py", FAILING);
    write("pages/name.txt", "fourth\n");
    let generations = site.generations();
    site.commit_files(&made);
    let ((code, out, err), reports) = site.under_load(|| site.deploy());
    assert_eq!(code, 1, "{out}{err}");
    assert!(out.contains("no host was switched") && out.contains("RuntimeError: row 4711 has no owner"), "{out}{err}");
    assert_eq!(site.generations(), generations);
    no_failure("django", &reports);
}

fn flask(bed: &Bed, env: &Env) {
    let site = Site::empty(bed, "flask", 8002, &gunicorn(env, "flask_app:app", ""));
    site.commit(&Release::new("first"));
    site.first(SHORT);
    site.commit(&Release::new("second"));
    let ((code, out, err), reports) = site.under_load(|| site.deploy());
    assert_eq!(code, 0, "{out}{err}");
    assert_eq!(site.serves(), ["second", "second", "second"]);
    no_failure("flask", &reports);
    site.commit(&Release::new("third").with("probe", "raise"));
    let generations = site.generations();
    let ((code, out, err), reports) = site.under_load(|| site.deploy());
    assert!(code == 7 && out.contains("answered 500"), "{out}{err}");
    assert_eq!(site.serves(), ["second", "second", "second"]);
    assert_eq!(site.generations()[1..], generations[1..], "the canary alone has tried it");
    no_failure("flask", &reports);
}

/// A jar instead of a repository.
fn jvm(bed: &Bed, jdk: &Env) {
    let service = "kind = 'jvm'\nroot = '@ROOT'\njar = '{release}/app.jar'\nargs = ['{port}']\n\
                   java.options = ['-Drelease={release}', '-Xmx96m', '-XX:TieredStopAtLevel=1', '-XX:-UsePerfData']\n\
                   sockets.http.listen = '@ADDRESS'\nready.probe = { path = '/health', port = '{port}' }\n";
    let dir = bed.path("jvm");
    let jar = dir.join("app.jar");
    let site = Site::empty(bed, "jvm", 8003, service).artifact(&jar);
    fs::copy(jdk.jar(), &jar).expect("copying");
    site.first(SHORT);
    let first = site.serves();
    // Another jar of the same program.
    let with_a_note = "echo second >note && jar -J-XX:-UsePerfData -uf \"$1\" note";
    shell(&dir, with_a_note, &jar);
    let ((code, out, err), reports) = site.under_load(|| site.deploy());
    assert_eq!(code, 0, "{out}{err}");
    let second = site.serves();
    assert!(first.iter().zip(&second).all(|(old, new)| old != new), "{first:?} {second:?}");
    no_failure("jvm", &reports);
    let generations = site.generations();
    fs::write(&jar, "no jar at all").expect("writing");
    let ((code, out, err), reports) = site.under_load(|| site.deploy());
    assert!(code == 7 && out.contains("Invalid or corrupt jarfile"), "{out}{err}");
    assert_eq!(site.serves(), second);
    assert_eq!(site.generations()[1..], generations[1..], "the canary alone has tried it");
    no_failure("jvm", &reports);
}

/// One release after the other, two at once, and back by hand.
fn in_a_row(bed: &Bed) {
    let Some(site) = Site::plain(bed, "row", 8004, SHORT) else { return };
    let (_, reports) = site.under_load(|| {
        for release in ["one", "two", "three"] {
            site.commit(&Release::new(release));
            let (code, out, err) = site.deploy();
            assert_eq!(code, 0, "{out}{err}");
            assert_eq!(site.serves(), [release; 3]);
        }
    });
    no_failure("in a row", &reports);

    site.commit(&Release::new("four"));
    let elsewhere = site.elsewhere();
    let (_, reports) = site.under_load(|| {
        let mut first = site.svctl_command(&["deploy", "row"]);
        first.env("USER", "alice").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut first = first.spawn().expect("svctl");
        wait_until("the canary is locked", PATIENCE, || {
            bed.hosts[0].svd.json(&["releases", "row"])["lock"].is_object()
        });
        let (code, out, err) = elsewhere.deploy();
        let said = out + &err;
        assert_eq!(code, 9, "{said}");
        assert!(
            said.contains("web-0: row is locked by") && said.contains("alice@") && said.contains("unlock row --force"),
            "{said}"
        );
        assert!(
            super::support::wait_for("the first one's end", PATIENCE * 2, || first.try_wait().expect("wait")).success()
        );
    });
    assert_eq!(site.serves(), ["four"; 3]);
    no_failure("two at once", &reports);

    let ((begun, ended), reports) = site.under_load(|| {
        let begun = Instant::now();
        let (code, out, err) = site.verb("rollback");
        assert_eq!(code, 0, "{out}{err}");
        let ended = Instant::now();
        // What runs is asked some more.
        assert_eq!(site.serves(), ["three"; 3]);
        (begun, ended)
    });
    no_failure("a rollback by hand", &reports);
    let slowest = reports.iter().map(|report| report.everywhere("three", begun, ended)).max().expect("hosts");
    println!("rollback of three hosts: the last request that met the release after {slowest:.1?}");
}

/// The canary's wave is passed; what comes after it takes all of it back.
fn leaks_after_the_canary(bed: &Bed) {
    let bake = "waves = [1, \"100%\"]\nbake = \"35s\"\nverdict = { min_requests = 50 }\n";
    let Some(site) = Site::plain(bed, "leak", 8005, bake) else { return };
    let generations = site.generations();
    site.commit(&Release::new("second").with("fail_hosts", json!({ "web-1": 0.25 })));
    let ((code, out, err), reports) = site.under_load(|| site.deploy());
    assert_eq!(code, 7, "{out}{err}");
    assert!(err.contains("wave 1: passed") && err.contains("wave 2: no good: too many errors"), "{out}{err}");
    assert_eq!(site.serves(), ["first"; 3]);
    assert_eq!(site.generations()[2], generations[2], "the last one was never switched");
    no_failure("leaks, the canary", &reports[..1]);
    no_failure("leaks, the last", &reports[2..]);
    let of_it = &reports[1];
    assert!(!of_it.failures().is_empty());
    println!("leaks, web-1: {}", of_it.summary());
}
