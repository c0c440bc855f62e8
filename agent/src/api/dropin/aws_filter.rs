//! The filters of AWS's lists, as AWS applies them to what a secret has here: a name, and no description, tag,
//! region or owner.

use serde::Deserialize;

use super::aws_answer::Exception;

/// What separates the words of a name.
const SPECIAL: [char; 7] = ['/', '-', '_', '+', '=', '.', '@'];

/// A condition on the secrets of a list: one of the values has to fit.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Filter {
    key: String,
    #[serde(default)]
    values: Vec<String>,
}

impl Filter {
    /// Refuses a key that AWS does not have.
    pub fn check(&self) -> Result<(), Exception> {
        match &*self.key {
            "all" | "name" | "description" | "tag-key" | "tag-value" | "primary-region"
            | "owning-service" => Ok(()),
            _ => {
                let why = "Filters: there is no such key; there is all, name, description, tag-key, tag-value, \
                           primary-region and owning-service";
                Err(Exception::new("ValidationException", why))
            }
        }
    }

    /// Whether a secret of this name is one.
    pub fn fits(&self, own: &str) -> bool {
        self.values
            .iter()
            .any(|value| match value.strip_prefix('!') {
                Some(value) => !self.has(own, value),
                None => self.has(own, value),
            })
    }

    fn has(&self, own: &str, value: &str) -> bool {
        match &*self.key {
            "name" => own.starts_with(value),
            "all" => {
                let (own, wanted) = (words(own), words(value));
                let begins = |word: &String| own.iter().any(|own| own.starts_with(word));
                !wanted.is_empty() && wanted.iter().all(begins)
            }
            _ => false,
        }
    }
}

/// The words of a text, in lower case: parted by one kind of special character and where a capital or a digit begins
/// a word. A text with two kinds of them is one word.
fn words(text: &str) -> Vec<String> {
    let kinds = SPECIAL.iter().filter(|special| text.contains(**special));
    let parts: Vec<&str> = match kinds.clone().count() {
        0 => vec![text],
        1 => text.split(|c| SPECIAL.contains(&c)).collect(),
        _ => return vec![text.to_ascii_lowercase()],
    };
    let mut words = Vec::new();
    for part in parts {
        add_words(part, &mut words);
    }
    words
}

/// A word is any character but a small letter with the small letters that follow it, or what lies between such words.
fn add_words(part: &str, words: &mut Vec<String>) {
    let mut add = |word: &str| {
        let word = word.trim();
        if !word.is_empty() {
            words.push(word.to_ascii_lowercase());
        }
    };
    let (mut start, mut chars) = (0, part.char_indices().peekable());
    while let Some((at, char)) = chars.next() {
        let is_small =
            |next: Option<&(usize, char)>| next.is_some_and(|(_, c)| c.is_ascii_lowercase());
        if char.is_ascii_lowercase() || !is_small(chars.peek()) {
            continue;
        }
        add(&part[start..at]);
        while is_small(chars.peek()) {
            chars.next();
        }
        start = chars.peek().map_or(part.len(), |(next, _)| *next);
        add(&part[at..start]);
    }
    add(&part[start..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fits(key: &str, values: &[&str], own: &str) -> bool {
        let values = values.iter().map(|value| (*value).to_owned()).collect();
        let key = key.to_owned();
        Filter { key, values }.fits(own)
    }

    #[test]
    fn filters_are_prefixes_of_names_and_may_be_turned_round() {
        assert!(fits("name", &["app/"], "app/key"));
        assert!(!fits("name", &["App/", "key"], "app/key"));
        assert!(fits("name", &["x", "app"], "app/key"));
        assert!(fits("name", &["!x"], "app/key"));
        assert!(!fits("name", &["!app"], "app/key"));
        assert!(!fits("tag-key", &["app"], "app/key"));
        assert!(!fits("name", &[], "app/key"));
    }

    #[test]
    fn all_looks_for_words() {
        for (value, own) in [
            ("KEY", "app/key"),
            ("app/k", "app/key"),
            ("key app", "app/key"),
            ("my", "MyTest"),
            ("test", "my-Test"),
            ("a/b-c", "a/b-c"),
        ] {
            assert!(fits("all", &[value], own), "{value} of {own}");
        }
        for (value, own) in [
            ("ey", "app/key"),
            ("key other", "app/key"),
            ("b", "a/b-c"),
            ("/", "a/b"),
        ] {
            assert!(!fits("all", &[value], own), "{value} of {own}");
        }
    }

    #[test]
    fn words_as_aws_parts_them() {
        assert_eq!(words("MyTest"), ["my", "test"]);
        assert_eq!(words("abcDEF"), ["abcdef"]);
        assert_eq!(words("test1abc"), ["test", "1abc"]);
        assert_eq!(words("two words"), ["two", "words"]);
    }
}
