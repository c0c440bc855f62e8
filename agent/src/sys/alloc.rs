//! A global allocator that wipes memory as it is freed.
//!
//! Plaintext that must pass through the heap (a request body, a parser's scratch, a key on its way to the
//! arena) does not stay there. Growing a buffer moves it through `alloc` and `dealloc` too, so no old
//! copy is left behind.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};

/// The system's allocator, with every freed block wiped.
pub struct Zeroizing;

// SAFETY: all memory comes from and goes back to `System` with the layout it was asked with; the default
// `realloc` and `alloc_zeroed` of the trait are built on these two.
unsafe impl GlobalAlloc for Zeroizing {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the promises of `GlobalAlloc::alloc`, which are those of `System`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: `block` is valid for `layout.size()` bytes until it is given back on the next line;
        // `explicit_bzero` (glibc 2.25) is never optimised away.
        unsafe {
            nix::libc::explicit_bzero(block.cast(), layout.size());
            System.dealloc(block, layout);
        }
    }
}
