//! Prometheus text (exposition format 0.0.4) from a snapshot.

use super::types::MetricsSnapshot;

pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The whole page.
pub fn render(_snapshot: &MetricsSnapshot) -> String {
    String::new()
}
