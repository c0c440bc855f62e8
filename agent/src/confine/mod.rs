//! What the daemon can still do once it serves, whoever takes it over: files and ports by Landlock, system
//! calls by seccomp. Both hold until the process ends, and nothing can widen them.

mod calls;
mod landlock;
mod needs;

pub use needs::Needs;

/// Gives up all but `needs`, for this thread and those it starts; returns the promises that the kernel does
/// not let it keep.
///
/// Only system calls are taken from threads that run already, so it comes before all others.
#[must_use]
pub fn confine(needs: &Needs) -> Vec<String> {
    let mut missing = landlock::restrict(needs);
    if let Err(why) = calls::restrict(needs.network) {
        missing.push(format!(
            "no seccomp filter ({why}): a daemon that is broken into can make any system call"
        ));
    }
    missing
}
