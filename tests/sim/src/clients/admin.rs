//! An operator: topics come, grow, change and go; records are deleted; groups are set elsewhere; things
//! are looked at.

use std::collections::{BTreeMap, BTreeSet};

use millstream_batch::ids::{Offset, Partition, TopicId};
use millstream_machine::request::{Reply, Request};
use millstream_machine::topics::TopicConfig;
use millstream_shard::call::{Answer, Call};

use crate::clients::{Client, Scene};

#[derive(Debug, Default)]
pub struct Admin {
    flying: BTreeMap<u64, Request>,
    /// Calls that are for another shard than the one that decides them: the catalogue's changes.
    spread: BTreeMap<u64, usize>,
    /// Who knows of a topic's revision, by topic: it is there for all when all do.
    known: BTreeMap<(TopicId, u64), BTreeSet<usize>>,
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

    fn again(&mut self, scene: &mut Scene<'_>, request: Request, shard: Option<usize>) {
        if scene.closing {
            return;
        }
        self.spread.extend(shard.map(|shard| (self.tag + 1, shard)));
        self.send(scene, request);
    }

    /// A change of the catalogue, to every other shard, until each knows of it.
    fn spread(&mut self, scene: &mut Scene<'_>, request: &Request) {
        for shard in 1..usize::from(scene.shards) {
            self.spread.insert(self.tag + 1, shard);
            self.send(scene, request.clone());
        }
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
        let spread = self.spread.remove(&tag);
        match (asked, &answer) {
            (
                Some(Request::ResetOffsets { group, places, .. }),
                Answer::Reply(Reply::Reset { fences }),
            ) => {
                // As the broker does: whoever was fenced is given the partition anew.
                let partitions = places.iter().map(|(partition, _)| *partition);
                let fenced = partitions.zip(fences.iter().copied()).collect();
                self.send(scene, Request::ReassignPartitions { group, fenced });
            }
            (Some(Request::ApplyTopic { meta }), Answer::Reply(_)) => {
                let known = self.known.entry((meta.id, meta.revision)).or_default();
                known.extend(spread);
                if known.len() + 1 == usize::from(scene.shards) {
                    scene.history.topic_is(&meta);
                }
            }
            // A shard that could not be told is told again.
            (Some(request), Answer::Error(_)) if spread.is_some() => {
                self.again(scene, request, spread);
            }
            _ => {}
        }
        match answer {
            Answer::Reply(Reply::Topic(meta)) if scene.shards == 1 => scene.history.topic_is(&meta),
            Answer::Reply(Reply::Topic(meta)) => self.spread(scene, &Request::ApplyTopic { meta }),
            Answer::Reply(Reply::TopicGone { id }) => {
                self.spread(scene, &Request::ForgetTopic { id });
            }
            Answer::Reply(Reply::Topics(metas)) if scene.shards == 1 => {
                metas.iter().for_each(|meta| scene.history.topic_is(meta));
            }
            // Also those of which the answer was lost.
            Answer::Reply(Reply::Topics(metas)) => {
                for meta in metas {
                    self.spread(scene, &Request::ApplyTopic { meta });
                }
            }
            _ => {}
        }
    }

    fn lost(&mut self, scene: &mut Scene<'_>, tag: u64) {
        let asked = self.flying.remove(&tag);
        let spread = self.spread.remove(&tag);
        if let (Some(request), Some(_)) = (asked, spread) {
            self.again(scene, request, spread);
        }
    }

    fn shard_of(&self, tag: u64) -> Option<usize> {
        self.spread.get(&tag).copied()
    }

    fn is_idle(&self) -> bool {
        self.flying.is_empty()
    }
}
