//! What the next start would make of a shard's files: the log's own start without its writes, and the facts
//! installed as a shard installs them.

use std::path::Path;

use millstream_batch::ids::{Lsn, ShardId};
use millstream_broker::read_meta;
use millstream_log::inspect::ReadAt;
use millstream_log::io::FileId;
use millstream_log::rehearse::rehearse;
use millstream_log::{Damage, Entry, Event};
use millstream_machine::fact::Fact;
use millstream_machine::{Limits, SnapshotError, State, install};

use crate::exit::Outcome;

/// What a start would find.
pub(super) struct Start {
    pub(super) damage: Vec<Damage>,
    /// Why it would take no writes.
    pub(super) read_only: Option<String>,
}

pub(super) fn rehearsed(
    directory: &Path,
    files: &[(FileId, u64)],
    read: &mut ReadAt<'_>,
) -> Outcome<Start> {
    let mut replay = Replay::new(place_of(directory));
    let recovery = rehearse(files, read, &mut |event| replay.take(event))?;
    replay.parts_over();
    Ok(Start {
        damage: recovery.damage,
        read_only: recovery.read_only.or(replay.halted),
    })
}

/// Which shard a start would take this for, of how many; `None` for a copy outside of a data directory,
/// which is what its snapshot says.
fn place_of(directory: &Path) -> Option<(ShardId, u16)> {
    let directory = directory.canonicalize().ok()?;
    let number = directory.file_name()?.to_str()?.strip_prefix("shard-")?;
    let shard = ShardId(number.parse().ok()?);
    let shards = read_meta(directory.parent()?).ok()?.shards;
    (shard.0 < shards).then_some((shard, shards))
}

struct Replay {
    state: State,
    /// It is known which shard this has to be.
    is_placed: bool,
    restoring: Option<Lsn>,
    /// What follows this cannot be understood.
    halted: Option<String>,
}

impl Replay {
    fn new(place: Option<(ShardId, u16)>) -> Self {
        let (shard, shards) = place.unwrap_or((ShardId(0), 1));
        Self {
            state: State::new(shard, shards, Limits::default()),
            is_placed: place.is_some(),
            restoring: None,
            halted: None,
        }
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), SnapshotError> {
        match self.state.restore_part(bytes) {
            Err(SnapshotError::OtherShard { shard, shards })
                if !self.is_placed && shard.0 < shards =>
            {
                self.state = State::new(shard, shards, Limits::default());
                self.is_placed = true;
                self.state.restore_part(bytes)
            }
            other => other,
        }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::SnapshotPart { begin, bytes } => {
                self.restoring = Some(begin);
                if let Err(error) = self.restore(&bytes) {
                    self.halt(format!("snapshot {begin} cannot be restored: {error}"));
                }
            }
            Event::Replay(unit) => {
                self.parts_over();
                let decode = |entry: &Entry| Fact::decode(entry.kind, &entry.fact);
                match unit
                    .entries
                    .iter()
                    .map(decode)
                    .collect::<Result<Vec<_>, _>>()
                {
                    Ok(facts) if self.halted.is_none() => {
                        install(&mut self.state, unit.lsn, &facts);
                    }
                    Ok(_) => {}
                    Err(error) => self.halt(format!("fact {} cannot be read: {error}", unit.lsn)),
                }
            }
            _ => {}
        }
    }

    fn parts_over(&mut self) {
        if let Some(begin) = self.restoring.take()
            && self.halted.is_none()
            && let Err(error) = self.state.restored(begin)
        {
            self.halt(format!("snapshot {begin} cannot be restored: {error}"));
        }
    }

    fn halt(&mut self, why: String) {
        self.halted.get_or_insert(why);
    }
}
