//! What stands in a row, as it is expected, or an error: whoever answers may answer anything.

use std::fmt;

use tokio_postgres::Row;
use tokio_postgres::row::RowIndex;
use tokio_postgres::types::{FromSql, Kind, Type};

use super::{Result, unexpected};

/// Reading a row of somebody who is not trusted.
pub(super) trait Cells {
    /// One value, which may be asked for as an `Option` where it may be NULL.
    fn cell<'a, T: FromSql<'a>>(&'a self, at: impl RowIndex + fmt::Display + Copy) -> Result<T>;
}

impl Cells for Row {
    fn cell<'a, T: FromSql<'a>>(&'a self, at: impl RowIndex + fmt::Display + Copy) -> Result<T> {
        let read = || {
            self.try_get::<_, Option<Sound>>(at)?;
            self.try_get(at)
        };
        read().map_err(|error| {
            unexpected(&match std::error::Error::source(&error) {
                Some(source) => format!("{error}: {source}"),
                None => error.to_string(),
            })
        })
    }
}

/// The first value of an answer, if it has a row.
pub(super) fn first<'a, T: FromSql<'a>>(rows: &'a [Row]) -> Result<Option<T>> {
    rows.first().map(|row| row.cell(0)).transpose()
}

/// `ord`, counted from 1 there and from 0 here, of so many that were asked for.
pub(super) fn position(row: &Row, asked: usize) -> Result<usize> {
    let ord: i64 = row.cell(0)?;
    usize::try_from(ord)
        .ok()
        .and_then(|ord| ord.checked_sub(1))
        .filter(|at| *at < asked)
        .ok_or_else(|| unexpected(&format!("row {ord} of {asked}")))
}

/// A value for which the driver can make room: it believes an array's length before it has seen its elements.
struct Sound;

impl<'a> FromSql<'a> for Sound {
    fn from_sql(
        kind: &Type,
        raw: &'a [u8],
    ) -> std::result::Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        if let (Kind::Array(_), Some(length)) = (kind.kind(), raw.get(12..16)) {
            let length = length.iter().fold(0, |length: usize, byte| length << 8 | usize::from(*byte));
            // Each element has at least its own length.
            if length > raw.len() / 4 {
                return Err(format!("an array of {length} elements in {} bytes", raw.len()).into());
            }
        }
        Ok(Self)
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}
