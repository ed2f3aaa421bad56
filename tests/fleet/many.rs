//! Thirty hosts.

use super::bed::Bed;
use super::support::alone;
use std::time::Instant;

#[test]
fn thirty_hosts_at_once() {
    let _alone = alone();
    let Some(bed) = Bed::start(30) else { return };
    let begun = Instant::now();
    let out = bed.ok(&["-H", "all", "status", "web"]);
    println!("status of 30 hosts over ssh: {:?}", begun.elapsed());
    let running: Vec<&str> = out.lines().filter(|line| line.contains("web: running")).collect();
    assert_eq!(running.len(), 30, "{out}");
    let order: Vec<usize> =
        running.iter().map(|line| line["web-".len()..].split(' ').next().unwrap().parse().unwrap()).collect();
    assert!(order.is_sorted(), "{order:?}");
    let begun = Instant::now();
    let document = bed.json(&["-H", "all", "--parallel", "30", "restart", "web"]);
    println!("restart on 30 hosts over ssh: {:?}", begun.elapsed());
    let hosts = document["hosts"].as_array().expect("hosts");
    assert!(hosts.len() == 30 && hosts.iter().all(|host| host["result"]["services"][0]["ok"] == true), "{document:#}");
}
