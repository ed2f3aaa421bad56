//! `[java]` with a real JVM: which one it is, and how large its heap may become.

#![allow(clippy::disallowed_methods, reason = "forbidden in the core alone")]

mod support;

use std::path::{Path, PathBuf};
use support::svd::{both, quoted};
use support::{Env, Svd};

/// Where the java in `PATH` really is; `None`: there is none.
fn home() -> Option<PathBuf> {
    Env::get("jdk")?;
    let path = std::env::var_os("PATH")?;
    let program = std::env::split_paths(&path).map(|dir| dir.join("java")).find(|java| java.exists())?;
    Some(program.canonicalize().expect("a program").parent()?.parent()?.to_owned())
}

/// A JVM that tells what it has.
fn told(rest: &str) -> String {
    let apps = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/apps/jvm");
    format!(
        "kind = 'jvm'\nmain = {}\nclasspath = [{}]\nready.log = 'told'\n{rest}",
        quoted(&apps.join("Told.java")),
        quoted(&apps),
    )
}

/// Quick to start, and without a page of counters in the system's directory.
const QUICK: &str = "'-XX:-UsePerfData', '-XX:TieredStopAtLevel=1'";

#[track_caller]
fn line(svd: &Svd, name: &str, key: &str) -> String {
    let log = svd.ok(&["logs", name, "-n", "1000"]);
    let last = log.lines().rev().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    last.unwrap_or_else(|| panic!("no {key} in\n{log}")).to_owned()
}

fn heap(svd: &Svd, name: &str) -> u64 {
    line(svd, name, "heap").parse().expect("a number")
}

#[test]
fn home_decides_which_jvm_runs() {
    let Some(home) = home() else { return };
    let mut svd = Svd::new();
    // Another name for it: what svd was told is what the program sees.
    let own = svd.path("jdk");
    std::os::unix::fs::symlink(&home, &own).expect("a link");
    svd.service("web", &told(&format!("java.home = {}\njava.options = [{QUICK}]\n", quoted(&own))));
    svd.service("path", &told(&format!("java.options = [{QUICK}]\n")));
    svd.start();
    svd.wait_state("web", "running");
    svd.wait_state("path", "running");
    assert_eq!(line(&svd, "web", "JAVA_HOME"), own.to_str().expect("UTF-8"));
    assert!(line(&svd, "web", "PATH").starts_with(&format!("{}/bin:/usr/local/sbin:", own.display())));
    assert_eq!(Path::new(&line(&svd, "web", "runs")).canonicalize().expect("there"), home);
    let argv = std::fs::read(format!("/proc/{}/cmdline", svd.main_pid("web"))).expect("it runs");
    assert!(argv.starts_with(format!("{}/bin/java\0", own.display()).as_bytes()));
    // A command of the operator's, too.
    assert_eq!(svd.ok(&["exec", "web", "--", "printenv", "JAVA_HOME"]).trim(), own.to_str().expect("UTF-8"));
    assert_eq!(line(&svd, "path", "JAVA_HOME"), "null");
    assert_eq!(line(&svd, "path", "PATH"), "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    let shown = svd.ok(&["show", "path"]);
    assert!(shown.contains("that of the java in PATH") && shown.contains("a quarter of the memory"), "{shown}");
}

#[test]
fn a_home_that_is_none_is_refused_with_its_place() {
    let Some(home) = home() else { return };
    let mut svd = Svd::new();
    svd.service("web", &told(&format!("java.home = {}\njava.options = [{QUICK}]\n", quoted(&home))));
    svd.start();
    svd.wait_state("web", "running");
    let pid = svd.main_pid("web");
    svd.service("web", &told(&format!("\n[java]\nhome = '/nonexistent/jdk'\noptions = [{QUICK}]\n")));
    let etc = svd.path("etc").display().to_string();
    for verb in [&["update"][..], &["check", &etc]] {
        let said = both(&svd.svctl(verb));
        for part in ["web.toml:7:1: \"/nonexistent/jdk\" is no JVM's home", "/nonexistent/jdk/bin/java", "/usr/lib/jvm"]
        {
            assert!(said.contains(part), "{part} is not in {said}");
        }
    }
    // That of another service is nobody else's matter, and one that comes with a release is not looked for.
    svd.ok(&["restart", "web"]);
    assert_ne!(svd.main_pid("web"), pid);
    svd.service("web", &told(&format!("java.home = {}\njava.options = [{QUICK}]\n", quoted(&home))));
    svd.service("later", &told("autostart = false\nroot = '/srv/none'\njava.home = '{release}/jre'\n"));
    svd.ok(&["update"]);
}

#[test]
fn the_heap_fits_the_limits() {
    if home().is_none() {
        return;
    }
    let mut svd = Svd::new();
    let limited = |memory: &str, options: &str| {
        told(&format!(
            "java.options = [{QUICK}{options}]\nlimits.restart_above = '{memory}'\n\
             limits.memory = '4GiB'\nisolation.optional = ['limits.memory']\n"
        ))
    };
    svd.service("sized", &limited("512MiB", ""));
    svd.service("given", &limited("512MiB", ", '-Xmx100m'"));
    svd.service("percent", &limited("512MiB", ", '-XX:MaxRAMPercentage=25', '-XX:MaxRAM=1024m'"));
    let file = svd.path("options.env");
    std::fs::write(&file, "JDK_JAVA_OPTIONS=-Xmx90m\n").expect("a file");
    svd.service("variable", &format!("environment_files = [{}]\n{}", quoted(&file), limited("512MiB", "")));
    svd.start();
    for name in ["sized", "given", "percent", "variable"] {
        svd.wait_state(name, "running");
    }
    // Collectors keep some of it for themselves.
    let near = |name: &str, wanted: u64| {
        let heap = heap(&svd, name);
        assert!((wanted * 9 / 10..=wanted).contains(&heap), "{name}: {heap} instead of {wanted} MiB");
    };
    near("sized", 320);
    near("given", 100);
    near("percent", 256);
    near("variable", 90);
    assert!(line(&svd, "sized", "given").contains("-Xmx320m"));
    assert!(!line(&svd, "percent", "given").contains("-Xmx"));
    let shown = |name: &str| {
        let all = svd.ok(&["show", name]);
        all.lines().find(|line| line.contains("java.heap")).unwrap_or_else(|| panic!("no heap in\n{all}")).to_owned()
    };
    assert!(shown("sized").contains("320MiB, of limits.restart_above"), "{}", shown("sized"));
    assert!(shown("given").contains("-Xmx100m, by java.options"), "{}", shown("given"));
    // No heap grows beyond what its JVM was started with.
    let pid = svd.main_pid("sized");
    svd.service("sized", &limited("1GiB", ""));
    let said = svd.ok(&["update"]);
    assert!(said.contains("java.heap"), "{said}");
    assert_ne!(svd.main_pid("sized"), pid);
    near("sized", 768);
    // That is no reason to touch one whose heap is given.
    let pid = svd.main_pid("given");
    svd.service("given", &limited("1GiB", ", '-Xmx100m'"));
    svd.ok(&["update"]);
    assert_eq!(svd.main_pid("given"), pid);
}
