//! The component's side of the canonical ABI: memory for arguments, answers, imports. What
//! `wit-bindgen` would generate, by hand, so that the SDK needs no other crate, a batch needs no
//! allocation, and the argument buffer is used again and again.
//!
//! Deliberately absent: threads. A component has one, and the host never calls it while it runs.

#![allow(
    unsafe_code,
    reason = "this is the boundary: pointers come in, pointers go out"
)]

use std::alloc::{self, Layout};
use std::cell::UnsafeCell;

use crate::context::{Context, Stage};
use crate::log::Level;
use crate::parameters::Parameters;
use crate::record::Batch;
use crate::{Filter, filter_batch};

/// The binary description of the world `millstream:plugin/filter`, made from `wit/` by
/// `cargo xtask plugins`.
pub const FILTER_WORLD: &[u8; include_bytes!("filter.world").len()] =
    include_bytes!("filter.world");

/// `result<list<u8>, string>` and `result<_, string>` in memory.
#[repr(C)]
#[derive(Debug)]
pub struct Answer {
    is_err: u8,
    at: *const u8,
    len: usize,
}

/// The arguments of `keep`, flattened.
#[derive(Debug)]
pub struct KeepArgs {
    pub topic: (*const u8, usize),
    pub partition: u32,
    pub stage: u32,
    pub time: i64,
    pub base_offset: (u32, u64),
    pub index: (*const u32, usize),
    pub timestamps: (*const i64, usize),
    pub raw: (*const u8, usize),
}

/// The one filter of this component and the memory of its answers.
#[derive(Debug)]
pub struct Instance<F>(UnsafeCell<State<F>>);

#[derive(Debug)]
struct State<F> {
    filter: Option<F>,
    bitmap: Vec<u8>,
    error: String,
    answer: Answer,
}

// SAFETY: a component has one thread, and the host never enters it twice at a time.
unsafe impl<F> Sync for Instance<F> {}

impl<F> Default for Instance<F> {
    fn default() -> Self {
        Self::new()
    }
}

impl<F> Instance<F> {
    /// Nothing is started yet.
    #[must_use]
    pub const fn new() -> Self {
        Self(UnsafeCell::new(State {
            filter: None,
            bitmap: Vec::new(),
            error: String::new(),
            answer: Answer {
                is_err: 0,
                at: std::ptr::null(),
                len: 0,
            },
        }))
    }
}

impl<F: Filter> Instance<F> {
    /// The export `start`.
    pub fn start(&self) -> *const Answer {
        std::panic::set_hook(Box::new(|panic| log(Level::Critical, &panic.to_string())));
        // SAFETY: one thread, and no other reference lives: the host is not inside another export.
        let state = unsafe { &mut *self.0.get() };
        match F::start(&parameters()) {
            Ok(filter) => {
                state.filter = Some(filter);
                state.bitmap.clear();
                state.answer(Ok(()))
            }
            Err(error) => state.answer(Err(error)),
        }
    }

    /// The export `keep`.
    ///
    /// # Safety
    /// The lists must be as the canonical ABI lowered them: in bounds, aligned, unshared.
    pub unsafe fn keep(&self, args: KeepArgs) -> *const Answer {
        // SAFETY: as in `start`.
        let state = unsafe { &mut *self.0.get() };
        // SAFETY: the caller's promise; a string is UTF-8 by the canonical ABI.
        let (topic, index, timestamps, raw) = unsafe {
            (
                str::from_utf8_unchecked(list(args.topic)),
                list(args.index),
                list(args.timestamps),
                list(args.raw),
            )
        };
        let context = Context {
            topic,
            partition: args.partition,
            stage: if args.stage == 0 {
                Stage::Produce
            } else {
                Stage::Subscription
            },
            time: args.time,
            base_offset: (args.base_offset.0 != 0).then_some(args.base_offset.1),
        };
        let batch = Batch::new(&context, index, timestamps, raw);
        let filter = state
            .filter
            .as_mut()
            .expect("the host starts a component before it asks");
        let answer = filter_batch(filter, &batch, &mut state.bitmap);
        // SAFETY: the lists of this call are not used any more, and the bitmap is not among them.
        unsafe { (*ARGUMENTS.0.get()).clear() };
        state.answer(answer)
    }
}

impl<F> State<F> {
    /// The answer stays where it is until the next call; the host reads it before that.
    fn answer(&mut self, answer: Result<(), String>) -> *const Answer {
        let (is_err, bytes) = match answer {
            Ok(()) => (0, self.bitmap.as_slice()),
            Err(error) => {
                self.error = error;
                (1, self.error.as_bytes())
            }
        };
        self.answer = Answer {
            is_err,
            at: bytes.as_ptr(),
            len: bytes.len(),
        };
        &raw const self.answer
    }
}

/// # Safety
/// `at` must point to `len` valid values; it may be anything when `len` is 0.
unsafe fn list<'a, T>((at, len): (*const T, usize)) -> &'a [T] {
    if len == 0 {
        &[]
    } else {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts(at, len) }
    }
}

/// Memory for the arguments of one call: a buffer that is used again, and plain allocations for what
/// does not fit, which make it larger for the next time.
struct Arguments {
    buffer: Vec<u128>,
    used: usize,
    overflow: Vec<(*mut u8, Layout)>,
    overflow_bytes: usize,
}

/// The buffer does not grow past this; a larger batch is allocated and freed.
const BUFFER_BYTES_MAX: usize = 2 << 20;
/// Every argument starts on this. The largest alignment that a list in this interface has is 8.
const ALIGN: usize = size_of::<u128>();

struct Shared(UnsafeCell<Arguments>);
// SAFETY: as for `Instance`.
unsafe impl Sync for Shared {}

static ARGUMENTS: Shared = Shared(UnsafeCell::new(Arguments {
    buffer: Vec::new(),
    used: 0,
    overflow: Vec::new(),
    overflow_bytes: 0,
}));

impl Arguments {
    fn allocate(&mut self, len: usize) -> *mut u8 {
        let room = self.buffer.len() * ALIGN - self.used;
        if len <= room {
            let at = self
                .buffer
                .as_mut_ptr()
                .cast::<u8>()
                .wrapping_add(self.used);
            self.used += len.next_multiple_of(ALIGN).min(room);
            return at;
        }
        let layout = Layout::from_size_align(len, ALIGN).expect("the host asks for sizes that fit");
        // SAFETY: `len` is greater than `room`, so it is not zero.
        let at = unsafe { alloc::alloc(layout) };
        if at.is_null() {
            alloc::handle_alloc_error(layout);
        }
        self.overflow_bytes += len.next_multiple_of(ALIGN);
        self.overflow.push((at, layout));
        at
    }

    /// Forgets all arguments; nothing may point to them any more.
    fn clear(&mut self) {
        if !self.overflow.is_empty() {
            for (at, layout) in self.overflow.drain(..) {
                // SAFETY: it was allocated with this layout and is freed once.
                unsafe { alloc::dealloc(at, layout) };
            }
            let wanted = (self.used + self.overflow_bytes).next_power_of_two();
            if wanted <= BUFFER_BYTES_MAX && wanted > self.buffer.len() * ALIGN {
                self.buffer = vec![0; wanted / ALIGN];
            }
            self.overflow_bytes = 0;
        }
        self.used = 0;
    }
}

/// Where the host puts the arguments of an export.
#[unsafe(export_name = "cabi_export_realloc")]
unsafe extern "C" fn export_realloc(old: *mut u8, old_len: usize, _: usize, len: usize) -> *mut u8 {
    // SAFETY: one thread; the host calls this between exports, never inside one.
    let at = unsafe { (*ARGUMENTS.0.get()).allocate(len) };
    if !old.is_null() {
        // SAFETY: `old` came from here with `old_len` bytes, and `at` is new with `len`.
        unsafe { std::ptr::copy_nonoverlapping(old, at, old_len.min(len)) };
    }
    at
}

/// Where the host puts the results of an import: ordinary memory, owned by whoever called it.
#[unsafe(export_name = "cabi_import_realloc")]
unsafe extern "C" fn import_realloc(
    old: *mut u8,
    old_len: usize,
    align: usize,
    len: usize,
) -> *mut u8 {
    if len == 0 {
        return std::ptr::without_provenance_mut(align);
    }
    let layout = Layout::from_size_align(len, align).expect("the host asks for sizes that fit");
    // SAFETY: `len` is not zero; `old`, if any, came from here with this alignment and `old_len`.
    let at = unsafe {
        if old_len == 0 {
            alloc::alloc(layout)
        } else {
            alloc::realloc(old, Layout::from_size_align_unchecked(old_len, align), len)
        }
    };
    if at.is_null() {
        alloc::handle_alloc_error(layout);
    }
    at
}

#[link(wasm_import_module = "wasi:logging/logging@0.1.0-draft")]
unsafe extern "C" {
    #[link_name = "log"]
    fn wasi_log(
        level: u32,
        context: *const u8,
        context_len: usize,
        message: *const u8,
        message_len: usize,
    );
}

#[link(wasm_import_module = "wasi:config/store@0.2.0-rc.1")]
unsafe extern "C" {
    #[link_name = "get-all"]
    fn wasi_config_all(answer: *mut ConfigAnswer);
}

/// `result<list<tuple<string, string>>, error>` in memory. Of an error only the text is read.
#[repr(C)]
struct ConfigAnswer {
    is_err: u32,
    at_or_variant: *mut Pair,
    len_or_text: usize,
    text_len: usize,
}

#[repr(C)]
struct Pair {
    key: Text,
    value: Text,
}

#[repr(C)]
struct Text {
    at: *mut u8,
    len: usize,
}

pub(crate) fn log(level: Level, message: &str) {
    // SAFETY: both strings live during the call, and the host only reads them.
    unsafe {
        wasi_log(
            level as u32,
            std::ptr::null(),
            0,
            message.as_ptr(),
            message.len(),
        );
    }
}

fn parameters() -> Parameters {
    let mut answer = ConfigAnswer {
        is_err: 0,
        at_or_variant: std::ptr::null_mut(),
        len_or_text: 0,
        text_len: 0,
    };
    // SAFETY: `answer` has the size and alignment that the interface's result has.
    unsafe { wasi_config_all(&raw mut answer) };
    assert!(
        answer.is_err as u8 == 0,
        "the host could not read the parameters"
    );
    if answer.len_or_text == 0 {
        return Parameters::default();
    }
    // SAFETY: the host made this list with `import_realloc`, so it is an allocation of exactly this
    // many pairs, and so is each string, which is UTF-8 by the canonical ABI.
    unsafe {
        let len = answer.len_or_text;
        let text = |text: Text| String::from_raw_parts(text.at, text.len, text.len);
        Vec::from_raw_parts(answer.at_or_variant, len, len)
            .into_iter()
            .map(|pair| (text(pair.key), text(pair.value)))
            .collect()
    }
}
