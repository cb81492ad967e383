//! libFuzzer's way into the target `frame`; its body is in the library, where a test replays the corpus.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|data: &[u8]| millstream_fuzz::frame(data));

#[cfg(not(fuzzing))]
fn main() {
    millstream_fuzz::replay_arguments(millstream_fuzz::frame);
}
