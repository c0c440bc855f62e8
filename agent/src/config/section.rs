//! Typed reading of TOML tables: each key once, of the right type, known, and with its line.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value as Json;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::document::Document;
use crate::policy::{At, Place, Report, suggest};

/// A key and its value.
#[derive(Clone, Copy)]
pub(super) struct Value<'a> {
    pub key: &'a str,
    document: &'a Document,
    inner: &'a Spanned<DeValue<'a>>,
}

/// A table, which several files may have added to.
#[derive(Default)]
pub(super) struct Section<'a> {
    /// How messages call it, such as `[agent]`.
    title: String,
    place: Option<Place>,
    values: BTreeMap<&'a str, Value<'a>>,
}

/// The keys and values of one file's table.
pub(super) fn values<'a>(
    document: &'a Document,
    table: &'a DeTable<'a>,
) -> impl Iterator<Item = Value<'a>> {
    table.iter().map(move |(key, inner)| Value {
        key: key.get_ref(),
        document,
        inner,
    })
}

impl<'a> Value<'a> {
    /// The line on which the value begins.
    pub(super) fn place(&self) -> Place {
        self.document.place(&self.inner.span())
    }

    /// The text, with its line.
    pub(super) fn string(&self, report: &mut Report) -> Option<At<&'a str>> {
        match self.inner.get_ref() {
            DeValue::String(text) => Some(At {
                value: text,
                place: self.place(),
            }),
            _ => self.wrong("a string in quotes", report),
        }
    }

    pub(super) fn boolean(&self, report: &mut Report) -> Option<bool> {
        match self.inner.get_ref() {
            DeValue::Boolean(value) => Some(*value),
            _ => self.wrong("true or false", report),
        }
    }

    /// A number from 0 to 4294967295.
    pub(super) fn number(&self, report: &mut Report) -> Option<u32> {
        let number = match self.inner.get_ref() {
            DeValue::Integer(digits) => u32::from_str_radix(digits.as_str(), digits.radix()).ok(),
            _ => None,
        };
        number.or_else(|| self.wrong("a number from 0 to 4294967295", report))
    }

    /// A text, a whole number or a truth value.
    pub(super) fn json(&self, report: &mut Report) -> Option<Json> {
        match self.inner.get_ref() {
            DeValue::String(text) => Some(text.as_ref().into()),
            DeValue::Boolean(value) => Some((*value).into()),
            DeValue::Integer(digits) => i64::from_str_radix(digits.as_str(), digits.radix())
                .ok()
                .map(Json::from),
            _ => self.wrong("a text, a whole number, or true or false", report),
        }
    }

    pub(super) fn is_list(&self) -> bool {
        matches!(self.inner.get_ref(), DeValue::Array(_))
    }

    /// The elements of a list, each under the list's key.
    pub(super) fn list(&self, report: &mut Report) -> Option<Vec<Value<'a>>> {
        let DeValue::Array(array) = self.inner.get_ref() else {
            return self.wrong("a list in brackets", report);
        };
        let element = |inner| Value { inner, ..*self };
        Some(array.iter().map(element).collect())
    }

    /// The texts of a list; nothing where one is no text.
    pub(super) fn strings(&self, report: &mut Report) -> Option<Vec<At<&'a str>>> {
        let list = self.list(report)?;
        let texts: Vec<_> = list
            .iter()
            .filter_map(|value| value.string(report))
            .collect();
        (texts.len() == list.len()).then_some(texts)
    }

    pub(super) fn section(
        &self,
        title: impl Into<String>,
        report: &mut Report,
    ) -> Option<Section<'a>> {
        let mut section = Section::new(title);
        section.add(self, report).then_some(section)
    }

    /// The elements of `[[key]]`.
    pub(super) fn sections(&self, report: &mut Report) -> Vec<Section<'a>> {
        let title = format!("[[{}]]", self.key);
        let list = match self.inner.get_ref() {
            DeValue::Array(_) => self.list(report),
            _ => self.wrong(&format!("a list of tables, each headed {title}"), report),
        };
        let list = list.unwrap_or_default();
        list.iter()
            .filter_map(|value| value.section(&*title, report))
            .collect()
    }

    /// The named tables of `[key.NAME]`, each with its name.
    pub(super) fn named_sections(&self, report: &mut Report) -> Vec<(&'a str, Section<'a>)> {
        let Some(tables) = self.table(report) else {
            return Vec::new();
        };
        let named = |value: Value<'a>| {
            let title = format!("[{}.{}]", self.key, value.key);
            Some((value.key, value.section(title, report)?))
        };
        values(self.document, tables).filter_map(named).collect()
    }

    fn table(&self, report: &mut Report) -> Option<&'a DeTable<'a>> {
        match self.inner.get_ref() {
            DeValue::Table(table) => Some(table),
            _ => self.wrong("a table", report),
        }
    }

    fn wrong<T>(&self, wanted: &str, report: &mut Report) -> Option<T> {
        let found = self.inner.get_ref().type_str();
        let text = format!("`{}` must be {wanted}, this is of type {found}", self.key);
        report.error(&self.place(), text);
        None
    }
}

impl<'a> Section<'a> {
    pub(super) fn new(title: impl Into<String>) -> Self {
        Self {
            title: title.into(),
            ..Self::default()
        }
    }

    /// Adds the keys of another table of that name; whether it is a table at all.
    pub(super) fn add(&mut self, value: &Value<'a>, report: &mut Report) -> bool {
        let Some(table) = value.table(report) else {
            return false;
        };
        self.place.get_or_insert_with(|| value.place());
        for value in values(value.document, table) {
            match self.values.get(value.key) {
                Some(first) => report.error(
                    &value.place(),
                    format!(
                        "`{}` of {} is already at {}, each key is given once, remove one",
                        value.key,
                        self.title,
                        first.place()
                    ),
                ),
                None => drop(self.values.insert(value.key, value)),
            }
        }
        true
    }

    /// Where it begins; nowhere if no file has it.
    pub(super) fn place(&self) -> Place {
        self.place.clone().unwrap_or(Place {
            file: "".into(),
            line: 0,
        })
    }

    /// Where the key is given, or else where the table begins.
    pub(super) fn place_of(&self, key: &str) -> Place {
        self.get(key)
            .map_or_else(|| self.place(), |value| value.place())
    }

    /// Reports every key that is not known.
    pub(super) fn check_keys(&self, known: &[&str], report: &mut Report) {
        for value in self.values.values() {
            if !known.contains(&value.key) {
                let hint = suggest(value.key, known.iter().copied());
                let text = format!("unknown key {:?} in {}, {hint}", value.key, self.title);
                report.error(&value.place(), text);
            }
        }
    }

    /// The same with the keys of `other` that it has not itself.
    pub(super) fn or(&self, other: &Self) -> Self {
        let mut values = other.values.clone();
        values.extend(self.values.iter().map(|(key, value)| (*key, *value)));
        Self {
            title: self.title.clone(),
            place: self.place.clone(),
            values,
        }
    }

    /// All keys with their values.
    pub(super) fn values(&self) -> impl Iterator<Item = Value<'a>> {
        self.values.values().copied()
    }

    pub(super) fn get(&self, key: &str) -> Option<Value<'a>> {
        self.values.get(key).copied()
    }

    pub(super) fn string(&self, key: &str, report: &mut Report) -> Option<At<&'a str>> {
        self.get(key)?.string(report)
    }

    pub(super) fn boolean(&self, key: &str, report: &mut Report) -> Option<bool> {
        self.get(key)?.boolean(report)
    }

    /// An absolute path.
    pub(super) fn path(&self, key: &str, report: &mut Report) -> Option<At<PathBuf>> {
        let At { value: text, place } = self.string(key, report)?;
        let found = if text.contains('\0') {
            Err("must not hold a zero byte, write a path")
        } else if !Path::new(text).is_absolute() {
            Err("must be an absolute path, begin it with a slash")
        } else {
            Ok(PathBuf::from(text))
        };
        match found {
            Ok(value) => Some(At { value, place }),
            Err(why) => {
                report.error(&place, format!("`{key}` is {text:?}, it {why}"));
                None
            }
        }
    }

    /// The value of a key that must be there.
    pub(super) fn required(
        &self,
        key: &str,
        example: &str,
        report: &mut Report,
    ) -> Option<Value<'a>> {
        let value = self.get(key);
        if value.is_none() {
            let text = format!("{} has no `{key}`, write {key} = {example}", self.title);
            report.error(&self.place(), text);
        }
        value
    }
}

/// A path as messages show it.
pub(super) fn shown(path: &Path) -> String {
    format!("{:?}", path.to_string_lossy())
}

/// A name of the configuration's own: it stands in records, messages and command lines.
pub(super) fn checked_name(what: &str, name: At<&str>, report: &mut Report) -> Option<At<String>> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._@+-".contains(&byte);
    let At { value, place } = name;
    if value.is_empty() || value.len() > 128 || value.starts_with('-') || !value.bytes().all(fits) {
        let text = format!(
            "{what} name {value:?} must be 1 to 128 letters, digits or . _ @ + - and not begin with -, rename it"
        );
        report.error(&place, text);
        return None;
    }
    Some(At {
        value: value.to_owned(),
        place,
    })
}

/// One of a few words.
pub(super) fn one_of<T: Copy>(
    text: &At<&str>,
    key: &str,
    words: &[(&str, T)],
    report: &mut Report,
) -> Option<T> {
    let found = words
        .iter()
        .find(|(word, _)| *word == text.value)
        .map(|(_, value)| *value);
    if found.is_none() {
        let hint = suggest(text.value, words.iter().map(|(word, _)| *word));
        report.error(
            &text.place,
            format!("`{key}` cannot be {:?}, {hint}", text.value),
        );
    }
    found
}

/// A span of time of at least a second.
pub(super) fn duration(section: &Section<'_>, key: &str, report: &mut Report) -> Option<Duration> {
    let At { value: text, place } = section.string(key, report)?;
    let found = humantime::parse_duration(text)
        .ok()
        .filter(|found| *found >= Duration::from_secs(1));
    if found.is_none() {
        let why = "a time is at least a second, in units s, m, h, d";
        report.error(
            &place,
            format!("`{key}` is {text:?}, {why}, write it as \"90d\""),
        );
    }
    found
}
