//! Values on their way: what SQLite stores, what PostgreSQL's column can hold, and the promise between them.
//!
//! The invariants of this module:
//! - V1: whatever [`to_cloud`] lets through comes back from [`from_cloud`] identical, storage class included
//!   ([`Value::identical`]), or in another notation of the same value that the file then does not take over ([`alike`]). What
//!   cannot do that is a [`Misfit`], and its row is parked before anything is sent.
//! - V2: whatever [`from_cloud_unchanged`] lets through goes back as it came. What cannot is a [`Misfit`] as well, and its row is
//!   set aside (`_tidewater_aside_N`), because a column here would make something else of it.
//!
//! Where only PostgreSQL knows what a type makes of a text (an address, a period of time, a length), it is asked in the round
//! itself: a row whose value it would change is refused and parked like any other.
//!
//! Many values can be written in more than one way here, and PostgreSQL writes them in one: `2024-05-01T10:00:00.120` is
//! `2024-05-01 10:00:00.12` there. Such a value is sent, the file that it comes from keeps its own text, and every other
//! device gets the cloud's; the difference is nobody's edit. Rows find each other by primary keys and by both ends of foreign
//! keys, so these fit only as PostgreSQL writes them.
//!
//! # Tables that Tidewater creates
//!
//! `tests/types.rs` puts values through every row of these two tables and compares it with what is said here.
//!
//! | declared here | column in the cloud | fits | parks |
//! | --- | --- | --- | --- |
//! | `INTEGER`, `INT`, `TINYINT`, `TINYINT(1)`, `SMALLINT`, `MEDIUMINT`, `BIGINT`, `BIGINT UNSIGNED`, `UNSIGNED BIG INT`, `INT2`, `INT8`, any name with `INT` | `bigint` | every integer | fractions, text, blobs |
//! | `REAL`, `FLOAT`, `DOUBLE`, `DOUBLE PRECISION`, any name with `REAL`, `FLOA`, `DOUB` | `double precision` | every real, infinities; NaN, which SQLite stores as NULL; the word `NaN` | other text, blobs |
//! | `TEXT`, `VARCHAR(255)`, `VARCHAR(3)`, `CHARACTER(20)`, `CHAR(2)`, `NCHAR(55)`, `NVARCHAR(100)`, `CLOB`, `TINYTEXT`, any name with `TEXT`, `CHAR`, `CLOB` | `text` | every text of whatever length, as SQLite does not look at it | NUL characters, what is not UTF-8, blobs |
//! | `BLOB`, `LONGBLOB`, `BINARY(16)`, `VARBINARY(255)`, `BYTEA`, `IMAGE`, any name with `BLOB` | `bytea` | every blob | anything else |
//! | `BOOLEAN`, `BOOL` | `boolean` | 0, 1; the words for them (`'true'`, `'no'`, `'on'`, `'f'`), which are 0 and 1 elsewhere | 2, other text |
//! | `DATE` | `date` | `2024-02-29`, `2024-2-29`, `infinity`, `0044-03-15 BC` | julian days, seconds since 1970, a time of day, other notations |
//! | `DATETIME`, `TIMESTAMP`, `DATETIME(6)` | `timestamp without time zone` | `2024-02-29 23:59:59.25`; with a `T`, with zeros at the end of the fraction, without seconds, without a time of day | a zone, which the column would drop; less than microseconds, numbers |
//! | `NUMERIC(10,2)`, `DECIMAL(10, 2)` | `numeric(10,2)` | numbers of at most so many digits | longer ones, infinities, text |
//! | `NUMERIC`, `DECIMAL`, `NUMBER`, `NUM`, `MONEY` | `numeric` | every finite number; the words `NaN`, `Infinity` | infinities, other text |
//! | `JSON` | `json` | JSON, to the last blank; numbers | what is no JSON |
//! | `UUID` | `uuid` | 32 hexadecimal digits in either case, with hyphens or without, in braces or without | anything else |
//! | `STRING`, `TIME`, `TIMESTAMPTZ`, `JSONB`, `ENUM`, `BIT`, `DEC(10,2)`, `YEAR`, any other name | `text` | text; numbers, which SQLite makes of texts that look like one | infinities, blobs |
//! | no type | `text` | text | numbers, blobs |
//!
//! # Tables that are there already
//!
//! The class is that of a column here that is declared accordingly. Any other declared type does as well, as long as it keeps
//! what comes: `TEXT` keeps everything but bytes, as text, while `INTEGER` and `NUMERIC` make 7 of `007`, and a real of a number with more
//! digits than a real has; such rows are set aside, with the reason.
//!
//! | column in the cloud | class here | form here, and what parks |
//! | --- | --- | --- |
//! | `smallint`, `integer`, `bigint`, `oid` | integer | numbers beyond its range park |
//! | `real`, `double precision` | real | a number that `real` would round parks; NaN is the text `NaN` |
//! | `numeric` | integer or real, or text in a column declared `TEXT` | a number that the column would round parks; in a `TEXT` column the file keeps its own notation (`1.5`, `+1.5`, `15e-1`) beside the cloud's (`1.50`), and zeros at the beginning park |
//! | `text`, `citext`, `name`, `"char"`, enum | text | unknown words and overlong names park |
//! | `character varying` | text | longer texts park, also if only by blanks |
//! | `character` | text | without the blanks that fill it up; with them it parks |
//! | domain | the class of the type that it is of | what its check refuses parks |
//! | `boolean` | integer | 0 and 1; words for them are carried, anything else parks |
//! | `bytea` | blob | text parks |
//! | `date`, `timestamp`, `timestamptz`, `time`, `timetz` | text | PostgreSQL's ISO notation, zones in UTC (`2024-02-29 23:59:59+00`); what the first table says of moments is carried, in a `timestamptz` with any zone, which must be said; other notations park |
//! | `json`, `xml` | text | to the last blank |
//! | `jsonb` | text | any notation: the file keeps its own, the cloud writes its own |
//! | `integer[]`, `double precision[]`, `numeric[]`, `boolean[]`, `text[]`, `date[]`, `jsonb[]`, `character varying[]` | text | a JSON array; elements that JSON has no word for are strings of PostgreSQL's text; with bounds of its own (`[0:1]={1,2}`) PostgreSQL's literal |
//! | `uuid` | text | lower case with hyphens; what the first table says is carried |
//! | `inet` | text | PostgreSQL's text; `10.0.0.2/32` and capitals are carried, other notations park |
//! | `interval`, `cidr`, `macaddr`, `bit`, `bit varying`, `money`, `int4range`, `hstore`, `tsvector`, `point`, `box`, `pg_lsn`, composite | text | PostgreSQL's text; other notations park |
//!
//! A column that the cloud computes (`GENERATED ALWAYS AS … STORED`) is read and never written: it may be left out here, and whoever
//! writes another value into it is told. Identity columns take the keys that are made here; the cloud's own sequence knows nothing of
//! them, so that its range has to be another one (`START WITH`). A column that only the cloud has needs to be
//! nullable or to have a default.

use std::fmt;

mod json;
mod notation;

/// A value as SQLite stores it.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// NULL.
    Null,
    /// A 64-bit integer.
    Integer(i64),
    /// A floating-point number; never NaN, which SQLite turns into NULL.
    Real(f64),
    /// Text in UTF-8.
    Text(String),
    /// Bytes.
    Blob(Vec<u8>),
    /// Text that is not UTF-8. SQLite does not check what it is given; PostgreSQL does.
    Malformed(Vec<u8>),
}

impl Value {
    /// Equal in storage class and content: `1` is not `1.0`, `abc` is not `ABC`, whatever the collation.
    pub fn identical(&self, other: &Value) -> bool {
        match (self, other) {
            // Bits: a column without a type keeps a negative zero.
            (Value::Real(a), Value::Real(b)) => a.to_bits() == b.to_bits(),
            (a, b) => a == b,
        }
    }

    /// The bytes that the value takes, for bounding a window's memory.
    pub fn size(&self) -> usize {
        match self {
            Value::Null => 1,
            Value::Integer(_) | Value::Real(_) => 8,
            Value::Text(text) => text.len(),
            Value::Blob(bytes) | Value::Malformed(bytes) => bytes.len(),
        }
    }

    /// The value as JSON for people and logs: blobs as `{"blob": "<hex>"}`. [`from_json`](Self::from_json) reads it.
    pub fn to_json(&self) -> serde_json::Value {
        match self {
            Value::Null => serde_json::Value::Null,
            Value::Integer(i) => (*i).into(),
            // JSON has no infinities.
            Value::Real(r) => serde_json::Number::from_f64(*r)
                .map_or_else(|| serde_json::json!({ "real": r.to_string() }), serde_json::Value::Number),
            Value::Text(text) => text.as_str().into(),
            Value::Blob(bytes) => serde_json::json!({ "blob": hex(bytes) }),
            Value::Malformed(bytes) => serde_json::json!({ "malformed_text": hex(bytes) }),
        }
    }

    /// The value that [`to_json`](Self::to_json) wrote; `None` for what it does not write.
    pub fn from_json(json: &serde_json::Value) -> Option<Self> {
        Some(match json {
            serde_json::Value::Null => Self::Null,
            serde_json::Value::String(text) => Self::Text(text.clone()),
            serde_json::Value::Number(number) => match number.as_i64() {
                Some(i) => Self::Integer(i),
                None => Self::Real(number.as_f64()?),
            },
            serde_json::Value::Object(only) if only.len() == 1 => {
                let (kind, text) = only.iter().next()?;
                match (kind.as_str(), text.as_str()?) {
                    ("blob", text) => Self::Blob(unhex(text)?),
                    ("malformed_text", text) => Self::Malformed(unhex(text)?),
                    ("real", text) => Self::Real(text.parse().ok()?),
                    _ => return None,
                }
            }
            _ => return None,
        })
    }
}

/// Values as one JSON array, as keys are shown to people.
pub fn json_array(values: &[Value]) -> String {
    serde_json::Value::Array(values.iter().map(Value::to_json).collect()).to_string()
}

fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, byte| {
        // Writing to a String cannot fail.
        let _ = write!(out, "{byte:02x}");
        out
    })
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let pairs = text.as_bytes().chunks(2);
    pairs
        .map(|pair| {
            let digit = |at: usize| char::from(*pair.get(at)?).to_digit(16);
            u8::try_from(digit(0)? * 16 + digit(1)?).ok()
        })
        .collect()
}

macro_rules! value_from {
    ($($from:ty => $make:expr),* $(,)?) => {$(
        impl From<$from> for Value {
            fn from(value: $from) -> Self {
                let make: fn($from) -> Value = $make;
                make(value)
            }
        }
    )*};
}
value_from! {
    i64 => Value::Integer,
    i32 => |i| Value::Integer(i.into()),
    u32 => |i| Value::Integer(i.into()),
    bool => |b| Value::Integer(b.into()),
    f64 => |r| if r.is_nan() { Value::Null } else { Value::Real(r) },
    String => Value::Text,
    &str => |text| Value::Text(text.to_owned()),
    Vec<u8> => Value::Blob,
    &[u8] => |bytes| Value::Blob(bytes.to_vec()),
}
impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Value::Null, Into::into)
    }
}

/// The type of a PostgreSQL column, as far as it matters for carrying values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CloudType {
    /// `smallint`.
    Int2,
    /// `integer`.
    Int4,
    /// `bigint`.
    Int8,
    /// `real`.
    Float4,
    /// `double precision`.
    Float8,
    /// `boolean`.
    Bool,
    /// `text`, `character varying`.
    Text,
    /// `bytea`.
    Bytea,
    /// `numeric`, with precision and scale where the column has them.
    Numeric(Option<(u16, u16)>),
    /// `date`.
    Date,
    /// `timestamp without time zone`.
    Timestamp,
    /// `timestamp with time zone`, seen in UTC.
    TimestampTz,
    /// `json`: its text is kept as it is.
    Json,
    /// `jsonb`: its text is PostgreSQL's own.
    Jsonb,
    /// `uuid`.
    Uuid,
    /// An array, by the name of its type: JSON here, PostgreSQL's literal on the wire.
    Array(Element, String),
    /// Anything else, by PostgreSQL's name of it: carried as its text.
    Other(String),
}

/// What JSON makes of an array's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element {
    /// Numbers; those that JSON does not know (`NaN`) are strings.
    Number,
    /// `true` and `false`.
    Bool,
    /// Strings of PostgreSQL's text.
    Text,
}

/// How a value crosses the wire: the element type of the array that carries a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wire {
    /// `int8`.
    Int8,
    /// `float8`.
    Float8,
    /// `bool`.
    Bool,
    /// `text`, cast to the column's type by the statement.
    Text,
    /// `bytea`.
    Bytea,
}

impl CloudType {
    /// How this column's values cross the wire.
    pub fn wire(&self) -> Wire {
        match self {
            Self::Int2 | Self::Int4 | Self::Int8 => Wire::Int8,
            Self::Float4 | Self::Float8 => Wire::Float8,
            Self::Bool => Wire::Bool,
            Self::Bytea => Wire::Bytea,
            _ => Wire::Text,
        }
    }

    /// PostgreSQL's name of the type, for a table that Tidewater creates.
    pub fn sql(&self) -> String {
        match self {
            Self::Int2 => "smallint".into(),
            Self::Int4 => "integer".into(),
            Self::Int8 => "bigint".into(),
            Self::Float4 => "real".into(),
            Self::Float8 => "double precision".into(),
            Self::Bool => "boolean".into(),
            Self::Text => "text".into(),
            Self::Bytea => "bytea".into(),
            Self::Numeric(None) => "numeric".into(),
            Self::Numeric(Some((precision, scale))) => format!("numeric({precision},{scale})"),
            Self::Date => "date".into(),
            Self::Timestamp => "timestamp".into(),
            Self::TimestampTz => "timestamptz".into(),
            Self::Json => "json".into(),
            Self::Jsonb => "jsonb".into(),
            Self::Uuid => "uuid".into(),
            Self::Array(_, name) | Self::Other(name) => name.clone(),
        }
    }

    /// Whether a value may be written in more than one way here ([`alike`]).
    pub fn has_notations(&self) -> bool {
        matches!(
            self,
            Self::Numeric(_) | Self::Float4 | Self::Float8 | Self::Bool | Self::Jsonb | Self::Array(..)
        ) || notation::has_canonical(self)
    }

    /// The type with the form that its values have here, where not every text will do.
    pub fn in_words(&self) -> String {
        let form = match self {
            Self::Bool => " (0 or 1)",
            Self::Date => " (as text, YYYY-MM-DD)",
            Self::Timestamp => " (as text, YYYY-MM-DD HH:MM:SS, without a zone)",
            Self::TimestampTz => " (as text, YYYY-MM-DD HH:MM:SS with a zone)",
            Self::Uuid => " (32 hexadecimal digits)",
            Self::Array(..) => " (as a JSON array)",
            _ => "",
        };
        format!("{}{form}", self.sql())
    }

    /// The same for a key, of which only one form comes back.
    fn in_words_of_key(&self) -> String {
        let form = match self {
            Self::Timestamp => " (as text, YYYY-MM-DD HH:MM:SS, a fraction without zeros at its end)",
            Self::TimestampTz => " (as text, YYYY-MM-DD HH:MM:SS+00, a fraction without zeros at its end)",
            Self::Uuid => " (lower case, with hyphens)",
            _ => return self.in_words(),
        };
        format!("{}{form}", self.sql())
    }

    /// The type that a declared SQLite type gets in a table that Tidewater creates.
    ///
    /// The named types come first, because `DATETIME` and `JSON` have no place in SQLite's affinity rules;
    /// then those rules in their order (<https://www.sqlite.org/datatype3.html>, section 3.1).
    pub fn for_declared(declared: &str) -> CloudType {
        let upper = declared.to_ascii_uppercase();
        let (name, arguments) = match upper.split_once('(') {
            Some((name, rest)) => {
                (name.trim(), rest.trim_end_matches(|c: char| c == ')' || c.is_whitespace()))
            }
            None => (upper.trim(), ""),
        };
        match name {
            "BOOLEAN" | "BOOL" => return Self::Bool,
            "DATE" => return Self::Date,
            "DATETIME" | "TIMESTAMP" => return Self::Timestamp,
            "JSON" => return Self::Json,
            "UUID" => return Self::Uuid,
            "NUMERIC" | "DECIMAL" => return Self::Numeric(precision_and_scale(arguments)),
            "NUM" | "NUMBER" | "MONEY" => return Self::Numeric(None),
            // As other databases call them; SQLite's own rules have no word for bytes but BLOB.
            "BINARY" | "VARBINARY" | "BYTEA" | "IMAGE" => return Self::Bytea,
            _ => {}
        }
        if name.contains("INT") {
            Self::Int8
        } else if ["CHAR", "CLOB", "TEXT"].iter().any(|part| name.contains(part)) {
            Self::Text
        } else if name.contains("BLOB") {
            Self::Bytea
        } else if ["REAL", "FLOA", "DOUB"].iter().any(|part| name.contains(part)) {
            Self::Float8
        } else {
            Self::Text
        }
    }
}

fn precision_and_scale(arguments: &str) -> Option<(u16, u16)> {
    let mut parts = arguments.split(',').map(str::trim);
    let precision = parts.next()?.parse().ok().filter(|p| (1..=1000).contains(p))?;
    let scale = match parts.next() {
        Some(scale) => scale.parse().ok().filter(|s| *s <= precision)?,
        None => 0,
    };
    Some((precision, scale))
}

/// A value in the form in which it crosses the wire.
#[derive(Debug, Clone, PartialEq)]
pub enum CloudValue {
    /// NULL of whatever type.
    Null,
    /// For [`Wire::Int8`].
    Int(i64),
    /// For [`Wire::Float8`].
    Float(f64),
    /// For [`Wire::Bool`].
    Bool(bool),
    /// For [`Wire::Text`].
    Text(String),
    /// For [`Wire::Bytea`].
    Bytes(Vec<u8>),
}

impl CloudValue {
    /// The bytes that the value takes, about.
    pub fn size(&self) -> usize {
        match self {
            CloudValue::Null | CloudValue::Bool(_) => 1,
            CloudValue::Int(_) | CloudValue::Float(_) => 8,
            CloudValue::Text(text) => text.len(),
            CloudValue::Bytes(bytes) => bytes.len(),
        }
    }
}

/// A value that the cloud's column cannot carry unchanged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{found} cannot be carried unchanged by a column of type {wanted}")]
pub struct Misfit {
    /// What there is, in words.
    pub found: String,
    /// The type of the column that should hold it, with what would fit.
    pub wanted: String,
}

/// What a SQLite column makes of what it is given, by its declared type.
///
/// The rules are those of <https://www.sqlite.org/datatype3.html>, sections 3 and 3.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Affinity {
    /// Numbers become text.
    Text,
    /// Text that looks like a number becomes one; whole reals become integers.
    Numeric,
    /// Text that looks like a number, and integers, become reals.
    Real,
    /// Nothing is changed.
    Blob,
}

impl Affinity {
    /// The affinity that a declared type gives to a column.
    pub fn of_declared(declared: &str) -> Self {
        let upper = declared.to_ascii_uppercase();
        let has = |parts: &[&str]| parts.iter().any(|part| upper.contains(part));
        if has(&["INT"]) {
            Self::Numeric
        } else if has(&["CHAR", "CLOB", "TEXT"]) {
            Self::Text
        } else if upper.is_empty() || has(&["BLOB"]) || upper == "ANY" {
            Self::Blob
        } else if has(&["REAL", "FLOA", "DOUB"]) {
            Self::Real
        } else {
            Self::Numeric
        }
    }

    /// The value as the column stores it.
    pub fn store(self, value: Value) -> Value {
        match (self, value) {
            (Self::Text, Value::Integer(i)) => Value::Text(i.to_string()),
            // Not what SQLite would write, which keeps fifteen digits: text is what such a column is given.
            (Self::Text, Value::Real(r)) => Value::Text(real_text(r)),
            (Self::Numeric | Self::Real, Value::Text(text)) => match looks_like_number(&text) {
                None => Value::Text(text),
                Some(number) => self.store(number),
            },
            #[expect(clippy::cast_precision_loss, reason = "SQLite's own conversion loses the same")]
            (Self::Real, Value::Integer(i)) => Value::Real(i as f64),
            // A negative zero is stored as the integer that it is.
            (Self::Real, Value::Real(r)) => Value::Real(r + 0.0),
            (Self::Numeric, Value::Real(r)) => whole(r).map_or(Value::Real(r), Value::Integer),
            (_, value) => value,
        }
    }

    /// A declared type with this affinity, for people.
    fn name(self) -> &'static str {
        match self {
            Self::Text => "TEXT",
            Self::Numeric => "NUMERIC",
            Self::Real => "REAL",
            Self::Blob => "BLOB",
        }
    }
}

/// The integer that SQLite makes of a real, if it is one (`sqlite3VdbeIntegerAffinity`).
fn whole(real: f64) -> Option<i64> {
    #[expect(clippy::cast_possible_truncation, reason = "whether it is the same number is the question")]
    let integer = real as i64;
    #[expect(clippy::cast_precision_loss, reason = "the same")]
    let same = integer as f64 == real;
    // The cast saturates at both ends.
    (same && integer > i64::MIN && integer < i64::MAX).then_some(integer)
}

/// A well-formed integer or real literal, blanks around it allowed.
fn looks_like_number(text: &str) -> Option<Value> {
    // C's blanks: Rust's leave out the vertical tab.
    let literal = text.trim_matches([' ', '\t', '\n', '\x0b', '\x0c', '\r']);
    let digits = literal.strip_prefix(['+', '-']).unwrap_or(literal);
    let plausible = digits.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && digits.bytes().any(|b| b.is_ascii_digit())
        && digits.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'E' | b'+' | b'-'));
    if !plausible {
        return None;
    }
    if let Ok(integer) = literal.parse::<i64>() {
        return Some(Value::Integer(integer));
    }
    literal.parse::<f64>().ok().map(Value::Real)
}

/// A real as text that no digit is missing from, in PostgreSQL's words where it is no number.
fn real_text(real: f64) -> String {
    if real.is_nan() {
        "NaN".into()
    } else if real.is_infinite() {
        if real > 0.0 { "Infinity".into() } else { "-Infinity".into() }
    } else {
        real.to_string()
    }
}

/// The wire form of a value of a column with this affinity, or why there is none that would come back identical.
///
/// "Identical" has one exception, [`alike`]: what such a column may write otherwise, the device that wrote it keeps.
pub fn to_cloud(value: &Value, affinity: Affinity, to: &CloudType) -> Result<CloudValue, Misfit> {
    let misfit = || Misfit { found: describe(value), wanted: to.in_words() };
    let carried = wire_form(value, to).ok_or_else(misfit)?;
    // What is carried as it is, and comes back as it is carried.
    if matches!((value, &carried), (Value::Text(here), CloudValue::Text(there)) if here == there)
        && is_kept(affinity, to)
        || matches!(carried, CloudValue::Bytes(_))
    {
        return Ok(carried);
    }
    // The invariant, asked of every other value rather than trusted: a Real that is a whole number, for one, comes back from
    // a numeric column as an Integer.
    let back = from_cloud(carried.clone(), affinity, to);
    if back.identical(value) || alike(to, value, &back) { Ok(carried) } else { Err(misfit()) }
}

/// [`to_cloud`] for a key, which has to come back byte for byte.
///
/// # Errors
/// As there.
pub fn key_to_cloud(value: &Value, affinity: Affinity, to: &CloudType) -> Result<CloudValue, Misfit> {
    let carried = to_cloud(value, affinity, to)?;
    // PostgreSQL writes a number without an exponent, and with the scale of its column, whatever was sent.
    let is_written_so = match (to, value) {
        (CloudType::Numeric(limits), Value::Text(text)) if !is_word_for_number(text) => {
            let fraction = text.split_once('.').map_or(0, |(_, fraction)| fraction.len());
            json::is_plain(text) && limits.is_none_or(|(_, scale)| fraction == usize::from(scale))
        }
        _ => true,
    };
    if is_written_so && from_cloud(carried.clone(), affinity, to).identical(value) {
        return Ok(carried);
    }
    Err(Misfit { found: describe(value), wanted: to.in_words_of_key() })
}

/// The text of a key that no column here can keep, where PostgreSQL takes it for one.
pub fn as_text_key(value: &Value, to: &CloudType) -> Option<String> {
    match (to, value) {
        (CloudType::Text, Value::Text(text)) if !text.contains('\0') => Some(text.clone()),
        (CloudType::Numeric(_), Value::Text(text)) => json::number(text).map(|_| text.clone()),
        _ => None,
    }
}

/// What to try: whether it comes back identical is for [`to_cloud`] to ask.
fn wire_form(value: &Value, to: &CloudType) -> Option<CloudValue> {
    Some(match (to, value) {
        (_, Value::Null) => CloudValue::Null,
        (CloudType::Int2, Value::Integer(i)) => CloudValue::Int(i16::try_from(*i).ok()?.into()),
        (CloudType::Int4, Value::Integer(i)) => CloudValue::Int(i32::try_from(*i).ok()?.into()),
        (CloudType::Int8, Value::Integer(i)) => CloudValue::Int(*i),
        // A column that is declared REAL holds whole numbers as reals, one declared TEXT as text.
        (CloudType::Int2 | CloudType::Int4 | CloudType::Int8, Value::Real(r)) => {
            wire_form(&Value::Integer(whole(*r)?), to)?
        }
        (CloudType::Int2 | CloudType::Int4 | CloudType::Int8, Value::Text(text)) => {
            wire_form(&Value::Integer(text.parse().ok()?), to)?
        }
        (CloudType::Float8, Value::Real(r)) => CloudValue::Float(*r),
        #[expect(clippy::cast_possible_truncation, reason = "whether it truncates is the question")]
        (CloudType::Float4, Value::Real(r)) if f64::from(*r as f32) == *r => CloudValue::Float(*r),
        #[expect(clippy::cast_precision_loss, reason = "whether it loses anything is asked when it is back")]
        (CloudType::Float4 | CloudType::Float8, Value::Integer(i)) => wire_form(&Value::Real(*i as f64), to)?,
        // SQLite has no NaN, and keeps the word in whatever column.
        (CloudType::Float4 | CloudType::Float8, Value::Text(text)) if text == "NaN" => {
            CloudValue::Float(f64::NAN)
        }
        (CloudType::Float4 | CloudType::Float8, Value::Text(text)) => {
            wire_form(&Value::Real(text.parse().ok()?), to)?
        }
        (CloudType::Bool, Value::Integer(i @ (0 | 1))) => CloudValue::Bool(*i == 1),
        (CloudType::Bool, Value::Real(r)) => wire_form(&Value::Integer(whole(*r)?), to)?,
        (CloudType::Bool, Value::Text(text)) => CloudValue::Bool(notation::truth(text)?),
        (CloudType::Bytea, Value::Blob(bytes)) => CloudValue::Bytes(bytes.clone()),
        (CloudType::Numeric(limits), _) => CloudValue::Text(numeric(value, *limits)?),
        // As it will be read again, so that a round can tell what the column changes from what is only written otherwise.
        (
            CloudType::Date | CloudType::Timestamp | CloudType::TimestampTz | CloudType::Uuid,
            Value::Text(text),
        ) => CloudValue::Text(notation::canonical(text, to)?),
        (CloudType::Array(element, _), Value::Text(text)) if !text.contains('\0') => {
            CloudValue::Text(json::to_array(text, *element).unwrap_or_else(|| text.clone()))
        }
        // Columns with numeric affinity hold numbers where the text looks like one.
        (CloudType::Text | CloudType::Json | CloudType::Jsonb | CloudType::Other(_), Value::Integer(i)) => {
            CloudValue::Text(i.to_string())
        }
        (CloudType::Text | CloudType::Json | CloudType::Jsonb | CloudType::Other(_), Value::Real(r))
            if r.is_finite() =>
        {
            CloudValue::Text(r.to_string())
        }
        // PostgreSQL has no NUL character in text. Of a text that is not understood here, it says itself what it is.
        (CloudType::Other(_), Value::Text(text)) if !text.contains('\0') => {
            CloudValue::Text(notation::canonical(text, to).unwrap_or_else(|| text.clone()))
        }
        (CloudType::Text | CloudType::Json | CloudType::Jsonb, Value::Text(text)) if !text.contains('\0') => {
            CloudValue::Text(text.clone())
        }
        _ => return None,
    })
}

/// A value of a NUMERIC column as PostgreSQL reads it.
fn numeric(value: &Value, limits: Option<(u16, u16)>) -> Option<String> {
    let text = match value {
        Value::Integer(i) => i.to_string(),
        Value::Real(r) if r.is_finite() => r.to_string(),
        Value::Text(text) if is_word_for_number(text) => return Some(text.clone()),
        Value::Text(text) => text.clone(),
        _ => return None,
    };
    let number = json::decimal(&text)?;
    limits.is_none_or(|(precision, scale)| number.fits(precision.into(), scale.into())).then_some(text)
}

fn is_word_for_number(text: &str) -> bool {
    matches!(text, "NaN" | "Infinity" | "-Infinity")
}

/// Whether a data column may keep `local` where the cloud has `cloud`: the same value (a number, a moment, JSON, …) written
/// otherwise, in columns whose type writes in a way of its own. Such a difference is nobody's edit.
pub fn alike(of: &CloudType, local: &Value, cloud: &Value) -> bool {
    if *of == CloudType::Bool {
        return truth(local).is_some_and(|truth_here| truth(cloud) == Some(truth_here));
    }
    let (Value::Text(local), Value::Text(cloud)) = (local, cloud) else { return false };
    match of {
        CloudType::Numeric(_) | CloudType::Float4 | CloudType::Float8 => {
            json::decimal(local).is_some_and(|number| json::decimal(cloud) == Some(number))
        }
        CloudType::Jsonb | CloudType::Array(..) => json::is_same(local, cloud),
        _ => {
            let canonical = |text: &str| notation::canonical(text, of);
            canonical(local).is_some_and(|text| canonical(cloud) == Some(text))
        }
    }
}

/// The truth that a value of a column stands for whose cloud column is a boolean.
fn truth(value: &Value) -> Option<bool> {
    match value {
        Value::Text(text) => notation::truth(text),
        Value::Integer(i @ (0 | 1)) => Some(*i == 1),
        Value::Real(r) => truth(&Value::Integer(whole(*r)?)),
        _ => None,
    }
}

/// Whether PostgreSQL would take a text for JSON.
pub fn is_json(text: &str) -> bool {
    json::is_same(text, text)
}

/// The value that a SQLite column of this affinity stores for what a cloud column holds.
pub fn from_cloud(value: CloudValue, affinity: Affinity, from: &CloudType) -> Value {
    affinity.store(match value {
        CloudValue::Null => Value::Null,
        CloudValue::Int(i) => Value::Integer(i),
        // SQLite would make NULL of it.
        CloudValue::Float(r) if r.is_nan() => Value::Text("NaN".into()),
        CloudValue::Float(r) => Value::Real(r),
        CloudValue::Bool(b) => Value::Integer(b.into()),
        CloudValue::Bytes(bytes) => Value::Blob(bytes),
        CloudValue::Text(text) => match from {
            CloudType::Numeric(_) if affinity != Affinity::Text => number(text),
            CloudType::Array(element, _) => Value::Text(json::from_array(&text, *element).unwrap_or(text)),
            _ => Value::Text(text),
        },
    })
}

/// [`from_cloud`], unless what the column stores would go back as something else.
///
/// # Errors
/// With what the column would store, and with what it cannot keep, and which one could.
pub fn from_cloud_unchanged(
    value: CloudValue,
    affinity: Affinity,
    from: &CloudType,
) -> Result<Value, (Value, Misfit)> {
    if is_kept(affinity, from) {
        return Ok(from_cloud(value, affinity, from));
    }
    let stored = from_cloud(value.clone(), affinity, from);
    let goes_back = to_cloud(&stored, affinity, from).is_ok_and(|back| match (&back, &value) {
        (CloudValue::Float(back), CloudValue::Float(there)) => {
            back == there || (back.is_nan() && there.is_nan())
        }
        (CloudValue::Text(back), CloudValue::Text(there)) if matches!(from, CloudType::Numeric(_)) => {
            back == there || json::number(back).is_some_and(|number| json::number(there) == Some(number))
        }
        (back, there) => back == there,
    });
    if goes_back {
        return Ok(stored);
    }
    let found = match &value {
        CloudValue::Text(text) => {
            format!("the cloud's {} of {} characters", from.sql(), text.chars().count())
        }
        _ => format!("the cloud's {}", from.sql()),
    };
    Err((stored, Misfit { found, wanted: format!("{} here (TEXT would do)", affinity.name()) }))
}

/// Whether every value of such a cloud column goes back from such a column as it came: what need not be tried.
pub fn is_kept(affinity: Affinity, from: &CloudType) -> bool {
    match from {
        CloudType::Int2 | CloudType::Int4 | CloudType::Bool | CloudType::Bytea => true,
        CloudType::Int8 => affinity != Affinity::Real,
        CloudType::Float4 | CloudType::Float8 => matches!(affinity, Affinity::Real | Affinity::Blob),
        CloudType::Text | CloudType::Json | CloudType::Jsonb | CloudType::Other(_) => {
            matches!(affinity, Affinity::Text | Affinity::Blob)
        }
        _ => false,
    }
}

/// The wire form as PostgreSQL's text of it, in which keys are named in the feed and sent for look-ups.
pub fn to_text(value: &CloudValue) -> Option<String> {
    Some(match value {
        CloudValue::Null => return None,
        CloudValue::Int(i) => i.to_string(),
        CloudValue::Float(r) => r.to_string(),
        CloudValue::Bool(b) => b.to_string(),
        CloudValue::Text(text) => text.clone(),
        CloudValue::Bytes(bytes) => format!("\\x{}", hex(bytes)),
    })
}

/// The wire form of PostgreSQL's text of a value; `None` where the text is not of that type.
pub fn from_text(text: &str, from: &CloudType) -> Option<CloudValue> {
    Some(match from.wire() {
        Wire::Int8 => CloudValue::Int(text.parse().ok()?),
        // As short as tells it from other such numbers, not from all.
        Wire::Float8 if *from == CloudType::Float4 => CloudValue::Float(text.parse::<f32>().ok()?.into()),
        Wire::Float8 => CloudValue::Float(text.parse().ok()?),
        Wire::Bool => CloudValue::Bool(text.parse().ok()?),
        Wire::Text => CloudValue::Text(text.to_owned()),
        Wire::Bytea => {
            let digits = text.strip_prefix("\\x")?;
            let byte = |at: usize| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok();
            CloudValue::Bytes((0..digits.len()).step_by(2).map(byte).collect::<Option<_>>()?)
        }
    })
}

/// What SQLite's number of a decimal is: an integer where it is one, a real where that has all its digits, and text
/// where neither would hold it.
fn number(text: String) -> Value {
    let whole = match text.split_once('.') {
        Some((whole, fraction)) if fraction.bytes().all(|b| b == b'0') => whole,
        _ => &text,
    };
    if let Ok(integer) = whole.parse::<i64>() {
        return Value::Integer(integer);
    }
    match text.parse::<f64>() {
        Ok(real) if real.is_finite() && json::number(&real.to_string()) == json::number(&text) => {
            Value::Real(real)
        }
        _ => Value::Text(text),
    }
}

/// A value for a column that the cloud computes.
pub fn computed_there(value: &Value, kind: &CloudType) -> Misfit {
    Misfit { found: describe(value), wanted: format!("{}, which the cloud computes", kind.sql()) }
}

/// A value that a type accepts and changes.
pub fn changed_by_type(sent: &CloudValue, type_name: &str) -> Misfit {
    let found = match sent {
        CloudValue::Null => "NULL".into(),
        CloudValue::Int(i) => format!("the integer {i}"),
        CloudValue::Float(r) => format!("the real {r}"),
        CloudValue::Bool(b) => b.to_string(),
        CloudValue::Text(text) => format!("a text of {} characters", text.chars().count()),
        CloudValue::Bytes(bytes) => format!("a blob of {} bytes", bytes.len()),
    };
    Misfit { found, wanted: type_name.to_owned() }
}

fn describe(value: &Value) -> String {
    match value {
        Value::Null => "NULL".into(),
        Value::Integer(i) => format!("the integer {i}"),
        Value::Real(r) => format!("the real {r}"),
        Value::Text(text) if text.contains('\0') => "a text with a NUL character".into(),
        // Not what it says: this goes to the log, and a row's contents are nobody's business there.
        Value::Text(text) => format!("a text of {} characters", text.chars().count()),
        Value::Blob(bytes) => format!("a blob of {} bytes", bytes.len()),
        Value::Malformed(_) => "a text that is not UTF-8".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Declared names get SQLite's meaning, the named types their own.
    #[test]
    fn declared_types_map_as_documented() {
        for (declared, expected) in [
            ("INTEGER", CloudType::Int8),
            ("unsigned big int", CloudType::Int8),
            ("VARCHAR(20)", CloudType::Text),
            ("nchar(55)", CloudType::Text),
            ("CLOB", CloudType::Text),
            ("BLOB", CloudType::Bytea),
            ("DOUBLE PRECISION", CloudType::Float8),
            ("FLOAT", CloudType::Float8),
            ("NUMERIC(10, 2)", CloudType::Numeric(Some((10, 2)))),
            ("DECIMAL(5)", CloudType::Numeric(Some((5, 0)))),
            ("DECIMAL", CloudType::Numeric(None)),
            ("BOOLEAN", CloudType::Bool),
            ("DATE", CloudType::Date),
            ("DATETIME", CloudType::Timestamp),
            ("JSON", CloudType::Json),
            ("UUID", CloudType::Uuid),
            ("", CloudType::Text),
        ] {
            assert_eq!(CloudType::for_declared(declared), expected, "{declared}");
        }
    }

    /// What the logs keep as JSON can be read again, to the last bit and with its storage class.
    #[test]
    fn what_is_kept_as_json_can_be_read_again() {
        let bits = [0.0, -0.0, 0.1, 1.0, 1e300, 5e-324, f64::MAX, f64::INFINITY, f64::NEG_INFINITY];
        let many = (0..1000_u64).map(|n| f64::from_bits(n.wrapping_mul(0x9E37_79B9_7F4A_7C15)));
        let reals = bits.into_iter().chain(many.filter(|real| !real.is_nan())).map(Value::Real);
        let others = [
            Value::Null,
            Value::Integer(i64::MIN),
            Value::Integer(i64::MAX),
            Value::Text("inf".into()),
            Value::Text("\u{0}\"ü".into()),
            Value::Blob(vec![]),
            Value::Blob((0..=255).collect()),
            Value::Malformed(vec![0xff, b'a']),
        ];
        for value in reals.chain(others) {
            let kept = value.to_json().to_string();
            let read = Value::from_json(&serde_json::from_str(&kept).unwrap());
            assert!(read.is_some_and(|read| read.identical(&value)), "{kept}");
        }
        for nothing in
            ["true", "[1]", "{}", r#"{"blob":"0"}"#, r#"{"blob":"zz"}"#, r#"{"blob":"00","real":"1"}"#]
        {
            assert_eq!(Value::from_json(&serde_json::from_str(nothing).unwrap()), None, "{nothing}");
        }
    }

    /// What fits comes back identical; what would come back changed is named instead of sent.
    #[test]
    fn values_come_back_identical_or_not_at_all() {
        let text = |t: &str| Value::Text(t.into());
        for (value, to, fits) in [
            (Value::Integer(i64::MIN), CloudType::Int8, true),
            (Value::Integer(40_000), CloudType::Int2, false),
            (Value::Real(1.5), CloudType::Int8, false),
            (text("abc"), CloudType::Int8, false),
            (Value::Real(f64::INFINITY), CloudType::Float8, true),
            (Value::Integer(1), CloudType::Float8, false),
            (Value::Real(0.1), CloudType::Float4, false),
            (Value::Real(0.5), CloudType::Float4, true),
            (Value::Integer(1), CloudType::Bool, true),
            (Value::Integer(2), CloudType::Bool, false),
            (Value::Real(12.25), CloudType::Numeric(Some((10, 2))), true),
            (Value::Real(12.255), CloudType::Numeric(Some((10, 2))), false),
            (Value::Integer(123_456), CloudType::Numeric(Some((5, 2))), false),
            (Value::Integer(-5), CloudType::Numeric(Some((10, 2))), true),
            (Value::Real(5.0), CloudType::Numeric(None), false),
            (Value::Real(1e300), CloudType::Numeric(None), true),
            (Value::Real(5e-324), CloudType::Numeric(None), true),
            (text("2024-02-29"), CloudType::Date, true),
            (text("2023-02-29"), CloudType::Date, false),
            (text("2024-02-29 23:59:59"), CloudType::Timestamp, true),
            (text("2024-02-29 23:59:59.25"), CloudType::Timestamp, true),
            (text("2024-02-29 23:59:59.250"), CloudType::Timestamp, true),
            (text("2024-02-29T23:59:59"), CloudType::Timestamp, true),
            (text("2024-02-29T23:59:59Z"), CloudType::Timestamp, false),
            (text("2024-02-29 23:59:60"), CloudType::Timestamp, false),
            (text("6f2c1c2e-3c4b-4f7e-9d35-0242ac120002"), CloudType::Uuid, true),
            (text("6F2C1C2E-3C4B-4F7E-9D35-0242AC120002"), CloudType::Uuid, true),
            (text("6F2C1C2E-3C4B-4F7E-9D35-0242AC12000"), CloudType::Uuid, false),
            (text("yes"), CloudType::Bool, true),
            (text("maybe"), CloudType::Bool, false),
            (text("a\0b"), CloudType::Text, false),
            (text("é"), CloudType::Date, false),
            (text("ééééé é"), CloudType::Timestamp, false),
            (Value::Malformed(vec![0xff]), CloudType::Text, false),
            (Value::Blob(vec![]), CloudType::Bytea, true),
            (text("not a blob"), CloudType::Bytea, false),
        ] {
            let affinity = match to {
                CloudType::Numeric(_) | CloudType::Bool | CloudType::Date => Affinity::Numeric,
                _ => Affinity::Blob,
            };
            match to_cloud(&value, affinity, &to) {
                Ok(carried) => {
                    assert!(fits, "{value:?} should not fit {to:?}");
                    let back = from_cloud(carried, affinity, &to);
                    assert!(back.identical(&value) || alike(&to, &value, &back), "{value:?} through {to:?}");
                }
                Err(misfit) => assert!(!fits, "{value:?}: {misfit}"),
            }
        }
    }

    /// What comes from the cloud is compared as the column stores it, not as it travels.
    #[test]
    fn a_column_stores_what_its_declared_type_makes_of_a_value() {
        let text = |t: &str| Value::Text(t.into());
        for (declared, given, stored) in [
            ("REAL", Value::Integer(5), Value::Real(5.0)),
            ("INTEGER", Value::Real(5.0), Value::Integer(5)),
            ("JSON", text("123"), Value::Integer(123)),
            ("JSON", text("[1]"), text("[1]")),
            ("TEXT", Value::Integer(5), text("5")),
            ("DATETIME", text("2024-01-02"), text("2024-01-02")),
            ("NUMERIC", text(" 1.50 "), Value::Real(1.5)),
            ("NUMERIC", text("1e3"), Value::Integer(1000)),
            ("NUMERIC", text("-"), text("-")),
            ("", text("1"), text("1")),
        ] {
            assert_eq!(
                Affinity::of_declared(declared).store(given.clone()),
                stored,
                "{given:?} in {declared}"
            );
        }
        let five = Value::Real(5.0);
        let carried = to_cloud(&five, Affinity::Real, &CloudType::Numeric(None)).unwrap();
        assert_eq!(from_cloud(carried, Affinity::Real, &CloudType::Numeric(None)), five);
        let bare = Value::Integer(7);
        let carried = to_cloud(&bare, Affinity::Numeric, &CloudType::Json).unwrap();
        assert_eq!(from_cloud(carried, Affinity::Numeric, &CloudType::Json), bare);
    }

    /// A key has no other notation than the one in which it comes back.
    #[test]
    fn a_key_is_carried_only_as_it_comes_back() {
        let text = |t: &str| Value::Text(t.into());
        for (value, to, fits) in [
            (text("2024-02-29 23:59:59.25"), CloudType::Timestamp, true),
            (text("2024-02-29 23:59:59.250"), CloudType::Timestamp, false),
            (text("6f2c1c2e-3c4b-4f7e-9d35-0242ac120002"), CloudType::Uuid, true),
            (text("6F2C1C2E-3C4B-4F7E-9D35-0242AC120002"), CloudType::Uuid, false),
            (text("true"), CloudType::Bool, false),
            (text("1.50"), CloudType::Numeric(None), true),
            (text("+1"), CloudType::Numeric(None), false),
            (text("1e3"), CloudType::Numeric(None), false),
            (text(".5"), CloudType::Numeric(None), false),
            (text("-0"), CloudType::Numeric(None), false),
            (text("NaN"), CloudType::Numeric(Some((10, 2))), true),
            (text("1.50"), CloudType::Numeric(Some((10, 2))), true),
            (text("1.5"), CloudType::Numeric(Some((10, 2))), false),
            (text("10:00"), CloudType::Other("time without time zone".into()), false),
            (text("10:00:00"), CloudType::Other("time without time zone".into()), true),
        ] {
            assert_eq!(key_to_cloud(&value, Affinity::Text, &to).is_ok(), fits, "{value:?} in {to:?}");
        }
    }

    /// Keys survive the way through PostgreSQL's text.
    #[test]
    fn keys_survive_their_text() {
        for (value, kind) in [
            (CloudValue::Int(-7), CloudType::Int8),
            (CloudValue::Float(f64::INFINITY), CloudType::Float8),
            (CloudValue::Float(1e-300), CloudType::Float8),
            (CloudValue::Bool(true), CloudType::Bool),
            (CloudValue::Bytes(vec![0, 255, 16]), CloudType::Bytea),
            (CloudValue::Bytes(vec![]), CloudType::Bytea),
            (CloudValue::Text("a'\\x".into()), CloudType::Text),
        ] {
            let text = to_text(&value).unwrap();
            assert_eq!(from_text(&text, &kind), Some(value), "{text}");
        }
        assert_eq!(from_text("\\x0", &CloudType::Bytea), None);
    }

    /// A decimal from the cloud becomes what SQLite's NUMERIC affinity would store.
    #[test]
    fn decimals_become_sqlite_numbers() {
        let back =
            |t: &str| from_cloud(CloudValue::Text(t.into()), Affinity::Numeric, &CloudType::Numeric(None));
        assert_eq!(back("12.00"), Value::Integer(12));
        assert_eq!(back("12.50"), Value::Real(12.5));
        assert_eq!(back("NaN"), Value::Text("NaN".into()));
    }
}
