//! What a reload changes while the broker serves: who is known, and the certificate. Everything else is for
//! the next start, and named when it differs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use quinn::ServerConfig;

use crate::authority::Authority;
use crate::config::Config;
use crate::tls::{Identity, Validity};
use crate::{Error, endpoint};

/// One generation of it. Replaced whole.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) authority: Authority,
    pub(crate) server: ServerConfig,
    /// When the broker's certificate holds; unknown when it cannot be read.
    pub(crate) certificate: Option<Validity>,
    /// The settings that this was made of.
    pub(crate) config: Config,
}

impl Live {
    /// From settings, after those `before`.
    pub(crate) fn new(
        config: Config,
        owner_token: &str,
        identity: &Identity,
        before: Option<&Self>,
    ) -> Result<Self, Error> {
        Ok(Self {
            authority: Authority::new(&config, owner_token, before.map(|before| &before.authority)),
            server: endpoint::server_config(&config, Arc::clone(&identity.server))?,
            certificate: identity.validity,
            config,
        })
    }
}

/// The settings that differ and that a reload does not change, by their names.
pub(crate) fn needs_restart(now: &Config, new: &Config) -> Vec<String> {
    let (now, new) = (settings(now), settings(new));
    let names: BTreeSet<_> = now.keys().chain(new.keys()).collect();
    let differing = names
        .into_iter()
        .filter(|name| now.get(*name) != new.get(*name));
    differing.cloned().collect()
}

/// Every setting but those that are reloaded, by its name.
fn settings(config: &Config) -> BTreeMap<String, toml::Value> {
    let mut table: toml::Table = config.to_toml().parse().unwrap_or_default();
    table.remove("tls");
    table.remove("principals");
    let mut all = BTreeMap::new();
    for (name, value) in table {
        match value {
            toml::Value::Table(section) => {
                let named = section
                    .into_iter()
                    .map(|(key, value)| (format!("{name}.{key}"), value));
                all.extend(named);
            }
            value => drop(all.insert(name, value)),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_reload_leaves_is_named() {
        let now = Config::default();
        let mut new = now.clone();
        new.tls.certificate = Some("c.pem".into());
        assert!(needs_restart(&now, &new).is_empty());
        new.limits.drain_ms += 1;
        new.shards = Some(7);
        assert_eq!(needs_restart(&now, &new), ["limits.drain_ms", "shards"]);
    }
}
