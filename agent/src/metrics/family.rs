//! Metric families put together by hand: names, labels and values as the prometheus crate encodes them.

use prometheus::proto::{Bucket, Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};
use prometheus::{Encoder, TextEncoder};

use super::Histogram;

/// Families in the order in which they were begun.
#[derive(Debug, Default)]
pub(super) struct Families(Vec<MetricFamily>);

impl Families {
    /// Begins a family of counters; the name ends in `_total`.
    pub(super) fn counter(&mut self, name: &str, help: &str) -> Family<'_> {
        self.begin(name, help, MetricType::COUNTER)
    }

    /// Begins a family of gauges.
    pub(super) fn gauge(&mut self, name: &str, help: &str) -> Family<'_> {
        self.begin(name, help, MetricType::GAUGE)
    }

    /// Begins a family of histograms; the name ends in `_seconds`.
    pub(super) fn histogram(&mut self, name: &str, help: &str) -> Family<'_> {
        self.begin(name, help, MetricType::HISTOGRAM)
    }

    /// All families with a metric, in Prometheus' text format.
    pub(super) fn encode(self) -> String {
        let families: Vec<_> = self.0.into_iter().filter(|family| !family.get_metric().is_empty()).collect();
        let mut text = Vec::new();
        // Fails only for an empty family or a failing writer.
        if let Err(error) = TextEncoder::new().encode(&families, &mut text) {
            tracing::error!(%error, "metrics can't be encoded");
        }
        String::from_utf8(text).unwrap_or_default()
    }

    fn begin(&mut self, name: &str, help: &str, kind: MetricType) -> Family<'_> {
        let mut family = MetricFamily::default();
        family.set_name(name.to_owned());
        family.set_help(help.to_owned());
        family.set_field_type(kind);
        let at = self.0.len();
        self.0.push(family);
        Family(&mut self.0[at])
    }
}

/// The family that was begun last.
pub(super) struct Family<'f>(&'f mut MetricFamily);

impl Family<'_> {
    /// Adds a value.
    pub(super) fn add(&mut self, labels: &[(&str, &str)], value: f64) {
        let mut metric = labelled(labels);
        match self.0.get_field_type() {
            MetricType::COUNTER => {
                let mut counter = Counter::default();
                counter.set_value(value);
                metric.set_counter(counter);
            }
            _ => {
                let mut gauge = Gauge::default();
                gauge.set_value(value);
                metric.set_gauge(gauge);
            }
        }
        self.0.mut_metric().push(metric);
    }

    /// Adds a whole number. Above 2^53 the text format itself has no more digits.
    pub(super) fn add_count(&mut self, labels: &[(&str, &str)], value: u64) {
        self.add(labels, value as f64);
    }

    /// Adds a distribution.
    pub(super) fn add_histogram(&mut self, labels: &[(&str, &str)], histogram: &Histogram) {
        let mut cumulative = 0;
        let mut buckets = Vec::with_capacity(histogram.bounds_seconds.len());
        for (bound, count) in histogram.bounds_seconds.iter().zip(&histogram.counts) {
            cumulative += count;
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(*bound);
            bucket.set_cumulative_count(cumulative);
            buckets.push(bucket);
        }
        let mut encoded = prometheus::proto::Histogram::default();
        encoded.set_bucket(buckets);
        encoded.set_sample_count(histogram.counts.iter().sum());
        encoded.set_sample_sum(histogram.sum_seconds);
        let mut metric = labelled(labels);
        metric.set_histogram(encoded);
        self.0.mut_metric().push(metric);
    }
}

fn labelled(labels: &[(&str, &str)]) -> Metric {
    let pair = |(name, value): &(&str, &str)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value((*value).to_owned());
        pair
    };
    Metric::from_label(labels.iter().map(pair).collect())
}
