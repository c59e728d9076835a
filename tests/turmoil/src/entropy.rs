//! The system's randomness, from a seed: keys of hash maps, connection ids, key shares, jitter.

use std::sync::atomic::{AtomicU64, Ordering};

static STATE: AtomicU64 = AtomicU64::new(1);

/// Everything that asks the system for randomness from now on gets what follows from `seed`. One run at a time, on a
/// thread of its own: hash maps and generators keep what they have asked for, by thread.
pub(crate) fn sow(seed: u64) {
    STATE.store(seed, Ordering::SeqCst);
}

/// Stands in for the C library's function, which the standard library, `rand` and `ring` call.
///
/// # Safety
/// As there: `buffer` is valid for `length` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn getrandom(buffer: *mut u8, length: usize, _flags: u32) -> isize {
    for at in 0..length {
        let state = STATE.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::SeqCst);
        // SAFETY: the caller's buffer has `length` bytes.
        unsafe { buffer.add(at).write(crate::chance::mix(state) as u8) };
    }
    length as isize
}
