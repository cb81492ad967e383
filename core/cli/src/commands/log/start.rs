//! What the next start would make of a shard's files: the log's own start without its writes, and the facts
//! installed as a shard installs them.

use std::path::Path;

use millstream_batch::ids::{Lsn, ShardId};
use millstream_log::inspect::ReadAt;
use millstream_log::io::FileId;
use millstream_log::rehearse::rehearse;
use millstream_log::{Damage, Event};
use millstream_machine::fact::Fact;
use millstream_machine::{Limits, State, install};

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
    let mut replay = Replay::new(shard_of(directory));
    let recovery = rehearse(files, read, &mut |event| replay.take(event))?;
    replay.parts_over();
    Ok(Start {
        damage: recovery.damage,
        read_only: recovery.read_only.or(replay.halted),
    })
}

/// The number in `shard-N`; a copy under another name is as good as any.
fn shard_of(directory: &Path) -> ShardId {
    let name = directory.file_name().and_then(|name| name.to_str());
    let number = name.and_then(|name| name.strip_prefix("shard-")?.parse().ok());
    ShardId(number.unwrap_or(0).min(u16::MAX - 1))
}

struct Replay {
    state: State,
    restoring: Option<Lsn>,
    /// What follows this cannot be understood.
    halted: Option<String>,
}

impl Replay {
    fn new(shard: ShardId) -> Self {
        Self {
            // How many shards there are decides nothing here: only who asks is checked against it.
            state: State::new(shard, shard.0 + 1, Limits::default()),
            restoring: None,
            halted: None,
        }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::SnapshotPart { begin, bytes } => {
                self.restoring = Some(begin);
                if let Err(error) = self.state.restore_part(&bytes) {
                    self.halt(format!("snapshot {begin} cannot be restored: {error}"));
                }
            }
            Event::Replay(entry) => {
                self.parts_over();
                match Fact::decode(entry.kind, &entry.fact) {
                    Ok(fact) if self.halted.is_none() => install(&mut self.state, entry.lsn, &fact),
                    Ok(_) => {}
                    Err(error) => self.halt(format!("fact {} cannot be read: {error}", entry.lsn)),
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
