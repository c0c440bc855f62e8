//! .env files as Node's `dotenv` reads them, with errors where it would guess or skip.
//!
//! What is accepted has the same value there (its `parse`, versions 15 to 18). That parser is one regular
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
