//! From the text of an expression to its parts.

use jiff::tz::TimeZone;

use super::field::{Field, Range};
use super::{Calendar, CalendarError, LAST_YEAR};

/// What the words for common expressions stand for.
const SHORTHANDS: [(&str, &str); 9] = [
    ("minutely", "*-*-* *:*:00"),
    ("hourly", "*-*-* *:00:00"),
    ("daily", "*-*-* 00:00:00"),
    ("weekly", "Mon *-*-* 00:00:00"),
    ("monthly", "*-*-01 00:00:00"),
    ("quarterly", "*-01,04,07,10-01 00:00:00"),
    ("semiannually", "*-01,07-01 00:00:00"),
    ("yearly", "*-01-01 00:00:00"),
    ("annually", "*-01-01 00:00:00"),
];

const WEEKDAYS: [&str; 7] = [
    "monday",
    "tuesday",
    "wednesday",
    "thursday",
    "friday",
    "saturday",
    "sunday",
];

const YEARS: (u16, u16) = (1970, LAST_YEAR as u16);
const MONTHS: (u16, u16) = (1, 12);
const DAYS: (u16, u16) = (1, 31);
const HOURS: (u16, u16) = (0, 23);
const SIXTY: (u16, u16) = (0, 59);

pub fn parse(text: &str, local: &TimeZone) -> Result<Calendar, CalendarError> {
    let mut parts: Vec<&str> = text.split_ascii_whitespace().collect();
    let zone = match parts.last() {
        Some(last) if parts.len() > 1 && is_zone(last) => zone(parts.pop().unwrap_or_default())?,
        _ => local.clone(),
    };
    let long;
    if let [word] = parts[..]
        && let Some((_, meaning)) = SHORTHANDS
            .iter()
            .find(|(short, _)| short.eq_ignore_ascii_case(word))
    {
        long = *meaning;
        parts = long.split(' ').collect();
    }
    let mut parts = parts.into_iter().peekable();
    let mut calendar = Calendar {
        text: text.to_owned(),
        weekdays: Field::all(0, 6),
        years: Field::all(YEARS.0, YEARS.1),
        months: Field::all(MONTHS.0, MONTHS.1),
        days: Field::all(DAYS.0, DAYS.1),
        hours: Field::only(0),
        minutes: Field::only(0),
        seconds: Field::only(0),
        zone,
    };
    if parts.peek().is_none() {
        return Err(CalendarError::Part(text.to_owned()));
    }
    if let Some(days) = parts.next_if(|part| part.starts_with(|c: char| c.is_ascii_alphabetic())) {
        calendar.weekdays = weekdays(days.trim_end_matches(','))?;
    }
    if let Some(date) = parts.next_if(|part| part.contains('-')) {
        read_date(date, &mut calendar)?;
    }
    if let Some(time) = parts.next_if(|part| part.contains(':')) {
        read_time(time, &mut calendar)?;
    }
    match parts.next() {
        None => Ok(calendar),
        Some(more) => Err(CalendarError::Part(more.to_owned())),
    }
}

/// The last word is a zone where it is no weekday, date or time.
fn is_zone(word: &str) -> bool {
    word.starts_with(|c: char| c.is_ascii_alphabetic()) && weekdays(word).is_err()
}

fn zone(name: &str) -> Result<TimeZone, CalendarError> {
    if name.eq_ignore_ascii_case("UTC") {
        return Ok(TimeZone::UTC);
    }
    TimeZone::get(name).map_err(|_| CalendarError::Zone(name.to_owned()))
}

fn weekdays(text: &str) -> Result<Field, CalendarError> {
    let day = |name: &str| {
        let name = name.to_ascii_lowercase();
        let is = |day: &str| day == name || name.len() == 3 && day.starts_with(&name);
        let found = WEEKDAYS.iter().position(|day| is(day));
        found
            .and_then(|found| u16::try_from(found).ok())
            .ok_or_else(|| CalendarError::Part(text.to_owned()))
    };
    let mut ranges = Vec::new();
    for part in text.split(',') {
        let (first, last) = match part.split_once("..") {
            Some((first, last)) => (day(first)?, day(last)?),
            None => (day(part)?, day(part)?),
        };
        if first > last {
            return Err(CalendarError::Range(part.to_owned()));
        }
        let step = 1;
        ranges.push(Range { first, last, step });
    }
    Ok(Field::new(ranges))
}

fn read_date(text: &str, calendar: &mut Calendar) -> Result<(), CalendarError> {
    let parts: Vec<&str> = text.split('-').collect();
    let (year, month, day) = match parts[..] {
        [year, month, day] => (year, month, day),
        [month, day] => ("*", month, day),
        _ => return Err(CalendarError::Part(text.to_owned())),
    };
    calendar.years = field(year, YEARS)?;
    calendar.months = field(month, MONTHS)?;
    calendar.days = field(day, DAYS)?;
    Ok(())
}

fn read_time(text: &str, calendar: &mut Calendar) -> Result<(), CalendarError> {
    let parts: Vec<&str> = text.split(':').collect();
    let (hour, minute, second) = match parts[..] {
        [hour, minute, second] => (hour, minute, second),
        [hour, minute] => (hour, minute, "0"),
        _ => return Err(CalendarError::Part(text.to_owned())),
    };
    calendar.hours = field(hour, HOURS)?;
    calendar.minutes = field(minute, SIXTY)?;
    calendar.seconds = field(second, SIXTY)?;
    Ok(())
}

/// A list of numbers, ranges and steps, each within `bounds`.
fn field(text: &str, bounds: (u16, u16)) -> Result<Field, CalendarError> {
    text.split(',')
        .map(|part| range(part, bounds))
        .collect::<Result<Vec<_>, _>>()
        .map(Field::new)
}

fn range(text: &str, bounds: (u16, u16)) -> Result<Range, CalendarError> {
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let part = || CalendarError::Part(text.to_owned());
        let number = digits.then(|| text.parse::<u16>().ok()).flatten();
        number.ok_or_else(part)
    };
    let (span, step) = match text.split_once('/') {
        Some((span, step)) => (span, Some(number(step)?)),
        None => (text, None),
    };
    let (first, last) = match span.split_once("..") {
        _ if span == "*" && step.is_none() => bounds,
        Some((first, last)) => (number(first)?, number(last)?),
        // `5/10` goes on to the end, `5` is itself alone.
        None if step.is_some() => (number(span)?, bounds.1),
        None => (number(span)?, number(span)?),
    };
    let step = step.unwrap_or(1);
    if first < bounds.0 || last > bounds.1 || first > last || step == 0 {
        return Err(CalendarError::Range(text.to_owned()));
    }
    Ok(Range { first, last, step })
}
