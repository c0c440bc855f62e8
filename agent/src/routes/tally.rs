//! What an answer says that it cost: a number at one place of its JSON, found as it streams by and without keeping it.

use std::mem::take;

/// Deeper JSON is not looked into.
const DEEPEST: usize = 128;

/// A longer key or number is none that is looked for.
const LONGEST: usize = 256;

/// Counts what one answer cost.
pub struct Tally {
    /// Of a stream of events: how far a line is.
    line: Option<Line>,
    json: Scanner,
}

enum Line {
    /// So many bytes of `data:` so far.
    Field(usize),
    Data,
    Other,
}

const FIELD: &[u8] = b"data:";

impl Tally {
    /// For a number below these keys; `events` where the answer is a stream of them.
    #[must_use]
    pub fn new(keys: &[String], events: bool) -> Self {
        Self {
            line: events.then_some(Line::Field(0)),
            json: Scanner::new(keys),
        }
    }

    /// More of the answer.
    pub fn feed(&mut self, bytes: &[u8]) {
        for byte in bytes.iter().copied() {
            let Some(line) = &mut self.line else {
                self.json.feed(byte);
                continue;
            };
            match (&*line, byte) {
                (Line::Field(0), b'\n') => {
                    // An empty line ends an event.
                    self.json.reset();
                }
                (_, b'\n') => *line = Line::Field(0),
                (Line::Data, byte) => self.json.feed(byte),
                (Line::Field(at), byte) if FIELD[*at] == byte => {
                    *line = match at + 1 {
                        done if done == FIELD.len() => Line::Data,
                        more => Line::Field(more),
                    }
                }
                (Line::Field(0), b'\r') | (Line::Other, _) => {}
                (Line::Field(_), _) => *line = Line::Other,
            }
        }
    }

    /// The last number that was there.
    #[must_use]
    pub fn cost(&self) -> Option<f64> {
        self.json.found
    }
}

/// Reads JSON byte by byte.
struct Scanner {
    keys: Vec<Vec<u8>>,
    /// The objects (true) and lists that are open.
    open: Vec<bool>,
    /// How many of the keys lead to the innermost of those that are on the way.
    on_way: usize,
    /// The value that comes is the one of the next key.
    selected: bool,
    expects_key: bool,
    within: Within,
    /// The key or number that is coming in.
    text: Vec<u8>,
    found: Option<f64>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Within {
    Nothing,
    Key,
    Text,
    /// A text's backslash; whether the text is a key.
    Escape(bool),
    Number,
    /// Too deep.
    Lost,
}

impl Scanner {
    fn new(keys: &[String]) -> Self {
        Self {
            keys: keys.iter().map(|key| key.clone().into_bytes()).collect(),
            open: Vec::new(),
            on_way: 0,
            selected: false,
            expects_key: false,
            within: Within::Nothing,
            text: Vec::new(),
            found: None,
        }
    }

    /// What comes is another document.
    fn reset(&mut self) {
        self.open.clear();
        self.on_way = 0;
        self.selected = false;
        self.expects_key = false;
        self.within = Within::Nothing;
    }

    fn feed(&mut self, byte: u8) {
        match (self.within, byte) {
            (Within::Key, b'"') => self.end_key(),
            (Within::Text, b'"') => self.within = Within::Nothing,
            (Within::Key, b'\\') => self.within = Within::Escape(true),
            (Within::Text, b'\\') => self.within = Within::Escape(false),
            (Within::Escape(true), _) => self.within = Within::Key,
            (Within::Escape(false), _) => self.within = Within::Text,
            (Within::Key, _) | (Within::Number, b'0'..=b'9' | b'.' | b'e' | b'E' | b'+' | b'-') => {
                self.keep(byte);
            }
            (Within::Text | Within::Lost, _) => {}
            (Within::Number, _) => {
                self.end_number();
                self.between(byte);
            }
            (Within::Nothing, _) => self.between(byte),
        }
    }

    fn between(&mut self, byte: u8) {
        match byte {
            b'"' if self.expects_key => {
                self.text.clear();
                self.within = Within::Key;
            }
            b'"' => self.within = Within::Text,
            b'{' => self.enter(true),
            b'[' => self.enter(false),
            b'}' | b']' => self.leave(),
            b':' => self.expects_key = false,
            b',' => {
                self.expects_key = self.open.last() == Some(&true);
                self.selected = false;
            }
            b'-' | b'0'..=b'9' if self.selected && self.on_way + 1 == self.keys.len() => {
                self.text.clear();
                self.within = Within::Number;
                self.keep(byte);
            }
            _ => {}
        }
    }

    fn keep(&mut self, byte: u8) {
        if self.text.len() < LONGEST {
            self.text.push(byte);
        }
    }

    fn end_key(&mut self) {
        self.within = Within::Nothing;
        let is_here = self.open.len() == self.on_way + 1;
        self.selected = is_here && self.keys.get(self.on_way) == Some(&self.text);
    }

    fn end_number(&mut self) {
        self.within = Within::Nothing;
        let text = String::from_utf8(take(&mut self.text)).unwrap_or_default();
        let number = text.parse().ok().filter(|number: &f64| number.is_finite());
        self.found = number.or(self.found);
    }

    fn enter(&mut self, object: bool) {
        if take(&mut self.selected) && object && self.on_way + 1 < self.keys.len() {
            self.on_way += 1;
        }
        self.open.push(object);
        self.expects_key = object;
        if self.open.len() > DEEPEST {
            self.within = Within::Lost;
        }
    }

    fn leave(&mut self) {
        if self.open.len() == self.on_way + 1 {
            self.on_way = self.on_way.saturating_sub(1);
        }
        self.open.pop();
        self.selected = false;
        self.expects_key = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cost(pointer: &str, events: bool, text: &str) -> Option<f64> {
        let keys: Vec<String> = pointer.split('/').map(str::to_owned).collect();
        let costs = [1, 2, 3, text.len().max(1)].map(|size| {
            let mut tally = Tally::new(&keys, events);
            text.as_bytes()
                .chunks(size)
                .for_each(|piece| tally.feed(piece));
            tally.cost()
        });
        assert!(
            costs.windows(2).all(|pair| pair[0] == pair[1]),
            "however it is cut"
        );
        costs[0]
    }

    #[test]
    fn the_number_at_its_place_alone() {
        for (text, wanted) in [
            (r#"{"usage": {"total": 12, "x": 1}, "a": 3}"#, Some(12.0)),
            (
                r#"{"a": [{"usage": {"total": 9}}], "usage": {"y": {"total": 8}, "total" : -1.5e1 }}"#,
                Some(-15.0),
            ),
            (
                r#"{"a": "\"usage\": {\"total\": 9}", "usage": {"total": 2}}"#,
                Some(2.0),
            ),
            (r#"{"x": {"usage": {"total": 9}}, "total": 8}"#, None),
            (r#"{"usage": [{"total": 9}], "usage2": {"total": 9}}"#, None),
            (r#"{"usage": {"total": {"total": 9}}}"#, None),
            (r#"{"usage": {"total": "9"}, "z": {}}"#, None),
            (
                r#"{"x": {}, "usage": {"total": 4}} {"usage": {"total": 5}}"#,
                Some(5.0),
            ),
            (r#"[{"usage": {"total": 9}}]"#, None),
            ("}}]{\"usage\"", None),
            ("", None),
        ] {
            assert_eq!(cost("usage/total", false, text), wanted, "{text}");
        }
        let deep = format!("{}{{\"usage\": {{\"total\": 1}}}}", "[".repeat(200));
        assert_eq!(cost("usage/total", false, &deep), None);
    }

    #[test]
    fn the_last_event_that_has_it() {
        let text = "event: a\r\ndata: {\"usage\":\r\ndata: {\"total\": 3}}\r\n\r\n: {\"usage\": {\"total\": 9}}\n\n\
                    data: {\"usage\": null, \"cut\": [\n\ndata:{\"usage\": {\"total\": 7}}\n\ndata: [DONE]\n\n";
        assert_eq!(cost("usage/total", true, text), Some(7.0));
        assert_eq!(cost("usage/total", true, "data: {}\n\n"), None);
    }
}
