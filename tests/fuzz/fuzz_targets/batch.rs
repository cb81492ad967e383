//! libFuzzer's way into the target `batch`; its body is in the library, where a test replays the corpus.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|data: &[u8]| millstream_fuzz::batch(data));

#[cfg(not(fuzzing))]
fn main() {
    millstream_fuzz::replay_arguments(millstream_fuzz::batch);
}
