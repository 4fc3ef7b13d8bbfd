//! `gateway_json` of `src/fuzz/` under libFuzzer.
#![no_main]

#[global_allocator]
static ALLOCATOR: etched::fuzz::Counting = etched::fuzz::Counting;

libfuzzer_sys::fuzz_target!(|data: &[u8]| etched::fuzz::run("gateway_json", data));
