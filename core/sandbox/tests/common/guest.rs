//! A component written in WebAssembly text: no compiler for guests is needed.

pub(crate) fn wat_component_text(
    start: &str,
    keep: &str,
    imports: &str,
    module_imports: &str,
) -> String {
    format!(
        r#"
(component
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
  {imports}
  (core module $module
    {module_imports}
    (memory (export "memory") 2)
    (global $next (mut i32) (i32.const 65536))
    (data (i32.const 512) "no, thank you")
    ;; Memory for arguments, given anew to every call; it grows as needed and is never freed.
    (func (export "realloc") (param i32 i32 i32 i32) (result i32) (local $at i32)
      (local.set $at (i32.and (i32.add (global.get $next) (i32.const 15)) (i32.const -16)))
      (global.set $next (i32.add (local.get $at) (local.get 3)))
      (block $fits (loop $grow
        (br_if $fits (i32.le_u (global.get $next) (i32.mul (memory.size) (i32.const 65536))))
        (br_if $grow (i32.ne (memory.grow (i32.const 16)) (i32.const -1)))
        unreachable))
      (local.get $at))
    (func $bitmap (param $at i32) (param $len i32) (result i32)
      (i32.store8 (i32.const 16) (i32.const 0))
      (i32.store (i32.const 20) (local.get $at))
      (i32.store (i32.const 24) (local.get $len))
      (i32.const 16))
    (func $error (result i32)
      (i32.store8 (i32.const 16) (i32.const 1))
      (i32.store (i32.const 20) (i32.const 512))
      (i32.store (i32.const 24) (i32.const 13))
      (i32.const 16))
    (func $records (param $numbers i32) (result i32)
      (i32.div_u (local.get $numbers) (i32.const 6)))
    ;; All bits set for this many records.
    (func $all (param $records i32) (result i32) (local $i i32)
      (memory.fill (i32.const 1024) (i32.const 255) (i32.div_u (local.get $records) (i32.const 8)))
      (i32.store8 (i32.add (i32.const 1024) (i32.div_u (local.get $records) (i32.const 8)))
        (i32.sub (i32.shl (i32.const 1) (i32.rem_u (local.get $records) (i32.const 8))) (i32.const 1)))
      (call $bitmap (i32.const 1024)
        (i32.div_u (i32.add (local.get $records) (i32.const 7)) (i32.const 8))))
    (func (export "start") (result i32)
      {start}
      (call $bitmap (i32.const 0) (i32.const 0)))
    (func (export "keep")
      (param i32 i32 i32 i32 i64 i32 i64 i32 i32 i32 i32 i32 i32) (result i32) (local $i i32)
      (global.set $next (i32.const 65536))
      {keep}))
  (core instance $main (instantiate $module))
  (alias core export $main "memory" (core memory $memory))
  (alias core export $main "realloc" (core func $realloc))
  (func $start (result (result (error string)))
    (canon lift (core func $main "start") (memory $memory)))
  (func $keep (param "context" $context) (param "batch" $batch) (result (result (list u8) (error string)))
    (canon lift (core func $main "keep") (memory $memory) (realloc (core func $realloc))))
  (instance $filter (export "start" (func $start)) (export "keep" (func $keep)))
  (export "millstream:plugin/filter-view@0.1.0" (instance $filter)))
"#
    )
}
