//! One part of an expression: which numbers it names.

/// The numbers that one part names: any of these.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field(Vec<Range>);

/// `first`, `first + step`, up to `last`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    pub first: u16,
    pub last: u16,
    pub step: u16,
}

impl Field {
    pub fn new(ranges: Vec<Range>) -> Self {
        Self(ranges)
    }

    /// One number alone.
    pub fn only(number: u16) -> Self {
        Self::all(number, number)
    }

    /// Every number from `first` to `last`.
    pub fn all(first: u16, last: u16) -> Self {
        let step = 1;
        Self(vec![Range { first, last, step }])
    }

    /// Whether `number` is one of them.
    pub fn has(&self, number: u16) -> bool {
        self.from(number) == Some(number)
    }

    /// The least of them that is not less than `number`.
    pub fn from(&self, number: u16) -> Option<u16> {
        self.0.iter().filter_map(|range| range.from(number)).min()
    }
}

impl Range {
    fn from(self, number: u16) -> Option<u16> {
        let steps = number.saturating_sub(self.first).div_ceil(self.step);
        let found = steps.checked_mul(self.step)?.checked_add(self.first)?;
        (found <= self.last).then_some(found)
    }
}
