//! The Prometheus text exposition, version 0.0.4, written by hand.

use std::fmt::Write as _;

use millstream_shard::call::LATENCY_BOUNDS_US;

use super::metrics::{Family, Labels, Samples};

/// The page.
pub(super) fn page(families: &[Family]) -> String {
    let mut page = String::with_capacity(16 << 10);
    for Family {
        name,
        help,
        samples,
    } in families
    {
        let kind = match samples {
            Samples::Gauge(_) => "gauge",
            Samples::Counter(_) => "counter",
            Samples::Histogram(_) => "histogram",
        };
        let _infallible = write!(page, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        match samples {
            Samples::Gauge(samples) | Samples::Counter(samples) => {
                for (labels, value) in samples {
                    let _infallible = writeln!(page, "{name}{} {value}", braces(labels, None));
                }
            }
            Samples::Histogram(samples) => {
                for (labels, counts) in samples {
                    histogram(&mut page, name, labels, counts);
                }
            }
        }
    }
    page
}

fn histogram(page: &mut String, name: &str, labels: &Labels, counts: &[u64]) {
    let all = counts.last().copied().unwrap_or(0);
    for (at, bound) in LATENCY_BOUNDS_US.iter().enumerate() {
        let bound = (*bound as f64 / 1e6).to_string();
        let count = counts.get(at).copied().unwrap_or(all);
        let _infallible = writeln!(
            page,
            "{name}_bucket{} {count}",
            braces(labels, Some(&bound))
        );
    }
    let _infallible = writeln!(page, "{name}_bucket{} {all}", braces(labels, Some("+Inf")));
    let _infallible = writeln!(page, "{name}_count{} {all}", braces(labels, None));
}

fn braces(labels: &Labels, bound: Option<&str>) -> String {
    let mut inner: Vec<String> = labels
        .iter()
        .map(|(key, value)| format!("{key}=\"{}\"", escaped(value)))
        .collect();
    inner.extend(bound.map(|bound| format!("le=\"{bound}\"")));
    if inner.is_empty() {
        String::new()
    } else {
        format!("{{{}}}", inner.join(","))
    }
}

/// Label values: backslash, quote and line end are escaped.
fn escaped(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped_and_buckets_are_cumulative() {
        let families = [
            Family {
                name: "a",
                help: "A",
                samples: Samples::Gauge(vec![(vec![("x", "q\"\\\n".to_owned())], 1.5)]),
            },
            Family {
                name: "h",
                help: "H",
                samples: Samples::Histogram(vec![(Labels::new(), vec![1; 15])]),
            },
        ];
        let page = page(&families);
        assert!(
            page.starts_with("# HELP a A\n# TYPE a gauge\na{x=\"q\\\"\\\\\\n\"} 1.5\n"),
            "{page}"
        );
        assert!(
            page.contains("h_bucket{le=\"0.00005\"} 1\n")
                && page.contains("h_bucket{le=\"+Inf\"} 1\nh_count 1\n")
        );
    }
}
