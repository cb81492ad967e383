//! LIST_GROUPS: the groups of every shard, by name.

use std::collections::BTreeSet;

use millstream_machine::request::{Reply, Request};
use millstream_protocol::messages::{self, ListGroupsRequest, ListGroupsResponse};

use crate::authority::Right;
use crate::session::Session;
use crate::shards::{ask, unexpected};

pub(super) async fn handle(
    session: &Session,
    _: ListGroupsRequest,
) -> Result<ListGroupsResponse, messages::Error> {
    let principal = session.principal();
    principal.check_somewhere(Right::Consume)?;
    let mut all = BTreeSet::new();
    for shard in session.shared.shards.all() {
        match ask(shard, Request::ListGroups).await? {
            Reply::Groups(groups) => all.extend(
                groups
                    .into_iter()
                    .filter(|group| principal.may(Right::Consume, group)),
            ),
            other => return Err(unexpected(&other)),
        }
    }
    Ok(ListGroupsResponse {
        groups: all.into_iter().collect(),
    })
}
