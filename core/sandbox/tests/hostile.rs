//! Components that crash, loop, grow, lie and beg. Each must cost itself its instance and nobody else
//! anything; the filter must be usable for the next call.

mod common;

use std::sync::Arc;

use common::{Batch, CONTEXT, budget, engine, filter_with, parameters, wat_component, wat_filter};
use millstream_sandbox::{
    Budget, Component, Deployment, Engine, Erred, Filter, FilterError, GuestLog, Parameters,
    Placement, StartError, Verdict, View,
};

/// Crashes if a record's value is the byte 0, and keeps all else.
const DIES_OF_ZERO: &str = "
    (block $done (loop $next
      (br_if $done (i32.ge_u (local.get $i) (local.get 8)))
      (if (i32.and
            (i32.ne (i32.const -1) (i32.load offset=16 (i32.add (local.get 7) (i32.shl (local.get $i) (i32.const 2)))))
            (i32.eqz (i32.load8_u (i32.add (local.get 11)
              (i32.load offset=12 (i32.add (local.get 7) (i32.shl (local.get $i) (i32.const 2))))))))
        (then unreachable))
      (local.set $i (i32.add (local.get $i) (i32.const 6)))
      (br $next)))
    (call $all (call $records (local.get 8)))";

/// Loops for ever if the batch has two records, and keeps all else.
const LOOPS_ON_TWO: &str = "
    (if (i32.eq (local.get 8) (i32.const 12)) (then (loop $ever (br $ever))))
    (call $all (call $records (local.get 8)))";

fn batch(records: usize) -> Batch {
    Batch::of_values(vec![&b"v"[..]; records])
}

fn compile(engine: &Engine, keep: &str) -> Arc<Component> {
    engine.compile(&wat_filter(keep)).unwrap()
}

fn default_filter(engine: &Engine, keep: &str) -> Filter {
    filter_with(&compile(engine, keep), &[], budget())
}

#[test]
fn the_harness_itself_works() {
    let engine = engine();
    let mut filter = default_filter(&engine, "(call $all (call $records (local.get 8)))");
    for records in [1, 8, 9, 1_000] {
        assert!(batch(records).ask(&mut filter).unwrap().keeps_all());
    }
}

#[test]
fn a_crash_costs_the_instance_and_nothing_else() {
    let engine = engine();
    let mut filter = default_filter(&engine, DIES_OF_ZERO);
    let bad = Batch::of_values([&b"v"[..], b"\0"]);
    for round in 1..=3 {
        let error = bad.ask(&mut filter).unwrap_err();
        assert!(
            matches!(&error, FilterError::Trap(text) if text.contains("unreachable")),
            "{error}"
        );
        assert_eq!(error.erred(), Erred::Component);
        assert!(error.is_kill() && error.is_proof());
        assert!(batch(5).ask(&mut filter).unwrap().keeps_all());
        assert_eq!(filter.instances_made(), round + 1);
    }
}

fn deploy(component: Arc<Component>, budget: Budget) -> (Arc<Deployment>, Filter) {
    let (parameters, placement) = (Parameters::new(), Placement::Shard);
    let deployment = Deployment::new("orders-check", component, parameters, budget, placement);
    let filter = deployment.filter(&Parameters::new()).unwrap();
    (deployment, filter)
}

/// As a worker does it: judge, and search for the records at fault.
fn judge(
    deployment: &Deployment,
    filter: &mut Filter,
    batch: &Batch,
) -> Result<Verdict, FilterError> {
    let view = View {
        context: &CONTEXT,
        index: batch.index.index(),
        timestamps: batch.index.timestamps(),
        raw: &batch.raw,
    };
    match deployment.judge(filter, &view) {
        Err(error) if error.may_be_of_a_record() => deployment.search(filter, &view, error),
        judged => judged,
    }
}

/// `records` of which some are the byte 0.
fn with_zeros(records: usize, zeros: &[usize]) -> Batch {
    Batch::of_values((0..records).map(|i| if zeros.contains(&i) { &b"\0"[..] } else { b"v" }))
}

#[test]
fn the_records_at_fault_are_found_and_all_others_are_judged() {
    let engine = engine();
    let (deployment, mut filter) = deploy(compile(&engine, DIES_OF_ZERO), budget());
    for records in [1, 2, 3, 10, 64, 100] {
        for zeros in [
            vec![0],
            vec![records / 2],
            vec![records - 1],
            vec![0, records - 1],
        ] {
            let mut zeros: Vec<usize> = zeros;
            zeros.dedup();
            let verdict = judge(&deployment, &mut filter, &with_zeros(records, &zeros)).unwrap();
            let failed: Vec<usize> = verdict.failed.iter().map(|r| *r as usize).collect();
            assert_eq!(failed, zeros, "of {records}");
            assert!((0..records).all(|i| verdict.kept.keeps(i) != zeros.contains(&i)));
            assert!(
                verdict
                    .reasons
                    .iter()
                    .all(|why| matches!(why, FilterError::Trap(_)))
            );
        }
    }
    assert!(!deployment.is_paused(), "it is one record, again and again");
    let last = deployment.last_error().unwrap();
    assert!(
        last.text.contains("produced to orders/3") && last.text.contains("unreachable"),
        "{}",
        last.text
    );
    assert!(last.errors >= 24 && last.since <= last.at);
}

#[test]
fn no_record_is_blamed_for_a_fault_of_the_whole() {
    let engine = engine();
    let budget = Budget {
        batch_ms_max: 200,
        ..budget()
    };
    let (deployment, mut filter) = deploy(compile(&engine, LOOPS_ON_TWO), budget);
    let verdict = judge(&deployment, &mut filter, &batch(2)).unwrap();
    assert!(verdict.failed.is_empty() && verdict.kept.keeps_all());
    let last = deployment.last_error().unwrap();
    assert!(last.text.contains("pass apart"), "{}", last.text);
    assert_eq!(deployment.placement(), Placement::Worker);
}

#[test]
fn an_endless_loop_is_killed_by_time_which_proves_nothing() {
    let engine = engine();
    let component = compile(&engine, LOOPS_ON_TWO);
    let budget = Budget {
        batch_ms_max: 200,
        ..budget()
    };
    let mut filter = filter_with(&component, &[], budget);
    assert!(batch(1).ask(&mut filter).unwrap().keeps_all());
    let error = batch(2).ask(&mut filter).unwrap_err();
    assert_eq!(error, FilterError::OutOfTime { ms_max: 200 });
    assert!(error.is_kill() && !error.is_proof());
    assert!(batch(1).ask(&mut filter).unwrap().keeps_all());
}

#[test]
fn endless_recursion_is_a_crash_of_the_component_alone() {
    let engine = engine();
    let wasm = wat_component(
        "",
        "(call $deep (i32.const 1))",
        "",
        "(func $deep (param i32) (result i32)
           (i32.add (i32.const 1) (call $deep (i32.add (i32.const 1) (local.get 0)))))",
    );
    let mut filter = filter_with(&engine.compile(&wasm).unwrap(), &[], budget());
    let error = batch(1).ask(&mut filter).unwrap_err();
    assert!(
        matches!(&error, FilterError::Trap(text) if text.contains("stack")),
        "{error}"
    );
}

#[test]
fn memory_over_the_budget_is_refused_at_the_first_byte_of_it() {
    let engine = engine();
    let grows = "(loop $more (drop (memory.grow (i32.const 1))) (br $more)) unreachable";
    let budget = Budget {
        memory_bytes_max: 1 << 20,
        ..budget()
    };
    let mut filter = filter_with(&compile(&engine, grows), &[], budget);
    let error = batch(1).ask(&mut filter).unwrap_err();
    let expected = FilterError::OverMemory {
        wanted: (1 << 20) + (64 << 10),
        bytes_max: 1 << 20,
    };
    assert_eq!(error, expected);
    assert!(error.is_kill() && error.is_proof());
}

#[test]
fn a_batch_larger_than_the_budget_says_so() {
    let engine = engine();
    let component = compile(&engine, "(call $all (call $records (local.get 8)))");
    let budget = Budget {
        memory_bytes_max: 1 << 20,
        ..budget()
    };
    let mut filter = filter_with(&component, &[], budget);
    let large = vec![b'x'; 2 << 20];
    let error = Batch::of_values([&large[..]]).ask(&mut filter).unwrap_err();
    assert!(matches!(error, FilterError::OverMemory { .. }), "{error}");
    assert!(batch(1).ask(&mut filter).unwrap().keeps_all());
}

#[test]
fn an_instance_that_has_grown_is_replaced() {
    let engine = engine();
    let component = compile(&engine, "(call $all (call $records (local.get 8)))");
    let budget = Budget {
        warm_bytes_max: 1 << 20,
        ..budget()
    };
    let mut filter = filter_with(&component, &[], budget);
    let large = vec![b'x'; 2 << 20];
    assert!(
        Batch::of_values([&large[..]])
            .ask(&mut filter)
            .unwrap()
            .keeps_all()
    );
    assert_eq!(filter.memory_bytes(), 0, "the grown instance is gone");
    assert!(batch(1).ask(&mut filter).unwrap().keeps_all());
    assert_eq!(
        (filter.instances_made(), filter.memory_bytes()),
        (2, 128 << 10)
    );
}

#[test]
fn answers_that_are_not_answers() {
    let engine = engine();
    for (keep, says) in [
        ("(call $bitmap (i32.const 1024) (i32.const 0))", "exactly 1"),
        ("(call $bitmap (i32.const 1024) (i32.const 2))", "exactly 1"),
        (
            "(i32.store8 (i32.const 1024) (i32.const 255)) (call $bitmap (i32.const 1024) (i32.const 1))",
            "past the last",
        ),
        ("(call $bitmap (i32.const -8) (i32.const 1))", ""),
        ("(call $bitmap (i32.const 0) (i32.const 131073))", ""),
        ("(i32.const -4)", ""),
        ("(i32.const 17)", ""),
        (
            "(drop (call $error)) (i32.store8 (i32.const 16) (i32.const 2)) (i32.const 16)",
            "",
        ),
        (
            "(i32.store8 (i32.const 512) (i32.const 255)) (call $error)",
            "utf-8",
        ),
    ] {
        let mut filter = default_filter(&engine, keep);
        match batch(3).ask(&mut filter).unwrap_err() {
            FilterError::BadAnswer(text) => assert!(text.contains(says), "{keep}: {text}"),
            other => panic!("{keep}: {other}"),
        }
    }
}

#[test]
fn an_answer_too_large_to_be_one_is_not_copied() {
    let engine = engine();
    let keep =
        "(drop (memory.grow (i32.const 256))) (call $bitmap (i32.const 0) (i32.const 16000000))";
    let error = batch(3)
        .ask(&mut default_filter(&engine, keep))
        .unwrap_err();
    assert!(matches!(error, FilterError::BadAnswer(_)), "{error}");
}

#[test]
fn the_components_own_error_is_a_verdict_and_no_kill() {
    let engine = engine();
    let mut filter = default_filter(&engine, "(call $error)");
    let error = batch(3).ask(&mut filter).unwrap_err();
    assert_eq!(error, FilterError::Refused("no, thank you".into()));
    assert!(!error.is_kill());
    assert_eq!(filter.instances_made(), 1);
}

#[test]
fn faults_while_starting() {
    let engine = engine();
    let start = |start: &str, budget: Budget| {
        let component = engine
            .compile(&wat_component(start, "unreachable", "", ""))
            .unwrap();
        Filter::new(
            &component,
            Parameters::new(),
            budget,
            &GuestLog::new("test"),
        )
        .unwrap_err()
    };
    let short = Budget {
        batch_ms_max: 200,
        ..budget()
    };
    assert!(matches!(start("unreachable", short), StartError::Trap(_)));
    let out_of_time = StartError::OutOfTime { ms_max: 200 };
    assert_eq!(start("(loop $ever (br $ever))", short), out_of_time);
    let refused = StartError::Refused("no, thank you".into());
    assert_eq!(start("(return (call $error))", short), refused);
    let small = Budget {
        memory_bytes_max: 64 << 10,
        ..budget()
    };
    let over = StartError::OverMemory {
        bytes_max: 64 << 10,
    };
    assert_eq!(start("", small), over);
}

#[test]
fn the_pool_is_bounded_and_says_so() {
    let engine = engine(); // for 8 instances
    let component = compile(&engine, "unreachable");
    let filters: Vec<Filter> = (0..8)
        .map(|_| filter_with(&component, &[], budget()))
        .collect();
    let log = GuestLog::new("test");
    let error = Filter::new(&component, parameters(&[]), budget(), &log).unwrap_err();
    assert!(matches!(error, StartError::NoRoom(_)), "{error}");
    assert_eq!(error.erred(), Erred::Broker);
    drop(filters);
    filter_with(&component, &[], budget());
}

#[test]
fn a_poison_record_counts_once_however_often_it_is_sent() {
    let engine = engine();
    let (deployment, mut filter) = deploy(compile(&engine, DIES_OF_ZERO), budget());
    for _ in 0..10 {
        for zeros in [&[0][..], &[2, 7]] {
            let verdict = judge(&deployment, &mut filter, &with_zeros(9, zeros)).unwrap();
            assert_eq!(verdict.failed.len(), zeros.len());
        }
        // Alone too.
        assert_eq!(
            judge(&deployment, &mut filter, &with_zeros(1, &[0]))
                .unwrap()
                .failed,
            [0]
        );
    }
    assert!(!deployment.is_paused());
    assert_eq!(
        deployment.placement(),
        Placement::Worker,
        "one kill moves it"
    );
    assert!(
        judge(&deployment, &mut filter, &batch(10))
            .unwrap()
            .kept
            .keeps_all()
    );
}

/// Whoever may send large batches must not be able to switch a filter off.
#[test]
fn batches_too_large_for_the_budget_are_judged_in_parts_and_pause_nothing() {
    let engine = engine();
    let keeps_all = compile(&engine, "(call $all (call $records (local.get 8)))");
    let budget = Budget {
        memory_bytes_max: 512 << 10,
        ..budget()
    };
    let (deployment, mut filter) = deploy(keeps_all, budget);
    let large = batch(20_000);
    let error = large.ask(&mut filter).unwrap_err();
    assert!(matches!(error, FilterError::OverMemory { .. }), "{error}");
    for _ in 0..5 {
        let verdict = judge(&deployment, &mut filter, &large).unwrap();
        assert!(verdict.failed.is_empty() && verdict.kept.keeps_all());
        assert_eq!(deployment.placement(), Placement::Worker);
    }
    let last = deployment.last_error().unwrap();
    assert!(last.text.contains("memory budget"), "{}", last.text);
}

#[test]
fn what_only_crashes_is_paused() {
    let engine = engine();
    let (deployment, mut filter) = deploy(compile(&engine, "unreachable"), budget());
    for value in [b"a", b"b", b"c"] {
        assert!(!deployment.is_paused());
        let verdict = judge(&deployment, &mut filter, &Batch::of_values([&value[..]])).unwrap();
        assert_eq!(verdict.failed, [0]);
    }
    assert!(deployment.is_paused());
    let paused = judge(&deployment, &mut filter, &batch(10)).unwrap_err();
    assert!(
        matches!(paused, FilterError::Paused { kills: 3, .. }),
        "{paused}"
    );
    assert!(!paused.is_kill());
    let last = deployment.last_error().unwrap();
    assert!(
        last.text.contains("unreachable"),
        "what led there: {}",
        last.text
    );
}

#[test]
fn three_kills_of_the_whole_pause_the_deployment_and_one_moves_it() {
    let engine = engine();
    let keep = "
    (if (i32.eq (local.get 8) (i32.const 12)) (then unreachable))
    (call $all (call $records (local.get 8)))";
    let (deployment, mut filter) = deploy(compile(&engine, keep), budget());
    assert_eq!(deployment.placement(), Placement::Shard);
    for kills in 1..=3 {
        let verdict = judge(&deployment, &mut filter, &batch(2)).unwrap();
        assert!(verdict.kept.keeps_all());
        let expected = if kills < 3 {
            Placement::Worker
        } else {
            Placement::Paused
        };
        assert_eq!(deployment.placement(), expected);
    }
    let paused = judge(&deployment, &mut filter, &batch(1)).unwrap_err();
    assert!(matches!(paused, FilterError::Paused { .. }), "{paused}");
}
