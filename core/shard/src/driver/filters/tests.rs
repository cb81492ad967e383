//! Whose instances a host keeps, and how many.

use millstream_batch::{BatchBuilder, Encoding};
use millstream_machine::topics::Budget;
use millstream_sandbox::{Component, Engine, EngineConfig};

use super::deployments::{ComponentSource, Lookup};
use super::*;

#[derive(Debug)]
struct Source {
    component: Arc<Component>,
    share: usize,
}

impl ComponentSource for Source {
    fn component(&self, _digest: &[u8; 32]) -> Lookup {
        Lookup::Ready(Arc::clone(&self.component))
    }

    fn share(&self) -> usize {
        self.share
    }
}

/// A host that may hold so many instances, of the key filter.
fn host(share: usize) -> FilterHost {
    let wasm = include_bytes!("../../../../../plugins/dist/key-filter.wasm");
    let engine = Engine::new(&EngineConfig::default()).expect("an engine");
    let component = engine.compile(wasm).expect("it compiles");
    let source = Arc::new(Source { component, share });
    FilterHost::new(Deployments::new(source), Arc::new(FilterCounts::default()))
}

fn binding(name: &str) -> FilterBinding {
    FilterBinding {
        name: name.to_owned(),
        digest: [0; 32],
        stage: Stage::Subscribe,
        parameters: vec![("prefix".to_owned(), "eu-".to_owned())],
        budget: Budget {
            memory_bytes_max: 64 << 20,
            batch_ms_max: 1_000,
        },
        on_error: OnError::Reject,
    }
}

fn topic(number: u8) -> TopicId {
    TopicId([number; 16])
}

/// Filter a batch, for a topic or for one subscription to it.
fn run(host: &mut FilterHost, bindings: &[FilterBinding], of: u8, own: Option<Own<'_>>) {
    let site = Site {
        topic: topic(of),
        topic_name: "t",
        partition: 0,
        stage: Stage::Subscribe,
        time: TimestampMs(5),
        base_offset: Some(Offset(0)),
        from: Offset(0),
        own,
    };
    let mut builder = BatchBuilder::new(Encoding::None, 1 << 10);
    builder.append(Some(b"eu-1"), None, [], 5).expect("it fits");
    let batch = builder.build().expect("a record");
    let rest = host.run(bindings, &site, batch).expect("filtered");
    assert!(rest.batch.is_some(), "it is kept");
}

fn is_warm(host: &FilterHost, numbers: std::ops::RangeInclusive<u8>) -> Vec<u8> {
    numbers
        .filter(|number| host.is_warm(topic(*number)))
        .collect()
}

#[test]
fn a_host_holds_its_share_and_what_was_needed_longest_ago_goes() {
    let mut host = host(4);
    let bindings = [binding("f")];
    for number in 1..=10 {
        run(&mut host, &bindings, number, None);
        assert_eq!(host.held(|_| true), usize::from(number.min(4)));
    }
    assert_eq!(is_warm(&host, 1..=10), [7, 8, 9, 10]);
    run(&mut host, &bindings, 7, None);
    run(&mut host, &bindings, 11, None);
    assert_eq!(is_warm(&host, 1..=11), [7, 9, 10, 11]);
}

#[test]
fn a_connection_takes_turns_with_itself_and_takes_nothing_from_others() {
    let mut host = host(8);
    let bindings = [binding("f")];
    for number in 1..=3 {
        run(&mut host, &bindings, number, None);
    }
    let none = Parameters::new();
    let of_other = host.deployments.owner(2);
    let subscribe = |host: &mut FilterHost, owner| {
        let parameters = &none;
        run(host, &bindings, 1, Some(Own { owner, parameters }));
    };
    subscribe(&mut host, of_other);
    let owners: Vec<Owner> = (0..20).map(|_| host.deployments.owner(1)).collect();
    for (before, owner) in owners.iter().enumerate() {
        subscribe(&mut host, *owner);
        let of_connection =
            |whose: &Whose| matches!(whose, Whose::Subscription(of) if of.connection == 1);
        assert_eq!(
            host.held(of_connection),
            (before + 1).min(4),
            "half of the share"
        );
    }
    assert_eq!(is_warm(&host, 1..=3), [1, 2, 3]);
    assert!(host.warm.contains_key(&Whose::Subscription(of_other)));
    assert!(host.warm.contains_key(&Whose::Subscription(owners[19])));
}

#[test]
fn the_end_of_a_subscription_is_the_end_of_its_instances_alone() {
    let mut host = host(8);
    let bindings = [binding("f"), binding("g")];
    let none = Parameters::new();
    run(&mut host, &bindings, 1, None);
    let owners = [host.deployments.owner(1), host.deployments.owner(1)];
    for owner in owners {
        let parameters = &none;
        run(&mut host, &bindings, 1, Some(Own { owner, parameters }));
    }
    assert_eq!(host.held(|_| true), 6);
    host.end(owners[0]);
    assert_eq!(host.held(|_| true), 4);
    assert_eq!(
        host.held(|whose| *whose == Whose::Subscription(owners[0])),
        0
    );
    assert_eq!(
        host.held(|whose| *whose == Whose::Subscription(owners[1])),
        2
    );
}

#[test]
fn a_removed_deployment_lets_go_at_the_next_batch_and_a_renewed_one_starts_afresh() {
    let mut host = host(8);
    let both = [binding("f"), binding("g")];
    run(&mut host, &both, 1, None);
    run(&mut host, &both[..1], 1, None);
    assert_eq!(host.held(|_| true), 1);
    let made = |host: &FilterHost| Arc::as_ptr(&host.warm[&Whose::Topic(topic(1))][0].deployment);
    let before = made(&host);
    run(&mut host, &both[..1], 1, None);
    assert_eq!(made(&host), before, "it stays warm");
    let first = Arc::clone(&host.warm[&Whose::Topic(topic(1))][0].deployment);
    host.deployments.renew(topic(1), "f");
    assert!(first.is_retired());
    run(&mut host, &both[..1], 1, None);
    assert_ne!(made(&host), before);
    assert_eq!(host.held(|_| true), 1);
}

#[test]
fn what_is_not_slow_leaves_a_worker() {
    let mut host = host(8);
    run(&mut host, &[binding("f")], 1, None);
    host.keep_slow();
    assert!(host.is_cold(), "it belongs on the shards' threads");
    let owner = host.deployments.owner(1);
    let parameters = &Parameters::new();
    run(
        &mut host,
        &[binding("f")],
        1,
        Some(Own { owner, parameters }),
    );
    host.keep_slow();
    assert!(
        !host.is_cold(),
        "what a subscription brings begins on the workers"
    );
    host.deployments.end(owner);
    host.keep_slow();
    assert!(host.is_cold());
}
