//! Finding the secret in what an upstream answers, in any of its usual forms, as it streams by.
//!
//! What is found is written over with as many asterisks, so that lengths stay. At the end of a chunk only those bytes
//! are held back that could be the beginning of a form, so that an event that is whole is not delayed.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use hyper::HeaderMap;
use hyper::header::{HeaderName, HeaderValue};

use super::escapes::{self, Match};
use super::forms::{self, SHORTEST};
use crate::sys::arena::{Arena, Block, Full};

/// How many bytes of a form the filter looks at.
const DEPTH: usize = 3;

/// The forms to look for. They are as secret as the value itself, and live where it does.
pub struct Mask {
    forms: Block,
    ranges: Vec<Range<usize>>,
    /// Which of them are the values themselves, characters of which may be escaped.
    values: Vec<bool>,
    /// For each of the first bytes of a form: which forms (by number modulo 64) have it there.
    filter: Box<[[u64; 256]; DEPTH]>,
}

/// What a search of a piece found.
struct Found {
    /// Where forms stand, in order of their beginnings.
    hits: Vec<Range<usize>>,
    /// From here on a form may have begun that the piece does not end.
    open: usize,
}

/// The search of one body.
pub struct Stream {
    mask: Arc<Mask>,
    /// Bytes that may be the beginning of a form.
    held: Vec<u8>,
    /// How many of them are to be written over already.
    covered: usize,
    hits: usize,
}

impl Mask {
    /// A search for these values, as far as they are long enough.
    pub fn new(arena: &Arc<Arena>, values: &[&[u8]]) -> Result<Self, Full> {
        let of_value = |value: &&[u8]| {
            let all = forms::of(value).into_iter().enumerate();
            all.map(|(number, form)| (number == 0, form))
        };
        let all: Vec<_> = values.iter().flat_map(of_value).collect();
        let mut draft = arena.draft(all.iter().map(|(_, form)| form.len()).sum())?;
        let mut ranges = Vec::with_capacity(all.len());
        let mut filter = Box::new([[0; 256]; DEPTH]);
        let mut at = 0;
        for (number, (is_value, form)) in all.iter().enumerate() {
            let bit = 1 << (number % 64);
            let range = at..at + form.len();
            at = range.end;
            draft[range.clone()].copy_from_slice(form);
            ranges.push(range);
            for (column, byte) in filter.iter_mut().zip(form.iter()) {
                column[usize::from(*byte)] |= bit;
            }
            if *is_value {
                let (first, second) = escapes::beginnings(form);
                let [in_first, in_second, in_third] = &mut *filter;
                let mark = |column: &mut [u64; 256], bytes: &[u8]| {
                    bytes
                        .iter()
                        .for_each(|byte| column[usize::from(*byte)] |= bit);
                };
                mark(in_first, &first);
                mark(in_second, &second);
                in_third.iter_mut().for_each(|forms| *forms |= bit);
            }
        }
        Ok(Self {
            forms: draft.freeze(),
            ranges,
            values: all.iter().map(|(is_value, _)| *is_value).collect(),
            filter,
        })
    }

    /// The header with the forms in it written over; `None` where there is none.
    #[must_use]
    pub fn header(&self, value: &HeaderValue) -> Option<HeaderValue> {
        let hits = self.search(value.as_bytes(), true).hits;
        if hits.is_empty() {
            return None;
        }
        let mut bytes = value.as_bytes().to_vec();
        hits.into_iter().for_each(|hit| bytes[hit].fill(b'*'));
        Some(HeaderValue::from_bytes(&bytes).unwrap_or(HeaderValue::from_static("*")))
    }

    /// Writes over what is in headers or trailers; how many of them held something. One that has it in its name goes.
    pub fn headers(&self, headers: &mut HeaderMap) -> usize {
        let named: Vec<HeaderName> = headers.keys().filter(|n| self.is_in(n)).cloned().collect();
        let mut masked = named.len();
        for name in named {
            headers.remove(name);
        }
        for value in headers.values_mut() {
            if let Some(clean) = self.header(value) {
                *value = clean;
                masked += 1;
            }
        }
        masked
    }

    /// Whether a header's name has a form in it. The case of names is lost.
    fn is_in(&self, name: &HeaderName) -> bool {
        let name = name.as_str().as_bytes();
        self.ranges.iter().any(|range| {
            let form = &self.forms[range.clone()];
            let mut windows = name.windows(form.len());
            windows.any(|window| window.eq_ignore_ascii_case(form))
        })
    }

    fn search(&self, text: &[u8], is_end: bool) -> Found {
        let mut found = Found {
            hits: Vec::new(),
            open: text.len(),
        };
        let [first, second, third] = &*self.filter;
        let whole = text.len().saturating_sub(DEPTH - 1);
        for (at, window) in text.windows(DEPTH).enumerate() {
            let candidates = first[usize::from(window[0])]
                & second[usize::from(window[1])]
                & third[usize::from(window[2])];
            if candidates != 0 {
                self.look(text, at, candidates, &mut found);
            }
        }
        for at in whole..text.len() {
            let candidates = first[usize::from(text[at])];
            if candidates != 0 {
                self.look(text, at, candidates, &mut found);
            }
        }
        if is_end {
            found.open = text.len();
        }
        found
    }

    /// Compares the candidates with what begins at `at`.
    #[cold]
    fn look(&self, text: &[u8], at: usize, candidates: u64, found: &mut Found) {
        let rest = &text[at..];
        for (number, range) in self.ranges.iter().enumerate() {
            if candidates & (1 << (number % 64)) == 0 {
                continue;
            }
            let form = &self.forms[range.clone()];
            let found_here = if rest.starts_with(form) {
                Match::Whole(form.len())
            } else if form.starts_with(rest) {
                Match::Cut
            } else if self.values[number] {
                escapes::begins(rest, form)
            } else {
                Match::No
            };
            match found_here {
                Match::Whole(len) => found.hits.push(at..at + len),
                Match::Cut => found.open = found.open.min(at),
                Match::No => {}
            }
        }
    }
}

impl Stream {
    /// The search of a body from its beginning.
    #[must_use]
    pub fn new(mask: Arc<Mask>) -> Self {
        Self {
            mask,
            held: Vec::new(),
            covered: 0,
            hits: 0,
        }
    }

    /// How often something was found.
    #[must_use]
    pub fn hits(&self) -> usize {
        self.hits
    }

    /// How many bytes wait.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// What of the body so far may go on, which may be nothing.
    pub fn push(&mut self, piece: Bytes) -> Bytes {
        if self.held.is_empty() {
            let found = self.mask.search(&piece, false);
            if found.hits.is_empty() && found.open == piece.len() {
                return piece;
            }
            return self.split(piece.to_vec(), found);
        }
        let mut text = std::mem::take(&mut self.held);
        text.extend_from_slice(&piece);
        let found = self.mask.search(&text, false);
        self.split(text, found)
    }

    /// What waited, at the end of the body.
    pub fn end(&mut self) -> Bytes {
        let text = std::mem::take(&mut self.held);
        let found = self.mask.search(&text, true);
        self.split(text, found)
    }

    /// Writes over what was found and keeps what is open. A form may reach into what is kept, where another may
    /// begin: those bytes are still searched as they are, and written over when they go.
    fn split(&mut self, mut text: Vec<u8>, found: Found) -> Bytes {
        let Found { hits, open } = found;
        let covered = std::mem::take(&mut self.covered);
        let reach = hits.iter().map(|hit| hit.end).max().unwrap_or(0);
        self.held = text.split_off(open);
        self.covered = reach.max(covered).saturating_sub(open);
        // What begins in the kept bytes is found again with what follows.
        let ended = hits.into_iter().filter(|hit| hit.start < open);
        for hit in ended {
            self.hits += 1;
            text[hit.start..hit.end.min(open)].fill(b'*');
        }
        text[..covered.min(open)].fill(b'*');
        text.into()
    }
}

// A form is never shorter than what the filter looks at.
const _: () = assert!(SHORTEST > DEPTH);

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn mask(values: &[&str]) -> Arc<Mask> {
        let arena = Arena::new(1 << 20).unwrap();
        let values: Vec<&[u8]> = values.iter().map(|value| value.as_bytes()).collect();
        Arc::new(Mask::new(&arena, &values).unwrap())
    }

    fn through(mask: &Arc<Mask>, pieces: &[&[u8]]) -> (Vec<u8>, usize) {
        let mut stream = Stream::new(Arc::clone(mask));
        let mut out = Vec::new();
        for piece in pieces {
            out.extend(stream.push(Bytes::copy_from_slice(piece)));
        }
        out.extend(stream.end());
        (out, stream.hits())
    }

    #[test]
    fn forms_are_written_over_and_nothing_else() {
        let mask = mask(&["CANARY-secret-1"]);
        let (out, hits) = through(&mask, &[b"a CANARY-secret-1 b CANARY-secret-2"]);
        assert_eq!(out, b"a *************** b CANARY-secret-2");
        assert_eq!(hits, 1);
        let value = HeaderValue::from_static("Bearer CANARY-secret-1");
        assert_eq!(mask.header(&value).unwrap(), "Bearer ***************");
        assert!(
            mask.header(&HeaderValue::from_static("CANARY-secret"))
                .is_none()
        );
    }

    #[test]
    fn only_what_may_be_a_beginning_waits() {
        let mut stream = Stream::new(mask(&["CANARY-secret-1"]));
        let event = Bytes::from_static(b"data: {\"x\":1}\n\n");
        assert_eq!(stream.push(event.clone()), event);
        assert_eq!(stream.push(Bytes::from_static(b"data: CANAR")), "data: ");
        assert_eq!(
            (stream.held(), stream.push(Bytes::from_static(b"D\n\n"))),
            (5, "CANARD\n\n".into())
        );
        assert_eq!(stream.end(), "");
    }

    #[test]
    fn forms_that_overlap_are_both_written_over() {
        // The second begins within the first, and the piece ends within the second.
        let mask = mask(&["abcdefgh-XY", "XYabcdefgh-XZ"]);
        let text = b"1abcdefgh-XYabcdefgh-XZ2";
        for cut in 0..text.len() {
            let (out, _) = through(&mask, &[&text[..cut], &text[cut..]]);
            assert_eq!(out, b"1**********************2", "{cut}");
        }
    }

    proptest! {
        #[test]
        fn however_it_is_cut_nothing_of_the_secret_goes_on(
            before in "[a-cA-C]{0,9}",
            secret in "[a-c]{8,14}",
            after in "[a-c]{0,9}",
            cuts in prop::collection::vec(0usize..60, 0..8),
        ) {
            let text = format!("{before}{secret}{after}{secret}");
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|c| &text.as_bytes()[c[0]..c[1]]).collect();
            let mask = mask(&[&secret]);
            let (out, hits) = through(&mask, &pieces);
            let (whole, _) = through(&mask, &[text.as_bytes()]);
            prop_assert_eq!(&out, &whole, "the cuts make no difference");
            prop_assert_eq!(out.len(), text.len());
            prop_assert!(hits >= 1);
            let out = String::from_utf8(out).unwrap();
            prop_assert!(!out.contains(&secret));
        }
    }
}
