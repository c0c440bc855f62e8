//! .env files as Node's `dotenv` reads them, with errors where it would guess or skip.
//!
//! What is accepted has the same value there (its `parse`, versions 16 to 18). That parser is one regular
//! expression; the comments here say which of its habits a line mirrors.

use std::ops::Range;

use zeroize::Zeroizing;

use super::import::{Fault, FaultAt, Pair};

/// The assignments of `text`, in order.
pub(super) fn pairs(text: &str) -> Result<Vec<Pair>, FaultAt> {
    // JavaScript's `.`, `^` and `$` take these for ends of lines, `[^\r\n]` does not.
    if let Some(at) = text.find(['\u{2028}', '\u{2029}']) {
        return Err(FaultAt(at, Fault::LineSeparator));
    }
    let mut pairs = Vec::new();
    let mut at = 0;
    while at < text.len() {
        at = skip(text, at, space);
        if text[at..].starts_with('#') {
            at = skip(text, at, not_line_end);
        } else if at < text.len() {
            let (pair, end) = assignment(text, at)?;
            pairs.push(pair);
            at = end;
        }
    }
    Ok(pairs)
}

/// One assignment that starts at `at`, and where what follows it begins.
fn assignment(text: &str, at: usize) -> Result<(Pair, usize), FaultAt> {
    let bad = FaultAt(at, Fault::NotAssignment);
    let Some((key, start)) = key(text, after_export(text, at)).or_else(|| key(text, at)) else {
        return Err(bad);
    };
    let key = text[key].to_owned();
    let start = skip(text, start, blank);
    let quote = text[start..]
        .chars()
        .next()
        .filter(|c| matches!(c, '\'' | '"' | '`'));
    let line = start..skip(text, start, |c| c != '#' && not_line_end(c));
    let (raw, end) = match quote.and_then(|quote| quoted(text, start, quote)) {
        Some(content) => (content.clone(), content.end + 1),
        None => (unquoted(text, &line, quote)?, line.end),
    };
    // dotenv turns every kind of line end into \n before it looks at anything.
    let mut value = Zeroizing::new(text[raw].replace("\r\n", "\n").replace('\r', "\n"));
    if quote == Some('"') {
        value = Zeroizing::new(value.replace("\\n", "\n").replace("\\r", "\r"));
    }
    let end = skip(text, end, blank);
    let end = if text[end..].starts_with('#') {
        skip(text, end, not_line_end)
    } else {
        end
    };
    let pair = Pair::new(key, std::mem::take(&mut *value).into_bytes(), at)?;
    Ok((pair, end))
}

/// Where the key starts if an `export` stands before it.
fn after_export(text: &str, at: usize) -> usize {
    match text[at..].strip_prefix("export") {
        Some(rest) if rest.starts_with(blank) => skip(text, at + "export".len(), blank),
        _ => at,
    }
}

/// A key with its `=`, or with `: ` right behind it, and where the value starts.
fn key(text: &str, at: usize) -> Option<(Range<usize>, usize)> {
    let key = at..skip(text, at, |c| c.is_ascii_alphanumeric() || "_.-".contains(c));
    if key.is_empty() {
        return None;
    }
    let sign = skip(text, key.end, blank);
    if text[sign..].starts_with('=') {
        return Some((key, sign + 1));
    }
    let rest = text[key.end..].strip_prefix(':')?;
    let value = key.end + 1;
    rest.starts_with(blank).then_some((key, value))
}

/// What stands between the quote at `start` and the one that closes it, where one does.
///
/// A quote closes if only a comment follows on its line. One behind a backslash closes only where no later one
/// can, and none is looked for past the first without a backslash.
fn quoted(text: &str, start: usize, quote: char) -> Option<Range<usize>> {
    let content = start + 1;
    let mut closed = None;
    for (offset, _) in text[content..].match_indices(quote) {
        let at = content + offset;
        let after = skip(text, at + 1, blank);
        if text[after..]
            .chars()
            .next()
            .is_none_or(|c| c == '#' || !not_line_end(c))
        {
            closed = Some(content..at);
        }
        if !text[content..at].ends_with('\\') {
            break;
        }
    }
    closed
}

/// The rest of the line up to a `#`, trimmed; one pair of quotes around all of it is dropped.
fn unquoted(text: &str, line: &Range<usize>, quote: Option<char>) -> Result<Range<usize>, FaultAt> {
    let length = text[line.clone()].trim_end_matches(space).len();
    let value = line.start..line.start + length;
    let Some(quote) = quote else {
        return Ok(value);
    };
    let rest = &text[value.start + 1..value.end];
    if rest.ends_with(quote) {
        return Ok(value.start + 1..value.end - 1);
    }
    if rest.contains(quote) {
        return Ok(value);
    }
    Err(FaultAt(line.start, Fault::UnclosedQuote))
}

fn skip(text: &str, at: usize, wanted: impl Fn(char) -> bool) -> usize {
    text.len() - text[at..].trim_start_matches(wanted).len()
}

/// JavaScript's `\s`, which is not quite Unicode's white space.
fn space(c: char) -> bool {
    c == '\u{feff}' || (c != '\u{85}' && c.is_whitespace())
}

/// White space within a line.
fn blank(c: char) -> bool {
    space(c) && not_line_end(c)
}

fn not_line_end(c: char) -> bool {
    !matches!(c, '\n' | '\r')
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Result<Vec<(String, String)>, (usize, Fault)> {
        let read = pairs(text).map_err(|FaultAt(at, fault)| (at, fault))?;
        let text = |pair: Pair| {
            let value = String::from_utf8(pair.value.as_bytes().to_vec()).unwrap();
            (pair.key, value)
        };
        Ok(read.into_iter().map(text).collect())
    }

    /// Each row was compared with npm's dotenv 16 and 18.
    #[test]
    fn values_are_those_of_node() {
        for (text, value) in [
            ("A=b", "b"),
            ("export  A = b ", "b"),
            ("\u{feff}A=\u{a0}b\u{a0}", "b"),
            ("A: b", "b"),
            ("A=", ""),
            ("A=b=c", "b=c"),
            ("A=b # c", "b"),
            ("A=b#c", "b"),
            ("A=#c", ""),
            ("A='b # c' # it's", "b # c"),
            ("A=\"b # c\"#d", "b # c"),
            ("A=a\\nb", "a\\nb"),
            ("A='a\\nb'", "a\\nb"),
            ("A=`a\\nb`", "a\\nb"),
            ("A=\"a\\nb\\rc\"", "a\nb\rc"),
            ("A=\"a\\\\nb\"", "a\\\nb"),
            ("A=\"a\r\nb\rc\"", "a\nb\nc"),
            ("A='a\nb' # c", "a\nb"),
            ("A=\"{\\\"k\\\": 1}\"", "{\\\"k\\\": 1}"),
            ("A=`a\"b'c`", "a\"b'c"),
            ("A=b'c'", "b'c'"),
            ("A='it's'", "it's"),
            ("A='x' y", "'x' y"),
            ("A=\"a\" \"b\"", "a\" \"b"),
            ("A=\"a\\\" # x", "a\\"),
            ("A=\"a\\\" # b\"", "a\\\" # b"),
            ("A='a' # 'b'", "a"),
            ("A=${B}", "${B}"),
        ] {
            let wanted = vec![("A".to_owned(), value.to_owned())];
            assert_eq!(read(text), Ok(wanted), "{text:?}");
        }
        let keys = read("# c\nexport=1\r\n\nexport =2\r a.b-C_9=3 # d\n").unwrap();
        let keys: Vec<_> = keys
            .iter()
            .map(|(key, value)| (&key[..], &value[..]))
            .collect();
        assert_eq!(keys, [("export", "1"), ("export", "2"), ("a.b-C_9", "3")]);
    }

    /// Where dotenv skips a line, or takes a quote for a part of the value.
    #[test]
    fn what_node_would_guess_is_an_error() {
        for (text, at, fault) in [
            ("A=b\nFOO", 4, Fault::NotAssignment),
            ("export", 0, Fault::NotAssignment),
            ("A B=c", 0, Fault::NotAssignment),
            ("A:b", 0, Fault::NotAssignment),
            ("A:\nB=c", 0, Fault::NotAssignment),
            ("A\n=b", 0, Fault::NotAssignment),
            ("A=\n'x'", 3, Fault::NotAssignment),
            ("=b", 0, Fault::NotAssignment),
            ("A='b\nB=c", 2, Fault::UnclosedQuote),
            ("A= \"foo # \"bar\"", 3, Fault::UnclosedQuote),
            ("A=`", 2, Fault::UnclosedQuote),
            ("A=b\u{2028}B=c", 3, Fault::LineSeparator),
        ] {
            assert_eq!(read(text), Err((at, fault)), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_reads_or_is_an_error(text in "[AB=:#'\"`\\\\nr \n\ré\u{a0}]{0,30}") {
            let _ = read(&text);
        }

        #[test]
        fn a_quoted_value_without_quotes_reads_back(value in "[^\"\\\\\r\u{2028}\u{2029}]{0,30}") {
            let read = read(&format!("A=\"{value}\" # c")).unwrap();
            prop_assert_eq!(&read[0].1, &value);
        }
    }
}
