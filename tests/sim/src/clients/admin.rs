//! An operator: topics come, grow, change and go; records are deleted; groups are set elsewhere; things
//! are looked at.

use std::collections::BTreeMap;

use millstream_batch::ids::{GroupEpoch, Offset, Partition, TopicId};
use millstream_machine::request::{Reply, Request};
use millstream_machine::topics::{TopicConfig, TopicMeta};
use millstream_shard::call::{Answer, Call};

use crate::clients::{Client, Scene};

#[derive(Debug, Default)]
pub struct Admin {
    flying: BTreeMap<u64, Request>,
    /// Topics that are there for all when every shard knows them.
    spreading: BTreeMap<u64, TopicMeta>,
    /// Deletions that are waited for: the epoch that the group had at least.
    forgetting: BTreeMap<u64, (String, GroupEpoch)>,
    groups: Vec<String>,
    tag: u64,
    named: u64,
    topics_max: u64,
    /// Least and longest pause.
    pace_us: (u64, u64),
}

impl Admin {
    #[must_use]
    pub fn new(topics_max: u64, groups: Vec<String>, pace_us: (u64, u64)) -> Self {
        Self {
            groups,
            topics_max,
            pace_us,
            ..Self::default()
        }
    }

    fn send(&mut self, scene: &mut Scene<'_>, request: Request) {
        self.tag += 1;
        self.flying.insert(self.tag, request.clone());
        scene.send(self.tag, Call::Machine(request));
    }

    /// The topic is at the catalogue's shard: wait until all know.
    fn spread(&mut self, scene: &mut Scene<'_>, meta: TopicMeta) {
        self.tag += 1;
        let call = Call::WatchSpread {
            revision: meta.revision,
            wait_ms: scene.dice.skewed(1, 100) as u32,
        };
        self.spreading.insert(self.tag, meta);
        scene.send(self.tag, call);
    }

    fn request(&mut self, scene: &mut Scene<'_>) -> Option<Request> {
        let topics: Vec<(TopicId, String, u32)> = scene
            .history
            .topics
            .iter()
            .filter(|(_, topic)| !topic.deletion_asked)
            .map(|(id, topic)| (*id, topic.name.clone(), topic.partitions))
            .collect();
        if topics.is_empty() || (topics.len() as u64) < self.topics_max && scene.dice.one_in(5) {
            self.named += 1;
            let mut id = [0; 16];
            id[..8].copy_from_slice(&self.named.to_be_bytes());
            id[8..].copy_from_slice(&scene.dice.number().to_be_bytes());
            let retention_bytes = scene
                .dice
                .one_in(4)
                .then(|| scene.dice.skewed(1_000, 200_000) as i64);
            let retention_ms = if scene.dice.one_in(4) {
                scene.dice.skewed(10, 2_000) as i64
            } else {
                -1
            };
            return Some(Request::CreateTopic {
                id: TopicId(id),
                name: format!("topic-{}", self.named),
                partitions: scene.dice.skewed(1, 6) as u32,
                config: TopicConfig {
                    retention_ms: Some(retention_ms),
                    retention_bytes,
                    batch_bytes_max: None,
                    check_records: None,
                },
            });
        }
        let (id, name, partitions) = scene.dice.pick(&topics)?.clone();
        let partition = Partition {
            topic: id,
            index: scene.dice.range(0, u64::from(partitions)) as u32,
        };
        Some(match scene.dice.range(0, 20) {
            0 if topics.len() > 1 => Request::DeleteTopic { name },
            1 | 2 => Request::AddPartitions {
                name,
                total: (partitions + 1).min(12),
            },
            3 => Request::ConfigureTopic {
                name,
                set: vec![(
                    "retention.bytes".to_owned(),
                    Some(scene.dice.skewed(1_000, 100_000).to_string()),
                )],
            },
            4..=8 => {
                let end = scene.history.end_known(partition);
                Request::TrimPartition {
                    partition,
                    start: Offset(scene.dice.range(0, end + 1)),
                }
            }
            9 => {
                let mut places = Vec::new();
                let shard = partition.shard(scene.shards);
                for _ in 0..scene.dice.range(1, 4) {
                    let index = scene.dice.range(0, u64::from(partitions)) as u32;
                    let partition = Partition { topic: id, index };
                    if partition.shard(scene.shards) != shard {
                        continue;
                    }
                    let end = scene.history.end_known(partition);
                    places.push((partition, Offset(scene.dice.range(0, end + 1))));
                }
                Request::ResetOffsets {
                    group: scene.dice.pick(&self.groups)?.clone(),
                    places,
                    force: true,
                }
            }
            10..=12 => Request::DescribePartition { partition },
            13 => Request::DescribeTopic { name },
            14 => Request::ListGroups {
                after: String::new(),
            },
            15 if scene.dice.one_in(6) => Request::AcceptClock,
            16 if scene.dice.one_in(20) => Request::DeleteGroup {
                group: scene.dice.pick(&self.groups)?.clone(),
                force: true,
            },
            _ => Request::ListTopics,
        })
    }
}

impl Client for Admin {
    fn wake(&mut self, scene: &mut Scene<'_>) {
        if scene.closing {
            return;
        }
        if self.flying.is_empty()
            && let Some(request) = self.request(scene)
        {
            self.send(scene, request);
        }
        // Without a topic nobody has anything to do.
        let hurry = scene.history.topics.is_empty();
        let pace = match self.pace_us {
            (least, most) if !hurry => scene.dice.skewed(least, most),
            _ => scene.dice.skewed(200, 2_000),
        };
        scene.wake_in(pace);
    }

    fn answer(&mut self, scene: &mut Scene<'_>, tag: u64, answer: Answer) {
        let asked = self.flying.remove(&tag);
        let spreading = self.spreading.remove(&tag);
        let forgetting = self.forgetting.remove(&tag);
        match (asked, answer) {
            (
                Some(Request::ResetOffsets { group, places, .. }),
                Answer::Reply(Reply::Reset { fences }),
            ) => {
                // As the broker does: whoever was fenced is given the partition anew.
                let partitions = places.iter().map(|(partition, _)| *partition);
                let fenced = partitions.zip(fences).collect();
                self.send(scene, Request::ReassignPartitions { group, fenced });
            }
            (Some(Request::DeleteGroup { group, .. }), Answer::Reply(Reply::Done)) => {
                // Of the epoch at the deletion more is known than of one that came since.
                self.tag += 1;
                let epoch = scene.history.deleted.get(&group).copied();
                let epoch = epoch.unwrap_or_default();
                let wait_ms = scene.dice.skewed(1, 200) as u32;
                scene.send(
                    self.tag,
                    Call::WatchForgotten {
                        group: group.clone(),
                        wait_ms,
                    },
                );
                self.forgetting.insert(self.tag, (group, epoch));
            }
            (None, Answer::Reply(Reply::Done)) => {
                if let Some((group, epoch)) = forgetting {
                    scene.history.is_forgotten(&group, epoch);
                }
            }
            (_, Answer::Reply(Reply::Topic(meta))) => self.spread(scene, meta),
            (_, Answer::Reply(Reply::Topics(metas))) => {
                // Also those of which the answer was lost.
                let unknown = |meta: &TopicMeta| !scene.history.topics.contains_key(&meta.id);
                let metas: Vec<_> = metas.into_iter().filter(unknown).collect();
                for meta in metas {
                    self.spread(scene, meta);
                }
            }
            (_, Answer::Reply(Reply::Spread { behind })) => match spreading {
                Some(meta) if behind.is_empty() => scene.history.topic_is(&meta),
                _ => {}
            },
            _ => {}
        }
    }

    fn lost(&mut self, _scene: &mut Scene<'_>, tag: u64) {
        self.flying.remove(&tag);
        self.spreading.remove(&tag);
        self.forgetting.remove(&tag);
    }

    fn is_idle(&self) -> bool {
        self.flying.is_empty() && self.spreading.is_empty() && self.forgetting.is_empty()
    }
}
