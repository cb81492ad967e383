//! SUBSCRIBE: rights, topics, and the first partitions.

use std::rc::Rc;

use millstream_batch::ids::{GroupEpoch, MemberId, Partition, TopicId};
use millstream_batch::limits::is_name;
use millstream_machine::topics::TopicMeta;
use millstream_protocol::Code;
use millstream_protocol::messages::{self, Subscribe};
use millstream_shard::call::Position;
use rustc_hash::FxHashSet;

use super::Subscription;
use super::group::{Joining, session_timeout};
use super::jobs::Opening;
use crate::authority::Right;
use crate::requests::{At, position_of};

impl Subscription {
    /// Start what SUBSCRIBE asks for.
    pub(super) async fn open(&mut self, subscribe: &Subscribe) -> Result<(), messages::Error> {
        let principal = self.session.principal();
        if !subscribe.group.is_empty() {
            if !is_name(&subscribe.group) {
                return Err(Code::BadName.error(format!("`{}` is not a name", subscribe.group)));
            }
            principal.check(Right::Consume, &subscribe.group)?;
        }
        // Both lists are as long as the request, and stay so until it is known what they come to.
        self.feeds
            .quota
            .check(subscribe.topics.len().max(subscribe.partitions.len()))?;
        let mut named: FxHashSet<&str> = FxHashSet::default();
        let mut topics = Vec::new();
        for name in &subscribe.topics {
            if !named.insert(name) {
                return Err(twice(&format!("`{name}`")));
            }
            topics.push(self.topic(name).await?);
        }
        let assigned = !subscribe.group.is_empty() && subscribe.partitions.is_empty();
        if assigned {
            if topics.is_empty() {
                return Err(Code::BadRequest.error("SUBSCRIBE with a group names no topic"));
            }
            if subscribe.member != 0 {
                let (group, token) = (&subscribe.group, &subscribe.member_token);
                self.session.check_member(group, subscribe.member, token)?;
            }
            if let Some(group) = &self.group {
                self.begin_group(group, &topics).await?;
            }
            let client = match subscribe.client.is_empty() {
                true => self.session.client(),
                false => subscribe.client.chars().take(60).collect(),
            };
            let joining = Joining {
                group: subscribe.group.clone(),
                client,
                topics,
                session_timeout_ms: session_timeout(subscribe.session_timeout_ms),
            };
            return self.join(joining, MemberId(subscribe.member)).await;
        }
        let mut wanted: Vec<(Rc<TopicMeta>, u32, At)> = Vec::new();
        let mut named: FxHashSet<(TopicId, u32)> = FxHashSet::default();
        for fixed in &subscribe.partitions {
            let topic = self.topic(&fixed.topic).await?;
            if fixed.partition >= topic.partitions {
                let message = format!(
                    "topic `{}` has no partition {} (partitions: {})",
                    topic.name, fixed.partition, topic.partitions
                );
                return Err(Code::UnknownPartition.error(message));
            }
            if !named.insert((topic.id, fixed.partition)) {
                return Err(twice(&format!("`{}`/{}", topic.name, fixed.partition)));
            }
            let from = fixed
                .from
                .as_ref()
                .map_or(self.from, |from| position_of(Some(from)));
            wanted.push((topic, fixed.partition, from));
        }
        let whole: FxHashSet<TopicId> = topics.iter().map(|topic| topic.id).collect();
        let others = wanted
            .iter()
            .filter(|(topic, _, _)| !whole.contains(&topic.id));
        let all: usize = topics.iter().map(|topic| topic.partitions as usize).sum();
        self.feeds.quota.check(all + others.count())?;
        // Of a topic that is read whole, those begin where `from` says that were not named themselves.
        for topic in topics {
            let others = (0..topic.partitions).filter(|&index| !named.contains(&(topic.id, index)));
            wanted.extend(others.map(|index| (Rc::clone(&topic), index, self.from)));
            if !self.stop_at_end {
                self.whole.push((topic.id, topic.partitions));
            }
        }
        if wanted.is_empty() {
            return Err(Code::BadRequest.error("SUBSCRIBE names no topic and no partition"));
        }
        self.subscribed(MemberId(0), 0);
        for (topic, index, from) in wanted {
            let partition = Partition {
                topic: topic.id,
                index,
            };
            self.open_fixed(topic, partition, from)?;
        }
        Ok(())
    }

    /// Read what was added to topics that are read whole: from its start, for all of it is new.
    pub(super) fn open_added(&mut self) {
        let mut added = Vec::new();
        for (id, known) in &mut self.whole {
            // Of a deleted topic, each partition tells by itself.
            let Some(topic) = self.session.thread.catalog.cached(*id) else {
                continue;
            };
            added.extend((*known..topic.partitions).map(|index| (Rc::clone(&topic), index)));
            *known = topic.partitions.max(*known);
        }
        for (topic, index) in added {
            let partition = Partition {
                topic: topic.id,
                index,
            };
            if let Err(error) = self.open_fixed(topic, partition, At::Position(Position::Start)) {
                self.refused = Some(error);
                return;
            }
        }
    }

    fn open_fixed(
        &mut self,
        topic: Rc<TopicMeta>,
        partition: Partition,
        from: At,
    ) -> Result<(), messages::Error> {
        let handle = self.feeds.insert(topic, partition, GroupEpoch(0))?;
        if let Some(feed) = self.feeds.feed(handle) {
            feed.named = from.named();
        }
        let opening = Opening {
            shard: self.session.shared.shards.of(partition).clone(),
            partition,
            group: self.group.clone(),
            claim: None,
            from,
            stop_at_end: self.stop_at_end,
        };
        self.open_later(handle, opening);
        Ok(())
    }

    async fn topic(&self, name: &str) -> Result<Rc<TopicMeta>, messages::Error> {
        self.session.principal().check(Right::Consume, name)?;
        self.session.thread.catalog.topic(name).await
    }
}

fn twice(what: &str) -> messages::Error {
    Code::BadRequest.error(format!("SUBSCRIBE names {what} twice"))
}
