//! The tag of a deploy: `deploy-YYYY-MM-DD_HH-MM-SS`, which is the release's name as well.

use std::time::{Duration, SystemTime};

/// For a deploy at this time, in UTC.
fn name(time: SystemTime) -> String {
    // 2026-11-22T18:40:00Z
    let text = humantime::format_rfc3339_seconds(time).to_string();
    format!("deploy-{}", text.trim_end_matches('Z').replace('T', "_").replace(':', "-"))
}

/// The name for a deploy at this time, then those of the seconds after it, for when it is taken.
pub fn names(time: SystemTime) -> impl Iterator<Item = String> {
    (0..).map_while(move |second| time.checked_add(Duration::from_secs(second))).map(name)
}

/// What the tag says: who deployed which services of which app.
pub fn message(app: &str, services: &[impl AsRef<str>], who: &str) -> String {
    let services: Vec<&str> = services.iter().map(AsRef::as_ref).collect();
    let line = |text: &str| text.split(char::is_control).collect::<Vec<_>>().join(" ");
    format!("Deploy {}\n\nServices: {}\nBy: {}\n", line(app), line(&services.join(", ")), line(who))
}
