#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|data: &[u8]| millstream_fuzz::entry(data));

#[cfg(not(fuzzing))]
fn main() {
    millstream_fuzz::replay_arguments(millstream_fuzz::entry);
}
