//! Figures, as a table for people and as JSON for programs. MB and GB are powers of ten; rates are
//! all records over all time.

use anyhow::Result;
use hdrhistogram::Histogram;
use serde::Serialize;
use serde_json::{Value, json};

use crate::Load;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Output {
    #[default]
    Table,
    Json,
}

/// One run of one program.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Run {
    pub(crate) records_per_s: f64,
    pub(crate) mb_per_s: f64,
    /// From handing a batch over to its durable acknowledgement.
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    /// CPU seconds of the receiving process for each GB of record values.
    pub(crate) cpu_s_per_gb: f64,
}

impl Run {
    pub(crate) fn new(
        load: &Load,
        seconds: f64,
        latencies_us: &Histogram<u64>,
        cpu_seconds: f64,
    ) -> Self {
        let records = (load.batches() * load.batch) as f64;
        let bytes = records * load.size as f64;
        Self {
            records_per_s: records / seconds,
            mb_per_s: bytes / 1e6 / seconds,
            p50_ms: latencies_us.value_at_quantile(0.5) as f64 / 1e3,
            p99_ms: latencies_us.value_at_quantile(0.99) as f64 / 1e3,
            cpu_s_per_gb: cpu_seconds / (bytes / 1e9),
        }
    }

    /// Label, name in JSON, digits and value of each figure, in the order they are printed.
    fn figures(&self) -> [(&'static str, &'static str, usize, f64); 5] {
        [
            ("records/s", "records_per_s", 0, self.records_per_s),
            ("MB/s", "mb_per_s", 1, self.mb_per_s),
            ("p50 ms", "p50_ms", 2, self.p50_ms),
            ("p99 ms", "p99_ms", 2, self.p99_ms),
            ("CPU-s/GB", "cpu_s_per_gb", 2, self.cpu_s_per_gb),
        ]
    }
}

/// A ceiling run and the product's run right after it.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Pair {
    pub(crate) ceiling: Run,
    pub(crate) product: Run,
}

/// Print one run.
pub(crate) fn one(name: &str, run: &Run, output: Output) -> Result<()> {
    match output {
        Output::Json => println!("{}", serde_json::to_string(run)?),
        Output::Table => {
            let figures = run
                .figures()
                .map(|(what, _, digits, value)| format!("{value:.digits$} {what}"));
            println!("{name}: {}", figures.join(", "));
        }
    }
    Ok(())
}

/// Print pairs: medians, the median of the pairs' ratios, and their spread.
pub(crate) fn pairs(load: &Load, pairs: &[Pair], output: Output) -> Result<()> {
    if output == Output::Json {
        println!("{}", serde_json::to_string_pretty(&summary(load, pairs))?);
        return Ok(());
    }
    println!(
        "durable produce, {} x {} B a batch, {} in flight, MTU {}, {} pairs",
        load.batch,
        load.size,
        load.in_flight,
        load.mtu,
        pairs.len()
    );
    println!(
        "{:<12}{:>12}{:>12}{:>10}   spread",
        "", "ceiling", "product", "ratio"
    );
    for row in rows(pairs) {
        let digits = row.digits;
        println!(
            "{:<12}{:>12.digits$}{:>12.digits$}{:>9.0}%   {:.0}% to {:.0}%",
            row.what,
            row.ceiling,
            row.product,
            row.ratio * 100.0,
            row.lowest * 100.0,
            row.highest * 100.0
        );
    }
    Ok(())
}

struct Row {
    what: &'static str,
    name: &'static str,
    digits: usize,
    ceiling: f64,
    product: f64,
    ratio: f64,
    lowest: f64,
    highest: f64,
}

fn rows(pairs: &[Pair]) -> Vec<Row> {
    let Some(first) = pairs.first() else {
        return Vec::new();
    };
    let of = |run: &Run, figure: usize| run.figures()[figure].3;
    first
        .ceiling
        .figures()
        .iter()
        .enumerate()
        .map(|(figure, (what, name, digits, _))| {
            let ratios = sorted(
                pairs
                    .iter()
                    .map(|p| of(&p.product, figure) / of(&p.ceiling, figure)),
            );
            Row {
                what,
                name,
                digits: *digits,
                ceiling: median(&sorted(pairs.iter().map(|p| of(&p.ceiling, figure)))),
                product: median(&sorted(pairs.iter().map(|p| of(&p.product, figure)))),
                ratio: median(&ratios),
                lowest: ratios[0],
                highest: ratios[ratios.len() - 1],
            }
        })
        .collect()
}

fn summary(load: &Load, pairs: &[Pair]) -> Value {
    let rows: serde_json::Map<String, Value> = rows(pairs)
        .into_iter()
        .map(|row| {
            let figures = json!({
                "ceiling": row.ceiling,
                "product": row.product,
                "ratio": row.ratio,
                "ratio_min": row.lowest,
                "ratio_max": row.highest,
            });
            (row.name.to_owned(), figures)
        })
        .collect();
    json!({
        "row": "produce",
        "records": load.records,
        "size": load.size,
        "batch": load.batch,
        "in_flight": load.in_flight,
        "mtu": load.mtu,
        "medians": rows,
        "pairs": pairs,
    })
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

/// Of sorted values; the mean of the middle two when their number is even.
fn median(sorted: &[f64]) -> f64 {
    let half = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[half],
        _ => f64::midpoint(sorted[half - 1], sorted[half]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ratio_is_the_median_of_the_pairs() {
        let run = |mb_per_s| Run {
            mb_per_s,
            records_per_s: 1.0,
            p50_ms: 1.0,
            p99_ms: 1.0,
            cpu_s_per_gb: 1.0,
        };
        // A slow minute hits both programs of its pair.
        let of = [(100.0, 80.0), (10.0, 9.0), (120.0, 60.0)];
        let pairs = of.map(|(ceiling, product)| Pair {
            ceiling: run(ceiling),
            product: run(product),
        });
        let rows = rows(&pairs);
        let row = rows
            .iter()
            .find(|row| row.what == "MB/s")
            .expect("it is there");
        assert!((row.ratio - 0.8).abs() < 1e-9);
        assert!((row.ceiling - 100.0).abs() < 1e-9 && (row.product - 60.0).abs() < 1e-9);
        assert!((row.lowest - 0.5).abs() < 1e-9 && (row.highest - 0.9).abs() < 1e-9);
    }

    #[test]
    fn an_even_number_has_a_median_too() {
        assert!((median(&[1.0, 2.0, 4.0, 8.0]) - 3.0).abs() < 1e-9);
    }
}
