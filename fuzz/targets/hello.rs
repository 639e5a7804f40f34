//! What comes to a shard's door: 16 bytes, with some descriptors on them. Anybody in the container can send them.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sherd_shim::hello::{Hello, LEN};

fuzz_target!(|input: ([u8; LEN], u8)| {
    let (bytes, descriptors) = input;
    if let Ok(hello) = Hello::decode(&bytes, usize::from(descriptors)) {
        assert_eq!(hello.encode(), bytes, "another hello has the same meaning");
        assert_eq!(descriptors, u8::from(hello == Hello::Trapped), "its descriptors are not those that it calls for");
    }
});
