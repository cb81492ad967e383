//! Filters that are slow or get killed: they leave the shard's thread, and hold up nobody but the
//! partitions that they filter. The workers are a pool handed in, so that a test holds them at a gate.

#[path = "../../sandbox/tests/common/mod.rs"]
mod common;
mod world;

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use millstream_batch::ids::{
    Offset, Partition, ProducerEpoch, ProducerId, Sequence, TimestampMs, TopicId,
};
use millstream_machine::request::{Produce, Request};
use millstream_machine::topics::{FilterBinding, OnError, Stage};
use millstream_sandbox::Placement;
use millstream_shard::call::{Answer, Call, Error, FilterStatus};
use millstream_shard::driver::{
    ComponentSource, Deployments, FilterCounts, FilterHost, Halt, Job, Plugins, Site, Turn,
    WorkerPool, Workers,
};
use millstream_shard::handle::{ReplyTo, ShardHandle};
use tokio::sync::{Notify, mpsc};
use tokio::task::LocalSet;

use crate::common::wat_filter;
use crate::world::{Source, batch, create, deploy_on, open_with, produced};

/// A batch takes it milliseconds on any processor of today, and a small part of its budget.
const SPINS: &str = "
    (local.set $i (i32.const 5000000))
    (loop $spin (local.set $i (i32.sub (local.get $i) (i32.const 1))) (br_if $spin (local.get $i)))
    (call $all (call $records (local.get 8)))";
/// Crashes on a batch of two records, and keeps all else.
const DIES_OF_TWO: &str = "
    (if (i32.eq (local.get 8) (i32.const 12)) (then unreachable))
    (call $all (call $records (local.get 8)))";
/// Keeps nothing: an empty bitmap of the right length.
const KEEPS_NOTHING: &str = "
    (call $bitmap (i32.const 1024) (i32.div_u (i32.add (call $records (local.get 8)) (i32.const 7)) (i32.const 8)))";

const A: TopicId = TopicId([1; 16]);
const B: TopicId = TopicId([2; 16]);

/// Workers that work when they are told to.
struct Gate {
    jobs: Mutex<VecDeque<(Turn, Job)>>,
    came: Notify,
    host: Mutex<FilterHost>,
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Gate")
    }
}

impl WorkerPool for Gate {
    fn submit(&self, turn: Turn, job: Job) {
        self.jobs.lock().expect("no panic").push_back((turn, job));
        self.came.notify_one();
    }

    fn waiting(&self) -> usize {
        self.jobs.lock().expect("no panic").len()
    }
}

impl Gate {
    fn new(deployments: &Arc<Deployments>) -> Arc<Self> {
        Arc::new(Self {
            jobs: Mutex::default(),
            came: Notify::new(),
            host: Mutex::new(host(deployments)),
        })
    }

    /// Wait until so many jobs are held.
    async fn holds(&self, jobs: usize) {
        while self.waiting() < jobs {
            self.came.notified().await;
        }
    }

    fn take(&self, at: usize) -> Job {
        let (_, job) = self
            .jobs
            .lock()
            .expect("no panic")
            .remove(at)
            .expect("a job");
        job
    }

    fn run(&self, at: usize) {
        let job = self.take(at);
        job(&mut self.host.lock().expect("no panic"));
    }
}

struct World {
    _dir: tempfile::TempDir,
    shard: ShardHandle,
    gate: Arc<Gate>,
    source: Arc<Source>,
    answers: mpsc::UnboundedReceiver<(u64, Answer)>,
    queue: mpsc::UnboundedSender<(u64, Answer)>,
}

impl World {
    /// A shard with topics `a` (two partitions) and `b`; workers are held.
    async fn new(components: &[&[u8]]) -> Self {
        let source = Source::of(components);
        let deployments = Deployments::new(Arc::clone(&source) as Arc<dyn ComponentSource>);
        let gate = Gate::new(&deployments);
        let plugins = Plugins {
            deployments,
            workers: Arc::clone(&gate) as Arc<dyn WorkerPool>,
        };
        let dir = tempfile::tempdir().expect("a directory");
        let (shard, _task) = open_with(dir.path(), plugins).await;
        create(&shard, A, "a", 2).await;
        create(&shard, B, "b", 1).await;
        let (queue, answers) = mpsc::unbounded_channel();
        Self {
            _dir: dir,
            shard,
            gate,
            source,
            answers,
            queue,
        }
    }

    fn binding(&self, component: usize) -> FilterBinding {
        FilterBinding {
            name: "f".to_owned(),
            ..world::binding(&self.source, OnError::Reject, None)
        }
        .with_digest(self.source.digest(component))
    }

    fn send(&self, tag: u64, topic: TopicId, partition: u32, records: usize) {
        let call = produce(topic, partition, records);
        let queue = self.queue.clone();
        self.shard.send(call, ReplyTo::Queue { tag, queue });
    }

    async fn answer(&mut self) -> (u64, Answer) {
        self.answers.recv().await.expect("an answer")
    }

    async fn filters(&self) -> Vec<FilterStatus> {
        let Answer::Status(status) = self.shard.call(Call::Status).await else {
            panic!("no status")
        };
        status.filters
    }

    /// Produce to a partition of `a` until its filter has gone to the workers. Batches answered.
    async fn slow_down(&mut self) -> u64 {
        for sent in 0..64 {
            self.send(sent, A, 0, 1);
            tokio::select! {
                biased;
                (tag, answer) = async { self.answers.recv().await.expect("an answer") } => {
                    assert_eq!((tag, produced(&answer).base_offset), (sent, Some(Offset(sent))));
                }
                () = self.gate.holds(1) => return sent,
            }
        }
        panic!("milliseconds a batch, and still on the shard's thread")
    }
}

/// How long anything may take before a test calls it hung.
const PATIENCE: Duration = Duration::from_secs(60);

async fn run(body: impl Future<Output = ()>) {
    let within = tokio::time::timeout(PATIENCE, body);
    LocalSet::new().run_until(within).await.expect("not hung");
}

trait WithDigest {
    fn with_digest(self, digest: [u8; 32]) -> Self;
}

impl WithDigest for FilterBinding {
    fn with_digest(self, digest: [u8; 32]) -> Self {
        Self { digest, ..self }
    }
}

fn host(deployments: &Arc<Deployments>) -> FilterHost {
    FilterHost::of_worker(Arc::clone(deployments), Arc::new(FilterCounts::default()))
}

fn produce(topic: TopicId, index: u32, records: usize) -> Call {
    let batch = batch(&vec!["k"; records]);
    let request = Produce {
        partition: Partition { topic, index },
        pid: ProducerId(0),
        epoch: ProducerEpoch(0),
        sequence: Sequence(0),
        sent: records as u32,
        kept: records as u32,
        bytes: batch.bytes().len() as u32,
        max_timestamp: TimestampMs(5),
    };
    Call::Produce {
        request,
        raw: vec![batch.into_bytes()].into(),
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_slow_filter_delays_its_own_partition_and_nothing_else() {
    let body = async {
        let mut world = World::new(&[&wat_filter(SPINS)]).await;
        deploy_on(&world.shard, "a", world.binding(0)).await;
        let held = world.slow_down().await;
        let row = world.filters().await.remove(0);
        assert!(row.worker && !row.paused && row.calls == held, "{row:?}");

        // While the worker holds a/0, three more wait behind it; b and a/1 go on.
        for later in 1..=3 {
            world.send(held + later, A, 0, 1);
        }
        for at in 0..3 {
            let answer = world.shard.call(produce(B, 0, 1)).await;
            assert_eq!(produced(&answer).base_offset, Some(Offset(at)));
        }
        world.send(1_000, A, 1, 1);
        world.gate.holds(2).await;
        assert_eq!(
            world.gate.waiting(),
            2,
            "one batch of each partition is with the workers"
        );
        world.gate.run(1);
        let (tag, answer) = world.answer().await;
        assert_eq!(
            (tag, produced(&answer).base_offset),
            (1_000, Some(Offset(0)))
        );

        // Then the partition goes on in the order in which its batches came.
        for at in held..=held + 3 {
            world.gate.holds(1).await;
            assert_eq!(world.gate.waiting(), 1);
            world.gate.run(0);
            let (tag, answer) = world.answer().await;
            assert_eq!((tag, produced(&answer).base_offset), (at, Some(Offset(at))));
        }
        let row = world.filters().await.remove(0);
        assert_eq!(
            (row.calls, row.kept, row.errors),
            (held + 5, held + 5, 0),
            "{row:?}"
        );
    };
    run(body).await;
}

#[tokio::test(flavor = "current_thread")]
async fn filters_that_change_meanwhile_judge_what_was_with_a_worker() {
    let body = async {
        let mut world = World::new(&[&wat_filter(SPINS), &wat_filter(KEEPS_NOTHING)]).await;
        deploy_on(&world.shard, "a", world.binding(0)).await;
        let held = world.slow_down().await;
        world.send(held + 1, A, 0, 1);
        deploy_on(&world.shard, "a", world.binding(1)).await;
        world.gate.run(0);
        for tag in [held, held + 1] {
            let (of, answer) = world.answer().await;
            assert_eq!(
                (of, produced(&answer).base_offset),
                (tag, None),
                "the new filter keeps nothing"
            );
        }
        let remove = Request::RemoveFilter {
            topic: "a".to_owned(),
            name: "f".to_owned(),
        };
        let removed = world.shard.call(Call::Machine(remove)).await;
        assert!(matches!(removed, Answer::Reply(_)), "{removed:?}");
        let answer = world.shard.call(produce(A, 0, 1)).await;
        assert_eq!(produced(&answer).base_offset, Some(Offset(held)));
    };
    run(body).await;
}

#[tokio::test(flavor = "current_thread")]
async fn a_worker_that_ends_refuses_its_batch_and_the_partition_goes_on() {
    let body = async {
        let mut world = World::new(&[&wat_filter(SPINS)]).await;
        deploy_on(&world.shard, "a", world.binding(0)).await;
        let held = world.slow_down().await;
        world.send(held + 1, A, 0, 1);
        drop(world.gate.take(0));
        let (tag, answer) = world.answer().await;
        assert!(
            tag == held
                && matches!(
                    answer,
                    Answer::Error(Error::Filter {
                        retriable: true,
                        ..
                    })
                ),
            "{answer:?}"
        );
        world.gate.holds(1).await;
        world.gate.run(0);
        let (tag, answer) = world.answer().await;
        assert_eq!(
            (tag, produced(&answer).base_offset),
            (held + 1, Some(Offset(held)))
        );
    };
    run(body).await;
}

#[tokio::test(flavor = "current_thread")]
async fn a_stop_refuses_what_waits_for_a_filter() {
    let body = async {
        let mut world = World::new(&[&wat_filter(SPINS)]).await;
        deploy_on(&world.shard, "a", world.binding(0)).await;
        let held = world.slow_down().await;
        world.send(held + 1, A, 0, 1);
        let stopped = world.shard.call(Call::Stop).await;
        assert!(matches!(stopped, Answer::Stopped), "{stopped:?}");
        for tag in [held, held + 1] {
            let (of, answer) = world.answer().await;
            assert!(
                of == tag && matches!(answer, Answer::Error(Error::Stopping)),
                "{answer:?}"
            );
        }
        world.gate.run(0); // nobody listens any more, and that is no fault
    };
    run(body).await;
}

/// Two threads' hosts share a deployment: kills add up, whoever sees them.
#[test]
fn kills_are_counted_over_all_threads_and_deploying_again_forgives() {
    // A paused filter judges nothing, and no policy makes a judgement of that.
    for on_error in [OnError::Reject, OnError::Pass, OnError::Drop] {
        kills_are_counted(on_error);
    }
}

fn kills_are_counted(on_error: OnError) {
    let source = Source::of(&[&wat_filter(DIES_OF_TWO)]);
    let deployments = Deployments::new(Arc::clone(&source) as Arc<dyn ComponentSource>);
    let binding = FilterBinding {
        stage: Stage::Subscribe,
        ..world::binding(&source, on_error, None)
    };
    let bindings = std::slice::from_ref(&binding);
    let site = Site {
        topic: A,
        topic_name: "a",
        partition: 0,
        stage: Stage::Subscribe,
        time: TimestampMs(5),
        base_offset: Some(Offset(0)),
        from: Offset(0),
        own: None,
    };
    let placed = || deployments.of_topic(A, &binding).map(|it| it.placement());
    let thread = FilterHost::new(Arc::clone(&deployments), Arc::new(FilterCounts::default()));
    let (mut one, mut two) = (thread, host(&deployments));
    assert_eq!(placed(), None, "it has not run");
    assert!(one.run(bindings, &site, batch(&["k"])).is_ok());
    assert_eq!(placed(), Some(Placement::Shard));

    // A shard's or connection's thread does not search: that is a worker's.
    let halt = one
        .run(bindings, &site, batch(&["k", "k"]))
        .expect_err("killed");
    assert!(matches!(halt, Halt::Worker), "{halt:?}");
    assert_eq!(placed(), Some(Placement::Worker));
    let mut third = host(&deployments);
    assert!(
        third.is_for_worker(bindings, &site),
        "also for a thread that saw no kill"
    );
    for kills in 1..=3 {
        let rest = two.run(bindings, &site, batch(&["k", "k"]));
        let rest = rest.expect("apart they pass").batch.expect("kept");
        assert_eq!(rest.header().records, 2);
        let expected = if kills < 3 {
            Placement::Worker
        } else {
            Placement::Paused
        };
        assert_eq!(placed(), Some(expected));
    }
    for host in [&mut one, &mut two] {
        // It is paused everywhere.
        assert!(!host.is_for_worker(bindings, &site));
        let halt = host
            .run(bindings, &site, batch(&["k"]))
            .expect_err("paused");
        let Halt::Failed(failure) = halt else {
            panic!("{halt:?}")
        };
        assert!(failure.message.contains("paused"), "{failure}");
        assert!(!failure.retriable, "not before it is deployed again");
    }
    assert_eq!(one.status()[0].kills + two.status()[0].kills, 4);
    assert!(two.status()[0].paused);

    deployments.renew(A, &binding.name);
    for host in [&mut one, &mut two] {
        assert!(host.run(bindings, &site, batch(&["k"])).is_ok());
    }
    assert_eq!(placed(), Some(Placement::Shard));
    deployments.keep(A, &[]);
    assert_eq!(placed(), None);
}

/// Cannot judge a record whose key begins with `x`; keeps all others.
const REFUSES_X: &str = "
    (block $done (loop $next
      (br_if $done (i32.ge_u (local.get $i) (local.get 8)))
      (if (i32.eq (i32.const 120) (i32.load8_u (i32.add (local.get 11)
              (i32.load offset=4 (i32.add (local.get 7) (i32.shl (local.get $i) (i32.const 2)))))))
        (then (return (call $error))))
      (local.set $i (i32.add (local.get $i) (i32.const 6)))
      (br $next)))
    (call $all (call $records (local.get 8)))";

fn keyed(pid: u64, sequence: u64, keys: &[&str]) -> Call {
    let batch = batch(keys);
    let records = keys.len() as u32;
    let request = Produce {
        partition: Partition { topic: A, index: 0 },
        pid: ProducerId(pid),
        epoch: ProducerEpoch(0),
        sequence: Sequence(sequence),
        sent: records,
        kept: records,
        bytes: batch.bytes().len() as u32,
        max_timestamp: TimestampMs(5),
    };
    Call::Produce {
        request,
        raw: vec![batch.into_bytes()].into(),
    }
}

/// One bad record among many: it alone is refused, and whoever sent it is told which and why, a second
/// time too; policies act on it alone.
#[tokio::test(flavor = "current_thread")]
async fn a_policy_acts_on_the_record_at_fault_and_the_producer_is_told() {
    let body = async {
        let source = Source::of(&[&wat_filter(REFUSES_X)]);
        let deployments = Deployments::new(Arc::clone(&source) as Arc<dyn ComponentSource>);
        let workers = Workers::start(&deployments, 1).expect("a thread");
        let plugins = Plugins {
            deployments,
            workers: Arc::new(workers),
        };
        let dir = tempfile::tempdir().expect("a directory");
        let (shard, _task) = open_with(dir.path(), plugins).await;
        create(&shard, A, "a", 1).await;
        let binding = |on_error| world::binding(&source, on_error, None);
        deploy_on(&shard, "a", binding(OnError::Reject)).await;

        let keys: Vec<&str> = (0..1_000)
            .map(|i| if i == 701 { "x" } else { "k" })
            .collect();
        for repeated in [false, true] {
            let answer = shard.call(keyed(1, 0, &keys)).await;
            let Answer::Filtered {
                produced,
                kept: Some(kept),
            } = answer
            else {
                panic!("{answer:?}")
            };
            assert_eq!(
                (produced.base_offset, produced.duplicate),
                (Some(Offset(0)), repeated)
            );
            let refused = kept.refused.expect("one");
            assert_eq!((kept.records, refused.records), (999, 1));
            let map = refused.map.expect("a short batch");
            assert_eq!(map.iter().map(|b| b.count_ones()).sum::<u32>(), 1);
            assert_eq!(map[701 / 8], 1 << (701 % 8));
            let why = &refused.reasons[0];
            assert_eq!(
                (why.record, why.filter.as_str(), why.message.as_str()),
                (701, "by-key", "no, thank you")
            );
        }
        // What everything was kept of is answered as always.
        for repeated in [false, true] {
            let answer = shard.call(keyed(1, 1_000, &["k", "k"])).await;
            let plain = matches!(&answer, Answer::Reply(_));
            assert!(
                plain && produced(&answer).duplicate == repeated,
                "{answer:?}"
            );
        }
        // All of a batch: nothing is stored, and it counts as sent.
        let answer = shard.call(keyed(1, 1_002, &["x"])).await;
        assert_eq!(produced(&answer).base_offset, None);
        let Answer::Filtered {
            kept: Some(kept), ..
        } = &answer
        else {
            panic!("{answer:?}")
        };
        assert_eq!(
            kept.refused.as_ref().map(|refused| refused.records),
            Some(1)
        );

        for (on_error, stored) in [(OnError::Drop, 1), (OnError::Pass, 2)] {
            deploy_on(&shard, "a", binding(on_error)).await;
            let before = produced(&shard.call(keyed(0, 0, &["k"])).await).base_offset;
            produced(&shard.call(keyed(0, 0, &["x", "k"])).await);
            let after = produced(&shard.call(keyed(0, 0, &["k"])).await).base_offset;
            let between = after.expect("kept").0 - before.expect("kept").0 - 1;
            assert_eq!(between, stored, "{on_error:?}");
        }
    };
    run(body).await;
}

/// After a restart nobody knows what was refused of a batch, and says so.
#[tokio::test(flavor = "current_thread")]
async fn what_is_not_known_of_a_repeated_batch_is_said_to_be_not_known() {
    let body = async {
        let source = Source::of(&[&wat_filter(REFUSES_X)]);
        let dir = tempfile::tempdir().expect("a directory");
        for run in 0..2 {
            let deployments = Deployments::new(Arc::clone(&source) as Arc<dyn ComponentSource>);
            let workers = Workers::start(&deployments, 1).expect("a thread");
            let plugins = Plugins {
                deployments,
                workers: Arc::new(workers),
            };
            let (shard, task) = open_with(dir.path(), plugins).await;
            if run == 0 {
                create(&shard, A, "a", 1).await;
                let binding = world::binding(&source, OnError::Reject, None);
                deploy_on(&shard, "a", binding).await;
            }
            let answer = shard.call(keyed(1, 0, &["k", "x"])).await;
            assert_eq!(produced(&answer).duplicate, run == 1);
            let Answer::Filtered { kept, .. } = answer else {
                panic!("{answer:?}")
            };
            assert_eq!(kept.is_some(), run == 0);
            drop(shard);
            task.await.expect("it ends");
        }
    };
    run(body).await;
}

/// Threads of its own this time, and more slow partitions than threads.
#[tokio::test(flavor = "current_thread")]
async fn worker_threads_keep_the_order_of_every_partition() {
    let body = async {
        let source = Source::of(&[&wat_filter(DIES_OF_TWO)]);
        let deployments = Deployments::new(Arc::clone(&source) as Arc<dyn ComponentSource>);
        let workers = Workers::start(&deployments, 3).expect("threads");
        let plugins = Plugins {
            deployments,
            workers: Arc::new(workers),
        };
        let dir = tempfile::tempdir().expect("a directory");
        let (shard, task) = open_with(dir.path(), plugins).await;
        let (queue, mut answers) = mpsc::unbounded_channel();
        for (id, name) in [(A, "a"), (B, "b")] {
            create(&shard, id, name, 4).await;
            deploy_on(&shard, name, world::binding(&source, OnError::Reject, None)).await;
            let killed = shard.call(produce(id, 0, 2)).await;
            assert_eq!(
                produced(&killed).base_offset,
                Some(Offset(0)),
                "apart they pass"
            );
        }
        const EACH: u64 = 25;
        for tag in 0..EACH * 8 {
            let (partition, topic) = ((tag % 4) as u32, if tag % 8 < 4 { A } else { B });
            let queue = queue.clone();
            shard.send(produce(topic, partition, 1), ReplyTo::Queue { tag, queue });
        }
        let mut next = [0; 8];
        // What was sent first to partition 0 of each.
        let before = |lane: u64| if lane.is_multiple_of(4) { 2 } else { 0 };
        for _ in 0..EACH * 8 {
            let (tag, answer) = answers.recv().await.expect("an answer");
            let next = &mut next[(tag % 8) as usize];
            assert_eq!(
                (tag / 8, produced(&answer).base_offset),
                (*next, Some(Offset(*next + before(tag % 8))))
            );
            *next += 1;
        }
        assert_eq!(next, [EACH; 8]);
        drop(shard);
        task.await.expect("it ends");
    };
    run(body).await;
}
