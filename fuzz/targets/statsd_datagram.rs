#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| airdock::fuzz::statsd_datagram(input));
