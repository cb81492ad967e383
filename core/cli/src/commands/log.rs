//! `log inspect|verify`: a data directory, read offline. Changes nothing.

mod facts;
mod records;
mod start;

use std::fs::{File, TryLockError};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use millstream_batch::Codec;
use millstream_broker::{missing_shard, read_meta};
use millstream_log::Damage;
use millstream_log::inspect::{Item, Verified, verify, walk};
use millstream_log::io::{FileId, IoError, IoErrorKind};
use millstream_log::scan::{ScannedEntry, ScannedGroup};
use millstream_machine::fact::Fact;
use serde_json::{Value, json};

use crate::Global;
use crate::exit::{Failure, Outcome};
use crate::format::write_json;
use crate::output::{bytes, grouped, line, note};
use crate::progress::Progress;
use crate::values::time;

/// Look into a data directory while no broker runs on it
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Show files, groups and entries as they stand, with each entry's fact
    #[command(after_help = "\
Examples:
  millstream log inspect .millstream --shard 0 --files
  millstream log inspect .millstream --records --topic orders
  millstream log inspect .millstream --records -o json > records.jsonl    # what `pub --json` reads
  millstream log inspect .millstream --from-lsn 1000 --limit 20 -o json")]
    Inspect {
        /// Data directory, or one shard's directory.
        directory: PathBuf,
        /// Only this shard.
        #[arg(long, value_name = "N")]
        shard: Option<u16>,
        /// Only files and their groups, no entries.
        #[arg(long)]
        files: bool,
        /// The records, and nothing else: all that stand in the files, those that retention has passed
        /// by and those of deleted topics included. -o json prints what `pub --json` reads. Fails when
        /// some are missing: a damaged place, a file or a shard that is not there.
        #[arg(long, conflicts_with = "files")]
        records: bool,
        /// With --records: only those of this topic.
        #[arg(long, value_name = "TOPIC", requires = "records")]
        topic: Option<String>,
        /// Only entries from this lsn on.
        #[arg(long, default_value_t = 0, value_name = "LSN")]
        from_lsn: u64,
        /// At most so many entries, or records with --records.
        #[arg(long, value_name = "N")]
        limit: Option<u64>,
    },
    /// Check every byte; fails when something is damaged
    #[command(after_help = "\
Damage is what had been made durable and no longer reads as it was written. A torn end is a write that \
never finished and was never acknowledged: the next start cuts it. What the next start would say is said \
too: a shard that it would open read-only fails the check, whatever the reason.

Example:
  millstream log verify .millstream")]
    Verify {
        /// Data directory, or one shard's directory.
        directory: PathBuf,
        /// Only this shard.
        #[arg(long, value_name = "N")]
        shard: Option<u16>,
    },
}

pub(crate) fn run(command: &Command, global: &Global) -> Outcome {
    match command {
        Command::Inspect {
            directory,
            shard,
            files,
            records,
            topic,
            from_lsn,
            limit,
        } => {
            let _held = hold(directory)?;
            let mut out = Printer {
                out: BufWriter::new(io::stdout().lock()),
                json: global.output.is_json(),
                shows: match (files, records) {
                    (true, _) => Shows::Files,
                    (_, true) => Shows::Records,
                    _ => Shows::Entries,
                },
                topic: topic.clone(),
                names: records::Names::default(),
                topic_known: false,
                codec: Codec::new(),
                lost: 0,
                missing: 0,
                from_lsn: *from_lsn,
                left: limit.unwrap_or(u64::MAX),
                failed: None,
            };
            if *records
                && shard.is_none()
                && let Some(why) = strange_directory(directory)
            {
                out.miss(&format!("the directory is not whole: {why}"));
            }
            for shard in shards(directory, *shard)? {
                out.shard(&shard)?;
            }
            out.out.flush()?;
            if let Some(topic) = topic.as_ref().filter(|_| !out.topic_known) {
                return Err(Failure::failed(format!(
                    "no topic `{topic}` is known in {}: without --topic the records of all are shown",
                    directory.display()
                )));
            }
            match missing_words(out.lost, out.missing) {
                Some(words) => Err(Failure::failed(words)),
                None => Ok(()),
            }
        }
        Command::Verify { directory, shard } => {
            let _held = hold(directory)?;
            let strange = match shard {
                None => strange_directory(directory),
                Some(_) => None,
            };
            let mut whole = strange.is_none();
            let mut all = Vec::new();
            for shard in shards(directory, *shard)? {
                let checked = check(&shard)?;
                whole &= checked.is_whole();
                if global.output.is_json() {
                    all.push(verified_json(&shard, &checked));
                } else {
                    line(&verified_text(&shard, &checked))?;
                }
            }
            if global.output.is_json() {
                line(&json!({ "ok": whole, "shards": all, "directory": strange }).to_string())?;
            } else if let Some(why) = strange {
                line(&format!("A START WOULD REFUSE THE DIRECTORY: {why}"))?;
            }
            if whole { Ok(()) } else { Err(Failure::Told) }
        }
    }
}

/// What is said at the end when not all records came out; `None` when all did.
fn missing_words(lost: u64, missing: u64) -> Option<String> {
    let mut parts = Vec::new();
    if lost > 0 {
        parts.push(format!("{lost} batches could not be read"));
    }
    if missing > 0 {
        parts.push(format!("{missing} places are damaged or missing"));
    }
    (!parts.is_empty()).then(|| {
        let parts = parts.join(", ");
        format!("not all records came out: {parts}: see the lines above")
    })
}

/// Why a start would not take a data directory for what it is, before it looks at any log.
fn strange_directory(directory: &Path) -> Option<String> {
    // One shard's directory has neither.
    let is_whole = directory.join("shard-0").is_dir() || directory.join("meta.toml").exists();
    is_whole.then_some(())?;
    match read_meta(directory) {
        Ok(meta) => missing_shard(directory, &meta),
        Err(error) => Some(error.to_string()),
    }
}

/// Keep a broker from starting meanwhile, and refuse when one runs: on the directory, or on the shards in
/// it. Looking at a copy needs no lock.
fn hold(directory: &Path) -> Outcome<Vec<File>> {
    let shards = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let shards = shards.map(|entry| entry.path()).filter(|path| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.starts_with("shard-"))
    });
    let mut held = Vec::new();
    for path in [directory.join("lock"), directory.to_owned()]
        .into_iter()
        .chain(shards)
    {
        let Ok(lock) = File::open(&path) else {
            continue;
        };
        match lock.try_lock_shared() {
            Ok(()) => held.push(lock),
            Err(TryLockError::WouldBlock) => {
                return Err(Failure::failed(format!(
                    "a broker runs on {}: stop it first, or look at a copy",
                    directory.display()
                )));
            }
            Err(TryLockError::Error(error)) => note(&format!(
                "{} cannot be locked ({error}); reading all the same",
                path.display()
            )),
        }
    }
    Ok(held)
}

/// One shard's directory and the files in it.
struct Shard {
    path: PathBuf,
    files: Vec<(FileId, u64)>,
}

fn shards(directory: &Path, only: Option<u16>) -> Outcome<Vec<Shard>> {
    let listed = |path: PathBuf| -> Outcome<Shard> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&path)? {
            let entry = entry?;
            if let Some(file) = entry.file_name().to_str().and_then(FileId::parse) {
                files.push((file, entry.metadata()?.len()));
            }
        }
        files.sort_unstable();
        Ok(Shard { path, files })
    };
    let mut found = Vec::new();
    let entries = std::fs::read_dir(directory)
        .map_err(|error| Failure::usage(format!("{}: {error}", directory.display())))?;
    for entry in entries {
        let entry = entry?;
        let number = entry
            .file_name()
            .to_str()
            .and_then(|name| name.strip_prefix("shard-")?.parse::<u16>().ok());
        if let Some(number) = number
            && only.is_none_or(|only| only == number)
        {
            found.push((number, entry.path()));
        }
    }
    found.sort();
    if !found.is_empty() {
        return found.into_iter().map(|(_, path)| listed(path)).collect();
    }
    let alone = listed(directory.to_owned())?;
    if alone.files.is_empty() {
        let shown = directory.display();
        return Err(Failure::usage(match only {
            Some(only) if directory.join("meta.toml").exists() => {
                format!("{shown} has no shard {only}")
            }
            _ => format!(
                "{shown} is not a broker's data directory: it holds no shard. `millstream dev` keeps its data \
                 in .millstream, `serve` where --data or the setting `data` says"
            ),
        }));
    }
    if only.is_some() {
        return Err(Failure::usage(format!(
            "{} is the directory of one shard: leave --shard out, or name the data directory",
            directory.display()
        )));
    }
    Ok(vec![alone])
}

impl Shard {
    fn read(&self, file: FileId, at: u64, len: usize) -> Result<Bytes, IoError> {
        let path = self.path.join(file.file_name());
        let read = || -> io::Result<Bytes> {
            let file = File::open(&path)?;
            // Never more than the file has: a damaged length must not make us allocate it.
            let len = len.min(
                usize::try_from(file.metadata()?.len().saturating_sub(at)).unwrap_or(usize::MAX),
            );
            let mut buffer = vec![0; len];
            let mut filled = 0;
            while filled < len {
                match file.read_at(&mut buffer[filled..], at + filled as u64)? {
                    0 => break,
                    count => filled += count,
                }
            }
            buffer.truncate(filled);
            Ok(buffer.into())
        };
        read().map_err(|error| IoError {
            kind: if error.kind() == io::ErrorKind::NotFound {
                IoErrorKind::NotFound
            } else {
                IoErrorKind::Failed
            },
            message: format!("{}: {error}", path.display()),
        })
    }

    fn wal_files(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.files.iter().filter_map(|(file, bytes)| match file {
            FileId::Wal(number) => Some((*number, *bytes)),
            _ => None,
        })
    }
}

/// What is known of a shard's log once every byte was looked at.
struct Checked {
    found: Verified,
    /// Damage that the log's own check does not see: facts that mean nothing, and what a start finds.
    further: Vec<Damage>,
    /// Why the next start would take no writes.
    read_only: Option<String>,
}

impl Checked {
    fn is_whole(&self) -> bool {
        self.found.damage.is_empty() && self.further.is_empty() && self.read_only.is_none()
    }
}

/// The log's own check, facts that no longer mean anything, and what a start would say.
fn check(shard: &Shard) -> Outcome<Checked> {
    let mut progress = Progress::new(true);
    let total: u64 = shard.wal_files().map(|(_, bytes)| bytes).sum();
    let mut seen = 0;
    let mut read = |file: FileId, at, len: usize| {
        seen += len as u64;
        progress.show(|| format!("{} of about {} read", bytes(seen), bytes(2 * total)));
        shard.read(file, at, len)
    };
    let found = verify(&shard.files, &mut read)?;
    let mut further = Vec::new();
    for (number, length) in shard.wal_files() {
        walk(number, length, &mut read, &mut |item| {
            let Item::Group(group) = item else { return };
            for entry in group
                .entries
                .iter()
                .filter(|entry| !entry.header.is_control())
            {
                if let Some(Err(error)) = fact_of(entry) {
                    let file = FileId::Wal(number).file_name();
                    further.push(Damage {
                        file,
                        at: entry.at,
                        what: error.to_string(),
                    });
                }
            }
        })?;
    }
    let start = start::rehearsed(&shard.path, &shard.files, &mut read)?;
    if found.damage.is_empty() && further.is_empty() {
        further = start.damage;
    }
    Ok(Checked {
        found,
        further,
        read_only: start.read_only,
    })
}

fn fact_of(entry: &ScannedEntry) -> Option<Result<Fact, millstream_machine::fact::FactError>> {
    entry
        .fact
        .as_ref()
        .map(|fact| Fact::decode(entry.header.kind, fact))
}

fn verified_text(shard: &Shard, checked: &Checked) -> String {
    let Checked {
        found,
        further,
        read_only,
    } = checked;
    let mut text = format!(
        "{}: {} files, {} groups, {} entries, {} batches, {}, last lsn {}",
        shard.path.display(),
        found.files,
        grouped(found.groups),
        grouped(found.entries),
        grouped(found.batches),
        bytes(found.bytes),
        found.last,
    );
    if let Some((begin, parts)) = &found.snapshot {
        text.push_str(&format!(
            "\n  snapshot begun at lsn {begin}, in {parts} parts"
        ));
    }
    for damage in &found.torn {
        text.push_str(&format!(
            "\n  torn end (never acknowledged): {} at byte {}: {}",
            damage.file, damage.at, damage.what
        ));
    }
    for damage in found.damage.iter().chain(further) {
        text.push_str(&format!(
            "\n  DAMAGED: {} at byte {}: {}",
            damage.file, damage.at, damage.what
        ));
    }
    if let Some(why) = read_only {
        text.push_str(&format!("\n  A START WOULD TAKE NO WRITES: {why}"));
    }
    if checked.is_whole() {
        text.push_str("\n  no damage");
    } else {
        text.push_str("\n  What is whole is still served. Restore the damaged files from a backup, or let consumers seek past.");
    }
    text
}

fn verified_json(shard: &Shard, checked: &Checked) -> Value {
    let Checked {
        found,
        further,
        read_only,
    } = checked;
    let list =
        |damage: &Damage| json!({ "file": damage.file, "at": damage.at, "what": damage.what });
    json!({
        "shard": shard.path,
        "files": found.files,
        "groups": found.groups,
        "entries": found.entries,
        "batches": found.batches,
        "bytes": found.bytes,
        "last_lsn": found.last.0,
        "snapshot": found.snapshot.as_ref().map(|(begin, parts)| json!({ "begin": begin.0, "parts": parts })),
        "damage": found.damage.iter().chain(further).map(list).collect::<Value>(),
        "read_only": read_only,
        "torn": found.torn.iter().map(list).collect::<Value>(),
    })
}

/// What is printed of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shows {
    /// Files and their groups.
    Files,
    /// And entries.
    Entries,
    /// Records alone.
    Records,
}

struct Printer<'a> {
    out: BufWriter<io::StdoutLock<'a>>,
    json: bool,
    shows: Shows,
    /// Only records of this topic.
    topic: Option<String>,
    names: records::Names,
    /// A shard knows the topic that is asked for.
    topic_known: bool,
    codec: Codec,
    /// Batches whose records could not be read.
    lost: u64,
    /// Places where what should stand does not: damaged groups, files or shards that are not there.
    missing: u64,
    from_lsn: u64,
    left: u64,
    /// A closed stdout ends the walk.
    failed: Option<io::Error>,
}

impl Printer<'_> {
    fn shard(&mut self, shard: &Shard) -> Outcome {
        if self.shows == Shows::Records {
            self.names = records::Names::of(shard);
            self.check(shard)?;
        }
        for (file, length) in &shard.files {
            let name = shard.path.join(file.file_name());
            if self.shows != Shows::Records {
                self.put(
                    || format!("{}  {}", name.display(), bytes(*length)),
                    || json!({ "file": name, "bytes": length }),
                );
            }
            if let FileId::Wal(number) = file {
                let mut read = |file, at, len| shard.read(file, at, len);
                walk(*number, *length, &mut read, &mut |item| self.item(&item))?;
            }
        }
        self.topic_known |= self
            .topic
            .as_deref()
            .is_some_and(|topic| self.names.knows(topic));
        match self.failed.take() {
            Some(error) => Err(error.into()),
            None => Ok(()),
        }
    }

    fn item(&mut self, item: &Item) {
        match item {
            Item::Group(group) if self.shows == Shows::Records => {
                for entry in &group.entries {
                    self.records(entry);
                }
                if let Some(at) = group.broken_at {
                    self.lose(&format!("group {} is damaged from byte {at} on", group.header.number));
                }
            }
            // What these mean for the records, `check` has said.
            _ if self.shows == Shows::Records => {}
            Item::Group(group) => self.group(group),
            Item::Gap { from, to } => self.put(
                || format!("  no valid group from byte {from} to {to}"),
                || json!({ "gap": { "from": from, "to": to } }),
            ),
            Item::End { at } => {
                self.put(|| format!("  no group from byte {at} on"), || json!({ "end": { "at": at } }));
            }
            Item::Footer { trailer, directory } => self.put(
                || format!("  footer: groups up to {}, {} partitions", trailer.last_group, directory.len()),
                || json!({ "footer": { "last_group": trailer.last_group, "partitions": directory.len() } }),
            ),
            Item::DamagedFooter { at } => self.put(
                || format!("  the footer at byte {at} is damaged"),
                || json!({ "damaged_footer": { "at": at } }),
            ),
        }
    }

    fn group(&mut self, group: &ScannedGroup) {
        if group.last_lsn() < self.from_lsn || self.left == 0 {
            return;
        }
        let header = &group.header;
        let (broken, count) = (group.broken_at, group.entries.len());
        self.put(
            || {
                let broken = broken.map_or_else(String::new, |at| format!(", broken at byte {at}"));
                format!(
                    "  group {} at byte {}: {} entries from lsn {}, {}, term {}{broken}",
                    header.number,
                    group.at,
                    count,
                    header.first_lsn,
                    bytes(header.length.into()),
                    header.term,
                )
            },
            || {
                json!({ "group": {
                    "number": header.number, "at": group.at, "entries": count, "first_lsn": header.first_lsn.0,
                    "bytes": header.length, "term": header.term.0, "proved": header.proved, "broken_at": broken,
                } })
            },
        );
        if self.shows == Shows::Entries {
            for entry in &group.entries {
                self.entry(entry);
            }
        }
    }

    fn entry(&mut self, entry: &ScannedEntry) {
        let header = &entry.header;
        if header.lsn.0 < self.from_lsn || self.left == 0 {
            return;
        }
        self.left -= 1;
        let fact = if header.is_control() {
            json!({ "kind": "control", "frees_file": entry.freed() })
        } else {
            match fact_of(entry) {
                None => json!({ "kind": "DAMAGED" }),
                Some(Ok(fact)) => facts::fields(&fact),
                Some(Err(error)) => json!({ "kind": "UNREADABLE", "why": error.to_string() }),
            }
        };
        let words = facts::line(&fact);
        let raw = match &entry.raw {
            None => "DAMAGED bytes".to_owned(),
            Some(raw) if raw.is_empty() => String::new(),
            Some(raw) => bytes(raw.len() as u64),
        };
        self.put(
            || {
                let more = if header.has_more() { "+" } else { "" }; // the unit goes on
                format!("    lsn {}{more}  {words}  {raw}", header.lsn)
            },
            || {
                json!({ "entry": {
                    "lsn": header.lsn.0, "at": entry.at, "kind": header.kind, "control": header.is_control(),
                    "more": header.has_more(),
                    "fact": fact, "raw_bytes": header.raw_len, "damaged": entry.fact.is_none() || entry.raw.is_none(),
                } })
            },
        );
    }

    fn records(&mut self, entry: &ScannedEntry) {
        let found = records::of(entry, &mut self.names, &mut self.codec);
        if entry.header.lsn.0 < self.from_lsn || self.left == 0 {
            return;
        }
        let records = match found {
            records::Found::Nothing => return,
            records::Found::Lost(why) => {
                return self.lose(&format!(
                    "the batch of lsn {} is lost: {why}",
                    entry.header.lsn
                ));
            }
            records::Found::Records(records) => records,
        };
        for record in &records {
            let wanted = self
                .topic
                .as_deref()
                .is_none_or(|topic| *topic == *record.topic);
            if self.left == 0 || !wanted {
                continue;
            }
            self.left -= 1;
            let mut line = Vec::new();
            if self.json {
                write_json(record, &mut line);
            } else {
                let text = |bytes: Option<&Bytes>| match bytes {
                    None => "-".to_owned(),
                    Some(bytes) => bytes.escape_ascii().to_string(),
                };
                let (topic, partition, offset) = (&record.topic, record.partition, record.offset);
                let time = time(record.timestamp_ms);
                let (key, value) = (text(record.key.as_ref()), text(record.value.as_ref()));
                line =
                    format!("{topic}/{partition} {offset}  {time}  {key}  {value}\n").into_bytes();
            }
            if self.failed.is_none() {
                self.failed = self.out.write_all(&line).err();
            }
        }
    }

    /// Groups that are gone hold no record that could be missed: the log's own check knows of them. A torn
    /// end was never acknowledged, and is none.
    fn check(&mut self, shard: &Shard) -> Outcome {
        let found = verify(&shard.files, &mut |file, at, len| shard.read(file, at, len))?;
        let path = shard.path.display();
        for damage in &found.torn {
            note(&format!(
                "{path}: torn end (never acknowledged): {} at byte {}: {}",
                damage.file, damage.at, damage.what
            ));
        }
        for damage in &found.damage {
            self.miss(&format!(
                "{path}: damaged: {} at byte {}: {}",
                damage.file, damage.at, damage.what
            ));
        }
        Ok(())
    }

    fn miss(&mut self, what: &str) {
        self.missing += 1;
        note(what);
    }

    fn lose(&mut self, what: &str) {
        self.lost += 1;
        note(what);
    }

    fn put(&mut self, text: impl FnOnce() -> String, json: impl FnOnce() -> Value) {
        if self.failed.is_some() {
            return;
        }
        let words = if self.json {
            json().to_string()
        } else {
            text()
        };
        self.failed = writeln!(self.out, "{}", words.trim_end()).err();
    }
}
