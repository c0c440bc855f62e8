//! Calendar expressions as systemd writes them (`systemd.time(7)`): which moments one names. Pure.
//!
//! What is taken: weekdays, dates and times with lists, ranges and steps, the shorthands such as `weekly`, and a
//! time zone at the end. What is not: `~` (days from a month's end), fractions of a second, years of two digits.

mod field;
mod parse;

use jiff::civil::{Date, Time};
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};

use field::Field;

/// The last year that is looked at: an expression without a moment by then names none.
const LAST_YEAR: i16 = 2199;

/// The longest step that the clock of a time zone has made, a day's skip at the date line aside.
const LONGEST_SHIFT: i64 = 3;

/// How many gaps between moments are looked at for the shortest one.
const GAPS: usize = 400;

/// An expression that names at least one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Calendar {
    text: String,
    weekdays: Field,
    years: Field,
    months: Field,
    days: Field,
    hours: Field,
    minutes: Field,
    seconds: Field,
    zone: TimeZone,
}

/// Why a text is no calendar expression.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CalendarError {
    /// A part is not understood.
    #[error("{0:?} is not understood")]
    Part(String),
    /// A number is none of a clock or a calendar.
    #[error("{0} is out of range")]
    Range(String),
    /// It ends with the name of no time zone.
    #[error("there is no time zone {0:?}")]
    Zone(String),
    /// Such as the 30th of February.
    #[error("no day is ever like this")]
    Never,
}

impl Calendar {
    /// Reads an expression; where it names no time zone it is in `local`.
    pub fn parse(text: &str, local: &TimeZone) -> Result<Self, CalendarError> {
        let calendar = parse::parse(text, local)?;
        match calendar.first_from(Date::constant(2020, 1, 1)) {
            Some(_) => Ok(calendar),
            None => Err(CalendarError::Never),
        }
    }

    /// The expression as it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The first moment after `after`. A time that the clock of the zone skips is its own length later, as the
    /// people of the zone put their clocks; of one that comes twice, the first counts.
    #[must_use]
    pub fn next(&self, after: Timestamp) -> Option<Timestamp> {
        // What the clock skipped lies before `after` on the clock, and may still be to come.
        let from = after
            .checked_sub(Span::new().hours(LONGEST_SHIFT))
            .unwrap_or(after)
            .to_zoned_datetime(self.zone.clone())
            .datetime();
        let mut date = self.date_from(from.date())?;
        let mut time = if date == from.date() {
            from.time()
        } else {
            Time::midnight()
        };
        loop {
            while let Some(found) = self.time_from(time) {
                let moment = self.zone.to_timestamp(date.to_datetime(found)).ok()?;
                if moment > after {
                    return Some(moment);
                }
                match found.checked_add(Span::new().seconds(1)) {
                    Ok(next) => time = next,
                    Err(_) => break,
                }
            }
            (date, time) = (self.date_from(date.tomorrow().ok()?)?, Time::midnight());
        }
    }

    /// The shortest time between two of the moments that follow `after`; `None` where there are no two.
    #[must_use]
    pub fn shortest_gap(&self, after: Timestamp) -> Option<std::time::Duration> {
        let mut moments =
            std::iter::successors(self.next(after), |moment| self.next(*moment)).take(GAPS + 1);
        let mut last = moments.next()?;
        let mut gaps = Vec::new();
        for moment in moments {
            gaps.push(std::time::Duration::try_from(moment.duration_since(last)).ok()?);
            last = moment;
        }
        gaps.into_iter().min()
    }

    /// The first time of a day from `from` on.
    fn time_from(&self, from: Time) -> Option<Time> {
        let (from_hour, from_minute, from_second) = (
            number(from.hour()),
            number(from.minute()),
            number(from.second()) + u16::from(from.subsec_nanosecond() > 0),
        );
        let at = |hour, minute, second| {
            let [hour, minute, second] = [hour, minute, second].map(i8::try_from);
            Time::new(hour.ok()?, minute.ok()?, second.ok()?, 0).ok()
        };
        let (first_minute, first_second) = (self.minutes.from(0)?, self.seconds.from(0)?);
        if self.hours.has(from_hour) {
            if self.minutes.has(from_minute)
                && let Some(second) = self.seconds.from(from_second)
            {
                return at(from_hour, from_minute, second);
            }
            if let Some(minute) = self.minutes.from(from_minute + 1) {
                return at(from_hour, minute, first_second);
            }
        }
        at(self.hours.from(from_hour + 1)?, first_minute, first_second)
    }

    /// The first day from `from` on.
    fn date_from(&self, from: Date) -> Option<Date> {
        let mut date = from;
        loop {
            let year = i16::try_from(self.years.from(u16::try_from(date.year()).ok()?)?).ok()?;
            if year > LAST_YEAR {
                return None;
            }
            if year != date.year() {
                date = Date::new(year, 1, 1).ok()?;
            }
            if !self.months.has(number(date.month())) {
                date = date.last_of_month().tomorrow().ok()?;
                continue;
            }
            let weekday = number(date.weekday().to_monday_zero_offset());
            if self.days.has(number(date.day())) && self.weekdays.has(weekday) {
                return Some(date);
            }
            date = date.tomorrow().ok()?;
        }
    }

    fn first_from(&self, date: Date) -> Option<Timestamp> {
        let moment = date.to_zoned_datetime(self.zone.clone()).ok()?.timestamp();
        self.next(moment)
    }
}

/// The time zone of this host; UTC where `/etc/localtime` is missing, as `localtime(5)` has it.
#[must_use]
pub fn local_zone() -> TimeZone {
    TimeZone::try_system().unwrap_or(TimeZone::UTC)
}

/// A part of a date or a time, which is never negative.
fn number(part: i8) -> u16 {
    u16::from(part.unsigned_abs())
}

#[cfg(test)]
mod tests;
