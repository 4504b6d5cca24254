//! Rows as the caller's types, by serde: a struct by the columns' names, a tuple by their order, a scalar from the one
//! column there is.
//!
//! Nothing is converted silently. An integer is taken where a float is wanted, and 0 and 1 for a `bool`; a NULL only where
//! the type is an `Option`.

use std::fmt;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, Params};
use serde::Deserializer;
use serde::de::value::{SeqDeserializer, StrDeserializer};
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Error as _, IntoDeserializer as _, MapAccess, SeqAccess,
    Unexpected, Visitor,
};
use serde::forward_to_deserialize_any;

use super::{Readers, Result, StoreError};

/// Why a row is not what the caller takes it for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RowError {
    /// The query does not answer with such a column.
    #[error("the query has no column {0}")]
    MissingColumn(String),
    /// A value does not fit.
    #[error("column {column}: {reason}")]
    WrongType {
        /// The column's name in the query.
        column: String,
        /// What is there, and what was expected.
        reason: String,
    },
    /// Another number of columns than the tuple has, or than the one of a scalar.
    #[error("the query has {found} column(s), and the type takes {expected}")]
    Width {
        /// As many as the type takes.
        expected: usize,
        /// As many as the query has.
        found: usize,
    },
    /// What the type itself says.
    #[error("{0}")]
    Refused(String),
}

impl Readers {
    /// The rows of a query. The statement is prepared once per connection.
    ///
    /// # Errors
    /// [`StoreError::Row`] names the column; otherwise as [`read`](Self::read).
    pub fn query_as<T: DeserializeOwned>(&self, sql: &str, params: impl Params) -> Result<Vec<T>> {
        self.read(|conn| Ok(query_as(conn, sql, params)))?
    }
}

pub(super) fn query_as<T: DeserializeOwned>(
    conn: &Connection,
    sql: &str,
    params: impl Params,
) -> Result<Vec<T>> {
    let mut statement = conn.prepare_cached(sql)?;
    let mut rows = statement.query(params)?;
    let mut names: Vec<String> = vec![];
    let mut found = vec![];
    while let Some(row) = rows.next()? {
        if found.is_empty() {
            // Not before the first step, with which SQLite prepares anew where the schema has changed since.
            names = row.as_ref().column_names().into_iter().map(str::to_owned).collect();
        }
        let values = (0..names.len()).map(|at| row.get_ref(at)).collect::<rusqlite::Result<Vec<_>>>()?;
        found.push(T::deserialize(RowOf { names: &names, values: &values }).map_err(StoreError::Row)?);
    }
    Ok(found)
}

impl de::Error for RowError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::Refused(message.to_string())
    }

    fn missing_field(field: &'static str) -> Self {
        Self::MissingColumn(field.to_owned())
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        match found {
            Unexpected::Unit | Unexpected::Option => Self::custom(format_args!("NULL, expected {expected}")),
            found => Self::custom(format_args!("{found}, expected {expected}")),
        }
    }
}

impl RowError {
    /// What a value's deserializer says, with the name of its column.
    fn in_column(self, column: &str) -> Self {
        match self {
            Self::Refused(reason) => Self::WrongType { column: column.to_owned(), reason },
            other => other,
        }
    }
}

/// One row.
#[derive(Clone, Copy)]
struct RowOf<'a> {
    names: &'a [String],
    values: &'a [ValueRef<'a>],
}

impl<'a> RowOf<'a> {
    fn width(self, expected: usize) -> std::result::Result<Self, RowError> {
        if self.values.len() == expected {
            return Ok(self);
        }
        Err(RowError::Width { expected, found: self.values.len() })
    }

    /// The value of the one column.
    fn scalar<T>(
        self,
        read: impl FnOnce(Cell<'a>) -> std::result::Result<T, RowError>,
    ) -> std::result::Result<T, RowError> {
        self.width(1)?;
        read(Cell(self.values[0])).map_err(|error| error.in_column(&self.names[0]))
    }
}

macro_rules! scalars {
    ($($method:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> std::result::Result<V::Value, RowError> {
            self.scalar(|cell| cell.$method(visitor))
        }
    )*};
}

impl<'de> Deserializer<'de> for RowOf<'_> {
    type Error = RowError;

    scalars! {
        deserialize_bool deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_i128
        deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64 deserialize_u128
        deserialize_f32 deserialize_f64 deserialize_char deserialize_str deserialize_string
        deserialize_bytes deserialize_byte_buf deserialize_unit deserialize_identifier
    }

    /// A type that takes anything takes the columns by name.
    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> std::result::Result<V::Value, RowError> {
        self.deserialize_map(visitor)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> std::result::Result<V::Value, RowError> {
        visitor.visit_unit()
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> std::result::Result<V::Value, RowError> {
        match self.values {
            [ValueRef::Null] => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> std::result::Result<V::Value, RowError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> std::result::Result<V::Value, RowError> {
        self.deserialize_unit(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> std::result::Result<V::Value, RowError> {
        self.scalar(|cell| cell.deserialize_enum(name, variants, visitor))
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> std::result::Result<V::Value, RowError> {
        visitor.visit_seq(Columns { row: self, at: 0 })
    }

    fn deserialize_tuple<V: Visitor<'de>>(
        self,
        width: usize,
        visitor: V,
    ) -> std::result::Result<V::Value, RowError> {
        self.width(width)?.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        width: usize,
        visitor: V,
    ) -> std::result::Result<V::Value, RowError> {
        self.deserialize_tuple(width, visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> std::result::Result<V::Value, RowError> {
        visitor.visit_map(Columns { row: self, at: 0 })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> std::result::Result<V::Value, RowError> {
        self.deserialize_map(visitor)
    }
}

/// The columns of a row, one after the other.
struct Columns<'a> {
    row: RowOf<'a>,
    at: usize,
}

impl Columns<'_> {
    fn value<'de, S: DeserializeSeed<'de>>(&mut self, seed: S) -> std::result::Result<S::Value, RowError> {
        let at = self.at;
        self.at += 1;
        seed.deserialize(Cell(self.row.values[at])).map_err(|error| error.in_column(&self.row.names[at]))
    }
}

impl<'de> SeqAccess<'de> for Columns<'_> {
    type Error = RowError;

    fn next_element_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> std::result::Result<Option<S::Value>, RowError> {
        if self.at == self.row.values.len() {
            return Ok(None);
        }
        self.value(seed).map(Some)
    }
}

impl<'de> MapAccess<'de> for Columns<'_> {
    type Error = RowError;

    fn next_key_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> std::result::Result<Option<S::Value>, RowError> {
        match self.row.names.get(self.at) {
            Some(name) => seed.deserialize(StrDeserializer::new(name)).map(Some),
            None => Ok(None),
        }
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> std::result::Result<S::Value, RowError> {
        self.value(seed)
    }
}

/// One value.
#[derive(Clone, Copy)]
struct Cell<'a>(ValueRef<'a>);

impl<'de> Deserializer<'de> for Cell<'_> {
    type Error = RowError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> std::result::Result<V::Value, RowError> {
        match self.0 {
            ValueRef::Null => visitor.visit_unit(),
            ValueRef::Integer(i) => visitor.visit_i64(i),
            ValueRef::Real(r) => visitor.visit_f64(r),
            ValueRef::Text(bytes) => match std::str::from_utf8(bytes) {
                Ok(text) => visitor.visit_str(text),
                Err(_) => Err(RowError::custom("text that is not UTF-8")),
            },
            ValueRef::Blob(bytes) => visitor.visit_bytes(bytes),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> std::result::Result<V::Value, RowError> {
        match self.0 {
            ValueRef::Integer(i @ (0 | 1)) => visitor.visit_bool(i == 1),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> std::result::Result<V::Value, RowError> {
        match self.0 {
            ValueRef::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> std::result::Result<V::Value, RowError> {
        visitor.visit_newtype_struct(self)
    }

    /// A blob is a list of bytes, also for a plain `Vec<u8>`.
    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> std::result::Result<V::Value, RowError> {
        match self.0 {
            ValueRef::Blob(bytes) => visitor.visit_seq(SeqDeserializer::new(bytes.iter().copied())),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_tuple<V: Visitor<'de>>(
        self,
        _: usize,
        visitor: V,
    ) -> std::result::Result<V::Value, RowError> {
        self.deserialize_seq(visitor)
    }

    /// A variant by its name.
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> std::result::Result<V::Value, RowError> {
        match self.0 {
            ValueRef::Text(bytes) => match std::str::from_utf8(bytes) {
                Ok(text) => {
                    let text: StrDeserializer<'_, RowError> = text.into_deserializer();
                    text.deserialize_enum(name, variants, visitor)
                }
                Err(_) => self.deserialize_any(visitor),
            },
            _ => self.deserialize_any(visitor),
        }
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct
        tuple_struct map struct identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use super::*;

    fn rows<T: DeserializeOwned>(sql: &str) -> std::result::Result<Vec<T>, String> {
        query_as(&Connection::open_in_memory().unwrap(), sql, []).map_err(|error| error.to_string())
    }

    #[derive(Debug, PartialEq, Deserialize)]
    struct Note {
        id: i64,
        body: Option<String>,
        #[serde(default)]
        stars: u8,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Mood {
        Good,
        Bad,
    }

    /// A struct takes columns by their names, whatever their order; what it does not ask for is passed over.
    #[test]
    fn a_struct_is_filled_by_names() {
        let found = rows("SELECT 'x' AS other, NULL AS body, 7 AS id UNION ALL SELECT 0, 'b', 8");
        assert_eq!(
            found,
            Ok(vec![Note { id: 7, body: None, stars: 0 }, Note { id: 8, body: Some("b".into()), stars: 0 }])
        );
        let map = rows::<BTreeMap<String, i64>>("SELECT 1 AS a, 2 AS b").unwrap();
        assert_eq!(map, [BTreeMap::from([("a".into(), 1), ("b".into(), 2)])]);
    }

    /// Tuples take columns in their order, scalars the only one.
    #[test]
    fn tuples_and_scalars_are_filled_by_order() {
        assert_eq!(
            rows("SELECT 1, 'a' UNION ALL SELECT 2, 'b'"),
            Ok(vec![(1_i64, "a".to_owned()), (2, "b".into())])
        );
        assert_eq!(rows("SELECT 5"), Ok(vec![5_u32]));
        assert_eq!(rows("SELECT 1.5 UNION ALL SELECT 2"), Ok(vec![1.5_f64, 2.0]));
        assert_eq!(rows("SELECT NULL UNION ALL SELECT 'x'"), Ok(vec![None, Some("x".to_owned())]));
        assert_eq!(rows("SELECT 1, x'0102', 'good'"), Ok(vec![(true, vec![1_u8, 2], Mood::Good)]));
        assert_eq!(rows("SELECT 'bad'"), Ok(vec![Mood::Bad]));
        assert_eq!(rows::<i64>("SELECT 1 WHERE false"), Ok(vec![]));
    }

    /// What does not fit names its column, and nothing is bent until it does.
    #[test]
    fn what_does_not_fit_names_its_column() {
        let note = |sql: &str| rows::<Note>(sql).unwrap_err();
        assert_eq!(note("SELECT 'b' AS body"), "the query has no column id");
        assert_eq!(note("SELECT 'x' AS id"), "column id: string \"x\", expected i64");
        assert_eq!(note("SELECT NULL AS id"), "column id: NULL, expected i64");
        assert_eq!(note("SELECT 1.5 AS id"), "column id: floating point `1.5`, expected i64");
        assert!(
            note("SELECT 1 AS id, 256 AS stars").starts_with("column stars: invalid value: integer `256`")
        );
        assert_eq!(rows::<f64>("SELECT NULL AS f").unwrap_err(), "column f: NULL, expected f64");
        assert_eq!(rows::<bool>("SELECT 2 AS b").unwrap_err(), "column b: integer `2`, expected a boolean");
        let text = rows::<String>("SELECT CAST(x'ff' AS TEXT) AS t").unwrap_err();
        assert_eq!(text, "column t: text that is not UTF-8");
        let tuple = rows::<(i64, String)>("SELECT 1, 2 AS second").unwrap_err();
        assert_eq!(tuple, "column second: integer `2`, expected a string");
        let mood = rows::<Mood>("SELECT 'odd' AS m").unwrap_err();
        assert!(mood.starts_with("column m: unknown variant `odd`"), "{mood}");
        let wide = "the query has 2 column(s), and the type takes ";
        assert_eq!(rows::<i64>("SELECT 1, 2").unwrap_err(), format!("{wide}1"));
        assert_eq!(rows::<(i64, i64, i64)>("SELECT 1, 2").unwrap_err(), format!("{wide}3"));
    }
}
