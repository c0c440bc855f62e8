//! What is wrong with a configuration, and where: `file:line: what, why, what to do`.

use std::fmt;
use std::sync::Arc;

/// A line of a configuration file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file, as it was named when it was opened.
    pub file: Arc<str>,
    /// Counted from 1; 0 means the file as a whole.
    pub line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => f.write_str(&self.file),
            line => write!(f, "{}:{line}", self.file),
        }
    }
}

/// One error or warning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// Where it is.
    pub place: Place,
    /// What, why and what to do. Never a key or a value.
    pub text: String,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.text)
    }
}

/// What was found so far: everything is reported, not only the first.
#[derive(Debug, Default)]
pub struct Report {
    /// What forbids to use the configuration.
    pub errors: Vec<Diagnostic>,
    /// What does not.
    pub warnings: Vec<Diagnostic>,
}

impl Report {
    /// Adds an error.
    pub fn error(&mut self, place: &Place, text: impl Into<String>) {
        self.errors.push(Diagnostic {
            place: place.clone(),
            text: text.into(),
        });
    }

    /// Adds a warning.
    pub fn warning(&mut self, place: &Place, text: impl Into<String>) {
        self.warnings.push(Diagnostic {
            place: place.clone(),
            text: text.into(),
        });
    }
}

/// The end of a message about a word that does not exist: the nearest that does, or all of them.
#[must_use]
pub fn suggest<'a>(word: &str, valid: impl IntoIterator<Item = &'a str>) -> String {
    let valid: Vec<&str> = valid.into_iter().collect();
    let nearest = valid
        .iter()
        .map(|candidate| (distance(word, candidate), *candidate))
        .min();
    match nearest {
        Some((far, candidate)) if far <= 1 + word.chars().count() / 3 => {
            format!("did you mean `{candidate}`?")
        }
        Some(_) => format!("there are `{}`", valid.join("`, `")),
        None => "there are none".into(),
    }
}

/// Insertions, deletions, replacements and swaps of neighbours that make one word of the other.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before = vec![0; b.len() + 1];
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let same = usize::from(a[i - 1] != b[j - 1]);
            row[j] = (last[j - 1] + same).min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_word_is_named_or_all_are() {
        let words = ["socket", "admins", "metrics"];
        assert_eq!(suggest("soket", words), "did you mean `socket`?");
        assert_eq!(suggest("admisn", words), "did you mean `admins`?");
        assert_eq!(
            suggest("colour", words),
            "there are `socket`, `admins`, `metrics`"
        );
        assert_eq!(suggest("x", []), "there are none");
    }

    #[test]
    fn distances() {
        for (a, b, far) in [
            ("", "abc", 3),
            ("abc", "abc", 0),
            ("ab", "ba", 1),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!(distance(a, b), far);
            assert_eq!(distance(b, a), far);
        }
    }
}
