//! What a component may use: the log, under its deployment's name and rationed, and its parameters.

mod common;

use std::fmt::{Debug, Write as _};
use std::sync::{Arc, Mutex};

use common::{Batch, CONTEXT, budget, engine, parameters};
use millstream_sandbox::{Deployment, FilterError, Placement, View};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

/// Asks for the parameter `greeting` and logs it, `lines` times; then refuses the batch.
fn greets(lines: u32) -> Vec<u8> {
    let imports = r#"
      (import "wasi:logging/logging@0.1.0-draft" (instance $logging
        (type $l (enum "trace" "debug" "info" "warn" "error" "critical"))
        (export "level" (type $level (eq $l)))
        (export "log" (func (param "level" $level) (param "context" string) (param "message" string)))))
      (import "wasi:config/store@0.2.0-rc.1" (instance $config
        (type $e (variant (case "upstream" string) (case "io" string)))
        (export "error" (type $error (eq $e)))
        (export "get" (func (param "key" string) (result (result (option string) (error $error)))))))
      (core module $memory_module
        (memory (export "memory") 1)
        (data (i32.const 0) "greeting")
        (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 1024)))
      (core instance $host_memory (instantiate $memory_module))
      (alias core export $host_memory "memory" (core memory $m))
      (alias core export $host_memory "realloc" (core func $r))
      (alias export $logging "log" (func $log_function))
      (alias export $config "get" (func $get_function))
      (core func $log (canon lower (func $log_function) (memory $m)))
      (core func $get (canon lower (func $get_function) (memory $m) (realloc (core func $r))))
      (core module $speaker
        (import "host" "log" (func $log (param i32 i32 i32 i32 i32)))
        (import "host" "get" (func $get (param i32 i32 i32)))
        (import "memory" "memory" (memory 1))
        (func (export "greet")
          (call $get (i32.const 0) (i32.const 8) (i32.const 64))
          ;; Result 0 (ok), option 1 (some), then the string.
          (if (i32.load8_u (i32.const 64)) (then unreachable))
          (if (i32.eqz (i32.load8_u (i32.const 68))) (then unreachable))
          (call $log (i32.const 3) (i32.const 0) (i32.const 5)
            (i32.load (i32.const 72)) (i32.load (i32.const 76)))))
      (core instance $host_functions (export "log" (func $log)) (export "get" (func $get)))
      (core instance $host (instantiate $speaker
        (with "host" (instance $host_functions)) (with "memory" (instance $host_memory))))"#;
    let keep = format!(
        "(local.set $i (i32.const {lines}))
         (loop $again (call $greet)
           (br_if $again (local.tee $i (i32.sub (local.get $i) (i32.const 1)))))
         (call $error)"
    );
    let text = common::wat_component_text(
        "",
        &keep,
        imports,
        r#"(import "host" "greet" (func $greet))"#,
    )
    .replace(
        "(instantiate $module)",
        r#"(instantiate $module (with "host" (instance $host)))"#,
    );
    wat::parse_str(&text).unwrap()
}

/// Every event as one string: level, target, fields.
#[derive(Clone, Debug, Default)]
struct Captured(Arc<Mutex<Vec<String>>>);

impl Subscriber for Captured {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "plugin"
    }
    fn event(&self, event: &Event<'_>) {
        struct Fields(String);
        impl Visit for Fields {
            fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
                write!(self.0, " {field}={value:?}").unwrap();
            }
        }
        let mut fields = Fields(event.metadata().level().to_string());
        event.record(&mut fields);
        self.0.lock().unwrap().push(fields.0);
    }
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

/// What is logged when a deployment `greeter` with these parameters is asked once.
fn logged(lines: u32, own: &[(&str, &str)], subscription: &[(&str, &str)]) -> Vec<String> {
    let captured = Captured::default();
    tracing::subscriber::with_default(captured.clone(), || {
        let component = engine().compile(&greets(lines)).unwrap();
        let deployment = Deployment::new(
            "greeter",
            component,
            parameters(own),
            budget(),
            Placement::Shard,
        );
        let mut filter = deployment.filter(&parameters(subscription)).unwrap();
        let batch = Batch::of_values([&b"v"[..]]);
        let view = View {
            context: &CONTEXT,
            index: batch.index.index(),
            timestamps: batch.index.timestamps(),
            raw: &batch.raw,
        };
        deployment.judge(&mut filter, &view).unwrap_err();
    });
    captured.0.lock().unwrap().clone()
}

#[test]
fn a_line_carries_the_deployments_name_and_cannot_forge_another() {
    let log = logged(1, &[("greeting", "hello\nERROR all is lost")], &[]);
    let line = r#"WARN message=hello\nERROR all is lost deployment="greeter" context=greet"#;
    assert_eq!(log, [line]);
}

/// The SDK panics when an index leads outside the batch, which the broker's own never does.
#[test]
fn a_panic_tells_its_message_to_the_log() {
    let captured = Captured::default();
    tracing::subscriber::with_default(captured.clone(), || {
        let component = engine().compile(&common::bundled("key-filter")).unwrap();
        let mut filter = common::filter_with(&component, &[("prefix", "a")], budget());
        let outside = [0, 1_000, 7, 0, 0, 0];
        let error = filter.call(&CONTEXT, &outside, &[0], b"short").unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, FilterError::Trap(_)), "{text}");
        // Its own words reach whoever asked, on one line.
        assert!(
            text.contains("panicked at ") && text.contains("record.rs"),
            "{text}"
        );
        assert!(text.contains("1000") && !text.contains('\n'), "{text}");
    });
    let log = captured.0.lock().unwrap().clone();
    assert_eq!(log.len(), 1, "{log:?}");
    assert!(log[0].starts_with("ERROR message=panicked at "), "{log:?}");
    assert!(
        log[0].contains("1000") && log[0].contains("record.rs"),
        "{log:?}"
    );
}

#[test]
fn a_subscriptions_parameters_win_over_the_deployments() {
    let log = logged(1, &[("greeting", "hello")], &[("greeting", "good evening")]);
    assert!(log[0].contains("good evening"), "{log:?}");
}

#[test]
fn a_flood_of_lines_is_cut() {
    let lines = logged(10_000, &[("greeting", "hello")], &[]).len();
    // 100 at once and 20 a second; 10,000 calls take some milliseconds, unless the machine stands still.
    assert!((100..1_000).contains(&lines), "{lines} lines");
}
