//! Who asks: facts of the kernel about the process at the other end of a socket, never what it says.

pub mod accounts;
pub mod cgroup;
mod image;
mod invocation;
mod kernel;
mod peer;

pub use image::{Image, Images, hex};
pub use kernel::Kernel;
pub use peer::{Peer, Standing};
