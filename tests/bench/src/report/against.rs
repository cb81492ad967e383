//! A report beside an earlier one: what changed, and whether that is more than noise.
//!
//! Where a row has a ceiling its ratio is compared, because another day's machine is another machine;
//! else the figure itself. A change within the spread of either run says nothing.

use super::{Report, RowReport, Spread};
use crate::figures::{self, Better};
use crate::rows;

/// One figure of a row, then and now.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) row: String,
    pub(crate) metric: String,
    /// Of the ratio to the ceiling, not of the figure itself.
    pub(crate) of_ratio: bool,
    pub(crate) then: f64,
    pub(crate) now: f64,
    /// Above 0: better. As a part of what it was.
    pub(crate) gain: f64,
    /// As far off a value may be by chance: the wider of the two runs' spreads.
    pub(crate) noise: f64,
    /// Something else was done then.
    pub(crate) other_load: bool,
}

impl Change {
    pub(crate) fn is_noise(&self) -> bool {
        self.gain.abs() <= self.noise
    }

    /// Worse by more than so many percent, and by more than noise.
    pub(crate) fn is_regression(&self, percent: f64) -> bool {
        !self.other_load && !self.is_noise() && self.gain < -percent / 100.0
    }
}

/// The figures that rows are about, in rows that both reports have.
pub(crate) fn changes(then: &Report, now: &Report) -> Vec<Change> {
    let mut changes = Vec::new();
    for row in &now.rows {
        if let Some(earlier) = then.rows.iter().find(|earlier| earlier.row == row.row) {
            changes.extend(changes_of(earlier, row));
        }
    }
    changes
}

fn changes_of(then: &RowReport, now: &RowReport) -> Vec<Change> {
    let mut names: Vec<&str> = now.targets.iter().map(|t| t.metric.as_str()).collect();
    if let Some(row) = rows::find(&now.row) {
        names.extend(
            row.shown
                .iter()
                .filter(|name| !names.contains(name))
                .copied()
                .collect::<Vec<_>>(),
        );
    }
    let other_load = then.load != now.load;
    let change = |name: &str| {
        let better = figures::find(name)?.better;
        let (then, now_) = (then.medians.get(name)?, now.medians.get(name)?);
        let absolute = now.targets.iter().any(|t| t.metric == name && !t.of_ratio);
        let (of_ratio, then, now_): (bool, Spread, Spread) = match (then.ratio, now_.ratio) {
            (Some(then), Some(now_)) if !absolute => (true, then, now_),
            _ => (false, then.product, now_.product),
        };
        let rise = now_.median / then.median - 1.0;
        let gain = match better {
            Better::More => rise,
            Better::Less => -rise,
            Better::Neither => return None,
        };
        gain.is_finite().then(|| Change {
            row: now.row.clone(),
            metric: name.to_owned(),
            of_ratio,
            then: then.median,
            now: now_.median,
            gain,
            noise: then.band().max(now_.band()),
            other_load,
        })
    };
    names.into_iter().filter_map(change).collect()
}

/// The changes as a table for people.
pub(crate) fn table(changes: &[Change]) -> String {
    let mut text = format!(
        "{:<28}{:<32}{:>14}{:>14}{:>10}{:>10}\n",
        "row", "figure", "then", "now", "change", "noise"
    );
    for change in changes {
        let metric = figures::find(&change.metric);
        let (label, digits) = metric.map_or((change.metric.as_str(), 2), |m| (m.label, m.digits));
        let value = |value: f64| {
            if change.of_ratio {
                format!("{:.1} %", value * 100.0)
            } else {
                super::number(value, digits)
            }
        };
        let verdict = match change.is_noise() {
            _ if change.other_load => "another load",
            true => "",
            false if change.gain > 0.0 => "better",
            false => "WORSE",
        };
        text.push_str(&format!(
            "{:<28}{:<32}{:>14}{:>14}{:>+9.1}%{:>9.1}%  {verdict}\n",
            change.row,
            if change.of_ratio {
                format!("{label}, ratio")
            } else {
                label.to_owned()
            },
            value(change.then),
            value(change.now),
            (change.now / change.then - 1.0) * 100.0,
            change.noise * 100.0,
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::tests::report;
    use super::*;

    #[test]
    fn a_change_past_the_noise_is_told() {
        let then = report(&[(100.0, 80.0), (100.0, 82.0), (100.0, 78.0)]);
        let same = report(&[(50.0, 40.5), (50.0, 40.5), (50.0, 40.5)]);
        let changes = changes(&then, &same);
        assert!(changes[0].of_ratio && changes[0].is_noise(), "{changes:?}");
        assert!(!changes[0].is_regression(0.0));

        let worse = report(&[(100.0, 60.0), (100.0, 61.0), (100.0, 59.0)]);
        let changes = super::changes(&then, &worse);
        assert!((changes[0].gain + 0.25).abs() < 1e-9, "{changes:?}");
        assert!(changes[0].is_regression(20.0) && !changes[0].is_regression(30.0));
        assert!(table(&changes).contains("WORSE"));

        let better = super::changes(&worse, &then);
        assert!(better[0].gain > 0.0 && !better[0].is_regression(0.0));
    }

    #[test]
    fn another_load_is_no_regression() {
        let then = report(&[(100.0, 80.0)]);
        let mut now = report(&[(100.0, 40.0)]);
        assert!(changes(&then, &now)[0].is_regression(20.0));
        now.rows[0].load = serde_json::json!({ "records": 7 });
        let changes = changes(&then, &now);
        assert!(!changes[0].is_regression(20.0), "{changes:?}");
        assert!(table(&changes).contains("another load"));
    }

    #[test]
    fn less_cpu_is_better() {
        let then = report(&[(100.0, 80.0)]);
        let mut now = then.clone();
        let ratio = now.rows[0]
            .medians
            .get_mut("cpu_s_per_gb")
            .expect("it is there");
        ratio.ratio = Some(Spread {
            median: 1.0,
            min: 1.0,
            max: 1.0,
        });
        let changes = changes(&then, &now);
        let cpu = changes.iter().find(|c| c.metric == "cpu_s_per_gb");
        assert!(cpu.expect("it is compared").gain > 0.0);
    }
}
