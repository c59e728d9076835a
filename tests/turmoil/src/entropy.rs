//! The system's randomness, from a seed: keys of hash maps, connection ids, key shares, jitter.
//!
//! It is asked for in two ways, by the C library's function and by a system call of one's own (`ring` does). Both are
//! stood in for: what TLS draws decides, by a way, about the order of packets too.

use std::ffi::{c_long, c_uint, c_void};
use std::sync::atomic::{AtomicU64, Ordering};

static STATE: AtomicU64 = AtomicU64::new(1);

/// Everything that asks the system for randomness from now on gets what follows from `seed`. One run at a time, on a
/// thread of its own: hash maps and generators keep what they have asked for, by thread.
pub(crate) fn sow(seed: u64) {
    STATE.store(seed, Ordering::SeqCst);
}

/// Stands in for the C library's function, which the standard library and `rand` call.
///
/// # Safety
/// As there: `buffer` is valid for `length` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn getrandom(buffer: *mut c_void, length: usize, _flags: c_uint) -> isize {
    for at in 0..length {
        let state = STATE.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::SeqCst);
        // SAFETY: the caller's buffer has `length` bytes.
        unsafe { buffer.cast::<u8>().add(at).write(crate::chance::mix(state) as u8) };
    }
    length as isize
}

/// What a system call takes.
type Call = unsafe extern "C" fn(c_long, usize, usize, usize, usize, usize, usize) -> c_long;

/// Stands in for the C library's function, which makes any system call; all others are passed on to it.
///
/// # Safety
/// As there. Its number of arguments varies; where Linux runs, the first six words of them are passed alike.
#[unsafe(no_mangle)]
unsafe extern "C" fn syscall(
    number: c_long,
    a: usize,
    b: usize,
    c: usize,
    d: usize,
    e: usize,
    f: usize,
) -> c_long {
    if number == libc::SYS_getrandom {
        // SAFETY: these are its arguments.
        return unsafe { getrandom(a as *mut c_void, b, c as c_uint) } as c_long;
    }
    // SAFETY: this is the C library's own function, and the arguments are the caller's.
    unsafe {
        let next = libc::dlsym(libc::RTLD_NEXT, c"syscall".as_ptr());
        std::mem::transmute::<*mut c_void, Call>(next)(number, a, b, c, d, e, f)
    }
}
