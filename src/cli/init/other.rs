//! What is neither Python's nor a jar: a command line that was given, Node, or a program of the project's own.

use super::project::Project;
use super::{Found, Program};

/// Programs that start a project, as people name them.
const STARTS: &[&str] = &["run", "run.sh", "start", "start.sh", "bin/run", "bin/start", "bin/server"];

/// What was said after `--`.
pub fn command(words: &[String]) -> Found {
    let mut found = Found::new("a command", Program::Command(words.to_vec()));
    found.facts.push(format!("the command that was given: {}", words.join(" ")));
    found
}

/// `--app MODULE:NAME`.
pub fn application(project: &Project, app: &str) -> Found {
    let program = Program::Gunicorn { app: app.to_owned(), args: Vec::new() };
    let mut found = Found::new("WSGI", program);
    found.facts.push(format!("the application that was given: {app}"));
    found.requirements = project.has("requirements.txt");
    found.python = true;
    found
}

pub fn look(project: &Project, name: &str) -> Option<Found> {
    node(project).or_else(|| own(project, name))
}

fn node(project: &Project) -> Option<Found> {
    let package: serde_json::Value = serde_json::from_str(&project.read("package.json")?).ok()?;
    let start = package["scripts"]["start"].as_str();
    let (file, why) = match start.and_then(|start| start.strip_prefix("node ")) {
        Some(file) if !file.contains(['&', '|', ';', ' ']) => (file.trim(), "scripts.start of package.json"),
        _ => (package["main"].as_str()?, "main of package.json"),
    };
    let file = file.trim_start_matches("./");
    let words = vec!["node".to_owned(), format!("{{release}}/{file}")];
    let mut found = Found::new("Node", Program::Command(words));
    found.facts.push(format!("{why}: node {file}"));
    found.notes.push(
        "it binds its port itself: with a socket of svd's (server.listen({ fd: 3 })) a reload would lose no request"
            .to_owned(),
    );
    Some(found)
}

fn own(project: &Project, name: &str) -> Option<Found> {
    let named = [name.to_owned(), format!("bin/{name}")];
    let starts = STARTS.iter().map(|start| (*start).to_owned());
    let file = named.into_iter().chain(starts).find(|file| project.has(file) && project.is_executable(file))?;
    let mut found = Found::new("a program", Program::Command(vec![format!("{{release}}/{file}")]));
    found.facts.push(format!("{file}: it can be executed"));
    Some(found)
}
