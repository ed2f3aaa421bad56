//! Requests and errors from the user's own Prometheus, in the stead of svd's counts: instant queries
//! (<https://prometheus.io/docs/prometheus/latest/querying/api/#instant-queries>) for counters, by `curl`, which knows proxies,
//! certificates and `~/.netrc` as the user has set them up.

use std::process::Command;
use std::time::Duration;

use serde::Deserialize;

use crate::fleet::inventory::Prometheus;
use crate::fleet::rollout::event::Totals;
use crate::fleet::run;

/// For one query.
const LIMIT: Duration = Duration::from_secs(10);
/// Bytes of an answer.
const MOST: usize = 1 << 20;

/// What it says of a host that serves a release.
///
/// # Errors
/// It cannot be asked, or its answer is no number; for people, without a full stop.
pub async fn totals(from: &Prometheus, host: &str, release: &str) -> Result<Totals, String> {
    let fill = |text: &str| text.replace("{host}", host).replace("{release}", release);
    let (url, requests, errors) = (fill(&from.url), fill(&from.requests), fill(&from.errors));
    let asked = tokio::task::spawn_blocking(move || {
        // One after the other: an error that is counted between the two must not be one without its request.
        let errors = ask(&url, &errors)?;
        Ok(Totals { errors, requests: ask(&url, &requests)?, overdue: 0, slow: None })
    });
    asked.await.map_err(|_| "it could not be asked".to_owned())?
}

fn ask(url: &str, query: &str) -> Result<u64, String> {
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "--fail", "--netrc-optional", "--proto", "=http,https", "--max-time"]);
    curl.arg(LIMIT.as_secs().to_string()).args(["--get", "--data-urlencode"]).arg(format!("query={query}"));
    curl.arg("--").arg(format!("{}/api/v1/query", url.trim_end_matches('/')));
    let answer = run::output(curl, LIMIT + Duration::from_secs(2), MOST).map_err(|e| format!("curl {e}"))?;
    sum(&answer)
}

#[derive(Deserialize)]
struct Answer {
    data: Data,
}

#[derive(Deserialize)]
#[serde(tag = "resultType", content = "result", rename_all = "lowercase")]
enum Data {
    Vector(Vec<Sample>),
    Scalar((f64, String)),
}

#[derive(Deserialize)]
struct Sample {
    value: (f64, String),
}

/// Of all samples: a query need not sum up itself. None at all is 0, as counters are that nothing was counted in yet.
fn sum(answer: &[u8]) -> Result<u64, String> {
    let answer: Answer =
        serde_json::from_slice(answer).map_err(|e| format!("its answer is no vector or scalar: {e}"))?;
    let values = match answer.data {
        Data::Vector(samples) => samples.into_iter().map(|sample| sample.value.1).collect(),
        Data::Scalar((_, value)) => vec![value],
    };
    let mut sum = 0.0;
    for text in values {
        let value = text.parse().ok().filter(|value: &f64| value.is_finite() && *value >= 0.0);
        sum += value.ok_or_else(|| format!("{text:?} is not the value of a counter"))?;
    }
    Ok(sum as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_does_not_answer_is_told() {
        // Where curl is not installed that is told in its stead.
        let why = ask("http://127.0.0.1:1", "up").expect_err("nobody listens there");
        assert!(why.starts_with("curl failed") || why.starts_with("curl cannot be run"), "{why}");
    }

    #[test]
    fn answers_are_summed_up() {
        let vector =
            |samples: &str| format!(r#"{{"status":"success","data":{{"resultType":"vector","result":[{samples}]}}}}"#);
        assert_eq!(sum(vector("").as_bytes()), Ok(0));
        let two = vector(r#"{"metric":{"a":"b"},"value":[1700000000.1,"12"]},{"metric":{},"value":[1,"30.6"]}"#);
        assert_eq!(sum(two.as_bytes()), Ok(42));
        let scalar = r#"{"status":"success","data":{"resultType":"scalar","result":[1,"7"]}}"#;
        assert_eq!(sum(scalar.as_bytes()), Ok(7));
        for odd in ["NaN", "-1", "+Inf", "many"] {
            let odd = vector(&format!(r#"{{"metric":{{}},"value":[1,"{odd}"]}}"#));
            assert!(sum(odd.as_bytes()).is_err_and(|why| why.contains("not the value of a counter")), "{odd}");
        }
        let matrix = r#"{"status":"success","data":{"resultType":"matrix","result":[]}}"#;
        assert!(sum(matrix.as_bytes()).is_err() && sum(b"<html>").is_err());
    }
}
