//! Between the machine's topics and the wire's.

use bytes::Bytes;
use millstream_machine::settings;
use millstream_machine::topic::{FilterBinding, OnError, Stage, TopicConfig, TopicMeta};
use millstream_protocol::messages::{self, FilterInfo, Setting, TopicInfo};
use millstream_shard::call::Error;

use crate::config::Config;
use crate::refusals;

pub(super) fn topic(meta: &TopicMeta) -> TopicInfo {
    TopicInfo {
        id: Bytes::copy_from_slice(&meta.id.0),
        name: meta.name.clone(),
        partitions: meta.partitions,
        config: settings::show(&meta.config)
            .into_iter()
            .filter(|(_, value)| value.is_some())
            .map(|(key, value)| Setting {
                key: key.to_owned(),
                value,
            })
            .collect(),
        filters: meta
            .filters
            .iter()
            .map(|binding| filter(meta, binding))
            .collect(),
        revision: meta.revision,
    }
}

pub(super) fn filter(meta: &TopicMeta, binding: &FilterBinding) -> FilterInfo {
    FilterInfo {
        name: binding.name.clone(),
        topic: meta.name.clone(),
        stage: match binding.stage {
            Stage::Produce => "produce",
            Stage::Subscribe => "subscribe",
        }
        .to_owned(),
        digest: Bytes::copy_from_slice(&binding.digest),
        parameters: binding
            .parameters
            .iter()
            .map(|(key, value)| Setting {
                key: key.clone(),
                value: Some(value.clone()),
            })
            .collect(),
        memory_bytes_max: binding.budget.memory_bytes_max,
        batch_ms_max: binding.budget.batch_ms_max,
        on_error: match binding.on_error {
            OnError::Reject => "reject",
            OnError::Pass => "pass",
            OnError::Drop => "drop",
        }
        .to_owned(),
        state: String::new(),
    }
}

/// Every setting of a topic, with what holds where a topic does not say.
pub(super) fn default_settings(config: &Config) -> Vec<Setting> {
    let defaults = TopicConfig {
        retention_ms: Some(config.topics.retention_ms),
        retention_bytes: Some(config.topics.retention_bytes),
        batch_bytes_max: Some(config.log.batch_bytes() as u32),
    };
    settings::show(&defaults)
        .into_iter()
        .map(|(key, value)| Setting {
            key: key.to_owned(),
            value,
        })
        .collect()
}

/// Settings of a new topic.
pub(super) fn apply_settings(
    config: &mut TopicConfig,
    set: &[Setting],
) -> Result<(), messages::Error> {
    for setting in set {
        settings::apply(config, &setting.key, setting.value.as_deref())
            .map_err(|refusal| refusals::of_shard(&Error::Refused(refusal)))?;
    }
    Ok(())
}
