//! The program's own code in memory.
#![allow(unsafe_code)]

use nix::libc;

unsafe extern "C" {
    /// The beginning of the program, and the end of its code, as the linker has them (ld(1), `PROVIDE`).
    static __executable_start: u8;
    static etext: u8;
}

/// Lets go of the pages of code that the start has used: most of them are of no use any more. Those that are come
/// back from the page cache, one fault for several.
pub fn forget_start() {
    const PAGE: usize = 64 * 1024;
    let (start, end) = (&raw const __executable_start, &raw const etext);
    let len = (end.addr() - start.addr()) / PAGE * PAGE;
    // SAFETY: from the beginning of the program to the end of its code nothing is ever written: the linker puts what
    // is relocated or writable behind it. So each page is as the file has it, and comes back as it was.
    let _ = unsafe { libc::madvise(start.cast_mut().cast(), len, libc::MADV_DONTNEED) };
}
