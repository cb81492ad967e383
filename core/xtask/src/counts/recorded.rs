//! What was counted when someone last looked and agreed: the file, the comparison, the acceptance.
//!
//! ```json
//! { "conditions": { "rustc": "…", … },
//!   "rows": { "batch-check": { "operation": "…", "instructions": 490.1,
//!                              "history": [ { "instructions": 490.1, "reason": "…" } ] } } }
//! ```
//! Absent on purpose: dates and authors; the repository knows them.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use super::Count;

/// Change in percent, either way, that needs a reason.
const TOLERANCE: f64 = 5.0;
/// The same under other conditions: a warning only.
const TOLERANCE_ELSEWHERE: f64 = 25.0;

/// What counts depend on beside the code, by name: compiler, target, processor, libc, valgrind.
pub(super) type Conditions = BTreeMap<String, String>;

/// The file.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Recorded {
    conditions: Conditions,
    rows: BTreeMap<String, Row>,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Row {
    operation: String,
    instructions: f64,
    /// Oldest first; the last one is what holds.
    history: Vec<(f64, String)>,
}

/// The comparison of one run.
#[derive(Debug, Default)]
pub(super) struct Report {
    lines: Vec<[String; 5]>,
    notes: Vec<String>,
    failed: Vec<String>,
}

impl Recorded {
    /// The file at `path`; empty when there is none yet.
    pub(super) fn read(path: &Path) -> Result<Self> {
        if !path.exists() {
            return Ok(Self::default());
        }
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&text)
            .with_context(|| format!("{} is not what `--accept` writes", path.display()))
    }

    fn parse(text: &str) -> Result<Self> {
        let value: Value = serde_json::from_str(text)?;
        let text = |value: &Value| value.as_str().map(str::to_owned).context("a text");
        let object = |name: &str| value[name].as_object().with_context(|| format!("`{name}`"));
        let mut recorded = Self::default();
        for (name, value) in object("conditions")? {
            recorded.conditions.insert(name.clone(), text(value)?);
        }
        for (name, row) in object("rows")? {
            let mut history = Vec::new();
            for past in row["history"].as_array().context("`history`")? {
                let instructions = past["instructions"].as_f64().context("`instructions`")?;
                history.push((instructions, text(&past["reason"])?));
            }
            let row = Row {
                operation: text(&row["operation"])?,
                instructions: row["instructions"].as_f64().context("`instructions`")?,
                history,
            };
            recorded.rows.insert(name.clone(), row);
        }
        Ok(recorded)
    }

    pub(super) fn write(&self, path: &Path) -> Result<()> {
        std::fs::write(path, self.to_text()?)
            .with_context(|| format!("cannot write {}", path.display()))
    }

    fn to_text(&self) -> Result<String> {
        let past = |(instructions, reason): &(f64, String)| json!({"instructions": instructions, "reason": reason});
        let row = |row: &Row| {
            json!({
                "operation": row.operation,
                "instructions": row.instructions,
                "history": row.history.iter().map(past).collect::<Vec<_>>(),
            })
        };
        let rows: BTreeMap<&str, Value> = self
            .rows
            .iter()
            .map(|(name, r)| (name.as_str(), row(r)))
            .collect();
        let value = json!({"conditions": self.conditions, "rows": rows});
        Ok(serde_json::to_string_pretty(&value)? + "\n")
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.rows.keys().map(String::as_str)
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.rows.contains_key(name)
    }

    /// Take over what was counted. Rows in `gone` are there no more. `all`: every row was counted.
    pub(super) fn accept(
        &mut self,
        conditions: &Conditions,
        counts: &[Count],
        gone: &[String],
        reason: &str,
        all: bool,
    ) -> Result<()> {
        if !all && !self.rows.is_empty() && *conditions != self.conditions {
            bail!(
                "{}: one row cannot be recorded under conditions of its own; `--accept all` records every row",
                self.elsewhere(conditions)
            );
        }
        self.conditions.clone_from(conditions);
        for count in counts {
            let row = self.rows.entry(count.row.clone()).or_default();
            row.operation.clone_from(&count.operation);
            row.instructions = count.instructions;
            row.history
                .push((count.instructions, reason.trim().to_owned()));
        }
        for name in gone {
            self.rows.remove(name);
        }
        Ok(())
    }

    /// Compare. Rows in `missing` are recorded and were not found.
    pub(super) fn judge(
        &self,
        conditions: &Conditions,
        counts: &[Count],
        missing: &[String],
    ) -> Report {
        let mut report = Report::default();
        let is_elsewhere = !self.rows.is_empty() && *conditions != self.conditions;
        if is_elsewhere {
            report.notes.push(format!(
                "{}: a change up to {TOLERANCE_ELSEWHERE} % is no news then, and nothing fails; to record every row \
                 under these: cargo xtask counts --accept all --reason \"why\"",
                self.elsewhere(conditions)
            ));
        }
        for count in counts {
            let recorded = self.rows.get(&count.row).map(|row| row.instructions);
            let change =
                recorded.map(|recorded| (count.instructions - recorded) / recorded * 100.0);
            let tolerance = if is_elsewhere {
                TOLERANCE_ELSEWHERE
            } else {
                TOLERANCE
            };
            let verdict = match change {
                None => "NEW",
                Some(change) if change.abs() <= tolerance => "",
                Some(_) if is_elsewhere => "warning",
                Some(_) => "CHANGED",
            };
            if matches!(verdict, "NEW" | "CHANGED") {
                report.failed.push(count.row.clone());
            }
            report.line(
                &count.row,
                recorded,
                Some(count.instructions),
                change,
                verdict,
            );
        }
        for name in missing {
            let recorded = self.rows.get(name).map(|row| row.instructions);
            report.line(name, recorded, None, None, "GONE");
            report.failed.push(name.clone());
        }
        report
    }

    /// In words, how these conditions differ from the recorded ones.
    fn elsewhere(&self, conditions: &Conditions) -> String {
        let none = String::new();
        let of =
            |conditions: &Conditions, name: &str| conditions.get(name).unwrap_or(&none).clone();
        let names = conditions.keys().chain(self.conditions.keys());
        let mut differences: Vec<String> = names
            .filter(|name| conditions.get(*name) != self.conditions.get(*name))
            .map(|name| {
                format!(
                    "{name} is `{}`, recorded under `{}`",
                    of(conditions, name),
                    of(&self.conditions, name)
                )
            })
            .collect();
        differences.dedup();
        differences.join("; ")
    }
}

impl Report {
    /// Rows that need a reason.
    pub(super) fn failed(&self) -> &[String] {
        &self.failed
    }

    fn line(
        &mut self,
        row: &str,
        recorded: Option<f64>,
        now: Option<f64>,
        change: Option<f64>,
        verdict: &str,
    ) {
        let number = |n: Option<f64>| n.map_or_else(|| "-".to_owned(), |n| format!("{n:.1}"));
        let change = change.map_or_else(|| "-".to_owned(), |c| format!("{c:+.1}"));
        self.lines.push([
            row.to_owned(),
            number(recorded),
            number(now),
            change,
            verdict.to_owned(),
        ]);
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<24}{:>12}{:>12}{:>10}",
            "instructions", "recorded", "now", "change %"
        )?;
        for [row, recorded, now, change, verdict] in &self.lines {
            let line = format!("{row:<24}{recorded:>12}{now:>12}{change:>10}  {verdict}");
            writeln!(f, "{}", line.trim_end())?;
        }
        for note in &self.notes {
            writeln!(f, "{note}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn here(rustc: &str) -> Conditions {
        Conditions::from([("rustc".to_owned(), rustc.to_owned())])
    }

    fn count(row: &str, instructions: f64) -> Count {
        Count {
            row: row.to_owned(),
            operation: "batch".to_owned(),
            instructions,
        }
    }

    fn recorded() -> Recorded {
        let mut recorded = Recorded::default();
        let counts = [count("a", 1_000.0), count("b", 247.7)];
        recorded
            .accept(&here("1"), &counts, &[], "first count", false)
            .expect("an empty file takes any");
        recorded
    }

    #[test]
    fn a_change_past_five_percent_fails_either_way() {
        let recorded = recorded();
        for (now, fails) in [
            (1_050.0, false),
            (950.0, false),
            (1_051.0, true),
            (949.0, true),
        ] {
            let report = recorded.judge(&here("1"), &[count("a", now)], &[]);
            assert_eq!(!report.failed().is_empty(), fails, "{now}");
        }
        let report = recorded
            .judge(&here("1"), &[count("a", 1_100.0)], &[])
            .to_string();
        assert!(
            report.contains("1000.0      1100.0     +10.0  CHANGED"),
            "{report}"
        );
    }

    #[test]
    fn new_and_lost_rows_need_a_reason() {
        let report = recorded().judge(&here("1"), &[count("c", 1.0)], &["b".to_owned()]);
        assert_eq!(report.failed(), ["c", "b"]);
    }

    #[test]
    fn another_compiler_warns_and_does_not_fail() {
        let report = recorded().judge(&here("2"), &[count("a", 1_300.0), count("b", 250.0)], &[]);
        assert!(report.failed().is_empty());
        let text = report.to_string();
        assert!(
            text.contains("rustc is `2`, recorded under `1`")
                && text.matches("warning").count() == 1,
            "{text}"
        );
    }

    #[test]
    fn accepting_keeps_the_history_and_the_conditions_together() {
        let mut recorded = recorded();
        recorded
            .accept(
                &here("1"),
                &[count("a", 900.0)],
                &["b".to_owned()],
                "one copy less",
                false,
            )
            .expect("the same conditions");
        assert_eq!(
            recorded.rows["a"].history,
            [
                (1_000.0, "first count".to_owned()),
                (900.0, "one copy less".to_owned())
            ]
        );
        assert!(!recorded.has("b"));
        let before = recorded.clone();
        assert!(
            recorded
                .accept(&here("2"), &[count("a", 1.0)], &[], "why", false)
                .is_err()
        );
        assert_eq!(recorded, before);
        recorded
            .accept(&here("2"), &[count("a", 1.0)], &[], "rustc 2", true)
            .expect("all rows");
        assert_eq!(recorded.conditions, here("2"));
    }

    #[test]
    fn the_file_reads_back_as_it_was_written() {
        let recorded = recorded();
        let text = recorded.to_text().expect("it can be written");
        assert_eq!(Recorded::parse(&text).expect("our own text"), recorded);
        assert!(Recorded::parse("{}").is_err());
    }
}
