//! stub
use crate::failure::Failure;
use crate::options::Bridge;
use keyhatch::blocking::Client;
pub fn bridge(_: &Client, _: &Bridge) -> Result<u8, Failure> {
    Err(Failure::failed("x"))
}
