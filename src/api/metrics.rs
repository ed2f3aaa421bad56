//! Prometheus text from a snapshot: exposition format 0.0.4, names and units by
//! <https://prometheus.io/docs/practices/naming/>. Pure.

use std::fmt::{Display, Write};

use super::types::{GenerationStatus, HealthState, MetricsSnapshot, ServiceStatus, Traffic, WorkerState};

pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The whole page: each metric once with its `# HELP` and `# TYPE`, then all its samples. A metric without samples is left out.
pub fn render(snapshot: &MetricsSnapshot) -> String {
    let mut page = Page(String::with_capacity(4096 + 1024 * snapshot.services.len()));
    states(&mut page, &snapshot.services);
    numbers(&mut page, &snapshot.services);
    traffic(&mut page, &snapshot.services);
    for metric in &snapshot.svd {
        let kind = if metric.counter { COUNTER } else { GAUGE };
        let name = format!("airdock_svd_{}", metric.name);
        page.metric(&name, kind, metric.help, |out| out.sample(&[], metric.value));
    }
    page.0
}

const COUNTER: &str = "counter";
const GAUGE: &str = "gauge";

fn states(page: &mut Page, services: &[ServiceStatus]) {
    let each = |page: &mut Page, name, help, value: &dyn Fn(&ServiceStatus) -> bool| {
        page.metric(name, GAUGE, help, |out| {
            for s in services {
                out.sample(&[("service", &s.name)], u8::from(value(s)));
            }
        });
    };
    let name = "airdock_service_info";
    let help = "Kind and release of a service; always 1.";
    page.metric(name, GAUGE, help, |out| {
        for s in services {
            let release = s.release.as_deref().unwrap_or("");
            let labels = [("service", &*s.name), ("kind", &s.kind), ("release", release)];
            out.sample(&labels, 1);
        }
    });
    page.metric("airdock_service_state", GAUGE, "1 for the state that a service is in.", |out| {
        for s in services {
            out.sample(&[("service", &s.name), ("state", s.state.as_str())], 1);
        }
    });
    let help = "Whether a load balancer may send requests: running and not drained.";
    each(page, "airdock_service_up", help, &|s| s.takes_traffic());
    let help = "Whether the service starts when svd starts.";
    each(page, "airdock_service_enabled", help, &|s| s.enabled);
    let help = "Whether an operator has taken the service out of the load balancer.";
    each(page, "airdock_service_drained", help, &|s| s.draining);
    let help = "Whether the last health checks passed.";
    page.metric("airdock_service_healthy", GAUGE, help, |out| {
        for s in services {
            if let Some(health) = s.health.as_ref().filter(|h| h.state != HealthState::Unknown) {
                let healthy = u8::from(health.state == HealthState::Healthy);
                out.sample(&[("service", &s.name)], healthy);
            }
        }
    });
}

fn numbers(page: &mut Page, services: &[ServiceStatus]) {
    let each = |page: &mut Page, name, kind, help, value: &dyn Fn(&ServiceStatus) -> Option<u64>| {
        page.metric(name, kind, help, |out| {
            for s in services {
                if let Some(value) = value(s) {
                    out.sample(&[("service", &s.name)], value);
                }
            }
        });
    };
    let help = "Time that the service has been in its state.";
    each(page, "airdock_service_state_age_seconds", GAUGE, help, &|s| Some(s.since_seconds));
    let help = "Number of the committed generation.";
    each(page, "airdock_service_generation", GAUGE, help, &|s| s.generation);
    let help = "Workers that were started again after they ended by themselves.";
    each(page, "airdock_service_restarts_total", COUNTER, help, &|s| Some(s.restarts));
    let help = "Health checks that failed in a row.";
    each(page, "airdock_service_health_failures", GAUGE, help, &|s| s.health.as_ref().map(|h| u64::from(h.failures)));
    let help = "Resident memory of the committed generation.";
    each(page, "airdock_service_memory_bytes", GAUGE, help, &|s| s.memory_bytes);
    let help = "Running workers of the committed generation.";
    each(page, "airdock_service_workers", GAUGE, help, &|s| {
        let running = |w: &&super::types::WorkerStatus| w.state == WorkerState::Running;
        Some(s.workers.iter().filter(running).count() as u64)
    });
    let help = "Gunicorn's own workers of the committed generation that are ready.";
    each(page, "airdock_service_gunicorn_workers", GAUGE, help, &|s| {
        s.generations.iter().find(|g| Some(g.number) == s.generation)?.gunicorn_workers
    });
}

fn traffic(page: &mut Page, services: &[ServiceStatus]) {
    let counted: Vec<(&ServiceStatus, &GenerationStatus, Traffic)> = services
        .iter()
        .flat_map(|s| s.generations.iter().map(move |g| (s, g)))
        .filter_map(|(s, g)| g.traffic.map(|t| (s, g, t)))
        .collect();
    let each = |page: &mut Page, name, kind, help, value: &dyn Fn(&Traffic) -> u64| {
        page.metric(name, kind, help, |out| {
            for (s, g, t) in &counted {
                let number = g.number.to_string();
                let labels = [("service", &*s.name), ("generation", &number), ("role", g.role.as_str())];
                out.sample(&labels, value(t));
            }
        });
    };
    let help = "Requests finished by a generation.";
    each(page, "airdock_requests_total", COUNTER, help, &|t| t.requests);
    let help = "Requests answered with a status of 500 to 599.";
    each(page, "airdock_requests_5xx_total", COUNTER, help, &|t| t.errors_5xx);
    let help = "Workers that died with requests open.";
    each(page, "airdock_workers_died_open_total", COUNTER, help, &|t| t.died_open);
    let help = "Requests that are open for longer than they should be.";
    each(page, "airdock_requests_overdue", GAUGE, help, &|t| t.overdue);
    let help = "Whether counts of the last minute were lost: what is missing may have been errors.";
    each(page, "airdock_requests_unreliable", GAUGE, help, &|t| u64::from(t.unreliable));
    let help = "Datagrams with counts, anybody's, that were lost since a generation began.";
    each(page, "airdock_requests_lost_datagrams_total", COUNTER, help, &|t| t.lost_datagrams);
    let name = "airdock_request_latency_seconds";
    let help = "Time to serve a request, of the last minute.";
    page.metric(name, GAUGE, help, |out| {
        for (s, g, t) in &counted {
            let Some(latency) = t.latency_ms else { continue };
            let number = g.number.to_string();
            for (percentile, ms) in [("50", latency.p50), ("90", latency.p90), ("95", latency.p95), ("99", latency.p99)]
            {
                let labels = [("service", &*s.name), ("generation", &number), ("percentile", percentile)];
                out.sample(&labels, ms / 1000.0);
            }
        }
    });
}

struct Page(String);

impl Page {
    fn metric(&mut self, name: &str, kind: &str, help: &str, fill: impl FnOnce(&mut Samples)) {
        let start = self.0.len();
        // Writing to a String cannot fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
        let header = self.0.len();
        fill(&mut Samples { out: &mut self.0, name });
        if self.0.len() == header {
            self.0.truncate(start);
        }
    }
}

struct Samples<'a> {
    out: &'a mut String,
    name: &'a str,
}

impl Samples<'_> {
    fn sample(&mut self, labels: &[(&str, &str)], value: impl Display) {
        self.out.push_str(self.name);
        for (i, (key, text)) in labels.iter().enumerate() {
            self.out.push(if i == 0 { '{' } else { ',' });
            self.out.push_str(key);
            self.out.push_str("=\"");
            for c in text.chars() {
                match c {
                    '\\' => self.out.push_str("\\\\"),
                    '"' => self.out.push_str("\\\""),
                    '\n' => self.out.push_str("\\n"),
                    c => self.out.push(c),
                }
            }
            self.out.push('"');
        }
        if !labels.is_empty() {
            self.out.push('}');
        }
        let _ = writeln!(self.out, " {value}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::testing::{full_status, running};
    use crate::api::types::SvdMetric;

    fn snapshot() -> MetricsSnapshot {
        let mut odd = full_status("odd");
        odd.release = Some("a\"b\\c\nd".into());
        odd.draining = true;
        MetricsSnapshot {
            services: vec![full_status("airship"), odd, running("plain")],
            svd: vec![SvdMetric {
                name: "connections_refused_total",
                help: "Connections turned away because a limit was reached.",
                counter: true,
                value: 3.0,
            }],
        }
    }

    #[test]
    fn each_metric_is_announced_once_before_its_samples() {
        let text = render(&snapshot());
        let mut current = "";
        let mut seen = Vec::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                assert!(!seen.contains(&name), "{name} twice");
                assert_eq!(kind == "counter", name.ends_with("_total"), "{name}");
                seen.push(name);
                current = name;
            } else if !line.starts_with('#') {
                let name = line.split(['{', ' ']).next().unwrap();
                assert_eq!(name, current);
                let value = line.rsplit(' ').next().unwrap();
                assert!(value.parse::<f64>().unwrap().is_finite(), "{line}");
            }
        }
        assert!(seen.contains(&"airdock_svd_connections_refused_total"));
    }

    #[test]
    fn values_and_labels() {
        let text = render(&snapshot());
        for line in [
            r#"airdock_service_info{service="odd",kind="gunicorn",release="a\"b\\c\nd"} 1"#,
            r#"airdock_service_up{service="airship"} 1"#,
            r#"airdock_service_gunicorn_workers{service="airship"} 4"#,
            r#"airdock_service_up{service="odd"} 0"#,
            r#"airdock_request_latency_seconds{service="airship",generation="7",percentile="99"} 0.25"#,
            r#"airdock_requests_total{service="airship",generation="7",role="committed"} 1000"#,
            "airdock_svd_connections_refused_total 3",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is missing in\n{text}");
        }
    }

    #[test]
    fn nothing_at_all_is_an_empty_page() {
        assert_eq!(render(&MetricsSnapshot::default()), "");
    }

    /// Prometheus' own judgement, where it is installed.
    #[test]
    fn promtool_accepts_it() {
        use std::io::Write;
        use std::process::{Command, Stdio};
        let child = Command::new("promtool")
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let Ok(mut child) = child else {
            eprintln!("skipped: promtool is not installed");
            return;
        };
        let mut input = child.stdin.take().unwrap();
        input.write_all(render(&snapshot()).as_bytes()).unwrap();
        drop(input);
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.is_empty(), "{said}");
    }
}
