//! What became of each record, by its place in the input.
//!
//! The reading thread sends what it handed to the producer; here the outcomes are waited for in the order of the
//! input. Failures name the line, message or file; with `--offsets` every record gets its words.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use millstream_client::{Deliveries, Error, RecordMetadata};
use serde_json::{Value, json};

use super::reader::Source;
use crate::exit::Outcome;
use crate::output::{Output, grouped, line, note};

/// Failures that are told one by one on stderr.
const TOLD_MAX: usize = 5;
/// Failures that the JSON summary lists.
const LISTED_MAX: usize = 100;
/// Written at once.
const BLOCK_BYTES: usize = 64 << 10;

/// What pieces of the input are called. They are numbered from 1.
#[derive(Clone, Debug)]
pub(super) enum Names {
    Numbered(&'static str),
    Files(Arc<[PathBuf]>),
}

impl Names {
    pub(super) fn of(source: &Source) -> Self {
        match source {
            Source::Cut(cut) if cut.is_lines() => Self::Numbered("line"),
            Source::Cut(_) | Source::Whole => Self::Numbered("record"),
            Source::Messages(_) => Self::Numbered("message"),
            Source::Files(paths) => Self::Files(paths.as_slice().into()),
        }
    }

    fn one(&self, number: u64) -> String {
        match self {
            Self::Numbered(word) => format!("{word} {number}"),
            Self::Files(paths) => self.path(paths, number),
        }
    }

    fn span(&self, first: u64, last: u64) -> String {
        match self {
            _ if first == last => self.one(first),
            Self::Numbered(word) => format!("{word}s {first} to {last}"),
            Self::Files(paths) => {
                format!("{} to {}", self.path(paths, first), self.path(paths, last))
            }
        }
    }

    /// The same for programs: what it is called, and which.
    fn json(&self, number: u64) -> (&'static str, Value) {
        match self {
            Self::Numbered(word) => (word, number.into()),
            Self::Files(paths) => ("file", self.path(paths, number).into()),
        }
    }

    fn path(&self, paths: &[PathBuf], number: u64) -> String {
        paths
            .get(number as usize - 1)
            .map_or_else(String::new, |path| path.display().to_string())
    }
}

/// What failed, as it is found out: the first few are told at once.
#[derive(Debug)]
pub(super) struct Complaints {
    names: Names,
    all: Mutex<All>,
}

#[derive(Debug, Default)]
struct All {
    listed: Vec<Complaint>,
    more: u64,
}

/// Records of the input, from `first` to `last`, and what is wrong with them.
#[derive(Debug)]
struct Complaint {
    first: u64,
    last: u64,
    why: String,
}

impl Complaints {
    pub(super) fn new(names: Names) -> Self {
        Self {
            names,
            all: Mutex::default(),
        }
    }

    pub(super) fn tell(&self, first: u64, last: u64, why: &str) {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        if all.listed.len() < TOLD_MAX {
            note(&format!("{}: {why}", self.names.span(first, last)));
        } else {
            all.more += last - first + 1;
        }
        if all.listed.len() < LISTED_MAX {
            all.listed.push(Complaint {
                first,
                last,
                why: why.to_owned(),
            });
        }
    }

    /// For the summary of programs.
    pub(super) fn json(&self) -> Value {
        let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.listed
            .iter()
            .map(|complaint| {
                let (word, first) = self.names.json(complaint.first);
                let mut object = json!({ word: first, "error": complaint.why });
                if complaint.last > complaint.first {
                    object["to"] = self.names.json(complaint.last).1;
                }
                object
            })
            .collect()
    }

    /// The last words: how many more there were, and a failure that no record was told of.
    pub(super) fn finish(&self, first_error: Option<&Error>) {
        let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        if all.more > 0 {
            note(&format!("and {} more", grouped(all.more)));
        }
        if let (true, Some(error)) = (all.listed.is_empty(), first_error) {
            note(&format!("error: {error}"));
        }
    }
}

/// Records that were handed to the producer, in the order of the input.
#[derive(Debug)]
pub(super) struct Sent {
    /// Number of the first of them in the input.
    pub(super) first: u64,
    pub(super) deliveries: Vec<Deliveries>,
}

/// See the module's header.
pub(super) struct Outcomes {
    names: Names,
    complaints: Arc<Complaints>,
    /// How each record's outcome is printed, if it is.
    print: Option<Output>,
    waiting: VecDeque<(u64, Deliveries)>,
    out: String,
}

impl Outcomes {
    pub(super) fn new(names: Names, complaints: Arc<Complaints>, print: Option<Output>) -> Self {
        Self {
            names,
            complaints,
            print,
            waiting: VecDeque::new(),
            out: String::new(),
        }
    }

    pub(super) fn follow(&mut self, sent: Sent) {
        let mut first = sent.first;
        for deliveries in sent.deliveries {
            let next = first + u64::from(deliveries.len());
            self.waiting.push_back((first, deliveries));
            first = next;
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Wait for the oldest, and tell what became of it. Safe to cancel.
    pub(super) async fn settle_next(&mut self) -> Outcome {
        let Some((_, deliveries)) = self.waiting.front() else {
            return Ok(());
        };
        deliveries.settled().await;
        if let Some((first, deliveries)) = self.waiting.pop_front() {
            for (failed, error) in deliveries.failures() {
                let (from, to) = (u64::from(failed.start), u64::from(failed.end));
                self.complaints
                    .tell(first + from, first + to - 1, &error.to_string());
            }
            if let Some(output) = self.print {
                for index in 0..deliveries.len() {
                    if let Some(outcome) = deliveries.outcome(index) {
                        self.print(output, first + u64::from(index), &outcome);
                    }
                }
            }
        }
        // People see what there is before anything is waited for.
        if self.out.len() >= BLOCK_BYTES || self.waiting.is_empty() {
            self.write()?;
        }
        Ok(())
    }

    /// What is printed so far, to stdout.
    pub(super) fn write(&mut self) -> Outcome {
        if !self.out.is_empty() {
            line(&self.out)?;
            self.out.clear();
        }
        Ok(())
    }

    fn print(&mut self, output: Output, number: u64, outcome: &Result<RecordMetadata, Error>) {
        // Writing into memory does not fail.
        let _ = if output.is_json() {
            let (word, which) = self.names.json(number);
            let object = match outcome {
                Ok(stored) => json!({
                    word: which,
                    "partition": stored.partition,
                    "offset": stored.offset,
                    "filtered": stored.filtered,
                }),
                Err(error) => json!({ word: which, "error": error.to_string() }),
            };
            writeln!(self.out, "{object}")
        } else {
            let name = self.names.one(number);
            match outcome {
                Ok(stored) => {
                    let partition = stored.partition;
                    match stored.offset {
                        Some(offset) => {
                            writeln!(self.out, "{name}: partition {partition} offset {offset}")
                        }
                        None if stored.filtered => writeln!(
                            self.out,
                            "{name}: partition {partition} dropped by a filter"
                        ),
                        None => writeln!(
                            self.out,
                            "{name}: partition {partition} offset not known: it was stored by an earlier try"
                        ),
                    }
                }
                Err(error) => writeln!(self.out, "{name}: not acknowledged: {error}"),
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::Cut;

    #[test]
    fn what_failed_is_named_by_its_place_in_the_input() {
        let names = |source: Source| Names::of(&source);
        let lines = names(Source::Cut(Cut::lines(false)));
        assert_eq!(lines.one(7), "line 7");
        assert_eq!(lines.span(7, 7), "line 7");
        assert_eq!(lines.span(7, 9), "lines 7 to 9");
        assert_eq!(
            names(Source::Messages(vec!["a".into()])).one(1),
            "message 1"
        );
        let files = names(Source::Files(vec!["a.bin".into(), "b.bin".into()]));
        assert_eq!(files.one(2), "b.bin");

        let complaints = Complaints::new(lines);
        for number in 1..=200 {
            complaints.tell(number, number + 1, "bad");
        }
        let listed = complaints.json();
        assert_eq!(listed.as_array().map(Vec::len), Some(LISTED_MAX));
        assert_eq!(listed[3], json!({ "line": 4, "to": 5, "error": "bad" }));
        let all = complaints.all.lock().unwrap();
        assert_eq!(all.more, 2 * (200 - TOLD_MAX as u64));
    }
}
