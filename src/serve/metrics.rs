//! What is counted, in the text format of Prometheus (exposition format 0.0.4).

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::units::text::Shown;

/// Upper bounds of the buckets in seconds: create and end are to take a quarter of a second.
const BUCKETS: [f64; 10] = [0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0];

/// Counters of the service.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Time from the request to the mount.
    pub create: Histogram,
    /// Time from the request to the wiped key.
    pub end: Histogram,
    /// Runs found at the start.
    pub adopted: Counter,
    /// Connections refused because there were too many.
    pub connections_refused: Counter,
    /// Connections now.
    pub connections: Counter,
    /// Runs that ended, by outcome.
    pub ended: Labelled,
    /// Attempts to publish, by result.
    pub published: Labelled,
    /// Attempts to publish what lacks data, since it was lost or refused.
    pub lost_writes: Counter,
    /// Runs that were not made, by kind of problem.
    pub refused: Labelled,
    /// Requests, by method, path and status.
    pub requests: Labelled,
    /// Calls of the volume plugin, by method and result.
    pub volume_calls: Labelled,
}

/// A number that can be shown.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// One more.
    pub fn increment(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// One less.
    pub fn decrement(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }

    /// The number.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Counters told apart by labels. Labels come from the program, never from a request, so there are few.
#[derive(Debug, Default)]
pub struct Labelled(Mutex<BTreeMap<String, u64>>);

impl Labelled {
    /// One more for these labels: pairs of name and value.
    pub fn increment(&self, labels: &[(&str, &str)]) {
        let labels: Vec<_> = labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
        *self.0.lock().entry(labels.join(",")).or_default() += 1;
    }
}

/// Times, in buckets.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BUCKETS.len()],
    count: AtomicU64,
    nanoseconds: AtomicU64,
}

impl Histogram {
    /// One more time.
    pub fn observe(&self, time: Duration) {
        let seconds = time.as_secs_f64();
        for (bucket, bound) in self.buckets.iter().zip(BUCKETS) {
            bucket.fetch_add(u64::from(seconds <= bound), Ordering::Relaxed);
        }
        self.count.fetch_add(1, Ordering::Relaxed);
        self.nanoseconds.fetch_add(time.as_nanos() as u64, Ordering::Relaxed);
    }
}

/// The text of a scrape.
#[derive(Debug, Default)]
pub struct MetricsPage(String);

impl MetricsPage {
    /// All counters of `metrics`.
    pub fn of(metrics: &Metrics) -> Self {
        let mut page = Self::default();
        page.gauge("runseal_info", "Version of the service", [(label("version", env!("CARGO_PKG_VERSION")), 1)]);
        page.histogram("runseal_create_seconds", "Time from the request to the ready mount", &metrics.create);
        page.histogram("runseal_end_seconds", "Time from the request to the wiped key", &metrics.end);
        page.counter("runseal_runs_adopted_total", "Live runs found at the start", plain(&metrics.adopted));
        page.counter("runseal_runs_ended_total", "Runs that ended", metrics.ended.0.lock().clone());
        page.counter("runseal_runs_published_total", "Attempts to publish", metrics.published.0.lock().clone());
        let lost = plain(&metrics.lost_writes);
        page.counter("runseal_runs_lost_writes_total", "Attempts to publish with data lost or refused", lost);
        page.counter("runseal_runs_refused_total", "Runs that were not made", metrics.refused.0.lock().clone());
        page.counter("runseal_http_requests_total", "Requests answered", metrics.requests.0.lock().clone());
        page.counter("runseal_volume_calls_total", "Calls of Docker", metrics.volume_calls.0.lock().clone());
        let refused = plain(&metrics.connections_refused);
        page.counter("runseal_connections_refused_total", "Connections beyond a limit", refused);
        page.gauge("runseal_connections", "Connections now", plain(&metrics.connections));
        page
    }

    /// Adds values that go up and down: pairs of labels and value.
    pub fn gauge(&mut self, name: &str, help: &str, values: impl IntoIterator<Item = (String, u64)>) {
        self.family(name, help, "gauge", values);
    }

    /// The text.
    pub fn into_text(self) -> String {
        self.0
    }

    fn counter(&mut self, name: &str, help: &str, values: impl IntoIterator<Item = (String, u64)>) {
        self.family(name, help, "counter", values);
    }

    fn family(&mut self, name: &str, help: &str, kind: &str, values: impl IntoIterator<Item = (String, u64)>) {
        self.head(name, help, kind);
        for (labels, value) in values {
            let labels = if labels.is_empty() { labels } else { format!("{{{labels}}}") };
            self.line(format_args!("{name}{labels} {value}"));
        }
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.head(name, help, "histogram");
        let count = histogram.count.load(Ordering::Relaxed);
        for (bucket, bound) in histogram.buckets.iter().zip(BUCKETS) {
            self.line(format_args!("{name}_bucket{{le=\"{bound}\"}} {}", bucket.load(Ordering::Relaxed)));
        }
        self.line(format_args!("{name}_bucket{{le=\"+Inf\"}} {count}"));
        self.line(format_args!("{name}_sum {}", histogram.nanoseconds.load(Ordering::Relaxed) as f64 / 1e9));
        self.line(format_args!("{name}_count {count}"));
    }

    fn head(&mut self, name: &str, help: &str, kind: &str) {
        self.line(format_args!("# HELP {name} {help}"));
        self.line(format_args!("# TYPE {name} {kind}"));
    }

    fn line(&mut self, text: std::fmt::Arguments<'_>) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "{text}");
    }
}

/// A label for [`MetricsPage::gauge`].
pub fn label(name: &str, value: &str) -> String {
    format!("{name}=\"{}\"", escaped(value))
}

fn plain(counter: &Counter) -> [(String, u64); 1] {
    [(String::new(), counter.value())]
}

fn escaped(value: &str) -> String {
    Shown(value).to_string().replace('\\', "\\\\").replace('"', "\\\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_hold_all_that_is_not_slower() {
        let metrics = Metrics::default();
        for millis in [10, 150, 151, 90_000] {
            metrics.create.observe(Duration::from_millis(millis));
        }
        let text = MetricsPage::of(&metrics).into_text();
        for line in [
            "runseal_create_seconds_bucket{le=\"0.025\"} 1",
            "runseal_create_seconds_bucket{le=\"0.15\"} 2",
            "runseal_create_seconds_bucket{le=\"0.25\"} 3",
            "runseal_create_seconds_bucket{le=\"60\"} 3",
            "runseal_create_seconds_bucket{le=\"+Inf\"} 4",
            "runseal_create_seconds_sum 90.311",
            "runseal_create_seconds_count 4",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
    }

    #[test]
    fn labels_are_escaped() {
        let metrics = Metrics::default();
        metrics.ended.increment(&[("outcome", "a\"b\\c\nd\u{9b}")]);
        let text = MetricsPage::of(&metrics).into_text();
        assert!(text.contains("runseal_runs_ended_total{outcome=\"a\\\"b\\\\c\\\\nd\\\\u{9b}\"} 1"), "{text}");
    }
}
