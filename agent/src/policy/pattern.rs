//! Patterns over names, units and cgroup paths: `*` stays within a segment, `**` crosses segments.
//!
//! `**` that stands as a whole segment before a slash also matches no segment at all, as in a shell or a
//! `.gitignore`: `a/**/b` matches `a/b`, `**/key` matches `key`. Every wildcard may match nothing.
//! A pattern is a small automaton walked once over the text, so that the time is bounded by
//! text x pattern whatever either holds: nothing backtracks.

use std::fmt;

use keyhatch_protocol::MAX_NAME;

/// The longest pattern, in bytes.
pub const MAX_PATTERN: usize = 512;

/// A pattern, ready to match.
#[derive(Clone, PartialEq, Eq)]
pub struct Pattern {
    text: Box<str>,
    tokens: Box<[Token]>,
    /// How many tokens at the start are plain bytes, compared at once.
    prefix: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Token {
    Byte(u8),
    /// `*`: any bytes but a slash.
    Star,
    /// `**`: any bytes.
    Any,
    /// `**/` at the start of a segment: any number of whole segments.
    Folders,
}

/// Why a text is not a pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// No bytes at all.
    #[error("it is empty, write `**` for everything")]
    Empty,
    /// More than [`MAX_PATTERN`] bytes.
    #[error("it is too long, a pattern has at most 512 bytes")]
    TooLong,
    /// `NAME#field`.
    #[error("it has a `#`, but a grant names whole secrets, leave the field out")]
    Field,
    /// Something that no secret's name can hold.
    #[error(
        "no secret can have that name, use letters, digits and . _ + = @ - between single slashes, and * or **"
    )]
    NotAName,
}

impl Pattern {
    /// A pattern over any text.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        if text.is_empty() {
            return Err(PatternError::Empty);
        }
        if text.len() > MAX_PATTERN {
            return Err(PatternError::TooLong);
        }
        let tokens = tokenize(text.as_bytes());
        let prefix = tokens
            .iter()
            .take_while(|t| matches!(t, Token::Byte(_)))
            .count();
        Ok(Self {
            text: text.into(),
            tokens: tokens.into(),
            prefix,
        })
    }

    /// A pattern over secret names: refused where no name could ever match it.
    pub fn of_names(text: &str) -> Result<Self, PatternError> {
        if text.contains('#') {
            return Err(PatternError::Field);
        }
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._+=@-*/".contains(&byte);
        let odd = |segment: &str| matches!(segment, "" | "." | "..");
        let pattern = Self::parse(text)?;
        if !text.bytes().all(fits) || text.split('/').any(odd) {
            return Err(PatternError::NotAName);
        }
        Ok(pattern)
    }

    /// The pattern as it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether it has no wildcard, and so matches one text only.
    #[must_use]
    pub fn is_literal(&self) -> bool {
        self.prefix == self.tokens.len()
    }

    /// Whether the whole of `text` matches.
    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        // The bytes of the prefix in the text are the bytes that the first tokens stand for.
        let Some(rest) = text
            .as_bytes()
            .strip_prefix(&self.text.as_bytes()[..self.prefix])
        else {
            return false;
        };
        match &self.tokens[self.prefix..] {
            [] => rest.is_empty(),
            [Token::Any] => true,
            [Token::Star] => !rest.contains(&b'/'),
            _ => self.walk(rest),
        }
    }

    /// Whether every text that `other` matches is matched by `self` too. `false` may also mean that it
    /// could not be proven.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        let mut now = States::EMPTY;
        self.enter(0, &mut |state| now.add(state));
        for symbol in &other.tokens {
            let mut next = States::EMPTY;
            for state in now.iter(self.tokens.len()) {
                self.absorb(state, *symbol, &mut |state| next.add(state));
            }
            now = next;
        }
        now.has(self.tokens.len())
    }

    /// Whether some text matches both.
    #[must_use]
    pub fn meets(&self, other: &Self) -> bool {
        let bytes = self.alphabet(other);
        let width = other.tokens.len() + 1;
        let mut seen = vec![false; (self.tokens.len() + 1) * width];
        let mut todo = Vec::new();
        let mut reach = |a: usize, b: usize, todo: &mut Vec<(usize, usize)>| {
            if !std::mem::replace(&mut seen[a * width + b], true) {
                todo.push((a, b));
            }
        };
        self.enter(0, &mut |a| other.enter(0, &mut |b| reach(a, b, &mut todo)));
        while let Some((a, b)) = todo.pop() {
            if a == self.tokens.len() && b == other.tokens.len() {
                return true;
            }
            for byte in &bytes {
                self.step(a, *byte, &mut |a| {
                    other.step(b, *byte, &mut |b| reach(a, b, &mut todo));
                });
            }
        }
        false
    }

    fn walk(&self, text: &[u8]) -> bool {
        let mut now = States::EMPTY;
        self.enter(self.prefix, &mut |state| now.add(state));
        for byte in text {
            let mut next = States::EMPTY;
            for state in now.iter(self.tokens.len()) {
                self.step(state, *byte, &mut |state| next.add(state));
            }
            now = next;
        }
        now.has(self.tokens.len())
    }

    /// Reports `state` and every state that follows it without reading a byte.
    fn enter(&self, mut state: usize, reach: &mut impl FnMut(usize)) {
        reach(state);
        while matches!(self.tokens.get(state), Some(t) if !matches!(t, Token::Byte(_))) {
            state += 1;
            reach(state);
        }
    }

    /// Reports every state that follows `state` over `byte`.
    fn step(&self, state: usize, byte: u8, reach: &mut impl FnMut(usize)) {
        match self.tokens.get(state) {
            Some(Token::Byte(own)) if *own == byte => self.enter(state + 1, reach),
            Some(Token::Star) if byte != b'/' => self.enter(state, reach),
            Some(Token::Any) => self.enter(state, reach),
            Some(Token::Folders) => {
                reach(state);
                if byte == b'/' {
                    self.enter(state + 1, reach);
                }
            }
            _ => {}
        }
    }

    /// As [`Self::step`], over a symbol of another pattern: only what holds for all that it stands for.
    fn absorb(&self, state: usize, symbol: Token, reach: &mut impl FnMut(usize)) {
        match (self.tokens.get(state), symbol) {
            (_, Token::Byte(byte)) => self.step(state, byte, reach),
            (Some(Token::Star | Token::Any), Token::Star)
            | (Some(Token::Any), Token::Any | Token::Folders)
            // The other pattern is at the start of a segment before and after its `**/`, so that this
            // one may leave its own there.
            | (Some(Token::Folders), Token::Folders) => self.enter(state, reach),
            (Some(Token::Folders), Token::Star | Token::Any) => reach(state),
            _ => {}
        }
    }

    /// The bytes that tell the two patterns apart: theirs, a slash, and one that neither has.
    fn alphabet(&self, other: &Self) -> Vec<u8> {
        let mut bytes = vec![b'/'];
        for text in [&self.text, &other.text] {
            bytes.extend(text.bytes());
        }
        bytes.extend(
            (b'a'..=b'z')
                .chain(0..=255)
                .find(|byte| !bytes.contains(byte)),
        );
        bytes.sort_unstable();
        bytes.dedup();
        bytes
    }
}

fn tokenize(mut rest: &[u8]) -> Vec<Token> {
    let mut tokens = Vec::with_capacity(rest.len());
    let mut segment_start = true;
    while let [first, tail @ ..] = rest {
        let stars = rest.iter().take_while(|byte| **byte == b'*').count();
        let (token, next) = match stars {
            0 => (Token::Byte(*first), tail),
            1 => (Token::Star, tail),
            _ => match &rest[stars..] {
                [b'/', tail @ ..] if segment_start => (Token::Folders, tail),
                tail => (Token::Any, tail),
            },
        };
        segment_start = matches!(token, Token::Byte(b'/') | Token::Folders);
        tokens.push(token);
        rest = next;
    }
    tokens
}

/// A set of states, on the stack: the hot path allocates nothing.
#[derive(Clone, Copy)]
struct States([u64; Self::WORDS]);

impl States {
    const WORDS: usize = MAX_PATTERN / 64 + 1;
    const EMPTY: Self = Self([0; Self::WORDS]);

    fn add(&mut self, state: usize) {
        self.0[state / 64] |= 1 << (state % 64);
    }

    fn has(&self, state: usize) -> bool {
        self.0[state / 64] >> (state % 64) & 1 == 1
    }

    /// The states up to `last`, in order.
    fn iter(&self, last: usize) -> impl Iterator<Item = usize> + '_ {
        self.0[..=last / 64]
            .iter()
            .enumerate()
            .flat_map(|(word, bits)| {
                let mut bits = *bits;
                std::iter::from_fn(move || {
                    let bit = bits.trailing_zeros();
                    bits &= bits.checked_sub(1)?;
                    Some(word * 64 + bit as usize)
                })
            })
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.text, f)
    }
}

// Every name can be written as a pattern.
const _: () = assert!(MAX_NAME <= MAX_PATTERN);

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pattern(text: &str) -> Pattern {
        Pattern::parse(text).unwrap()
    }

    /// The rules of the module's first lines, written as plainly as possible.
    fn naive(pattern: &[u8], text: &[u8], segment_start: bool) -> bool {
        let rests = |limit: usize| (0..=limit).map(|n| &text[n..]);
        match pattern {
            [] => text.is_empty(),
            [b'*', b'*', b'/', tail @ ..] if segment_start => {
                naive(tail, text, true)
                    || (0..text.len()).any(|n| text[n] == b'/' && naive(tail, &text[n + 1..], true))
            }
            [b'*', b'*', tail @ ..] => rests(text.len()).any(|text| naive(tail, text, false)),
            [b'*', tail @ ..] => {
                let segment = text.iter().take_while(|byte| **byte != b'/').count();
                rests(segment).any(|text| naive(tail, text, false))
            }
            [byte, tail @ ..] => {
                text.first() == Some(byte) && naive(tail, &text[1..], *byte == b'/')
            }
        }
    }

    #[test]
    fn wildcards_stay_where_they_belong() {
        for (text, yes, no) in [
            (
                "openai/*",
                vec!["openai/key", "openai/"],
                vec!["openai", "openai/a/b", "xopenai/a"],
            ),
            (
                "openai/**",
                vec!["openai/a", "openai/a/b"],
                vec!["openai", "openaix/a"],
            ),
            ("**", vec!["a", "a/b", ""], vec![]),
            ("*", vec!["a", ""], vec!["a/b"]),
            (
                "**/key",
                vec!["key", "a/key", "a/b/key"],
                vec!["akey", "a/xkey", "key/a"],
            ),
            (
                "a/**/b",
                vec!["a/b", "a/x/b", "a/x/y/b"],
                vec!["ab", "a/xb", "a/b/c"],
            ),
            ("a/*/b", vec!["a/x/b", "a//b"], vec!["a/b", "a/x/y/b"]),
            (
                "bot@*.service",
                vec!["bot@1.service"],
                vec!["bot.service", "bot@1.scope"],
            ),
            ("a**b", vec!["ab", "a/x/b"], vec!["b", "a/bc"]),
            ("a*c*e", vec!["abcde", "ace", "acece"], vec!["abcd", "a/ce"]),
            ("exact", vec!["exact"], vec!["exac", "exactly"]),
        ] {
            for good in yes {
                assert!(pattern(text).matches(good), "{text} {good}");
            }
            for bad in no {
                assert!(!pattern(text).matches(bad), "{text} {bad}");
            }
        }
    }

    #[test]
    fn a_pattern_that_would_backtrack_for_ever_ends() {
        let text = "a".repeat(MAX_NAME);
        assert!(!pattern("a*a*a*a*b").matches(&text));
        assert!(!pattern(&"a*".repeat(250)).matches(&format!("{text}/")));
        assert!(!pattern(&format!("{}b", "**a*".repeat(100))).matches(&text));
    }

    #[test]
    fn limits_and_names() {
        assert_eq!(Pattern::parse(""), Err(PatternError::Empty));
        assert!(pattern(&"*".repeat(MAX_PATTERN)).matches("x"));
        assert_eq!(Pattern::parse(&"*".repeat(513)), Err(PatternError::TooLong));
        assert_eq!(Pattern::of_names("a#f"), Err(PatternError::Field));
        for bad in ["/a", "a/", "a//b", "a/../b", "a b", "./a", "a?", "[a]"] {
            assert_eq!(Pattern::of_names(bad), Err(PatternError::NotAName), "{bad}");
        }
        for good in ["**", "a/*", "a.b/c-*", "**/k"] {
            assert!(Pattern::of_names(good).is_ok(), "{good}");
        }
    }

    #[test]
    fn what_covers_what() {
        for (wide, narrow, covers) in [
            ("**", "a/*/b", true),
            ("a/**", "a/*", true),
            ("a/*", "a/**", false),
            ("a/*", "a/b", true),
            ("a/b", "a/*", false),
            ("a/*", "a/b*", true),
            ("**/key", "**/x/key", true),
            ("**/k*", "**/key", true),
            ("**/x", "**x", false),
            ("**x", "**/x", true),
            ("a/**/b", "a/b", true),
            ("*", "**", false),
            ("a/**", "a/**", true),
        ] {
            assert_eq!(
                pattern(wide).covers(&pattern(narrow)),
                covers,
                "{wide} {narrow}"
            );
        }
    }

    proptest! {
        #[test]
        fn matching_agrees_with_the_naive_rules(p in "[ab/*]{1,8}", t in "[ab/]{0,8}") {
            // Three stars in a row mean two, which the reference does not know.
            prop_assume!(!p.contains("***"));
            prop_assert_eq!(
                pattern(&p).matches(&t),
                naive(p.as_bytes(), t.as_bytes(), true),
                "{} {}", p, t
            );
        }

        #[test]
        fn covering_and_meeting_agree_with_matching(
            a in "[ab/*]{1,6}", b in "[ab/*]{1,6}", t in "[abx/]{0,6}"
        ) {
            let (a, b) = (pattern(&a), pattern(&b));
            if a.covers(&b) && b.matches(&t) {
                prop_assert!(a.matches(&t));
            }
            if a.matches(&t) && b.matches(&t) {
                prop_assert!(a.meets(&b) && b.meets(&a));
            }
            prop_assert!(a.covers(&a) && a.meets(&a));
        }

        #[test]
        fn any_text_is_a_pattern_or_an_error(p in ".{0,20}", t in ".{0,20}") {
            if let Ok(p) = Pattern::parse(&p) {
                let _ = p.matches(&t);
            }
        }
    }
}
