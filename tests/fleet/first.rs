//! The page for newcomers, as pasted: a machine of one's own, three fresh ones, and a project.

use super::bed::Bed;
use super::support::env::Env;
use super::support::{run_limited, wait_until};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// The page's bake time; a verdict on what is bad takes half a minute anyway.
const BAKE: &str = "bake = \"30s\"";

/// The commands, each block with a line of output before it.
fn script(page: &str) -> String {
    let mut out = String::new();
    let (mut inside, mut blocks) = (false, 0);
    for line in page.lines() {
        match line {
            "```sh run" => {
                blocks += 1;
                out += &format!("echo \"@@ {blocks}\"; echo \"(after ${{SECONDS}} s)\"\n");
                inside = true;
            }
            "```" => inside = false,
            _ if inside => out += &format!("{line}\n"),
            _ => {}
        }
    }
    out
}

#[test]
fn the_first_deploy_works_as_pasted() {
    let Some(wheels) = Env::get("wheels") else { return };
    let Some(bed) = Bed::machines(3, &wheels.dir) else { return };
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/first-deploy.md");
    let page = fs::read_to_string(page).expect("the page");
    let mut text = script(&page);
    assert!(text.contains(BAKE), "the page has another bake time");
    if std::env::var_os("AIRDOCK_LONG").is_none() {
        text = text.replace(BAKE, "bake = \"5s\"");
    }
    // Whatever goes on in the background ends with it.
    let text = format!("exec 2>&1; cd; {text}\nkill %1\n");
    let mut command = bed.on_the_hub("bash");
    command.args(["-eu", "-o", "pipefail", "-c", &text]);
    let begun = Instant::now();
    let output = run_limited(command, Duration::from_secs(550));
    println!("the page took {:.0?}", begun.elapsed());
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}\n{said}", output.status);
    said.lines().filter(|line| line.starts_with("(after ")).for_each(|line| println!("{line}"));
    let blocks: Vec<&str> = said.split("@@ ").skip(1).collect();
    let block = |n: usize, part: &str| {
        let text = blocks.iter().find(|text| text.starts_with(&format!("{n}\n")));
        let text = text.unwrap_or_else(|| panic!("no block {n}: {said}"));
        assert!(text.contains(part), "no {part:?} in block {n}:\n{said}");
    };
    let served = |version: u32| format!("airship {version}, 0 users\n").repeat(3);
    let new = blocks.iter().find(|text| text.starts_with("6\n")).expect("block 6");
    for host in &bed.hosts {
        for what in ["start svd, now and at boot", "make the user airship", "write /etc/airdock/conf.d/airship.toml"] {
            let (would, did) = (format!("{}: would {what}", host.name), format!("{}: {what}", host.name));
            assert!(new.contains(&would) && new.contains(&did), "{would}:\n{said}");
        }
    }
    block(6, "there is no release in /srv/airship yet");
    block(7, "wave 1: web-0 (watched for");
    block(10, "wave 1: web-0 (watched for");
    block(10, "the requirements are those of deploy-");
    block(7, "airship is deployed.");
    block(8, &served(1));
    block(8, "web-2 | ");
    block(10, "airship is deployed.");
    block(10, "no migration is pending");
    block(10, &served(2));
    block(11, "wave 1: no good: too many errors");
    block(11, "airship was taken back");
    block(11, "svctl exits with 7");
    block(12, &served(2));
    block(13, &served(1));
    for host in &bed.hosts {
        host.run(&["svctl", "shutdown"]);
        wait_until("svd's end", Duration::from_secs(30), || host.processes("svd").is_empty());
    }
}
