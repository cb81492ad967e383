//! Between the descriptions requests carry and the records that are archived.

use millstream_batch::ids::{Partition, TopicId};

use super::archive::{FilterRecord, ParameterRecord, PartitionRecord, TopicRecord};
use crate::topic::{Budget, FilterBinding, OnError, Stage, TopicConfig, TopicMeta};

impl From<&TopicMeta> for TopicRecord {
    fn from(meta: &TopicMeta) -> Self {
        Self {
            id: meta.id.0,
            name: meta.name.clone(),
            partitions: meta.partitions,
            revision: meta.revision,
            retention_ms: meta.config.retention_ms,
            retention_bytes: meta.config.retention_bytes,
            batch_bytes_max: meta.config.batch_bytes_max,
            filters: meta.filters.iter().map(FilterRecord::from).collect(),
        }
    }
}

impl From<&TopicRecord> for TopicMeta {
    fn from(record: &TopicRecord) -> Self {
        Self {
            id: TopicId(record.id),
            name: record.name.clone(),
            partitions: record.partitions,
            config: TopicConfig {
                retention_ms: record.retention_ms,
                retention_bytes: record.retention_bytes,
                batch_bytes_max: record.batch_bytes_max,
            },
            revision: record.revision,
            filters: record.filters.iter().map(FilterBinding::from).collect(),
        }
    }
}

impl TopicRecord {
    /// Whether every code in it is one this version knows.
    pub(crate) fn is_sound(&self) -> bool {
        millstream_batch::limits::is_name(&self.name)
            && self
                .filters
                .iter()
                .all(|filter| filter.stage <= 1 && filter.on_error <= 2)
    }
}

impl From<&FilterBinding> for FilterRecord {
    fn from(binding: &FilterBinding) -> Self {
        Self {
            name: binding.name.clone(),
            digest: binding.digest,
            stage: match binding.stage {
                Stage::Produce => 0,
                Stage::Subscribe => 1,
            },
            on_error: match binding.on_error {
                OnError::Reject => 0,
                OnError::Pass => 1,
                OnError::Drop => 2,
            },
            batch_ms_max: binding.budget.batch_ms_max,
            memory_bytes_max: binding.budget.memory_bytes_max,
            parameters: binding
                .parameters
                .iter()
                .map(|(key, value)| ParameterRecord {
                    key: key.clone(),
                    value: value.clone(),
                })
                .collect(),
        }
    }
}

impl From<&FilterRecord> for FilterBinding {
    fn from(record: &FilterRecord) -> Self {
        Self {
            name: record.name.clone(),
            digest: record.digest,
            stage: if record.stage == 0 {
                Stage::Produce
            } else {
                Stage::Subscribe
            },
            parameters: record
                .parameters
                .iter()
                .map(|parameter| (parameter.key.clone(), parameter.value.clone()))
                .collect(),
            budget: Budget {
                memory_bytes_max: record.memory_bytes_max,
                batch_ms_max: record.batch_ms_max,
            },
            on_error: match record.on_error {
                1 => OnError::Pass,
                2 => OnError::Drop,
                _ => OnError::Reject,
            },
        }
    }
}

impl From<Partition> for PartitionRecord {
    fn from(partition: Partition) -> Self {
        Self {
            topic: partition.topic.0,
            index: partition.index,
        }
    }
}

impl From<&PartitionRecord> for Partition {
    fn from(record: &PartitionRecord) -> Self {
        Self {
            topic: TopicId(record.topic),
            index: record.index,
        }
    }
}
