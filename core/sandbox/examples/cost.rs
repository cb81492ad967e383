//! What a filter in the view world costs: `cargo run --release -p millstream-sandbox --example cost`.
//!
//! Prints nanoseconds of processor time a record for the bundled filters beside the same work done
//! natively on the same bytes, which is the floor. The target is at most 60 ns added a record, for
//! batches of 100.

#![allow(clippy::print_stdout, reason = "this is a program for a person")]

use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

use millstream_batch::ids::TimestampMs;
use millstream_batch::limits::BATCH_BYTES_MAX;
use millstream_batch::{BatchBuilder, BatchHeader, Codec, Encoding, RecordIndex};
use millstream_sandbox::{
    Budget, Context, Engine, EngineConfig, Filter, GuestLog, Parameters, Stage,
};

const CONTEXT: Context<'static> = Context {
    topic: "orders",
    partition: 3,
    stage: Stage::Produce,
    time: TimestampMs(1_700_000_000_000),
    base_offset: None,
};
/// Rounds of a row; the best one counts, since the machine is shared.
const ROUNDS: usize = 15;
const ROUND: Duration = Duration::from_millis(60);

struct Batch {
    name: &'static str,
    header: BatchHeader,
    raw: Vec<u8>,
    index: RecordIndex,
}

fn main() {
    let engine = Engine::new(&EngineConfig::default()).expect("an engine");
    println!("{:<52} {:>8} {:>10}", "ns a record", "records", "ns");
    for batch in batches() {
        let records = batch.index.len();
        let row = |what: &str, ns: f64| {
            println!(
                "{:<52} {records:>8} {ns:>10.1}",
                format!("{}: {what}", batch.name)
            );
        };
        row("key prefix, native", per_record(records, || native(&batch)));
        let mut index = RecordIndex::new();
        row(
            "index alone, native",
            per_record(records, || {
                index
                    .build(&batch.header, &batch.raw)
                    .expect("a good batch");
            }),
        );
        for (component, parameters) in [
            ("key-filter", [("prefix", "user-1")]),
            (
                "json-filter",
                [("expr", "level == 'error' && latency_ms > 100")],
            ),
        ] {
            let mut filter = filter(&engine, component, &parameters);
            let ask = || {
                let (index, timestamps) = (batch.index.index(), batch.index.timestamps());
                let kept = filter.call(&CONTEXT, index, timestamps, &batch.raw);
                black_box(kept.expect("an answer"));
            };
            row(component, per_record(records, ask));
        }
    }
}

fn native(batch: &Batch) {
    let mut bitmap = Vec::with_capacity(batch.index.len().div_ceil(8));
    for records in batch.index.index().chunks(6 * 8) {
        let (records, _) = records.as_chunks::<6>();
        let mut byte = 0;
        for (bit, record) in records.iter().enumerate() {
            let key = &batch.raw[record[1] as usize..][..record[2] as usize];
            byte |= u8::from(key.starts_with(b"user-1")) << bit;
        }
        bitmap.push(byte);
    }
    black_box(bitmap);
}

fn per_record(records: usize, mut work: impl FnMut()) -> f64 {
    let best = (0..ROUNDS).map(|_| {
        let (start, cpu, mut times) = (Instant::now(), cpu_ns(), 0_u32);
        while start.elapsed() < ROUND {
            for _ in 0..16 {
                work();
            }
            times += 16;
        }
        (cpu_ns() - cpu) / f64::from(times) / records as f64
    });
    best.fold(f64::INFINITY, f64::min)
}

/// Processor time of this thread so far, in nanoseconds: the kernel's own count.
fn cpu_ns() -> f64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux");
    let on_cpu = stat.split(' ').next().expect("three numbers");
    on_cpu.parse().expect("a number")
}

fn filter(engine: &Engine, name: &str, pairs: &[(&str, &str)]) -> Filter {
    let package = std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo runs this");
    let dist = Path::new(&package).join("../../plugins/dist");
    let wasm = std::fs::read(dist.join(name).with_extension("wasm")).expect("a bundled component");
    let component = engine.compile(&wasm).expect("a good component");
    let parameters: Parameters = pairs
        .iter()
        .map(|(k, v)| ((*k).into(), (*v).into()))
        .collect();
    let log = GuestLog::new("cost");
    Filter::new(&component, parameters, Budget::default(), &log).expect("an instance")
}

fn batches() -> Vec<Batch> {
    let mut batches = Vec::new();
    for (name, bytes, headers) in [("100 B", 100, 0), ("1 KiB, two headers", 1024, 2)] {
        for records in [1, 10, 100, 1_000] {
            batches.push(make(name, records, bytes, headers));
        }
    }
    batches
}

/// Records of a log service: a JSON value padded to `bytes`, a quarter of them errors.
fn make(name: &'static str, records: usize, bytes: usize, headers: usize) -> Batch {
    let mut builder = BatchBuilder::new(Encoding::None, BATCH_BYTES_MAX);
    let headers = [
        ("trace", Some(&b"00-4bf92f3577b34da6"[..])),
        ("tenant", Some(&b"acme"[..])),
    ][..headers]
        .to_vec();
    for i in 0..records {
        let level = ["debug", "info", "warn", "error"][i % 4];
        let start = format!(
            r#"{{"level":"{level}","latency_ms":{},"message":""#,
            i * 37 % 400
        );
        let pad = bytes.saturating_sub(start.len() + 2);
        let value = format!("{start}{:x<pad$}\"}}", "");
        let key = format!("user-{}", i % 3);
        let (key, value) = (Some(key.as_bytes()), Some(value.as_bytes()));
        builder
            .append(key, value, headers.iter().copied(), 1_700_000_000_000)
            .expect("room");
    }
    let batch = builder.build().expect("records");
    let raw = batch
        .inflated(&mut Codec::new())
        .expect("no compression")
        .to_vec();
    let mut index = RecordIndex::new();
    index.build(batch.header(), &raw).expect("a good batch");
    Batch {
        name,
        header: *batch.header(),
        raw,
        index,
    }
}
