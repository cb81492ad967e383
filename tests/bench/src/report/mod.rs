//! What was measured, kept as JSON: every raw pair, medians, targets, and the conditions. The same type
//! is read back, to be shown again or compared with.
//!
//! Deliberately absent: words and columns for people ([`table`], [`markdown`], [`against`]).

pub(crate) mod against;
mod conditions;
pub(crate) mod markdown;
mod statistics;
pub(crate) mod table;

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub(crate) use conditions::Conditions;
pub(crate) use statistics::{Spread, Summary, summaries};

use crate::figures::{self, Pair};
use crate::rows::{Bound, Measure, Row, Target};
use crate::session::Measured;

/// Of the JSON; another number is another shape.
const FORMAT: u32 = 1;
/// A client that keeps a core this busy may be what bounds the rate.
const BUSY: f64 = 0.9;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Output {
    #[default]
    Table,
    Json,
    /// The table of `core/docs/performance.md`.
    Markdown,
}

/// All rows of one session.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) format: u32,
    pub(crate) conditions: Conditions,
    pub(crate) rows: Vec<RowReport>,
}

/// One row.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct RowReport {
    pub(crate) row: String,
    pub(crate) what: String,
    /// What stands beside the product; empty when nothing does.
    pub(crate) ceiling: String,
    /// Why there are no figures.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) not_available: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) failed: Option<String>,
    /// What was done.
    #[serde(default)]
    pub(crate) load: Value,
    #[serde(default)]
    pub(crate) targets: Vec<TargetReport>,
    /// By figure.
    #[serde(default)]
    pub(crate) medians: BTreeMap<String, Summary>,
    #[serde(default)]
    pub(crate) notes: Vec<String>,
    #[serde(default)]
    pub(crate) pairs: Vec<Pair>,
    /// The short pair in which system calls were counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) counted: Option<Pair>,
}

/// A target and what was reached.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct TargetReport {
    pub(crate) metric: String,
    /// Of the ratio to the ceiling, not of the figure itself.
    pub(crate) of_ratio: bool,
    pub(crate) at_least: Option<f64>,
    pub(crate) at_most: Option<f64>,
    /// Nothing when the figure was not measured.
    pub(crate) reached: Option<f64>,
    pub(crate) met: bool,
}

impl Report {
    pub(crate) fn new(conditions: Conditions) -> Self {
        Self {
            format: FORMAT,
            conditions,
            rows: Vec::new(),
        }
    }

    /// One that was saved.
    pub(crate) fn load(path: &Path) -> Result<Self> {
        let shown = path.display();
        let text = std::fs::read(path).with_context(|| format!("cannot read {shown}"))?;
        let report: Self =
            serde_json::from_slice(&text).with_context(|| format!("{shown} is no such report"))?;
        ensure!(
            report.format == FORMAT,
            "{shown} has format {}, this program reads {FORMAT}",
            report.format
        );
        Ok(report)
    }

    pub(crate) fn save(&self, path: &Path) -> Result<()> {
        let json = serde_json::to_string_pretty(self)?;
        std::fs::write(path, json + "\n")
            .with_context(|| format!("cannot write {}", path.display()))
    }

    pub(crate) fn print(&self, output: Output) -> Result<()> {
        match output {
            Output::Json => println!("{}", serde_json::to_string_pretty(self)?),
            Output::Table => print!("{}", table::of(self)),
            Output::Markdown => print!("{}", markdown::of(self)),
        }
        Ok(())
    }
}

impl RowReport {
    /// What became of a row.
    pub(crate) fn new(row: &Row, outcome: Result<Measured>) -> Self {
        let mut report = Self {
            row: row.name.to_owned(),
            what: row.what.to_owned(),
            ceiling: row.ceiling.to_owned(),
            ..Self::default()
        };
        if let Measure::NotYet(why) = row.measure {
            report.not_available = Some(why.to_owned());
            return report;
        }
        match outcome {
            Err(error) => report.failed = Some(format!("{error:#}")),
            Ok(measured) => {
                report.medians = summaries(&measured.pairs, measured.counted.as_ref());
                report.targets = row
                    .targets
                    .iter()
                    .map(|target| TargetReport::new(target, &report.medians))
                    .collect();
                report.load = measured.load;
                report.notes = measured.notes;
                report.notes.extend(client_is_busy(&report.medians));
                report.pairs = measured.pairs;
                report.counted = measured.counted;
            }
        }
        report
    }
}

impl TargetReport {
    fn new(target: &Target, medians: &BTreeMap<String, Summary>) -> Self {
        let (of_ratio, at_least, at_most) = match target.bound {
            Bound::RatioAtLeast(bound) => (true, Some(bound), None),
            Bound::RatioAtMost(bound) => (true, None, Some(bound)),
            Bound::AtLeast(bound) => (false, Some(bound), None),
            Bound::AtMost(bound) => (false, None, Some(bound)),
        };
        let reached = medians.get(target.metric).and_then(|summary| {
            if of_ratio {
                summary.ratio.map(|ratio| ratio.median)
            } else {
                Some(summary.product.median)
            }
        });
        let met = reached.is_some_and(|reached| {
            at_least.is_none_or(|bound| reached >= bound)
                && at_most.is_none_or(|bound| reached <= bound)
        });
        Self {
            metric: target.metric.to_owned(),
            of_ratio,
            at_least,
            at_most,
            reached,
            met,
        }
    }

    /// `MB/s ≥ 80 %`
    pub(crate) fn bound(&self) -> String {
        let (sign, bound) = match (self.at_least, self.at_most) {
            (Some(bound), _) => ("≥", bound),
            (None, bound) => ("≤", bound.unwrap_or(f64::NAN)),
        };
        format!("{} {sign} {}", self.label(), self.value(bound))
    }

    /// What was reached, as the bound is written.
    pub(crate) fn reached(&self) -> String {
        self.reached
            .map_or_else(|| "not measured".to_owned(), |value| self.value(value))
    }

    fn label(&self) -> &str {
        figures::find(&self.metric).map_or(&self.metric, |metric| metric.label)
    }

    fn value(&self, value: f64) -> String {
        if self.of_ratio {
            return format!("{:.0} %", value * 100.0);
        }
        let digits = figures::find(&self.metric).map_or(2, |metric| metric.digits);
        number(value, digits)
    }
}

/// Whether the client, rather than the broker, may be what bounds the product's rate.
fn client_is_busy(medians: &BTreeMap<String, Summary>) -> Option<String> {
    let median = |name: &str| medians.get(name).map(|summary| summary.product.median);
    let (client, broker) = (median("client_cores")?, median("cores")?);
    (client >= BUSY && client > broker).then(|| {
        format!(
            "the client kept {client:.2} cores busy and the broker {broker:.2}: the client bounds this rate"
        )
    })
}

/// A number with its thousands apart.
pub(crate) fn number(value: f64, digits: usize) -> String {
    let text = format!("{value:.digits$}");
    let (whole, fraction) = text.split_once('.').unwrap_or((&text, ""));
    let (sign, whole) = whole.strip_prefix('-').map_or(("", whole), |w| ("-", w));
    let mut grouped = String::new();
    for (at, digit) in whole.chars().enumerate() {
        if at > 0 && (whole.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    let point = if fraction.is_empty() { "" } else { "." };
    format!("{sign}{grouped}{point}{fraction}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures::Run;
    use crate::rows;

    /// A report of the row `produce` with these rates of ceiling and product.
    pub(crate) fn report(rates: &[(f64, f64)]) -> Report {
        let run = |mb_per_s: f64, cpu: f64| {
            let mut run = Run::default();
            run.set("mb_per_s", mb_per_s);
            run.set("cpu_s_per_gb", cpu);
            run.set("cores", 0.5);
            run.set("client_cores", 0.95);
            run
        };
        let pairs = rates
            .iter()
            .map(|(ceiling, product)| Pair {
                ceiling: Some(run(*ceiling, 1.0)),
                product: run(*product, 1.5),
            })
            .collect();
        let measured = Measured {
            pairs,
            ..Measured::default()
        };
        let row = rows::find("produce").expect("it is a row");
        let mut report = Report::new(Conditions::default());
        report.rows.push(RowReport::new(row, Ok(measured)));
        let row = rows::find("process").expect("it is a row");
        report
            .rows
            .push(RowReport::new(row, Ok(Measured::default())));
        report
    }

    #[test]
    fn targets_are_met_or_missed() {
        let report = report(&[(100.0, 80.0), (10.0, 9.0), (120.0, 60.0)]);
        let row = &report.rows[0];
        assert_eq!(row.targets.len(), 2);
        assert_eq!(row.targets[0].bound(), "MB/s ≥ 80 %");
        assert_eq!(row.targets[0].reached(), "80 %");
        assert!(row.targets[0].met);
        assert_eq!(row.targets[1].bound(), "CPU-s/GB ≤ 125 %");
        assert!(!row.targets[1].met, "150 %");
        assert_eq!(row.notes.len(), 1, "the client is the busier one");
        assert!(report.rows[1].not_available.is_some());
    }

    #[test]
    fn a_report_is_read_as_it_was_written() {
        let written = report(&[(100.0, 80.0)]);
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("report.json");
        written.save(&path).expect("it is written");
        let read = Report::load(&path).expect("it is read");
        assert_eq!(
            serde_json::to_value(&written).expect("JSON"),
            serde_json::to_value(&read).expect("JSON")
        );
        std::fs::write(&path, r#"{"format": 9, "conditions": {}, "rows": []}"#).expect("written");
        assert!(Report::load(&path).is_err(), "another format");
    }

    #[test]
    fn thousands_stand_apart() {
        assert_eq!(number(1234567.891, 1), "1,234,567.9");
        assert_eq!(number(-1000.0, 0), "-1,000");
        assert_eq!(number(999.0, 0), "999");
    }
}
