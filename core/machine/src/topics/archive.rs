//! Between the descriptions requests carry and the records that are archived.

use millstream_batch::ids::TopicId;

use super::meta::{Budget, FilterBinding, OnError, Stage, TopicConfig, TopicMeta};
use super::settings;
use crate::fact::archive::{
    CatalogueKnown, FilterRecord, ParameterRecord, TopicApplied, TopicApplied16, TopicDeleted,
    TopicForgotten, TopicRecord, TopicRecord16,
};
use crate::fact::{Fact, Sound};

impl From<&TopicMeta> for TopicRecord {
    fn from(meta: &TopicMeta) -> Self {
        Self {
            id: meta.id.0,
            name: meta.name.clone(),
            partitions: meta.partitions,
            revision: meta.revision,
            settings: rows(&meta.config),
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
            config: record.config().unwrap_or_default(), // a record that is sound has one
            revision: record.revision,
            filters: record.filters.iter().map(FilterBinding::from).collect(),
        }
    }
}

/// The settings that a topic has of its own.
fn rows(config: &TopicConfig) -> Vec<ParameterRecord> {
    let shown = settings::show(config).into_iter();
    let rows = shown.filter_map(|(key, value)| {
        Some(ParameterRecord {
            key: key.to_owned(),
            value: value?,
        })
    });
    rows.collect()
}

impl From<TopicRecord16> for TopicRecord {
    fn from(record: TopicRecord16) -> Self {
        let config = TopicConfig {
            retention_ms: record.retention_ms,
            retention_bytes: record.retention_bytes,
            batch_bytes_max: record.batch_bytes_max,
            ..TopicConfig::default()
        };
        Self {
            id: record.id,
            name: record.name,
            partitions: record.partitions,
            revision: record.revision,
            settings: rows(&config),
            filters: record.filters,
        }
    }
}

impl From<TopicApplied16> for Fact {
    fn from(fact: TopicApplied16) -> Self {
        Self::TopicApplied(Box::new(TopicApplied {
            topic: fact.topic.into(),
            added: fact.added,
            time_ms: fact.time_ms,
        }))
    }
}

impl Sound for TopicApplied {
    fn is_sound(&self) -> bool {
        let sorted = self
            .added
            .is_sorted_by(|a, b| a.index < b.index && a.slot < b.slot);
        self.topic.is_sound() && sorted && self.added.last().is_none_or(|last| last.slot < u32::MAX)
    }
}

impl From<TopicForgotten> for Fact {
    fn from(fact: TopicForgotten) -> Self {
        Self::TopicDeleted(Box::new(TopicDeleted {
            id: fact.id,
            slots: fact.slots,
            time_ms: fact.time_ms,
            revision: 0,
        }))
    }
}

impl Sound for TopicDeleted {
    fn is_sound(&self) -> bool {
        self.slots.is_sorted_by(|a, b| a < b)
    }
}

impl Sound for CatalogueKnown {
    fn is_sound(&self) -> bool {
        self.revision > 0
    }
}

impl TopicRecord {
    /// `None`: not all of its settings are ones that this version knows.
    fn config(&self) -> Option<TopicConfig> {
        let mut config = TopicConfig::default();
        for row in &self.settings {
            settings::apply(&mut config, &row.key, Some(&row.value)).ok()?;
        }
        Some(config)
    }

    /// Whether every code in it is one this version knows.
    pub(super) fn is_sound(&self) -> bool {
        millstream_batch::limits::is_name(&self.name)
            && self.config().is_some()
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
