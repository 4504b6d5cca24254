//! JSON and decimals, as exactly as PostgreSQL compares them: no digit of a number is lost on the way.
//!
//! [`is_same`] and [`number`] tell whether two texts mean the same; [`from_array`] and [`to_array`] are the two directions
//! between PostgreSQL's array literals and JSON arrays.

use std::collections::BTreeMap;

use serde_json::value::RawValue;

use super::Element;

/// Deeper than this nobody looks.
const DEPTH_MAX: usize = 100;

/// A decimal without its notation: sign, digits without zeros at either end, and the power of ten of the last one.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Decimal {
    negative: bool,
    digits: String,
    exponent: i64,
}

impl Decimal {
    /// Whether a `numeric` of this precision and scale holds it to the last digit.
    pub(super) fn fits(&self, precision: i64, scale: i64) -> bool {
        let whole = i64::try_from(self.digits.len()).map_or(i64::MAX, |digits| digits + self.exponent);
        self.exponent >= -scale && whole <= precision - scale
    }
}

/// The number that a decimal in PostgreSQL's looser notation is: with a plus sign, without a digit before the point or behind
/// it. Zeros at the beginning are not notation: who writes them means no number.
pub(super) fn decimal(text: &str) -> Option<Decimal> {
    let (sign, unsigned) = match text.strip_prefix('-') {
        Some(unsigned) => ("-", unsigned),
        None => ("", text.strip_prefix('+').unwrap_or(text)),
    };
    if unsigned.starts_with('-') {
        return None;
    }
    let (mantissa, exponent) = unsigned.split_at(unsigned.find(['e', 'E']).unwrap_or(unsigned.len()));
    match mantissa.split_once('.') {
        None | Some(("", "")) => number(&format!("{sign}{unsigned}")),
        Some(("", fraction)) => number(&format!("{sign}0.{fraction}{exponent}")),
        Some((whole, "")) => number(&format!("{sign}{whole}{exponent}")),
        Some(_) => number(&format!("{sign}{unsigned}")),
    }
}

/// Whether PostgreSQL may write a number so itself.
pub(super) fn is_plain(text: &str) -> bool {
    let is_negative_zero = |number: &Decimal| number.digits.is_empty() && text.starts_with('-');
    !text.contains(['e', 'E']) && number(text).is_some_and(|number| !is_negative_zero(&number))
}

/// The number that a JSON number is, to the last digit.
pub(super) fn number(text: &str) -> Option<Decimal> {
    let unsigned = text.strip_prefix('-').unwrap_or(text);
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => {
            let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
            if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
                return None;
            }
            (mantissa, exponent.parse::<i32>().ok()?)
        }
        None => (unsigned, 0),
    };
    let (whole, fraction) = match mantissa.split_once('.') {
        Some((_, "")) => return None,
        Some(parts) => parts,
        None => (mantissa, ""),
    };
    let is_digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty()
        || (whole.len() > 1 && whole.starts_with('0'))
        || !is_digits(whole)
        || !is_digits(fraction)
    {
        return None;
    }
    let all = format!("{whole}{fraction}");
    let kept = all.trim_end_matches('0');
    let zeros = i64::try_from(all.len() - kept.len()).ok()?;
    let digits = kept.trim_start_matches('0').to_owned();
    if digits.is_empty() {
        return Some(Decimal { negative: false, digits, exponent: 0 });
    }
    let exponent = i64::from(exponent) - i64::try_from(fraction.len()).ok()? + zeros;
    Some(Decimal { negative: text.starts_with('-'), digits, exponent })
}

/// Whether two texts are the same JSON: white space, the order of keys, a key's earlier values and the notation of
/// strings and numbers do not count.
pub(super) fn is_same(one: &str, other: &str) -> bool {
    match (serde_json::from_str::<&RawValue>(one), serde_json::from_str::<&RawValue>(other)) {
        (Ok(one), Ok(other)) => is_same_value(one, other, 0),
        _ => false,
    }
}

fn is_same_value(one: &RawValue, other: &RawValue, depth: usize) -> bool {
    let (a, b) = (one.get(), other.get());
    if a == b {
        return true;
    }
    if depth == DEPTH_MAX || kind(a) != kind(b) {
        return false;
    }
    match kind(a) {
        b'{' => match (object(a), object(b)) {
            (Some(a), Some(b)) => {
                a.len() == b.len()
                    && a.iter().zip(&b).all(|((key, one), (other_key, other))| {
                        key == other_key && is_same_value(one, other, depth + 1)
                    })
            }
            _ => false,
        },
        b'[' => match (array(a), array(b)) {
            (Some(a), Some(b)) => {
                a.len() == b.len()
                    && a.iter().zip(&b).all(|(one, other)| is_same_value(one, other, depth + 1))
            }
            _ => false,
        },
        b'"' => string(a).is_some_and(|text| string(b) == Some(text)),
        b'0' => number(a).is_some_and(|value| number(b) == Some(value)),
        // Words, which have one notation.
        _ => false,
    }
}

/// What a JSON value is, by its first byte; the digit stands for numbers.
fn kind(text: &str) -> u8 {
    match text.as_bytes().first() {
        Some(b'-' | b'0'..=b'9') => b'0',
        Some(byte) => *byte,
        None => b' ',
    }
}

fn object(text: &str) -> Option<BTreeMap<String, &RawValue>> {
    serde_json::from_str(text).ok()
}

fn array(text: &str) -> Option<Vec<&RawValue>> {
    serde_json::from_str(text).ok()
}

fn string(text: &str) -> Option<String> {
    serde_json::from_str(text).ok()
}

/// A PostgreSQL array literal as a JSON array; `None` for one with bounds of its own, which JSON cannot say.
pub(super) fn from_array(literal: &str, element: Element) -> Option<String> {
    let mut json = String::with_capacity(literal.len());
    let mut rest = literal;
    let mut open = 0_usize;
    while let Some(next) = rest.chars().next() {
        match next {
            '{' => {
                open += 1;
                json.push('[');
                rest = &rest[1..];
            }
            '}' => {
                open = open.checked_sub(1)?;
                json.push(']');
                rest = &rest[1..];
            }
            ',' => {
                json.push(',');
                rest = &rest[1..];
            }
            // Bounds stand before the first brace.
            _ if open == 0 => return None,
            '"' => {
                let mut text = String::new();
                let mut chars = rest.char_indices().skip(1);
                let end = loop {
                    match chars.next()? {
                        (at, '"') => break at,
                        (_, '\\') => text.push(chars.next()?.1),
                        (_, c) => text.push(c),
                    }
                };
                json += &quoted(&text);
                rest = &rest[end + 1..];
            }
            _ => {
                let end = rest.find([',', '}'])?;
                let word = &rest[..end];
                match (element, word) {
                    (_, "NULL") => json += "null",
                    (Element::Bool, "t") => json += "true",
                    (Element::Bool, "f") => json += "false",
                    (Element::Number, number_text) if number(number_text).is_some() => json += number_text,
                    _ => json += &quoted(word),
                }
                rest = &rest[end..];
            }
        }
    }
    (open == 0 && !json.is_empty()).then_some(json)
}

/// A JSON array as PostgreSQL writes such an array; `None` for what is none.
pub(super) fn to_array(text: &str, element: Element) -> Option<String> {
    let mut literal = String::with_capacity(text.len());
    write_array(array(text.trim())?, element, &mut literal, 0)?;
    // PostgreSQL has no NUL character in text.
    (!literal.contains('\0')).then_some(literal)
}

fn write_array(items: Vec<&RawValue>, element: Element, literal: &mut String, depth: usize) -> Option<()> {
    // PostgreSQL has six dimensions, and no empty ones within others.
    if depth == 6 || (depth > 0 && items.is_empty()) {
        return None;
    }
    literal.push('{');
    for (at, item) in items.into_iter().enumerate() {
        if at > 0 {
            literal.push(',');
        }
        let text = item.get();
        match (kind(text), element) {
            (b'[', _) => write_array(array(text)?, element, literal, depth + 1)?,
            (b'n', _) => *literal += "NULL",
            (b't', Element::Bool) => literal.push('t'),
            (b'f', Element::Bool) => literal.push('f'),
            (b'0', Element::Number) => *literal += text,
            (b'"', Element::Number | Element::Text) => write_element(&string(text)?, literal),
            _ => return None,
        }
    }
    literal.push('}');
    Some(())
}

/// Quoted exactly where PostgreSQL quotes (`array_out`), so that what is sent can be compared with what is stored.
fn write_element(text: &str, literal: &mut String) {
    let plain = !text.is_empty()
        && !text.eq_ignore_ascii_case("NULL")
        && !text.contains(['"', '\\', '{', '}', ',', ' ', '\t', '\n', '\r', '\x0b', '\x0c']);
    if plain {
        *literal += text;
        return;
    }
    literal.push('"');
    for c in text.chars() {
        if matches!(c, '"' | '\\') {
            literal.push('\\');
        }
        literal.push(c);
    }
    literal.push('"');
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers are equal whatever their notation, to any length, and what JSON does not call a number is none.
    #[test]
    fn numbers_are_compared_to_the_last_digit() {
        for (one, other) in [
            ("1.50", "1.5"),
            ("1e2", "100"),
            ("100", "1.00E+2"),
            ("-0", "0.000"),
            ("0.001", "1e-3"),
            ("12345678901234567890123", "12345678901234567890123.0"),
        ] {
            assert!(number(one).is_some() && number(one) == number(other), "{one} {other}");
        }
        assert_ne!(number("12345678901234567890123"), number("12345678901234567890124"));
        assert_ne!(number("1"), number("-1"));
        for (one, other) in
            [("+1", "1"), (".5", "0.5"), ("-.5e1", "-5"), ("5.", "5"), ("5.e-1", "0.5"), ("1e3", "1000")]
        {
            assert!(decimal(one).is_some() && decimal(one) == number(other), "{one} {other}");
        }
        for text in ["", ".", "+", "-+1", "+-1", "007", "00.5", ".e1", "1_000", "0x1F", " 1", "1.5.5"] {
            assert_eq!(decimal(text), None, "{text}");
        }
        for text in ["", "-", "01", "1.", ".5", "+1", "1e", "1e+", "NaN", "1 ", "0x1", "1e99999999999"] {
            assert_eq!(number(text), None, "{text}");
        }
    }

    /// The same JSON is found in whatever notation, and a difference in any place is one.
    #[test]
    fn json_is_compared_by_what_it_means() {
        for (one, other) in [
            ("{\"b\":1,\"a\":[1,2]}", "{\"a\": [1, 2], \"b\": 1}"),
            ("{\"a\":1,\"a\":2}", "{\"a\": 2}"),
            ("\"\\u00e9\"", "\"é\""),
            (" [ 1e2 , null, true ] ", "[100, null, true]"),
        ] {
            assert!(is_same(one, other), "{one} {other}");
        }
        for (one, other) in [
            ("{\"a\":1}", "{\"a\":2}"),
            ("{\"a\":1}", "{\"b\":1}"),
            ("[1,2]", "[2,1]"),
            ("[1]", "[1,1]"),
            ("\"1\"", "1"),
            ("null", "false"),
            ("[", "["),
            ("", ""),
        ] {
            assert!(!is_same(one, other), "{one} {other}");
        }
        let deep = |with: &str| format!("{}{with}{}", "[".repeat(5000), "]".repeat(5000));
        assert!(!is_same(&deep("1"), &deep("2")));
    }

    /// Arrays become JSON and come back as they were; what JSON cannot say is left alone.
    #[test]
    fn arrays_are_json_and_back() {
        for (literal, element, json) in [
            ("{}", Element::Number, "[]"),
            ("{1,NULL,-3}", Element::Number, "[1,null,-3]"),
            ("{1.50,NaN,1e+20}", Element::Number, "[1.50,\"NaN\",1e+20]"),
            ("{{1,2},{3,4}}", Element::Number, "[[1,2],[3,4]]"),
            ("{t,f,NULL}", Element::Bool, "[true,false,null]"),
            (
                "{a,\"\",\"NULL\",\"a b\",\"a\\\"\\\\b\",é,\"{}\",\"x,y\"}",
                Element::Text,
                "[\"a\",\"\",\"NULL\",\"a b\",\"a\\\"\\\\b\",\"é\",\"{}\",\"x,y\"]",
            ),
            ("{1}", Element::Text, "[\"1\"]"),
        ] {
            assert_eq!(from_array(literal, element).as_deref(), Some(json), "{literal}");
            assert_eq!(to_array(json, element).as_deref(), Some(literal), "{json}");
        }
        assert_eq!(from_array("[0:1]={1,2}", Element::Number), None);
        assert_eq!(to_array(" [ 1 , 2 ] ", Element::Number).as_deref(), Some("{1,2}"));
        for json in ["{1,2}", "1", "[[]]", "[{\"a\":1}]", "[true]", ""] {
            assert_eq!(to_array(json, Element::Number), None, "{json}");
        }
    }
}
