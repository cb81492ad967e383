//! A report for people at a terminal.

use super::{Report, RowReport, Spread, Summary, number};
use crate::figures::{METRICS, Metric};

/// Every row with every figure.
pub(crate) fn of(report: &Report) -> String {
    let mut text = String::new();
    for row in &report.rows {
        text.push_str(&one(row));
        text.push('\n');
    }
    text.push_str(&totals(report));
    text.push_str(&format!("{}\n", report.conditions.line()));
    text
}

/// One row.
pub(crate) fn one(row: &RowReport) -> String {
    let mut text = format!("{}: {}\n", row.row, row.what);
    if let Some(why) = &row.not_available {
        text.push_str(&format!("  not available: {why}\n"));
    }
    if let Some(why) = &row.failed {
        text.push_str(&format!("  FAILED: {why}\n"));
    }
    if row.medians.is_empty() {
        return text;
    }
    if !row.ceiling.is_empty() {
        text.push_str(&format!("  ceiling: {}\n", row.ceiling));
    }
    text.push_str(&format!(
        "  {:<36}{:>14}{:>14}{:>9}   {}\n",
        "median", "ceiling", "product", "ratio", "spread"
    ));
    for metric in METRICS {
        if let Some(summary) = row.medians.get(metric.name) {
            text.push_str(&line(metric, summary));
        }
    }
    for target in &row.targets {
        let verdict = if target.met { "met" } else { "MISSED" };
        text.push_str(&format!(
            "  target {}: {}, {verdict}\n",
            target.bound(),
            target.reached()
        ));
    }
    for note in &row.notes {
        text.push_str(&format!("  note: {note}\n"));
    }
    text
}

fn line(metric: &Metric, summary: &Summary) -> String {
    let digits = metric.digits;
    let ceiling = summary
        .ceiling
        .map_or_else(String::new, |c| number(c.median, digits));
    let ratio = summary
        .ratio
        .map_or_else(String::new, |r| format!("{:.0} %", r.median * 100.0));
    let spread = match (summary.ratio, summary.product) {
        (Some(Spread { min, max, .. }), _) => {
            format!("{:.0} to {:.0} %", min * 100.0, max * 100.0)
        }
        (None, Spread { min, max, .. }) => {
            format!("{} to {}", number(min, digits), number(max, digits))
        }
    };
    format!(
        "  {:<36}{ceiling:>14}{:>14}{ratio:>9}   {spread}\n",
        metric.label,
        number(summary.product.median, digits),
    )
}

fn totals(report: &Report) -> String {
    let targets: Vec<_> = report.rows.iter().flat_map(|row| &row.targets).collect();
    let met = targets.iter().filter(|target| target.met).count();
    let failed = report.rows.iter().filter(|row| row.failed.is_some());
    let mut text = format!("{met} of {} targets met", targets.len());
    for row in failed {
        text.push_str(&format!(", {} FAILED", row.row));
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::super::tests::report;

    #[test]
    fn a_table_has_figures_and_verdicts() {
        let text = super::of(&report(&[(1000.0, 900.0)]));
        assert!(text.contains("1,000.0"), "{text}");
        assert!(text.contains("target MB/s ≥ 80 %: 90 %, met"), "{text}");
        assert!(
            text.contains("target CPU-s/GB ≤ 125 %: 150 %, MISSED"),
            "{text}"
        );
        assert!(text.contains("not available: "), "{text}");
        assert!(text.contains("1 of 2 targets met"), "{text}");
    }
}
