//! Write a component for Millstream as a plain function of one record.
//!
//! ```
//! use millstream_plugin::{Parameters, Record};
//!
//! /// Keeps records whose value begins as the parameter `prefix` says.
//! fn keep(record: &Record<'_>, parameters: &Parameters) -> Result<bool, String> {
//!     let prefix = parameters.require("prefix")?;
//!     Ok(record.value().is_some_and(|value| value.starts_with(prefix.as_bytes())))
//! }
//!
//! millstream_plugin::filter!(fn keep);
//! ```
//!
//! A filter that prepares something once (a parsed expression, a set of keys) implements [`Filter`]
//! and is named with `filter!(MyFilter)`. Native builds have everything but the component's exports, so
//! `cargo test` runs anywhere; [`testing`] makes records.
//!
//! The broker hands over a whole batch and the positions of its fields; [`Record`] looks at them in
//! place, so a record costs no allocation and no call. A panic or `Err` in one record is an answer for
//! the whole batch: return `Err` for a record that nobody should have sent, and leave panics for bugs.
//!
//! Deliberately absent: clocks, entropy, files and network. The time is [`Context::time`].

mod context;
#[cfg(target_family = "wasm")]
#[doc(hidden)]
pub mod guest;
pub mod log;
mod parameters;
mod record;
pub mod testing;
mod varint;

pub use context::{Context, Stage};
pub use parameters::Parameters;
pub use record::{Batch, Header, Headers, Record};

/// A filter with state that is made once: see [`filter!`].
pub trait Filter: Sized {
    /// Called once in each new instance, before any record. An `Err` refuses the deployment or the
    /// subscription; its text is what the person reads.
    fn start(parameters: &Parameters) -> Result<Self, String>;

    /// Whether to keep the record. An `Err` refuses the whole batch. The answer must depend on the
    /// record, its batch's context and the parameters alone: instances come and go.
    fn keep(&mut self, record: &Record<'_>) -> Result<bool, String>;
}

/// Judges a whole batch: the bitmap that the broker expects.
///
/// This is what the exported function does, without WebAssembly around it, so tests can call it.
pub fn filter_batch<F: Filter>(
    filter: &mut F,
    batch: &Batch<'_>,
    bitmap: &mut Vec<u8>,
) -> Result<(), String> {
    bitmap.clear();
    bitmap.reserve(batch.len().div_ceil(8));
    let mut byte = 0;
    for (i, record) in batch.records().enumerate() {
        let keep = filter
            .keep(&record)
            .map_err(|error| format!("record {i}: {error}"))?;
        byte |= u8::from(keep) << (i % 8);
        if i % 8 == 7 {
            bitmap.push(byte);
            byte = 0;
        }
    }
    if !batch.len().is_multiple_of(8) {
        bitmap.push(byte);
    }
    Ok(())
}

/// Exports a filter from this crate, whose `crate-type` must be `["cdylib"]`.
///
/// `filter!(MyFilter)` takes a type that implements [`Filter`]; `filter!(fn keep)` takes a function
/// `fn(&Record, &Parameters) -> Result<bool, String>`.
#[macro_export]
macro_rules! filter {
    (fn $keep:path) => {
        #[doc(hidden)]
        #[derive(Debug)]
        pub struct FunctionFilter($crate::Parameters);

        impl $crate::Filter for FunctionFilter {
            fn start(
                parameters: &$crate::Parameters,
            ) -> ::core::result::Result<Self, ::std::string::String> {
                ::core::result::Result::Ok(Self(::core::clone::Clone::clone(parameters)))
            }
            fn keep(
                &mut self,
                record: &$crate::Record<'_>,
            ) -> ::core::result::Result<bool, ::std::string::String> {
                $keep(record, &self.0)
            }
        }

        $crate::filter!(FunctionFilter);
    };
    ($filter:ty) => {
        #[cfg(target_family = "wasm")]
        #[allow(unsafe_code, reason = "exported names are promises to the linker")]
        const _: () = {
            static INSTANCE: $crate::guest::Instance<$filter> = $crate::guest::Instance::new();

            /// Says which world this module is made for.
            #[unsafe(link_section = "component-type:millstream:plugin/filter")]
            #[used]
            static WORLD: [u8; $crate::guest::FILTER_WORLD.len()] = *$crate::guest::FILTER_WORLD;

            #[unsafe(export_name = "millstream:plugin/filter-view@0.1.0#start")]
            extern "C" fn start() -> *const $crate::guest::Answer {
                INSTANCE.start()
            }

            // SAFETY: only the canonical ABI calls this, with lists that it has just lowered.
            #[unsafe(export_name = "millstream:plugin/filter-view@0.1.0#keep")]
            unsafe extern "C" fn keep(
                topic: *const u8,
                topic_len: usize,
                partition: u32,
                stage: u32,
                time: i64,
                has_base_offset: u32,
                base_offset: u64,
                index: *const u32,
                index_len: usize,
                timestamps: *const i64,
                timestamps_len: usize,
                raw: *const u8,
                raw_len: usize,
            ) -> *const $crate::guest::Answer {
                let args = $crate::guest::KeepArgs {
                    topic: (topic, topic_len),
                    partition,
                    stage,
                    time,
                    base_offset: (has_base_offset, base_offset),
                    index: (index, index_len),
                    timestamps: (timestamps, timestamps_len),
                    raw: (raw, raw_len),
                };
                // SAFETY: as above.
                unsafe { INSTANCE.keep(args) }
            }
        };
    };
}
