//! Writes what each decoder accepts to `DIRECTORY/DECODER/`, for libFuzzer to begin with.

#![allow(clippy::unwrap_used, reason = "whoever runs it sees why it fails")]

use std::path::Path;

use tidings_decoders::DECODERS;

fn main() {
    let directory = std::env::args().nth(1).expect("a directory");
    for decoder in DECODERS {
        let directory = Path::new(&directory).join(decoder.name);
        std::fs::create_dir_all(&directory).unwrap();
        for (number, sample) in (decoder.samples)().iter().enumerate() {
            std::fs::write(directory.join(format!("sample-{number}")), sample).unwrap();
        }
    }
}
