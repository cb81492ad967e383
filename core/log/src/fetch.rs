//! Reading batches back: from the hot tail at once, else by large reads that are checked and shared.
//!
//! A cold fetch reads a stretch of one file that covers neighbouring runs of the slot, and answers
//! with slices of it; the stretch stays in a small cache, so that a consumer that takes it in pieces
//! and its neighbours read the disk once. Who reads in sequence is read ahead for.
//!
//! Absent on purpose: where runs are (the index knows), waiting for new batches (the caller does).

use bytes::Bytes;
use millstream_batch::ids::{Offset, PartitionSlot};
use millstream_batch::limits::BLOCK_BYTES;
use smallvec::SmallVec;

use crate::api::{Entry, Event, Fetch, FetchError, TimeQuery};
use crate::footer::{Run, decode_section};
use crate::index::Place;
use crate::io::{FileId, IoError, IoOp, IoOutput};
use crate::log::{Log, Purpose, read_output};
use crate::reader::{AHEAD_BYTES, AHEAD_READS, Reading, Stretch};
use crate::walk::{
    READ_BYTES_MAX, READ_BYTES_MIN, Span, Taken, neighbours, take, time_match, walk,
};

/// A question under way.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Goal {
    Fetch(Fetch),
    /// With the offset from which runs are still to be looked at.
    Time(TimeQuery, Offset),
}

impl Goal {
    fn slot(&self) -> PartitionSlot {
        match self {
            Self::Fetch(fetch) => fetch.slot,
            Self::Time(query, _) => query.slot,
        }
    }
}

impl Log {
    /// Fetch batches of a slot; answered by [`Event::Fetched`]. Only durable ones are returned; none
    /// when there is none yet. The answer may be shorter than asked: ask again from where it ends.
    pub fn fetch(&mut self, fetch: Fetch) {
        let start = self.start_of(fetch.slot).max(fetch.offset);
        self.pursue(
            Goal::Fetch(Fetch {
                offset: start,
                ..fetch
            }),
            false,
        );
    }

    /// Find the first batch at or past a time; answered by [`Event::OffsetFound`].
    pub fn offset_for_timestamp(&mut self, query: TimeQuery) {
        let start = self.start_of(query.slot);
        self.pursue(Goal::Time(query, start), false);
    }

    pub(crate) fn pursue(&mut self, goal: Goal, was_cold: bool) {
        let mut goal = goal;
        loop {
            let next = match &mut goal {
                Goal::Fetch(fetch) => self.step_fetch(*fetch),
                Goal::Time(query, from) => self.step_time(query, from),
            };
            match next {
                Next::Answer(event) => {
                    if was_cold {
                        self.stats.fetches_cold += 1;
                    } else {
                        self.stats.fetches_hot += 1;
                    }
                    self.out.event(event);
                    return;
                }
                Next::Section(file) => {
                    self.read_section(goal, file);
                    return;
                }
                Next::Stretch(mut stretch) => {
                    if let Some(bytes) = self.reader.stretch(&mut stretch) {
                        match self.answer_from(goal, &stretch, &bytes) {
                            Some(again) => {
                                goal = again;
                                continue;
                            }
                            None => return,
                        }
                    }
                    if self.reader.is_ahead(&stretch) {
                        self.reader.wait(goal, &stretch);
                    } else if !self.reader.has_room(stretch.len) {
                        self.reader.queued.push_back(goal);
                    } else {
                        self.read_stretch(Reading::Stretch { goal, stretch });
                    }
                    return;
                }
            }
        }
    }

    fn step_fetch(&mut self, fetch: Fetch) -> Next {
        let answer = |result| {
            Next::Answer(Event::Fetched {
                token: fetch.token,
                result,
            })
        };
        if fetch.offset >= fetch.end {
            return answer(Ok(Vec::new()));
        }
        let found = self.index.find(fetch.slot, fetch.offset);
        match found {
            Place::Nowhere => answer(
                self.check_gap(fetch.offset, fetch.end, None)
                    .map(|()| Vec::new()),
            ),
            Place::Recent(i) => {
                let first = self.index.slots[&fetch.slot].runs[i];
                if first.run.base >= fetch.end {
                    return answer(
                        self.check_gap(fetch.offset, fetch.end, None)
                            .map(|()| Vec::new()),
                    );
                }
                if let Err(e) = self.check_gap(fetch.offset, fetch.end, Some(first.run.base)) {
                    return answer(Err(e));
                }
                if self.index.group(first.group).hot().is_some() {
                    return answer(Ok(self.hot_entries(&fetch, i)));
                }
                let file = self.index.group(first.group).file;
                let runs = &self.index.slots[&fetch.slot].runs;
                let cold = runs.range(i..).take_while(|r| {
                    let group = self.index.group(r.group);
                    group.file == file && group.hot().is_none() && r.run.base < fetch.end
                });
                let runs = neighbours(cold.map(|r| r.run), fetch.bytes_max.max(READ_BYTES_MIN));
                Next::Stretch(self.stretch_of(file, runs))
            }
            Place::Sealed(file) => {
                let Some(runs) = self.reader.section(file, fetch.slot) else {
                    return Next::Section(file);
                };
                let i = runs.partition_point(|r| r.last < fetch.offset);
                let Some(first) = runs.get(i) else {
                    // Made anew from a damaged file, a section may lack what its summary names.
                    let last = self.index.sealed[&file].summary(fetch.slot).map(|s| s.last);
                    let to = last.unwrap_or(fetch.offset).max(fetch.offset);
                    return answer(Err(FetchError::Damaged {
                        from: fetch.offset,
                        to,
                    }));
                };
                if first.base >= fetch.end {
                    return answer(
                        self.check_gap(fetch.offset, fetch.end, None)
                            .map(|()| Vec::new()),
                    );
                }
                if let Err(e) = self.check_gap(fetch.offset, fetch.end, Some(first.base)) {
                    return answer(Err(e));
                }
                let visible = runs[i..].iter().take_while(|r| r.base < fetch.end).copied();
                let runs = neighbours(visible, fetch.bytes_max.max(READ_BYTES_MIN));
                Next::Stretch(self.stretch_of(file, runs))
            }
        }
    }

    /// When entries were lost, offsets that nothing holds are damage, not absence.
    fn check_gap(
        &self,
        offset: Offset,
        end: Offset,
        next: Option<Offset>,
    ) -> Result<(), FetchError> {
        let to = next.unwrap_or(end).min(end);
        if self.reader.lost && to > offset && end < Offset(u64::MAX) {
            return Err(FetchError::Damaged {
                from: offset,
                to: Offset(to.0 - 1),
            });
        }
        Ok(())
    }

    fn step_time(&mut self, query: &TimeQuery, from: &mut Offset) -> Next {
        let none = Next::Answer(Event::OffsetFound {
            token: query.token,
            result: Ok(None),
        });
        let Some(index) = self.index.slots.get(&query.slot) else {
            return none;
        };
        let newer = |run: &Run| run.last >= *from && run.max_timestamp >= query.timestamp;
        // Sealed files first: they are older. Their hot groups are looked at here too.
        let sealed = index.files.iter().copied().find(|file| {
            let summary = self.index.sealed[file].summary(query.slot);
            summary.is_some_and(|s| s.last >= *from && s.max_timestamp >= query.timestamp)
        });
        if let Some(file) = sealed {
            let Some(runs) = self.reader.section(file, query.slot) else {
                return Next::Section(file);
            };
            if let Some(run) = runs.iter().find(|r| newer(r)) {
                if run.base >= query.end {
                    return none;
                }
                return Next::Stretch(self.stretch_of(file, [*run].into_iter().collect()));
            }
            // Only batches before `from` are that new: go on behind this file.
            let last = self.index.sealed[&file]
                .summary(query.slot)
                .map_or(*from, |s| s.last);
            *from = Offset(last.0 + 1);
            return self.step_time(query, from);
        }
        let Some(found) = index.runs.iter().find(|r| newer(&r.run)).copied() else {
            return none;
        };
        if found.run.base >= query.end {
            return none;
        }
        let group = self.index.group(found.group);
        let Some(bytes) = group.hot().cloned() else {
            let file = group.file;
            return Next::Stretch(self.stretch_of(file, [found.run].into_iter().collect()));
        };
        let span = Span {
            bytes: &bytes,
            at: group.at,
            seed: None,
        };
        let key = walk(&span, &found.run, *from)
            .ok()
            .and_then(|entries| time_match(&entries, query, *from));
        match key {
            Some(key) => {
                let key = (key.base_offset < query.end).then_some(key);
                Next::Answer(Event::OffsetFound {
                    token: query.token,
                    result: Ok(key),
                })
            }
            None => {
                *from = Offset(found.run.last.0 + 1);
                self.step_time(query, from)
            }
        }
    }

    /// From the run at `i` on, as far as groups are hot. Once readers hold half of the hot tail's memory,
    /// they get copies: those who do not read must not leave the others to the disk.
    fn hot_entries(&self, fetch: &Fetch, i: usize) -> Vec<Entry> {
        let mut entries = Vec::new();
        let mut taken = Taken::default();
        for recent in self.index.slots[&fetch.slot].runs.range(i..) {
            let group = self.index.group(recent.group);
            let Some(bytes) = group.hot() else { break };
            let span = Span {
                bytes,
                at: group.at,
                seed: None,
            };
            if recent.run.base >= fetch.end
                || !take(&span, &recent.run, fetch, &mut entries, &mut taken).unwrap_or(false)
            {
                break;
            }
        }
        if self.write.buffers.used_bytes()
            > self.index.hot_bytes() + self.config.hot_tail_bytes_max / 2
        {
            entries.iter_mut().for_each(Entry::let_go);
        }
        entries
    }

    fn stretch_of(&self, file: u64, runs: SmallVec<[Run; 4]>) -> Stretch {
        let block = BLOCK_BYTES as u64;
        let first = runs.first().expect("a stretch has a run");
        let last = runs.last().expect("a stretch has a run");
        let at = first.at / block * block;
        let end = (last.at + u64::from(last.len)).next_multiple_of(block);
        let incarnation = match self.index.sealed.get(&file) {
            Some(sealed) => sealed.incarnation,
            None => {
                self.write
                    .open
                    .iter()
                    .find(|f| f.number == file)
                    .expect("a run's file is open or sealed")
                    .incarnation
            }
        };
        Stretch {
            file,
            incarnation,
            at,
            len: (end - at) as usize,
            runs,
        }
    }

    fn read_section(&mut self, goal: Goal, file: u64) {
        let block = BLOCK_BYTES as u64;
        let summary = *self.index.sealed[&file]
            .summary(goal.slot())
            .expect("the index named this file");
        let at = summary.section_at / block * block;
        let end = (summary.section_at + summary.section_bytes() as u64).next_multiple_of(block);
        let len = (end - at) as usize;
        self.reader.began(file);
        self.out.io(
            IoOp::Read {
                file: FileId::Wal(file),
                at,
                len,
            },
            Purpose::Read(Box::new(Reading::Section { goal, file, at })),
        );
    }

    fn read_stretch(&mut self, reading: Reading) {
        let (Reading::Stretch { stretch, .. } | Reading::Ahead { stretch }) = &reading else {
            unreachable!("sections are read by read_section")
        };
        self.reader.began(stretch.file);
        self.reader.reading_bytes += stretch.len;
        let op = IoOp::Read {
            file: FileId::Wal(stretch.file),
            at: stretch.at,
            len: stretch.len,
        };
        self.out.io(op, Purpose::Read(Box::new(reading)));
    }

    pub(crate) fn read_done(&mut self, reading: Reading, result: Result<IoOutput, IoError>) {
        let result = read_output(result);
        self.stats.bytes_read += result.as_ref().map_or(0, |b| b.len() as u64);
        match reading {
            Reading::Section { goal, file, at } => {
                self.reader.ended(file);
                match result {
                    Ok(bytes) => self.section_read(goal, file, at, &bytes),
                    Err(e) => self.answer_error(&goal, FetchError::Io(e)),
                }
            }
            Reading::Stretch { goal, stretch } => {
                self.reader.ended(stretch.file);
                self.reader.reading_bytes -= stretch.len;
                match result {
                    Ok(bytes) => {
                        if bytes.len() == stretch.len {
                            self.reader
                                .keep_stretch(stretch.file, stretch.at, bytes.clone());
                        }
                        if let Some(again) = self.answer_from(goal, &stretch, &bytes) {
                            self.pursue(again, true);
                        }
                    }
                    Err(e) => self.answer_error(&goal, FetchError::Io(e)),
                }
            }
            Reading::Rescan(rescan) => self.rescan_read(rescan, result),
            Reading::Ahead { stretch } => {
                let woken = self.reader.done_ahead(&stretch);
                self.reader.ended(stretch.file);
                self.reader.reading_bytes -= stretch.len;
                if let Ok(bytes) = result
                    && bytes.len() == stretch.len
                    && !self.space.is_freeing(stretch.file)
                {
                    self.reader.expect_stretch(stretch.file, stretch.at, bytes);
                }
                for goal in woken {
                    self.pursue(goal, true);
                }
            }
        }
        // They look again from the start: what they want may have been read for another by now.
        for _ in 0..self.reader.queued.len() {
            if !self.reader.has_room(READ_BYTES_MAX as usize) {
                break;
            }
            if let Some(goal) = self.reader.queued.pop_front() {
                self.pursue(goal, true);
            }
        }
        self.let_files_go();
    }

    fn section_read(&mut self, goal: Goal, file: u64, at: u64, bytes: &Bytes) {
        let Some(sealed) = self.index.sealed.get(&file) else {
            // Freed meanwhile: look again.
            return self.pursue(goal, true);
        };
        let Some(summary) = sealed.summary(goal.slot()).copied() else {
            return self.pursue(goal, true);
        };
        let start = (summary.section_at - at) as usize;
        let section = bytes
            .get(start..start + summary.section_bytes())
            .unwrap_or_default();
        match decode_section(sealed.incarnation, &summary, section) {
            Some(runs) => {
                self.reader.keep_section(file, goal.slot(), runs.into());
                self.pursue(goal, true);
            }
            None => self.rescan(goal, file),
        }
    }

    pub(crate) fn answer_error(&mut self, goal: &Goal, error: FetchError) {
        self.stats.fetches_cold += 1;
        self.out.event(match goal {
            Goal::Fetch(fetch) => Event::Fetched {
                token: fetch.token,
                result: Err(error),
            },
            Goal::Time(query, _) => Event::OffsetFound {
                token: query.token,
                result: Err(error),
            },
        });
    }

    /// Answer from a stretch; gives the goal back when it has to be looked for further on.
    fn answer_from(&mut self, goal: Goal, stretch: &Stretch, bytes: &Bytes) -> Option<Goal> {
        let span = Span {
            bytes,
            at: stretch.at,
            seed: Some(stretch.incarnation),
        };
        match goal {
            Goal::Fetch(fetch) => {
                let mut entries = Vec::new();
                let mut taken = Taken::default();
                let mut error = None;
                for run in &stretch.runs {
                    match take(&span, run, &fetch, &mut entries, &mut taken) {
                        Ok(true) => {}
                        Ok(false) => break,
                        Err(e) => {
                            error = Some(e);
                            break;
                        }
                    }
                }
                // A batch may be held for long: by who does not read it. It must not hold its neighbours.
                if taken.bytes < bytes.len() / 2 {
                    entries.iter_mut().for_each(Entry::let_go);
                }
                // What precedes the damage is served first; the next fetch begins at it.
                let result = match error {
                    Some(e) if entries.is_empty() => Err(e),
                    _ => Ok(entries),
                };
                self.stats.fetches_cold += 1;
                let last = stretch.runs.last().filter(|_| result.is_ok()).copied();
                self.out.event(Event::Fetched {
                    token: fetch.token,
                    result,
                });
                if let Some(last) = last {
                    let sequential = self.goes_on(&fetch, last.last);
                    let whole = taken.to == Some(last.last) && stretch.ends_with(&last);
                    self.reader.used(stretch, whole, sequential);
                    if sequential {
                        self.read_ahead(&fetch, Offset(last.last.0 + 1));
                    }
                }
                None
            }
            Goal::Time(query, from) => {
                let run = stretch.runs[0];
                match walk(&span, &run, from) {
                    Ok(entries) => match time_match(&entries, &query, from) {
                        Some(key) => {
                            self.stats.fetches_cold += 1;
                            let key = (key.base_offset < query.end).then_some(key);
                            self.out.event(Event::OffsetFound {
                                token: query.token,
                                result: Ok(key),
                            });
                            None
                        }
                        None => Some(Goal::Time(query, Offset(run.last.0 + 1))),
                    },
                    Err(e) => {
                        self.answer_error(&goal, e);
                        None
                    }
                }
            }
        }
    }

    /// Whether a cold fetch, which found what lies up to `last`, goes on where the one before it ended.
    fn goes_on(&mut self, fetch: &Fetch, last: Offset) -> bool {
        let ends = &mut self.reader.cold_ends;
        if ends.len() > 4096 {
            ends.clear();
        }
        let before = ends.insert(fetch.slot, last);
        before.is_some_and(|last| last.0 + 1 >= fetch.offset.0 && fetch.offset.0 > 0)
    }

    /// Who reads in sequence will want what follows `end`.
    fn read_ahead(&mut self, fetch: &Fetch, end: Offset) {
        let mut from = Fetch {
            offset: end,
            bytes_max: READ_BYTES_MAX as usize,
            ..*fetch
        };
        let mut bytes = 0;
        for _ in 0..AHEAD_READS {
            if bytes >= AHEAD_BYTES {
                return;
            }
            let Next::Stretch(stretch) = self.step_fetch(from) else {
                return;
            };
            let here = self.reader.here_or_ahead(&stretch);
            if here.is_none() && !self.reader.has_room_ahead(stretch.len) {
                return;
            }
            let last = here.or(stretch.runs.last().copied());
            let last = last.expect("a stretch has a run");
            bytes += (last.at + u64::from(last.len) - stretch.runs[0].at) as usize;
            from.offset = Offset(last.last.0 + 1);
            if here.is_some() {
                continue;
            }
            self.reader
                .ahead
                .push((stretch.file, stretch.at, stretch.len));
            self.read_stretch(Reading::Ahead { stretch });
        }
    }
}

enum Next {
    Answer(Event),
    Section(u64),
    Stretch(Stretch),
}
