#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| airdock::fuzz::run_state(input));
