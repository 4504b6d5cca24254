//! The one text by which PostgreSQL gives a value back, for those that are written otherwise here.
//!
//! [`canonical`] knows what people and libraries write: a fraction that ends in zeros (Python), a `T` (ISO 8601), no seconds,
//! a zone other than UTC, capitals in a UUID. It says nothing of a text whose meaning depends on anything else: the day
//! (`now`), the order of day and month (`01/02/2024`), a zone that is not said, or one that the column would drop.
//! `tests/types.rs` asks PostgreSQL whether it agrees.

use core::net::{IpAddr, Ipv6Addr};
use std::fmt::{self, Write as _};

use super::CloudType;

/// Types that have no variant of their own, by PostgreSQL's name of them.
const TIME: &str = "time without time zone";
const TIME_TZ: &str = "time with time zone";
const INET: &str = "inet";

/// Whether a value of this type has one text in PostgreSQL and more here.
pub(super) fn has_canonical(of: &CloudType) -> bool {
    match of {
        CloudType::Date | CloudType::Timestamp | CloudType::TimestampTz | CloudType::Uuid => true,
        CloudType::Other(name) => [TIME, TIME_TZ, INET].contains(&name.as_str()),
        _ => false,
    }
}

/// PostgreSQL's text of the value that a text stands for; `None` where it is none that is known here.
pub(super) fn canonical(text: &str, of: &CloudType) -> Option<String> {
    match of {
        CloudType::Date | CloudType::Timestamp | CloudType::TimestampTz
            if matches!(text, "infinity" | "-infinity") =>
        {
            Some(text.to_owned())
        }
        CloudType::Date => {
            let day = Day::parse(text)?;
            Some(format!("{day}{}", day.era()))
        }
        CloudType::Timestamp => {
            let (day, clock, rest) = moment(text)?;
            rest.is_empty().then(|| format!("{day} {clock}{}", day.era()))
        }
        CloudType::TimestampTz => {
            let (mut day, mut clock, rest) = moment(text)?;
            match clock.minutes - offset(rest)? {
                minutes if minutes < 0 => {
                    day = day.before();
                    clock.minutes = minutes + MINUTES_PER_DAY;
                }
                minutes if minutes >= MINUTES_PER_DAY => {
                    day = day.after();
                    clock.minutes = minutes - MINUTES_PER_DAY;
                }
                minutes => clock.minutes = minutes,
            }
            Some(format!("{day} {clock}+00{}", day.era()))
        }
        CloudType::Uuid => uuid(text),
        CloudType::Other(name) => match name.as_str() {
            TIME => {
                Clock::parse(text).filter(|(_, rest)| rest.is_empty()).map(|(clock, _)| clock.to_string())
            }
            TIME_TZ => {
                let (clock, rest) = Clock::parse(text)?;
                let zone = offset(rest)?;
                let (sign, minutes) = (if zone < 0 { '-' } else { '+' }, zone.abs());
                let mut text = format!("{clock}{sign}{:02}", minutes / 60);
                if minutes % 60 != 0 {
                    // Writing to a String cannot fail.
                    let _ = write!(text, ":{:02}", minutes % 60);
                }
                Some(text)
            }
            INET => address(text),
            _ => None,
        },
        _ => None,
    }
}

/// What PostgreSQL takes for true or false.
pub(super) fn truth(text: &str) -> Option<bool> {
    let begins = |word: &str, least: usize| {
        text.len() >= least && word.get(..text.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(text))
    };
    if text == "1" || begins("true", 1) || begins("yes", 1) || begins("on", 2) {
        Some(true)
    } else if text == "0" || begins("false", 1) || begins("no", 1) || begins("off", 2) {
        Some(false)
    } else {
        None
    }
}

const MINUTES_PER_DAY: i32 = 24 * 60;

/// 4714 BC, in which time begins in PostgreSQL, but not on its first day.
const FIRST_YEAR: i32 = 1 - 4714;

/// A day that exists. The year before 1 is 0, which people call 1 BC.
#[derive(Clone, Copy)]
struct Day {
    year: i32,
    month: u32,
    day: u32,
}

impl Day {
    /// `YYYY-MM-DD`, with ` BC` or not. Years beyond 9999 have more digits.
    fn parse(text: &str) -> Option<Self> {
        let (text, is_bc) = match text.strip_suffix(" BC") {
            Some(text) => (text, true),
            None => (text, false),
        };
        let mut parts = text.split('-');
        let (year, month, day) = (parts.next()?, parts.next()?, parts.next()?);
        let has_year_digits = year.len() == 4 || (5..=7).contains(&year.len()) && !year.starts_with('0');
        if parts.next().is_some() || !has_year_digits {
            return None;
        }
        let year = i32::try_from(digits(year)?).ok()?;
        if year == 0 {
            return None;
        }
        let year = if is_bc { 1 - year } else { year };
        if year <= FIRST_YEAR {
            return None;
        }
        let (month, day) = (short(month)?, short(day)?);
        ((1..=12).contains(&month) && (1..=days_of(year, month)).contains(&day)).then_some(Self {
            year,
            month,
            day,
        })
    }

    fn before(self) -> Self {
        match (self.month, self.day) {
            (1, 1) => Self { year: self.year - 1, month: 12, day: 31 },
            (month, 1) => Self { month: month - 1, day: days_of(self.year, month - 1), ..self },
            _ => Self { day: self.day - 1, ..self },
        }
    }

    fn after(self) -> Self {
        match (self.month, self.day) {
            (12, 31) => Self { year: self.year + 1, month: 1, day: 1 },
            (month, day) if day == days_of(self.year, month) => Self { month: month + 1, day: 1, ..self },
            _ => Self { day: self.day + 1, ..self },
        }
    }

    /// It stands at the end, behind a time of day and a zone.
    fn era(self) -> &'static str {
        if self.year < 1 { " BC" } else { "" }
    }
}

impl fmt::Display for Day {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let year = if self.year < 1 { 1 - self.year } else { self.year };
        write!(f, "{year:04}-{:02}-{:02}", self.month, self.day)
    }
}

fn days_of(year: i32, month: u32) -> u32 {
    let is_leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    match month {
        2 => 28 + u32::from(is_leap),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// A time of day.
#[derive(Clone, Copy)]
struct Clock<'a> {
    minutes: i32,
    seconds: u32,
    /// Without zeros at its end.
    fraction: &'a str,
}

impl<'a> Clock<'a> {
    /// `HH:MM`, with `:SS` and a fraction of at most microseconds or not; and what follows.
    fn parse(text: &'a str) -> Option<(Self, &'a str)> {
        let end = text.find(|c: char| !matches!(c, '0'..='9' | ':' | '.')).unwrap_or(text.len());
        let (clock, rest) = text.split_at(end);
        let (clock, fraction) = match clock.split_once('.') {
            Some((_, "")) => return None,
            Some((clock, fraction)) => (clock, fraction.trim_end_matches('0')),
            None => (clock, ""),
        };
        let mut parts = clock.split(':');
        let (hours, minutes) = (pair(parts.next()?)?, pair(parts.next()?)?);
        let seconds = match parts.next() {
            Some(seconds) => pair(seconds)?,
            // A fraction of a minute is nobody's notation.
            None if clock.len() == end => 0,
            None => return None,
        };
        let is_fraction = fraction.len() <= 6 && fraction.bytes().all(|b| b.is_ascii_digit());
        if parts.next().is_some() || hours > 23 || minutes > 59 || seconds > 59 || !is_fraction {
            return None;
        }
        let minutes = i32::try_from(hours * 60 + minutes).ok()?;
        Some((Self { minutes, seconds, fraction }, rest))
    }
}

impl fmt::Display for Clock<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02}:{:02}:{:02}", self.minutes / 60, self.minutes % 60, self.seconds)?;
        if self.fraction.is_empty() { Ok(()) } else { write!(f, ".{}", self.fraction) }
    }
}

/// A day, a time of day if there is one, and what follows but for the era.
fn moment(text: &str) -> Option<(Day, Clock<'_>, &str)> {
    let (text, era) = match text.strip_suffix(" BC") {
        Some(text) => (text, " BC"),
        None => (text, ""),
    };
    let (day, clock) = match text.split_once([' ', 'T']) {
        Some((day, clock)) => (day, clock),
        None => (text, "00:00"),
    };
    let day = Day::parse(&format!("{day}{era}"))?;
    let (clock, rest) = Clock::parse(clock)?;
    Some((day, clock, rest))
}

/// A zone, as minutes ahead of UTC.
fn offset(text: &str) -> Option<i32> {
    if text == "Z" {
        return Some(0);
    }
    let text = text.strip_prefix(' ').unwrap_or(text);
    let (sign, text) = match text.strip_prefix('-') {
        Some(text) => (-1, text),
        None => (1, text.strip_prefix('+')?),
    };
    let (hours, minutes) = match (text.split_once(':'), text.len()) {
        (Some(parts), _) => parts,
        (None, 4) => (text.get(..2)?, text.get(2..)?),
        (None, _) => (text, "00"),
    };
    let (hours, minutes) = (pair(hours)?, pair(minutes)?);
    // PostgreSQL knows none that are farther from UTC.
    (hours < 16 && minutes < 60)
        .then(|| i32::try_from(hours * 60 + minutes).ok().map(|ahead| sign * ahead))?
}

/// Digits in pairs, with hyphens between fours or without, in braces or without, as `uuid_in` reads them.
fn uuid(text: &str) -> Option<String> {
    let mut rest = match text.strip_prefix('{') {
        Some(rest) => rest.strip_suffix('}')?,
        None => text,
    };
    let mut uuid = String::with_capacity(36);
    for byte in 0..16 {
        let digits = rest.get(..2).filter(|two| two.bytes().all(|b| b.is_ascii_hexdigit()))?;
        uuid.push_str(digits);
        rest = &rest[2..];
        if matches!(byte, 3 | 5 | 7 | 9) {
            uuid.push('-');
        }
        if byte % 2 == 1 && byte < 15 {
            rest = rest.strip_prefix('-').unwrap_or(rest);
        }
    }
    uuid.make_ascii_lowercase();
    rest.is_empty().then_some(uuid)
}

/// An address, with the length of its network where that is not all of it.
fn address(text: &str) -> Option<String> {
    let (address, length) = match text.split_once('/') {
        Some((address, length)) if length.len() <= 3 => (address, Some(length)),
        Some(_) => return None,
        None => (text, None),
    };
    let address: IpAddr = address.parse().ok()?;
    let all = match address {
        IpAddr::V4(_) => 32,
        // PostgreSQL takes leading zeros of the other kind only.
        IpAddr::V6(_) if length.is_some_and(|length| length.len() > 1 && length.starts_with('0')) => {
            return None;
        }
        // Both write an address of version 4 within one of version 6 in ways of their own.
        IpAddr::V6(v6) if holds_v4(v6) => return None,
        IpAddr::V6(_) => 128,
    };
    match length.map_or(Some(all), digits)? {
        length if length == all => Some(address.to_string()),
        length if length < all => Some(format!("{address}/{length}")),
        _ => None,
    }
}

fn holds_v4(address: Ipv6Addr) -> bool {
    let parts = address.segments();
    parts[..5].iter().all(|part| *part == 0)
        && (parts[5] == 0xffff || parts[5] == 0 && (parts[6] != 0 || parts[7] > 1))
}

/// Two digits.
fn pair(text: &str) -> Option<u32> {
    digits(text).filter(|_| text.len() == 2)
}

/// One or two digits.
fn short(text: &str) -> Option<u32> {
    digits(text).filter(|_| text.len() <= 2)
}

fn digits(text: &str) -> Option<u32> {
    let number = |number: u32, byte: u8| {
        byte.is_ascii_digit().then(|| number.checked_mul(10)?.checked_add(u32::from(byte - b'0')))?
    };
    if text.is_empty() { None } else { text.bytes().try_fold(0, number) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn other(name: &str) -> CloudType {
        CloudType::Other(name.into())
    }

    /// Each text is the value that PostgreSQL writes so, and what PostgreSQL writes stays as it is.
    #[test]
    fn notations_have_one_text() {
        for (of, text, expected) in [
            (CloudType::Date, "2024-2-9", "2024-02-09"),
            (CloudType::Date, "0005-02-29 BC", "0005-02-29 BC"),
            (CloudType::Timestamp, "2024-05-01 10:00:00.120", "2024-05-01 10:00:00.12"),
            (CloudType::Timestamp, "2024-05-01T10:00:00.000000", "2024-05-01 10:00:00"),
            (CloudType::Timestamp, "2024-05-01 10:00:00.123456000", "2024-05-01 10:00:00.123456"),
            (CloudType::Timestamp, "2024-05-01T10:00", "2024-05-01 10:00:00"),
            (CloudType::Timestamp, "2024-05-01", "2024-05-01 00:00:00"),
            (CloudType::Timestamp, "0044-03-15 12:00 BC", "0044-03-15 12:00:00 BC"),
            (CloudType::TimestampTz, "2024-05-01T10:00:00Z", "2024-05-01 10:00:00+00"),
            (CloudType::TimestampTz, "2024-03-01 00:30:00+01:00", "2024-02-29 23:30:00+00"),
            (CloudType::TimestampTz, "2023-12-31 23:30:00.50 -0045", "2024-01-01 00:15:00.5+00"),
            (CloudType::TimestampTz, "0001-01-01 00:00:00+01", "0001-12-31 23:00:00+00 BC"),
            (CloudType::TimestampTz, "infinity", "infinity"),
            (CloudType::Uuid, "{6F2C1C2E3C4B4F7E9d350242-AC120002}", "6f2c1c2e-3c4b-4f7e-9d35-0242ac120002"),
            (other(TIME), "10:00", "10:00:00"),
            (other(TIME), "10:00:00.50", "10:00:00.5"),
            (other(TIME_TZ), "10:00:00Z", "10:00:00+00"),
            (other(TIME_TZ), "10:00:00-05:30", "10:00:00-05:30"),
            (other(INET), "10.0.0.2/32", "10.0.0.2"),
            (other(INET), "2001:DB8:0:0::1/64", "2001:db8::1/64"),
            (other(INET), "::1", "::1"),
        ] {
            assert_eq!(canonical(text, &of).as_deref(), Some(expected), "{text}");
            assert_eq!(canonical(expected, &of).as_deref(), Some(expected), "{expected}");
        }
    }

    /// What says something else elsewhere, or to the column, is left alone.
    #[test]
    fn what_may_mean_something_else_has_none() {
        for (of, texts) in [
            (
                CloudType::Date,
                &["", "now", "2023-02-29", "0004-02-29 BC", "0000-01-01", "24-1-1", "012024-01-01", "é"][..],
            ),
            (CloudType::Date, &["2024-02-29 00:00:00", "29.02.2024", "2024-02-29-", "2024-002-01"]),
            (
                CloudType::Timestamp,
                &["2024-05-01 10:00:00Z", "2024-05-01 10:00:00+00", "2024-05-01 24:00:00"],
            ),
            (
                CloudType::Timestamp,
                &["2024-05-01 10:00:00.1234567", "2024-05-01 10:00:60", "2024-05-01 10:00.5"],
            ),
            (CloudType::Timestamp, &["2024-05-01 10:00:00.", "2024-05-01 1:00", "today", "2024-05-01 ", "T"]),
            (
                CloudType::TimestampTz,
                &["2024-05-01 10:00:00", "2024-05-01 10:00:00+16", "2024-05-01 10:00:00 CET"],
            ),
            (
                CloudType::Uuid,
                &["", "6f2c1c2e-3c4b-4f7e-9d35-0242ac12000", "{6f2c1c2e3c4b4f7e9d350242ac120002", "é"],
            ),
            (other(TIME), &["24:00:00", "10", "1 pm", "10:00:00+00", "10:00:61"]),
            (other(TIME_TZ), &["10:00:00", "10:00:00 UTC"]),
            (
                other(INET),
                &[
                    "10.0.0.2/33",
                    "10.0.0",
                    "::ffff:1.2.3.4",
                    "::1.2.3.4",
                    "010.0.0.1",
                    "10.0.0.1/+8",
                    "::1/04",
                ],
            ),
            (other("interval"), &["1 day", "P1D"]),
        ] {
            for text in texts {
                assert_eq!(canonical(text, &of), None, "{text}");
            }
        }
    }

    /// The words for true and false, and their beginnings, as far as they say which.
    #[test]
    fn truth_has_many_words() {
        for text in ["1", "t", "TRUE", "tr", "y", "Yes", "on"] {
            assert_eq!(truth(text), Some(true), "{text}");
        }
        for text in ["0", "f", "False", "n", "NO", "of", "off"] {
            assert_eq!(truth(text), Some(false), "{text}");
        }
        for text in ["", "o", "2", "truely", "é", " t"] {
            assert_eq!(truth(text), None, "{text}");
        }
    }
}
