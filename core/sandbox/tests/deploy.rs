//! What is refused before anything of it runs, in words that help, and the cache of compiled code.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{Batch, budget, engine, engine_with, filter_with, wat_component, wat_filter};
use millstream_batch::limits::COMPONENT_BYTES_MAX;
use millstream_sandbox::{CompileError, Digest, Engine, EngineConfig, FilterError, Origin};

fn refused(wasm: &[u8]) -> CompileError {
    engine().compile(wasm).unwrap_err()
}

fn wat(text: &str) -> Vec<u8> {
    wat::parse_str(text).unwrap()
}

#[test]
fn what_is_no_component() {
    let malformed = |wasm: &[u8]| matches!(refused(wasm), CompileError::Malformed(_));
    assert!(malformed(b""));
    assert!(malformed(b"\0as"));
    assert!(malformed(b"#!/bin/sh\necho hello\n"));
    assert!(malformed(b"(component)"));
    assert_eq!(refused(&wat("(module)")), CompileError::CoreModule);
    let too_large = vec![0; COMPONENT_BYTES_MAX + 1];
    assert!(matches!(refused(&too_large), CompileError::TooLarge { .. }));
}

#[test]
fn a_component_cut_short_anywhere_is_refused() {
    let wasm = common::bundled("key-filter");
    let engine = engine();
    for cut in (8..wasm.len()).step_by(wasm.len() / 40) {
        assert!(engine.compile(&wasm[..cut]).is_err(), "cut at {cut}");
    }
}

/// Damage may leave a valid component; then it must still be harmless to compile and to run.
#[test]
fn a_component_with_a_flipped_byte_does_no_harm() {
    let wasm = common::bundled("key-filter");
    let engine = engine();
    let batch = Batch::of_values([&b"v"[..]; 9]);
    let mut ran = 0;
    for at in (8..wasm.len()).step_by(wasm.len() / 60) {
        let mut damaged = wasm.clone();
        damaged[at] ^= 0x41;
        let Ok(component) = engine.compile(&damaged) else {
            continue;
        };
        let log = millstream_sandbox::GuestLog::new("test");
        let parameters = common::parameters(&[("prefix", "a")]);
        let started = millstream_sandbox::Filter::new(&component, parameters, budget(), &log);
        if let Ok(mut filter) = started {
            let _ = batch.ask(&mut filter);
            ran += 1;
        }
    }
    assert!(ran > 0, "no damaged component ran, so nothing was tested");
}

#[test]
fn wrong_worlds_are_told_what_is_missing() {
    let nothing = refused(&wat("(component)"));
    assert!(matches!(&nothing, CompileError::NoPlugPoint { exports, .. } if exports.is_empty()));
    assert!(nothing.to_string().contains("exports nothing"), "{nothing}");

    let other = wat(r#"(component (instance $i) (export "wasi:cli/run@0.2.0" (instance $i)))"#);
    let error = refused(&other).to_string();
    assert!(error.contains("wasi:cli/run@0.2.0"), "{error}");
    assert!(
        error.contains("millstream:plugin/filter-view@0.1.0"),
        "{error}"
    );

    let next = wat(
        r#"(component (instance $i) (export "millstream:plugin/filter-view@7.0.0" (instance $i)))"#,
    );
    assert!(matches!(refused(&next), CompileError::OtherVersion { .. }));

    let empty = wat(
        r#"(component (instance $i) (export "millstream:plugin/filter-view@0.1.0" (instance $i)))"#,
    );
    let error = refused(&empty);
    assert!(
        matches!(&error, CompileError::WrongShape { reason, .. } if reason.contains("`start` is missing")),
        "{error}"
    );

    let text = String::from_utf8(wasm_text()).unwrap();
    let other_result = text.replace("(list u8)", "(list u32)");
    let error = refused(&wat(&other_result));
    assert!(
        matches!(&error, CompileError::WrongShape { reason, .. } if reason.contains("keep")),
        "{error}"
    );
}

/// The smallest filter there can be, as text.
fn wasm_text() -> Vec<u8> {
    br#"(component
      (import "millstream:plugin/types@0.1.0" (instance $types
        (type $s (enum "produce" "subscription"))
        (export "stage" (type $stage (eq $s)))
        (type $c (record (field "topic" string) (field "partition" u32) (field "stage" $stage)
          (field "time" s64) (field "base-offset" (option u64))))
        (export "context" (type (eq $c)))
        (type $b (record (field "index" (list u32)) (field "timestamps" (list s64)) (field "raw" (list u8))))
        (export "batch-view" (type (eq $b)))))
      (alias export $types "context" (type $context))
      (alias export $types "batch-view" (type $batch))
      (core module $module
        (memory (export "memory") 1)
        (func (export "realloc") (param i32 i32 i32 i32) (result i32) unreachable)
        (func (export "start") (result i32) unreachable)
        (func (export "keep") (param i32 i32 i32 i32 i64 i32 i64 i32 i32 i32 i32 i32 i32) (result i32)
          unreachable))
      (core instance $main (instantiate $module))
      (alias core export $main "memory" (core memory $memory))
      (alias core export $main "realloc" (core func $realloc))
      (func $start (result (result (error string)))
        (canon lift (core func $main "start") (memory $memory)))
      (func $keep (param "context" $context) (param "batch" $batch)
        (result (result (list u8) (error string)))
        (canon lift (core func $main "keep") (memory $memory) (realloc (core func $realloc))))
      (instance $filter (export "start" (func $start)) (export "keep" (func $keep)))
      (export "millstream:plugin/filter-view@0.1.0" (instance $filter)))"#
        .to_vec()
}

#[test]
fn imports_outside_the_sandbox_are_refused_by_name() {
    let import = r#"(import "acme:billing/charge@1.0.0" (instance (export "charge" (func))))"#;
    let wasm = wat_component("", "unreachable", import, "");
    match refused(&wasm) {
        CompileError::UnknownImport { import, offered } => {
            assert_eq!(import, "acme:billing/charge@1.0.0");
            assert!(offered.contains("wasi:logging/logging@0.1.0-draft"));
        }
        other => panic!("{other}"),
    }
    let import = r#"(import "wasi:config/store@0.2.0-rc.1" (instance (export "get" (func))))"#;
    let wasm = wat_component("", "unreachable", import, "");
    assert!(matches!(refused(&wasm), CompileError::WrongImport(_)));
}

/// Language runtimes import WASI whether they use it or not: that is allowed, using it is not.
#[test]
fn wasi_may_be_imported_and_not_called() {
    let engine = engine();
    let import = r#"
      (import "wasi:clocks/monotonic-clock@0.2.3" (instance $clock (export "now" (func (result u64)))))
      (alias export $clock "now" (func $clock_now)) (core func $now (canon lower (func $clock_now)))
      (core instance $host (export "now" (func $now)))"#;
    let unused = wat_component("", "(call $error)", import, "");
    let mut filter = filter_with(&engine.compile(&unused).unwrap(), &[], budget());
    let batch = Batch::of_values([&b"v"[..]]);
    assert!(matches!(
        batch.ask(&mut filter),
        Err(FilterError::Refused(_))
    ));

    let calls = String::from_utf8(
        wat_text_with_clock(import, "(drop (call $now)) (call $error)").into_bytes(),
    )
    .unwrap();
    let component = engine.compile(&wat(&calls)).unwrap();
    let mut filter = filter_with(&component, &[], budget());
    match batch.ask(&mut filter).unwrap_err() {
        FilterError::Trap(text) => {
            assert!(
                text.contains("wasi:clocks/monotonic-clock@0.2.3#now"),
                "{text}"
            );
        }
        other => panic!("{other}"),
    }
}

fn wat_text_with_clock(import: &str, keep: &str) -> String {
    common::wat_component_text(
        "",
        keep,
        import,
        r#"(import "host" "now" (func $now (result i64)))"#,
    )
    .replace(
        "(instantiate $module)",
        r#"(instantiate $module (with "host" (instance $host)))"#,
    )
}

fn kept_in(dir: &Path) -> Engine {
    engine_with(EngineConfig {
        cache_dir: Some(dir.to_owned()),
        ..EngineConfig::default()
    })
}

fn compiled_file(dir: &Path) -> PathBuf {
    let mut files = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "compiled"));
    let file = files.next().expect("one compiled component");
    assert_eq!(files.next(), None);
    file
}

fn works(engine: &Engine, wasm: &[u8], origin: Origin) {
    let component = engine.compile(wasm).unwrap();
    assert_eq!(component.origin(), origin);
    assert_eq!(component.digest(), Digest::of(wasm));
    let mut filter = filter_with(&component, &[("prefix", "a")], budget());
    let batch = Batch::of([
        (Some(&b"a"[..]), None, &[][..]),
        (Some(&b"b"[..]), None, &[][..]),
    ]);
    let kept = batch.ask(&mut filter).unwrap();
    assert_eq!(kept.iter_kept().collect::<Vec<_>>(), [0]);
}

#[test]
fn a_component_is_compiled_once() {
    let dir = tempfile::tempdir().unwrap();
    let wasm = common::bundled("key-filter");
    works(&kept_in(dir.path()), &wasm, Origin::Compiler);
    works(&kept_in(dir.path()), &wasm, Origin::Cache);
}

#[test]
fn compiled_code_that_was_tampered_with_is_never_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let wasm = common::bundled("key-filter");
    works(&kept_in(dir.path()), &wasm, Origin::Compiler);
    let file = compiled_file(dir.path());
    let good = fs::read(&file).unwrap();
    for at in [0, 8, 39, 40, 41, good.len() / 2, good.len() - 1] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        fs::write(&file, &bad).unwrap();
        works(&kept_in(dir.path()), &wasm, Origin::Compiler);
        works(&kept_in(dir.path()), &wasm, Origin::Cache); // made anew
    }
    for bad in [&good[..good.len() - 1], &good[..10], &[]] {
        fs::write(&file, bad).unwrap();
        works(&kept_in(dir.path()), &wasm, Origin::Compiler);
    }
}

#[test]
fn compiled_code_of_another_component_or_another_broker_is_never_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let wasm = common::bundled("key-filter");
    works(&kept_in(dir.path()), &wasm, Origin::Compiler);
    let file = compiled_file(dir.path());

    // Authentic code under another component's name.
    let elsewhere = tempfile::tempdir().unwrap();
    let other = wat_filter("unreachable");
    fs::copy(dir.path().join("key"), elsewhere.path().join("key")).unwrap();
    kept_in(elsewhere.path()).compile(&other).unwrap();
    fs::copy(compiled_file(elsewhere.path()), &file).unwrap();
    works(&kept_in(dir.path()), &wasm, Origin::Compiler);

    // The right name, signed with another key.
    let stranger = tempfile::tempdir().unwrap();
    works(&kept_in(stranger.path()), &wasm, Origin::Compiler);
    fs::copy(compiled_file(stranger.path()), &file).unwrap();
    works(&kept_in(dir.path()), &wasm, Origin::Compiler);

    // A damaged key: another is made, and nothing that the old one signed is trusted.
    fs::write(dir.path().join("key"), b"short").unwrap();
    works(&kept_in(dir.path()), &wasm, Origin::Compiler);
    works(&kept_in(dir.path()), &wasm, Origin::Cache);
}

#[cfg(unix)]
#[test]
fn only_the_broker_can_read_the_key() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    kept_in(dir.path());
    let mode = fs::metadata(dir.path().join("key"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_cache_that_cannot_be_used_is_done_without() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "in the way").unwrap();
    works(
        &kept_in(&file),
        &common::bundled("key-filter"),
        Origin::Compiler,
    );
}

#[test]
fn what_no_deployment_names_leaves_the_cache() {
    let dir = tempfile::tempdir().unwrap();
    let config = || EngineConfig {
        cache_dir: Some(dir.path().to_owned()),
        ..EngineConfig::default()
    };
    let files = || {
        let files = fs::read_dir(dir.path()).unwrap();
        files
            .map(|file| file.unwrap().file_name().into_string().unwrap())
            .collect::<Vec<_>>()
    };
    let (one, two) = (wat_filter("unreachable"), wat_filter("(call $error)"));
    let engine = engine_with(config());
    let kept = engine.compile(&one).unwrap().digest();
    engine.compile(&two).unwrap();
    fs::write(dir.path().join("0123.partial-77"), "half").unwrap();
    fs::write(dir.path().join("4567.compiled"), "of another wasmtime").unwrap();
    fs::write(dir.path().join("README"), "not ours").unwrap();
    assert_eq!(engine.sweep_cache(&[kept]).unwrap(), 3);
    let left = files();
    assert_eq!(
        left.len(),
        3,
        "one component, the key, and what is not ours: {left:?}"
    );
    let again = engine_with(config());
    assert_eq!(again.compile(&one).unwrap().origin(), Origin::Cache);
    assert_eq!(again.compile(&two).unwrap().origin(), Origin::Compiler);
    drop((engine, again));
    assert_eq!(Engine::clear_cache(dir.path()).unwrap(), 2);
    assert_eq!(files().len(), 2);
    assert_eq!(Engine::clear_cache(&dir.path().join("nowhere")).unwrap(), 0);
}

/// A name of a megabyte, with escapes for a terminal in it.
#[test]
fn errors_do_not_echo_what_a_component_is_full_of() {
    let name = format!("evil:{}/x@0.1.0", "a".repeat(1 << 20));
    let long = [
        format!(r#"(component (instance $i) (export "{name}" (instance $i)))"#),
        format!(r#"(component (import "{name}" (func)))"#),
        (0..10_000)
            .map(|i| format!(r#"(export "wasi:cli/run{i}@0.2.0" (instance $i))"#))
            .fold("(component (instance $i) ".to_owned(), |text, export| {
                text + &export
            })
            + ")",
    ];
    for text in long {
        let Ok(wasm) = wat::parse_str(&text) else {
            panic!("{} bytes of text", text.len())
        };
        let error = refused(&wasm).to_string();
        assert!(error.len() < 8 << 10, "{} bytes", error.len());
        assert!(!error.contains('\n'), "{error}");
    }
}

#[cfg(unix)]
#[test]
fn a_cache_that_others_may_write_is_not_used() {
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    let root = tempfile::tempdir().unwrap();
    let wasm = common::bundled("key-filter");
    let compile = |dir: &Path| {
        let engine = engine_with(EngineConfig {
            cache_dir: Some(dir.to_owned()),
            ..EngineConfig::default()
        });
        engine.compile(&wasm).unwrap().origin()
    };
    let own = root.path().join("own");
    assert_eq!(compile(&own), Origin::Compiler);
    assert_eq!(
        fs::metadata(&own).unwrap().permissions().mode() & 0o777,
        0o700
    );
    assert_eq!(compile(&own), Origin::Cache);
    for mode in [0o777, 0o770, 0o702] {
        fs::set_permissions(&own, fs::Permissions::from_mode(mode)).unwrap();
        assert_eq!(compile(&own), Origin::Compiler, "{mode:o}");
    }
    fs::set_permissions(&own, fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(compile(&own), Origin::Cache, "others may read it");
    let link = root.path().join("link");
    symlink(&own, &link).unwrap();
    assert_eq!(compile(&link), Origin::Compiler);
    // A key that others could read signs nothing any more: a new one takes its place.
    fs::set_permissions(own.join("key"), fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(compile(&own), Origin::Compiler);
    assert_eq!(compile(&own), Origin::Cache);
}
