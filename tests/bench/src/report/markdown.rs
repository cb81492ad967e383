//! The result table of `core/docs/performance.md`, exactly as it stands there.

use super::{Report, RowReport, TargetReport, number};
use crate::figures::{self, METRICS};
use crate::rows;

/// One line a row and target; rows without a target show what they are about.
pub(crate) fn of(report: &Report) -> String {
    let mut text = String::from(
        "| row | figure | ceiling | reached | ratio (spread) | target | |\n|---|---|---|---|---|---|---|\n",
    );
    for row in &report.rows {
        if let Some(why) = row.not_available.as_ref().or(row.failed.as_ref()) {
            let word = if row.failed.is_some() {
                "failed"
            } else {
                "not available"
            };
            let why = why.replace('|', "/").replace('\n', " ");
            text.push_str(&format!("| `{}` | {word}: {why} | | | | | |\n", row.row));
            continue;
        }
        let mut name = format!("`{}`", row.row);
        for target in &row.targets {
            text.push_str(&line(&name, row, &target.metric, Some(target)));
            name.clear();
        }
        let shown = rows::find(&row.row).map_or(&[][..], |row| row.shown);
        for metric in shown {
            if row.medians.contains_key(*metric) {
                text.push_str(&line(&name, row, metric, None));
                name.clear();
            }
        }
    }
    text.push_str(&format!("\n{}.\n\n", report.conditions.line()));
    text.push_str(&costs(report));
    text
}

fn line(name: &str, row: &RowReport, metric: &str, target: Option<&TargetReport>) -> String {
    let kind = figures::find(metric);
    let (label, digits) = kind.map_or((metric, 2), |kind| (kind.label, kind.digits));
    let summary = row.medians.get(metric);
    let ceiling = summary.and_then(|summary| summary.ceiling);
    let product = summary.map(|summary| summary.product);
    let ratio = summary
        .and_then(|summary| summary.ratio)
        .map_or_else(String::new, |ratio| {
            format!(
                "{:.0} % ({:.0} to {:.0})",
                ratio.median * 100.0,
                ratio.min * 100.0,
                ratio.max * 100.0
            )
        });
    let cell = |spread: Option<super::Spread>| {
        spread.map_or_else(String::new, |spread| number(spread.median, digits))
    };
    let bound = target.map_or_else(String::new, TargetReport::bound);
    let verdict = match target {
        None => "",
        Some(target) if target.met => "met",
        Some(_) => "**missed**",
    };
    format!(
        "| {name} | {label} | {} | {} | {ratio} | {bound} | {verdict} |\n",
        cell(ceiling),
        cell(product)
    )
}

/// What a batch costs the broker, row by row.
fn costs(report: &Report) -> String {
    const COLUMNS: &[&str] = &[
        "cpu_s_per_gb",
        "cpu_s_per_million",
        "syscalls_per_batch",
        "switches_per_batch",
        "rss_peak_mib",
        "cores",
        "client_cores",
    ];
    let metrics: Vec<_> = METRICS
        .iter()
        .filter(|metric| COLUMNS.contains(&metric.name))
        .collect();
    let mut text = String::from("| row, product (ceiling) |");
    for metric in &metrics {
        text.push_str(&format!(" {} |", metric.label));
    }
    text.push_str(&format!("\n|---|{}\n", "---|".repeat(metrics.len())));
    for row in &report.rows {
        if !row.medians.contains_key("cpu_s_per_gb") {
            continue;
        }
        text.push_str(&format!("| `{}` |", row.row));
        for metric in &metrics {
            let digits = metric.digits;
            let cell = row.medians.get(metric.name).map_or_else(
                || "not counted".to_owned(),
                |summary| {
                    let product = number(summary.product.median, digits);
                    match summary.ceiling {
                        None => product,
                        Some(ceiling) => format!("{product} ({})", number(ceiling.median, digits)),
                    }
                },
            );
            text.push_str(&format!(" {cell} |"));
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::tests::report;

    #[test]
    fn every_line_of_a_table_has_as_many_cells() {
        let text = super::of(&report(&[(1000.0, 900.0)]));
        let tables: Vec<&str> = text.split("\n\n").filter(|t| t.starts_with('|')).collect();
        assert_eq!(tables.len(), 2, "{text}");
        for table in tables {
            let cells: Vec<usize> = table.lines().map(|l| l.matches('|').count()).collect();
            assert!(cells.windows(2).all(|two| two[0] == two[1]), "{table}");
        }
        assert!(
            text.contains(
                "| `produce` | MB/s | 1,000.0 | 900.0 | 90 % (90 to 90) | MB/s ≥ 80 % | met |"
            ),
            "{text}"
        );
        assert!(text.contains("**missed**"), "{text}");
    }
}
