//! LIST_GROUPS: the groups of every shard, by name: how each stands, as its home says, and what it has
//! still to read on all of them.

use std::collections::BTreeMap;

use millstream_machine::request::{Reply, Request, Standing};
use millstream_protocol::messages::{self, GroupSummary, ListGroupsRequest, ListGroupsResponse};

use super::describe_group::state_name;
use crate::authority::Right;
use crate::session::Session;
use crate::shards::{ask, unexpected};

pub(super) async fn handle(
    session: &Session,
    _: ListGroupsRequest,
) -> Result<ListGroupsResponse, messages::Error> {
    let principal = session.principal();
    principal.check_somewhere(Right::Consume)?;
    let catalog = &session.thread.catalog;
    let sees = |id| {
        catalog
            .cached(id)
            .is_some_and(|topic| principal.sees(&topic.name))
    };
    let mut all: BTreeMap<String, GroupSummary> = BTreeMap::new();
    for shard in session.shared.shards.all() {
        let mut after = String::new();
        loop {
            let (groups, more) = match ask(shard, Request::ListGroups { after }).await? {
                Reply::Groups { groups, more } => (groups, more),
                other => return Err(unexpected(&other)),
            };
            after = groups
                .last()
                .map(|last| last.name.clone())
                .unwrap_or_default();
            for part in groups {
                if !principal.may(Right::Consume, &part.name) {
                    continue;
                }
                let group = all
                    .entry(part.name)
                    .or_insert_with_key(|name| GroupSummary {
                        group: name.clone(),
                        state: state_name(Standing::Empty).to_owned(),
                        ..GroupSummary::default()
                    });
                let seen = part.lag.iter().filter(|(topic, _)| sees(*topic));
                group.lag += seen.map(|(_, lag)| lag).sum::<u64>();
                if let Some((standing, members)) = part.home {
                    group.state = state_name(standing).to_owned();
                    group.members = members as u32;
                }
            }
            if !more {
                break;
            }
        }
    }
    Ok(ListGroupsResponse {
        groups: all.into_values().collect(),
    })
}
