//! DEPLOY_FILTER: the component is compiled, stored and started once before the fact that names it.

use std::sync::Arc;

use bytes::Bytes;
use millstream_batch::limits::is_name;
use millstream_machine::request::{Reply, Request};
use millstream_machine::topics::{Budget, FilterBinding, OnError, Stage};
use millstream_protocol::messages::{self, DeployFilterRequest, DeployFilterResponse, FilterInfo};
use millstream_protocol::{Code, Payload};
use millstream_sandbox::Parameters;
use rustc_hash::FxHashSet;

use super::list_filters::describe;
use crate::authority::Right;
use crate::broker::Shared;
use crate::bundled;
use crate::session::Session;
use crate::shards::{ask, unexpected};

pub(super) async fn handle(
    session: &Session,
    request: DeployFilterRequest,
    payload: Payload,
) -> Result<DeployFilterResponse, messages::Error> {
    let filter = request
        .filter
        .ok_or_else(|| Code::BadRequest.error("DEPLOY_FILTER without a filter"))?;
    session.principal().check(Right::Deploy, &filter.topic)?;
    if !is_name(&filter.name) {
        return Err(Code::BadName.error(format!("`{}` is not a name", filter.name)));
    }
    // Refused before a compile that may take a second.
    session.thread.catalog.topic(&filter.topic).await?;
    let binding = binding(session, &filter, [0; 32])?;
    let components = &session.shared.components;
    let _deploying = components.deploying.lock().await;
    let digest = if payload.is_empty() {
        let digest = filter.digest.as_ref().try_into().map_err(|_| {
            Code::BadRequest
                .error("DEPLOY_FILTER needs a component as payload, or the digest of a stored one")
        })?;
        match bundled::by_digest(&digest) {
            // A later broker may bring along another of that name: this one is kept.
            Some(wasm) => components.add(Bytes::from_static(wasm)).await?,
            None => {
                components.find(digest).await?;
                digest
            }
        }
    } else {
        let wasm = payload.into_contiguous();
        match components.add(wasm.clone()).await {
            Err(error) if error.code == Code::StateFull.number() => {
                components.sweep(named(&session.shared).await?).await;
                components.add(wasm).await?
            }
            added => added?,
        }
    };
    let binding = FilterBinding { digest, ..binding };
    components
        .try_start(binding.clone(), Parameters::new())
        .await?;
    let shards = &session.shared.shards;
    let deploy = Request::DeployFilter {
        topic: filter.topic,
        binding: binding.clone(),
    };
    match ask(shards.catalog(), deploy).await? {
        Reply::Topic(meta) => {
            session.thread.spread(&meta).await?;
            let deployments = &session.shared.plugins.deployments;
            deployments.renew(meta.id, &binding.name);
            deployments.keep(meta.id, &meta.filters);
            sweep_later(session);
            Ok(DeployFilterResponse {
                filter: Some(describe(session, &meta, &binding)),
                revision: meta.revision,
            })
        }
        other => Err(unexpected(&other)),
    }
}

/// Delete compiled code that no topic needs any more, beside what goes on: deploying may take its time.
pub(super) fn sweep_later(session: &Session) {
    let shared = Arc::clone(&session.shared);
    tokio::task::spawn_local(async move {
        let components = &shared.components;
        let _deploying = components.deploying.lock().await;
        // What cannot be asked for now is swept at the next start.
        if let Ok(named) = named(&shared).await {
            components.sweep_compiled(named).await;
        }
    });
}

/// The components that topics name.
async fn named(shared: &Shared) -> Result<FxHashSet<[u8; 32]>, messages::Error> {
    match ask(shared.shards.catalog(), Request::ListTopics).await? {
        Reply::Topics(topics) => Ok(topics
            .iter()
            .flat_map(|topic| &topic.filters)
            .map(|binding| binding.digest)
            .collect()),
        other => Err(unexpected(&other)),
    }
}

fn binding(
    session: &Session,
    filter: &FilterInfo,
    digest: [u8; 32],
) -> Result<FilterBinding, messages::Error> {
    let defaults = &session.shared.config.plugins;
    let stage = match filter.stage.as_str() {
        "produce" => Stage::Produce,
        "subscribe" => Stage::Subscribe,
        other => {
            return Err(
                Code::BadConfig.error(format!("stage `{other}` is neither produce nor subscribe"))
            );
        }
    };
    let on_error = match filter.on_error.as_str() {
        "" | "reject" => OnError::Reject,
        "pass" => OnError::Pass,
        "drop" => OnError::Drop,
        other => {
            return Err(
                Code::BadConfig.error(format!("on_error `{other}` is none of reject, pass, drop"))
            );
        }
    };
    let mut parameters: Vec<(String, String)> = filter
        .parameters
        .iter()
        .map(|setting| {
            (
                setting.key.clone(),
                setting.value.clone().unwrap_or_default(),
            )
        })
        .collect();
    parameters.sort_unstable();
    let or = |what: &str, value: u64, most: u64| match value {
        0 => Ok(most),
        value if value <= most => Ok(value),
        value => {
            let message = format!("{what} = {value} is over the {most} that this broker gives");
            Err(Code::BadConfig.error(message))
        }
    };
    Ok(FilterBinding {
        name: filter.name.clone(),
        digest,
        stage,
        parameters,
        budget: Budget {
            memory_bytes_max: or(
                "memory_bytes_max",
                filter.memory_bytes_max,
                defaults.memory_bytes_max,
            )?,
            batch_ms_max: or(
                "batch_ms_max",
                u64::from(filter.batch_ms_max),
                u64::from(defaults.batch_ms_max),
            )? as u32,
        },
        on_error,
    })
}
