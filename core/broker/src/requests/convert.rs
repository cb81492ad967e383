//! Between the machine's topics and the wire's.

use bytes::Bytes;
use millstream_machine::topics::settings;
use millstream_machine::topics::{FilterBinding, OnError, Stage, TopicConfig, TopicMeta};
use millstream_protocol::Code;
use millstream_protocol::messages::{self, FilterInfo, Setting, TopicInfo};
use millstream_shard::call::Error;

use crate::authority::{Principal, Right};
use crate::config::Config;
use crate::refusals;

/// A topic, as far as this principal is to know it.
pub(super) fn topic(meta: &TopicMeta, principal: &Principal) -> TopicInfo {
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
            .map(|binding| filter(meta, binding, principal))
            .collect(),
        revision: meta.revision,
    }
}

/// A binding. Values of parameters may be secrets: they are for those who could give it others.
pub(super) fn filter(
    meta: &TopicMeta,
    binding: &FilterBinding,
    principal: &Principal,
) -> FilterInfo {
    let may_deploy = principal.may(Right::Deploy, &meta.name);
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
                value: may_deploy.then(|| value.clone()),
            })
            .collect(),
        values_hidden: !may_deploy,
        memory_bytes_max: binding.budget.memory_bytes_max,
        batch_ms_max: binding.budget.batch_ms_max,
        on_error: match binding.on_error {
            OnError::Reject => "reject",
            OnError::Pass => "pass",
            OnError::Drop => "drop",
        }
        .to_owned(),
        ..FilterInfo::default()
    }
}

/// Settings that one request may name: there are fewer, and each is named once.
const SETTINGS_MAX: usize = 64;

/// Whether these are as many settings as a request may name.
pub(super) fn check_settings(set: &[Setting]) -> Result<(), messages::Error> {
    if set.len() <= SETTINGS_MAX {
        return Ok(());
    }
    Err(Code::TooLarge.error(format!(
        "{} settings in one request, over {SETTINGS_MAX}",
        set.len()
    )))
}

/// Every setting of a topic, with what holds where a topic does not say.
pub(super) fn default_settings(config: &Config) -> Vec<Setting> {
    let defaults = TopicConfig {
        retention_ms: Some(config.topics.retention_ms),
        retention_bytes: Some(config.topics.retention_bytes),
        batch_bytes_max: Some(config.log.batch_bytes() as u32),
        check_records: Some(config.topics.check_records.into()),
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
    check_settings(set)?;
    for setting in set {
        settings::apply(config, &setting.key, setting.value.as_deref())
            .map_err(|refusal| refusals::of_shard(&Error::Refused(refusal)))?;
    }
    Ok(())
}
