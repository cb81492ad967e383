//! `topic trim` and `topic purge`: records from the front of partitions are given up.
//!
//! What goes is looked up first for all partitions, then done; so a position that makes no sense for one of
//! them changes nothing.

use millstream_client::{Admin, OffsetSpec, PartitionInfo, StartAt};
use serde_json::{Value, json};

use super::plural;
use crate::confirm::Yes;
use crate::exit::{Failure, Outcome};
use crate::output::{Output, Table, grouped, partitions};

/// What to give up.
#[derive(Debug)]
pub(super) struct Cut {
    pub(super) topic: String,
    /// What lies before goes.
    pub(super) before: StartAt,
    /// None named: all.
    pub(super) partitions: Vec<u32>,
    pub(super) dry_run: bool,
    pub(super) yes: Yes,
}

/// A partition and its start before and after.
struct Row {
    partition: u32,
    from: u64,
    to: u64,
}

impl Cut {
    pub(super) async fn run(self, admin: &Admin, output: Output) -> Outcome {
        let mut rows = Vec::new();
        for partition in self.chosen(admin).await? {
            let to = self.new_start(admin, &partition).await?;
            rows.push(Row {
                partition: partition.partition,
                from: partition.start_offset,
                to: to.max(partition.start_offset),
            });
        }
        if !self.dry_run {
            let records: u64 = rows.iter().map(Row::records).sum();
            if records > 0 {
                let question = format!(
                    "Give up {} record{} of {}?",
                    grouped(records),
                    plural(records),
                    self.topic
                );
                let yes = self.yes;
                // The connection is kept alive while a person thinks.
                tokio::task::spawn_blocking(move || yes.confirm(&question)).await??;
            }
            for row in rows.iter_mut().filter(|row| row.to > row.from) {
                row.to = admin
                    .trim_partition(&self.topic, row.partition, row.to)
                    .await?;
            }
        }
        let gone: u64 = rows.iter().map(Row::records).sum();
        let mut table = Table::new(["PARTITION", "START", "NEW START", "RECORDS"]);
        for row in &rows {
            table.row([
                row.partition.to_string(),
                row.from.to_string(),
                row.to.to_string(),
                row.records().to_string(),
            ]);
        }
        let head = match self.dry_run {
            true => "would be given up (nothing was changed)",
            false => "given up",
        };
        let text = format!("{table}\n{} record{} {head}", grouped(gone), plural(gone));
        let partitions: Value = rows.iter().map(Row::json).collect();
        let json = json!({
            "topic": self.topic, "dry_run": self.dry_run, "records": gone, "partitions": partitions,
        });
        output.show(text, &json)
    }

    /// The partitions that are asked for, as they are.
    async fn chosen(&self, admin: &Admin) -> Outcome<Vec<PartitionInfo>> {
        let described = admin.describe_topic(&self.topic, true).await?;
        if let Some(unknown) = self.partitions.iter().find(|&&p| p >= described.partitions) {
            return Err(Failure::failed(format!(
                "{} has {}, not {unknown}",
                self.topic,
                partitions(described.partitions)
            )));
        }
        let mut chosen = described.partition_infos;
        if !self.partitions.is_empty() {
            chosen.retain(|info| self.partitions.contains(&info.partition));
        }
        if let Some((info, error)) = chosen
            .iter()
            .find_map(|info| Some((info, info.error.as_ref()?)))
        {
            return Err(Failure::failed(format!(
                "partition {} cannot be reached, so nothing was changed: {error}",
                info.partition
            )));
        }
        if matches!(self.before, StartAt::Offset(_) | StartAt::After { .. }) && chosen.len() > 1 {
            return Err(Failure::usage(format!(
                "an offset is that of one partition: name it with --partition ({} has {})",
                self.topic, described.partitions
            )));
        }
        Ok(chosen)
    }

    async fn new_start(&self, admin: &Admin, partition: &PartitionInfo) -> Outcome<u64> {
        Ok(match self.before {
            StartAt::Start => partition.start_offset,
            StartAt::End => partition.end_offset,
            StartAt::Offset(offset) | StartAt::After { offset, .. }
                if offset > partition.end_offset =>
            {
                return Err(Failure::failed(format!(
                    "offset {offset} is past the end of partition {}, which is {}",
                    partition.partition, partition.end_offset
                )));
            }
            StartAt::Offset(offset) | StartAt::After { offset, .. } => offset,
            StartAt::Timestamp(ms) => {
                let at = OffsetSpec::Timestamp(ms);
                admin
                    .offset_at(&self.topic, partition.partition, at)
                    .await?
                    .0
            }
        })
    }
}

impl Row {
    fn records(&self) -> u64 {
        self.to - self.from
    }

    fn json(&self) -> Value {
        json!({
            "partition": self.partition, "start_offset": self.from, "new_start_offset": self.to,
            "records": self.records(),
        })
    }
}
