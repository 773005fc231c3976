#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| factlib_fuzz::record_batch(data));
