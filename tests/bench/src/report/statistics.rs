//! Medians and spreads of a row's pairs.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::figures::{METRICS, Pair, Run};

/// The middle and the ends of some values.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

/// One figure of a row.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Summary {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ceiling: Option<Spread>,
    pub(crate) product: Spread,
    /// Of the pairs' ratios, product / ceiling: a slow minute hits both programs of a pair.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ratio: Option<Spread>,
}

impl Spread {
    /// Of at least one value.
    pub(crate) fn of(values: impl Iterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        Some(Self {
            median: median(&values)?,
            min: *values.first()?,
            max: *values.last()?,
        })
    }

    /// Half of the way from end to end, as a part of the median: how far a single value may be off.
    pub(crate) fn band(&self) -> f64 {
        if self.median == 0.0 {
            return 0.0;
        }
        (self.max - self.min) / 2.0 / self.median.abs()
    }
}

/// What only the counting pair tells: the rest of it is of a short run that was slowed.
const COUNTED: &[&str] = &["syscalls_per_batch", "idle_syscalls_per_s"];

/// By figure.
pub(crate) fn summaries(pairs: &[Pair], counted: Option<&Pair>) -> BTreeMap<String, Summary> {
    let mut all = BTreeMap::new();
    for metric in METRICS {
        let counted = counted.filter(|_| COUNTED.contains(&metric.name));
        let found = match counted {
            Some(pair) => summary(std::slice::from_ref(pair), metric.name),
            None => summary(pairs, metric.name),
        };
        if let Some(found) = found {
            all.insert(metric.name.to_owned(), found);
        }
    }
    all
}

fn summary(pairs: &[Pair], name: &str) -> Option<Summary> {
    let ceiling = |pair: &Pair| pair.ceiling.as_ref().and_then(|run: &Run| run.get(name));
    let product = |pair: &Pair| pair.product.get(name);
    Some(Summary {
        ceiling: Spread::of(pairs.iter().filter_map(ceiling)),
        product: Spread::of(pairs.iter().filter_map(product))?,
        ratio: Spread::of(pairs.iter().filter_map(|pair| {
            let ratio = product(pair)? / ceiling(pair)?;
            ratio.is_finite().then_some(ratio)
        })),
    })
}

/// Of sorted values; the mean of the middle two when their number is even.
fn median(sorted: &[f64]) -> Option<f64> {
    let half = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        n if n % 2 == 1 => Some(sorted[half]),
        _ => Some(f64::midpoint(sorted[half - 1], sorted[half])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(ceiling: f64, product: f64) -> Pair {
        let run = |value| {
            let mut run = Run::default();
            run.set("mb_per_s", value);
            run
        };
        Pair {
            ceiling: Some(run(ceiling)),
            product: run(product),
        }
    }

    #[test]
    fn the_ratio_is_the_median_of_the_pairs() {
        // A slow minute hits both programs of its pair.
        let pairs = [(100.0, 80.0), (10.0, 9.0), (120.0, 60.0)].map(|(c, p)| pair(c, p));
        let found = summaries(&pairs, None)["mb_per_s"];
        let ratio = found.ratio.expect("there is a ceiling");
        assert!((ratio.median - 0.8).abs() < 1e-9);
        assert!((ratio.min - 0.5).abs() < 1e-9 && (ratio.max - 0.9).abs() < 1e-9);
        assert!((found.product.median - 60.0).abs() < 1e-9);
        assert!((ratio.band() - 0.25).abs() < 1e-9);
    }

    #[test]
    fn an_even_number_has_a_median_too() {
        assert_eq!(median(&[1.0, 2.0, 4.0, 8.0]), Some(3.0));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn counted_figures_fill_the_gaps_only() {
        let mut counted = pair(1.0, 1.0);
        counted.product.set("syscalls_per_batch", 3.0);
        let all = summaries(&[pair(100.0, 80.0)], Some(&counted));
        assert_eq!(all["syscalls_per_batch"].product.median, 3.0);
        assert_eq!(all["syscalls_per_batch"].ratio, None);
        assert_eq!(all["mb_per_s"].product.median, 80.0);
    }
}
