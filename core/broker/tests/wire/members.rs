//! Members over the wire: whose an id is, which of two streams under one id is the member, and what an
//! operator's reset, a deleted group and a topic made anew do to one that runs.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use millstream_broker::PrincipalSettings;
use millstream_protocol::messages::{
    self, AddPartitionsRequest, AddPartitionsResponse, Assigned, AssignedPartition, Commit,
    CommitOffset, Committed, DeleteGroupRequest, DeleteGroupResponse, DeleteTopicRequest,
    DeleteTopicResponse, DescribeGroupRequest, DescribeGroupResponse, HelloRequest, HelloResponse,
    ListGroupsRequest, ListGroupsResponse, Produce, ProducerOpen, Released, ResetGroupRequest,
    ResetGroupResponse, Revoke, Seek, Sought, StartAt, Subscribe, Subscribed, start_at,
};
use millstream_protocol::{Code, Kind};
use tokio::sync::Notify;

use crate::client::{Client, Stream, World, batch, values, whole};

/// `printf %s alice | sha256sum`, and of `bob`.
const ALICE: &str = "2bd806c97f0e00af1a1fc3328fa763a9269723c8db8fac4f93af71db186d6e90";
const BOB: &str = "81b637d8fcd2c6da6359e6963113a1170de795e4b725b84d1e0b4cfd9ec58ce9";

fn member(topic: &str) -> Subscribe {
    Subscribe {
        group: "g".to_owned(),
        ..whole(topic)
    }
}

/// The same member again.
fn again(topic: &str, subscribed: &Subscribed) -> Subscribe {
    Subscribe {
        member: subscribed.member,
        member_token: subscribed.member_token.clone(),
        ..member(topic)
    }
}

async fn produced(client: &Client, topic: &str, partitions: u32, records: usize) {
    let topic_id = client.create_topic(topic, partitions).await;
    let mut producer = client.producer(&ProducerOpen::default()).await;
    for partition in 0..partitions {
        let header = Produce {
            tag: u64::from(partition) + 1,
            topic_id: topic_id.clone(),
            partition,
            ..Produce::default()
        };
        producer
            .produce(header, &batch(&vec![b"x".as_slice(); records]))
            .await;
        producer.expect(Kind::Produced).await;
    }
}

impl Stream {
    /// The next frame of this kind; others are passed over, an ERROR is not.
    async fn until<M: millstream_protocol::Message + Default>(&mut self, kind: Kind) -> M {
        loop {
            let frame = self.next().await.expect("a frame");
            match frame.known() {
                Some(known) if known == kind => return frame.message().expect("its message"),
                Some(Kind::Error) => {
                    panic!("{:?}", frame.message::<messages::Error>())
                }
                _ => {}
            }
        }
    }

    async fn subscribed(&mut self) -> Subscribed {
        self.until(Kind::Subscribed).await
    }

    /// Partitions that are assigned, until they are so many.
    async fn given(&mut self, count: usize) -> Vec<AssignedPartition> {
        let mut given = Vec::new();
        while given.len() < count {
            let assigned: Assigned = self.until(Kind::Assigned).await;
            given.extend(assigned.partitions);
        }
        given.sort_by_key(|partition| partition.partition);
        given
    }

    /// Commit an offset; the code of the error, if it failed.
    async fn commit(&mut self, tag: u64, handle: u32, offset: u64) -> Option<u32> {
        let offset = CommitOffset {
            handle,
            offset,
            ..CommitOffset::default()
        };
        let offsets = vec![offset];
        self.frame(Kind::Commit, &Commit { tag, offsets }).await;
        let committed: Committed = self.until(Kind::Committed).await;
        assert_eq!(committed.tag, tag);
        let failed = committed.failed.first();
        failed.map(|failed| failed.error.as_ref().expect("an error").code)
    }

    /// Read to the end: the code of the ERROR that is there.
    async fn ends(mut self) -> Option<u32> {
        let mut code = None;
        while let Some(frame) = self.next().await {
            if frame.known() == Some(Kind::Error) {
                code = Some(frame.message::<messages::Error>().expect("an ERROR").code);
            }
        }
        code
    }
}

async fn described(client: &Client) -> DescribeGroupResponse {
    let request = DescribeGroupRequest {
        group: "g".to_owned(),
        after: None,
    };
    let answer = client.request(Kind::DescribeGroup, &request).await;
    answer.expect("described")
}

async fn reset(
    client: &Client,
    offset: u64,
    force: bool,
    dry_run: bool,
) -> Result<ResetGroupResponse, messages::Error> {
    let request = ResetGroupRequest {
        group: "g".to_owned(),
        topic: "t".to_owned(),
        to: Some(StartAt {
            at: Some(start_at::At::Offset(offset)),
            leader_epoch: None,
        }),
        force,
        dry_run,
        ..ResetGroupRequest::default()
    };
    client.request(Kind::ResetGroup, &request).await
}

/// With one shard and with several, two members.
#[test]
fn a_member_that_runs_goes_on_from_a_forced_reset() {
    for shards in [1, 3] {
        let world = World::new(|config| config.shards = Some(shards));
        world.run(async {
            let client = world.connect().await;
            client.create_topic("other", 1).await;
            produced(&client, "t", 4, 9).await;
            let mut first = client.subscribe(&member("t")).await;
            first.subscribed().await;
            let mut held = first.given(4).await;
            let mut second = client.subscribe(&member("t")).await;
            second.subscribed().await;
            let revoke: Revoke = first.until(Kind::Revoke).await;
            let handles = revoke.handles;
            assert_eq!((revoke.lost, handles.len()), (false, 2));
            held.retain(|given| !handles.contains(&given.handle));
            first.frame(Kind::Released, &Released { handles }).await;
            let taken = second.given(2).await;
            let mut members = [(first, held), (second, taken)];
            for (stream, held) in &mut members {
                for (tag, partition) in (1..).zip(&*held) {
                    assert_eq!(stream.commit(tag, partition.handle, 8).await, None);
                }
            }
            let busy = reset(&client, 3, false, false).await.expect_err("it runs");
            assert_eq!(busy.code, Code::GroupBusy.number());
            let would_be = reset(&client, 3, false, true).await.expect("only shown");
            assert!(would_be.offsets.iter().all(|row| row.committed == Some(3)));
            let before = described(&client).await;
            assert!(before.offsets.iter().all(|row| row.committed == Some(8)));
            reset(&client, 3, true, false).await.expect("forced");
            for (stream, held) in &mut members {
                let mut lost = Vec::new();
                while lost.len() < 2 {
                    let revoke: Revoke = stream.until(Kind::Revoke).await;
                    assert!(revoke.lost);
                    lost.extend(revoke.handles);
                }
                let anew = stream.given(2).await;
                for (tag, (was, is)) in (10..).zip(held.iter().zip(&anew)) {
                    assert_eq!((is.partition, is.offset), (was.partition, 3));
                    assert!(is.since > was.since && is.epoch > was.epoch);
                    let late = stream.commit(tag, was.handle, 9).await;
                    assert_eq!(late, Some(Code::MemberFenced.number()));
                    assert_eq!(stream.commit(tag + 10, is.handle, 4).await, None);
                }
            }
            let after = described(&client).await;
            assert_eq!(after.offsets.len(), 4, "{shards} shards");
            assert!(after.offsets.iter().all(|row| row.committed == Some(4)));
            assert_eq!(after.state, "stable");
        });
    }
}

/// Two streams under one id: whoever joined last is the member, at once, and the end of the other takes
/// nothing from it.
#[test]
fn a_member_that_joins_again_is_not_thrown_out_by_its_older_stream() {
    for shards in [1, 3] {
        let world = World::new(|config| config.shards = Some(shards));
        world.run(async {
            let client = world.connect().await;
            produced(&client, "t", 4, 9).await;
            let mut older = client.subscribe(&member("t")).await;
            let known = older.subscribed().await;
            let of_older = older.given(4).await;
            let first = of_older[0].handle;
            assert_eq!(older.commit(1, first, 4).await, None, "{shards} shards");
            let other = world.connect().await;
            let mut newer = other.subscribe(&again("t", &known)).await;
            let rejoined = newer.subscribed().await;
            assert_eq!(rejoined.member, known.member, "{shards} shards");
            let of_newer = newer.given(4).await;
            for (was, is) in of_older.iter().zip(&of_newer) {
                assert_eq!((is.since, is.partition), (was.since, was.partition));
                assert!(is.epoch > was.epoch, "{shards} shards");
            }
            assert_eq!(of_newer[0].offset, 4, "{shards} shards");
            // The older one is told, and is over; the newer one is the member still.
            let fenced = Some(Code::MemberFenced.number());
            assert_eq!(older.ends().await, fenced, "{shards} shards");
            assert_eq!(newer.commit(1, of_newer[0].handle, 6).await, None);
            let group = described(&client).await;
            assert_eq!(group.members.len(), 1);
            assert_eq!(group.members[0].member, known.member);
            assert_eq!(group.offsets[0].committed, Some(6), "{shards} shards");

            // A second member gets its share of the newer one, which stays a member.
            let mut second = client.subscribe(&member("t")).await;
            second.subscribed().await;
            let revoked: Revoke = newer.until(Kind::Revoke).await;
            assert_eq!((revoked.handles.len(), revoked.lost), (2, false));
            let handles = revoked.handles;
            newer.frame(Kind::Released, &Released { handles }).await;
            second.given(2).await;
            assert_eq!(described(&client).await.members.len(), 2, "{shards} shards");
        });
    }
}

#[test]
fn a_member_id_is_of_use_to_its_principal_alone() {
    let principal = |name: &str, token: &str, topics: &str| PrincipalSettings {
        name: name.to_owned(),
        token_sha256: Some(token.to_owned()),
        rights: vec![
            "consume".to_owned(),
            "produce".to_owned(),
            "admin".to_owned(),
        ],
        topics: topics.to_owned(),
        ..PrincipalSettings::default()
    };
    let world = World::new(|config| {
        config.principals = vec![principal("alice", ALICE, ""), principal("bob", BOB, "")];
    });
    let connect = async |token: &str| {
        let (client, principal) = world.connect_with(token).await;
        assert_eq!(principal, token);
        client
    };
    world.run(async {
        let (alice, bob) = (connect("alice").await, connect("bob").await);
        produced(&alice, "t", 2, 3).await;
        let mut stream = alice.subscribe(&member("t")).await;
        let hers = stream.subscribed().await;
        let given = stream.given(2).await;
        let mut his = bob.subscribe(&member("t")).await;
        let own = his.subscribed().await;
        for token in [&hers.member_token, &own.member_token, &Bytes::new()] {
            let taken = Subscribe {
                member_token: token.clone(),
                ..again("t", &hers)
            };
            let mut refused = bob.subscribe(&taken).await;
            assert_eq!(refused.error().await.code, Code::UnknownMember.number());
        }
        // Not even she, without its token; nobody was fenced.
        let bare = Subscribe {
            member_token: Bytes::new(),
            ..again("t", &hers)
        };
        let mut refused = alice.subscribe(&bare).await;
        assert_eq!(refused.error().await.code, Code::UnknownMember.number());
        assert_eq!(stream.commit(1, given[0].handle, 1).await, None);
        let mut back = alice.subscribe(&again("t", &hers)).await;
        assert_eq!(back.subscribed().await.member, hers.member);
    });
}

/// The older of two SEEKs never wins, and both are answered.
#[test]
fn seeks_take_effect_in_the_order_in_which_they_were_asked() {
    let world = World::new(|_| {});
    world.run(async {
        let client = world.connect().await;
        produced(&client, "t", 1, 9).await;
        let mut stream = client.subscribe(&whole("t")).await;
        stream.subscribed().await;
        let handle = stream.given(1).await[0].handle;
        for round in 0..20 {
            let generations = [2 * round + 1, 2 * round + 2];
            // The first has to be asked of the shard; the second says itself where it goes.
            let to = [start_at::At::Start(true), start_at::At::Offset(7)];
            let mut both = Vec::new();
            for (generation, at) in generations.into_iter().zip(to) {
                let seek = Seek {
                    handle,
                    to: Some(StartAt {
                        at: Some(at),
                        leader_epoch: None,
                    }),
                    generation,
                };
                both.extend(millstream_protocol::frame::encode(Kind::Seek, &seek));
            }
            stream.write(&both).await;
            let first: Sought = stream.until(Kind::Sought).await;
            assert_eq!((first.generation, first.offset), (generations[0], 0));
            let second: Sought = stream.until(Kind::Sought).await;
            assert_eq!((second.generation, second.offset), (generations[1], 7));
        }
    });
}

/// What two members hold of a topic that was made anew, and what they have read of it.
#[derive(Default)]
struct Anew {
    /// By handle, for each member.
    held: [BTreeMap<u32, u32>; 2],
    read: BTreeSet<u32>,
}

/// Read as one of the members, and let go of what is asked back, until each has its part and all is read.
async fn follow(
    stream: &mut Stream,
    which: usize,
    old: &[Bytes],
    anew: &RefCell<Anew>,
    done: &Notify,
) {
    loop {
        let frame = stream.next().await.expect("a frame");
        let mut released = Vec::new();
        match frame.known() {
            Some(Kind::Assigned) => {
                let assigned: Assigned = frame.message().expect("ASSIGNED");
                for given in assigned.partitions {
                    if given.topic == "t" && !old.contains(&given.topic_id) {
                        assert_eq!(given.offset, 0);
                        let held = &mut anew.borrow_mut().held[which];
                        held.insert(given.handle, given.partition);
                    }
                }
            }
            Some(Kind::Revoke) => {
                let revoke: Revoke = frame.message().expect("REVOKE");
                let held = &mut anew.borrow_mut().held[which];
                held.retain(|handle, _| !revoke.handles.contains(handle));
                if !revoke.lost {
                    released = revoke.handles;
                }
            }
            Some(Kind::Batch) => {
                let head: messages::Batch = frame.message().expect("BATCH");
                let anew = &mut *anew.borrow_mut();
                if let Some(partition) = anew.held[which].get(&head.handle) {
                    let (base, records) = values(frame.payload.into_contiguous());
                    assert_eq!((base, records.len()), (0, 5));
                    anew.read.insert(*partition);
                }
            }
            _ => {}
        }
        if !released.is_empty() {
            let handles = released;
            stream.frame(Kind::Released, &Released { handles }).await;
        }
        let anew = anew.borrow();
        // With the other topic there are five to share.
        if anew.read.len() == 4 && anew.held.iter().all(|held| (1..=3).contains(&held.len())) {
            done.notify_one();
        }
    }
}

/// Who named a topic reads what bears its name, all of it, wherever it was to begin at first: with one shard
/// and with several, and each of two members its part.
#[test]
fn a_member_reads_a_topic_that_was_made_anew() {
    for shards in [1, 3] {
        let world = World::new(|config| config.shards = Some(shards));
        world.run(async {
            let client = world.connect().await;
            produced(&client, "other", 1, 3).await;
            produced(&client, "t", 4, 3).await;
            let subscribe = Subscribe {
                topics: vec!["t".to_owned(), "other".to_owned()],
                from: None, // the end
                ..member("t")
            };
            let mut first = client.subscribe(&subscribe).await;
            first.subscribed().await;
            let given = first.given(5).await.into_iter();
            let old: Vec<Bytes> = given.map(|given| given.topic_id).collect();
            let mut second = client.subscribe(&subscribe).await;
            second.subscribed().await;
            let name = "t".to_owned();
            let gone: Result<DeleteTopicResponse, _> = client
                .request(Kind::DeleteTopic, &DeleteTopicRequest { name })
                .await;
            gone.expect("deleted");
            produced(&client, "t", 4, 5).await;
            let (anew, done) = (RefCell::default(), Notify::new());
            tokio::select! {
                () = follow(&mut first, 0, &old, &anew, &done) => {}
                () = follow(&mut second, 1, &old, &anew, &done) => {}
                () = done.notified() => {}
            }
        });
    }
}

#[test]
fn a_group_is_deleted_by_force_and_its_members_end() {
    let world = World::new(|_| {});
    world.run(async {
        let client = world.connect().await;
        produced(&client, "t", 2, 3).await;
        let mut stream = client.subscribe(&member("t")).await;
        stream.subscribed().await;
        let given = stream.given(2).await;
        assert_eq!(stream.commit(1, given[0].handle, 2).await, None);
        let delete = async |force: bool| {
            let group = "g".to_owned();
            let request = DeleteGroupRequest { group, force };
            let answer: Result<DeleteGroupResponse, messages::Error> =
                client.request(Kind::DeleteGroup, &request).await;
            answer.map_err(|error| error.code)
        };
        assert_eq!(delete(false).await, Err(Code::GroupBusy.number()));
        assert_eq!(delete(true).await, Ok(DeleteGroupResponse {}));
        assert_eq!(stream.ends().await, Some(Code::UnknownGroup.number()));
        let groups: ListGroupsResponse = client
            .request(Kind::ListGroups, &ListGroupsRequest::default())
            .await
            .expect("listed");
        assert_eq!(groups.groups, []);
    });
}

/// When the deletion is answered, no shard knows the group, and its name begins anew.
#[test]
fn a_deleted_group_is_forgotten_on_every_shard_and_its_name_is_free() {
    let world = World::new(|config| config.shards = Some(3));
    world.run(async {
        let client = world.connect().await;
        produced(&client, "t", 6, 3).await;
        for _ in 0..3 {
            let mut stream = client.subscribe(&member("t")).await;
            stream.subscribed().await;
            let given = stream.given(6).await;
            for (tag, given) in (1..).zip(&given) {
                assert_eq!(stream.commit(tag, given.handle, 2).await, None);
            }
            assert_eq!(described(&client).await.offsets.len(), 6);
            let request = DeleteGroupRequest {
                group: "g".to_owned(),
                force: true,
            };
            let _: DeleteGroupResponse = client
                .request(Kind::DeleteGroup, &request)
                .await
                .expect("deleted");
            assert_eq!(stream.ends().await, Some(Code::UnknownGroup.number()));
            let request = DescribeGroupRequest {
                group: "g".to_owned(),
                ..DescribeGroupRequest::default()
            };
            let described: Result<DescribeGroupResponse, messages::Error> =
                client.request(Kind::DescribeGroup, &request).await;
            let error = described.expect_err("nobody knows it");
            assert_eq!(error.code, Code::UnknownGroup.number());
        }
    });
}

#[test]
fn groups_and_members_are_shown_with_how_they_stand_and_whence_they_come() {
    let world = World::new(|_| {});
    world.run(async {
        let client = world.connect_silently().await;
        let hello = HelloRequest {
            version_min: 1,
            version_max: 1,
            client: "library/1".to_owned(),
            client_id: "billing-7".to_owned(),
            token: world.token(),
        };
        let _: HelloResponse = client.request(Kind::Hello, &hello).await.expect("known");
        produced(&client, "t", 4, 3).await;
        let mut stream = client.subscribe(&member("t")).await;
        stream.subscribed().await;
        let given = stream.given(4).await;
        assert_eq!(stream.commit(1, given[0].handle, 2).await, None);
        let group = described(&client).await;
        let [known] = &group.members[..] else {
            panic!("{group:?}")
        };
        assert_eq!(known.client, "billing-7");
        let address: std::net::SocketAddr = known.address.parse().expect("an address");
        assert!(address.ip().is_loopback());
        let list = async || -> Vec<messages::GroupSummary> {
            let answer: Result<ListGroupsResponse, _> = client
                .request(Kind::ListGroups, &ListGroupsRequest::default())
                .await;
            answer.expect("listed").groups
        };
        let summary = |state: &str, members| messages::GroupSummary {
            group: "g".to_owned(),
            state: state.to_owned(),
            members,
            lag: Some(10),
        };
        assert_eq!(list().await, [summary("stable", 1)]);
        stream.send.finish().expect("finished");
        stream.ends().await;
        assert_eq!(list().await, [summary("empty", 0)]);
    });
}

/// A list counts what a description counts: also partitions in which the group never had an offset.
#[test]
fn the_lag_of_a_list_is_that_of_the_description() {
    for shards in [1, 3] {
        let world = World::new(|config| config.shards = Some(shards));
        world.run(async {
            let client = world.connect().await;
            produced(&client, "t", 1, 3).await;
            let mut stream = client.subscribe(&member("t")).await;
            stream.subscribed().await;
            let given = stream.given(1).await;
            assert_eq!(stream.commit(1, given[0].handle, 2).await, None);
            stream.send.finish().expect("finished");
            stream.ends().await;
            let add = AddPartitionsRequest {
                name: "t".to_owned(),
                total: 4,
            };
            let _: AddPartitionsResponse = client
                .request(Kind::AddPartitions, &add)
                .await
                .expect("added");
            let mut producer = client.producer(&ProducerOpen::default()).await;
            for partition in 1..4 {
                let header = Produce {
                    tag: u64::from(partition),
                    topic_id: given[0].topic_id.clone(),
                    partition,
                    ..Produce::default()
                };
                producer
                    .produce(header, &batch(&[b"x".as_slice(); 3]))
                    .await;
                producer.expect(Kind::Produced).await;
            }
            let lags = described(&client).await.offsets.into_iter();
            let described: Option<u64> = lags.map(|row| row.lag).sum();
            assert_eq!(described, Some(10), "{shards} shards");
            let listed: ListGroupsResponse = client
                .request(Kind::ListGroups, &ListGroupsRequest::default())
                .await
                .expect("listed");
            assert_eq!(listed.groups[0].lag, described, "{shards} shards");
        });
    }
}

/// What is long comes in pages: each row once, in order, whatever the number of shards.
#[test]
fn groups_and_their_offsets_come_in_pages() {
    for shards in [1, 2] {
        let world = World::new(|config| config.shards = Some(shards));
        world.run(async {
            let client = world.connect().await;
            client.create_topic("wide", 1_100).await;
            client.create_topic("t", 1).await;
            let reset = async |group: String, topic: &str| {
                let request = ResetGroupRequest {
                    group,
                    topic: topic.to_owned(),
                    to: Some(StartAt {
                        at: Some(start_at::At::Offset(0)),
                        leader_epoch: None,
                    }),
                    create: true,
                    ..ResetGroupRequest::default()
                };
                let _: ResetGroupResponse = client
                    .request(Kind::ResetGroup, &request)
                    .await
                    .expect("reset");
            };
            reset("g".to_owned(), "wide").await;
            let names: Vec<String> = (0..120).map(|n| format!("g-{n:03}")).collect();
            for (n, name) in names.iter().enumerate() {
                reset(name.clone(), if n % 10 == 0 { "wide" } else { "t" }).await;
            }

            let (mut rows, mut pages) = (Vec::new(), 0);
            let mut request = DescribeGroupRequest {
                group: "g".to_owned(),
                after: None,
            };
            loop {
                let page: DescribeGroupResponse = client
                    .request(Kind::DescribeGroup, &request)
                    .await
                    .expect("described");
                rows.extend(page.offsets.iter().map(|row| row.partition));
                pages += 1;
                request.after = page.next;
                if request.after.is_none() {
                    break;
                }
            }
            assert!(rows.into_iter().eq(0..1_100), "{shards} shards");
            assert!(pages > 1);

            let (mut listed, mut pages) = (Vec::new(), 0);
            let mut request = ListGroupsRequest::default();
            loop {
                let page: ListGroupsResponse = client
                    .request(Kind::ListGroups, &request)
                    .await
                    .expect("listed");
                listed.extend(page.groups.into_iter().map(|group| group.group));
                pages += 1;
                if page.next.is_empty() {
                    break;
                }
                request.after = page.next;
            }
            assert_eq!(listed[0], "g");
            assert_eq!(listed[1..], names, "{shards} shards");
            assert!(pages > 1);
        });
    }
}
