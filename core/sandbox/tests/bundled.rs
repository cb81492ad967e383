//! The components that ship with the broker, through the whole sandbox.

mod common;

use common::{Batch, engine, filter};

#[test]
fn key_filter_keeps_by_prefix() {
    let engine = engine();
    let mut filter = filter(
        &engine,
        &common::bundled("key-filter"),
        &[("prefix", "eu-,us-")],
    );
    let keys = [Some("eu-1"), None, Some("asia-1"), Some("us-7")];
    let records = keys.map(|key| (key.map(str::as_bytes), Some(&b"value"[..]), &[][..]));
    let batch = Batch::of(records);
    let kept: Vec<usize> = batch.ask(&mut filter).unwrap().iter_kept().collect();
    assert_eq!(kept, [0, 3]);
}
