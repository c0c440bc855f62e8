//! Bytes put together in secret memory.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::sys::arena::{Arena, Block, Full};

/// One after the other.
pub fn joined(arena: &Arc<Arena>, pieces: &[&[u8]]) -> Result<Block, Full> {
    let mut draft = arena.draft(pieces.iter().map(|piece| piece.len()).sum())?;
    let mut at = 0;
    for piece in pieces {
        draft[at..at + piece.len()].copy_from_slice(piece);
        at += piece.len();
    }
    Ok(draft.freeze())
}

/// The value of `Authorization` for `user:password` (RFC 7617).
pub fn basic(arena: &Arc<Arena>, pair: &[u8]) -> Result<Block, Full> {
    const SCHEME: &[u8] = b"Basic ";
    let mut draft = arena.draft(SCHEME.len() + pair.len().div_ceil(3) * 4)?;
    let (scheme, encoded) = draft.split_at_mut(SCHEME.len());
    scheme.copy_from_slice(SCHEME);
    // The room was counted by the same rule that the encoder uses, so it always fits.
    let written = STANDARD.encode_slice(pair, encoded);
    debug_assert!(written.is_ok());
    Ok(draft.freeze())
}

/// Everything but what stands for itself in every part of a URI and a form is escaped.
pub fn percent_encoded(arena: &Arc<Arena>, value: &[u8]) -> Result<Block, Full> {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let len = value.iter().map(|byte| if plain(*byte) { 1 } else { 3 });
    let mut draft = arena.draft(len.sum())?;
    let mut at = 0;
    for byte in value.iter().copied() {
        let escape = [
            b'%',
            DIGITS[usize::from(byte >> 4)],
            DIGITS[usize::from(byte & 15)],
        ];
        let written: &[u8] = if plain(byte) { &[byte] } else { &escape };
        draft[at..at + written.len()].copy_from_slice(written);
        at += written.len();
    }
    Ok(draft.freeze())
}
