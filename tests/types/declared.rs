//! Every declared type of SQLite that people use: the column that it gets in the cloud, and values that go through it.

use tidewater::Value;

/// Declared types with the same meaning.
pub struct Declared {
    pub names: &'static [&'static str],
    /// The column's type in the cloud.
    pub cloud: &'static str,
    /// What is written here, and its text in the cloud; none where the row has to be parked.
    pub values: Vec<(Value, Option<&'static str>)>,
}

fn text(text: &str) -> Value {
    text.into()
}

/// What is written here, and its text in the cloud, which is empty where the row has to be parked.
fn moments(of: &'static [(&'static str, &'static str)], numbers: bool) -> Vec<(Value, Option<&'static str>)> {
    let mut values: Vec<_> = of
        .iter()
        .map(|(moment, there)| (text(moment), Some(*there).filter(|there| !there.is_empty())))
        .collect();
    if numbers {
        // A julian day, and seconds since 1970.
        values.extend([(Value::Real(2_460_370.5), None), (Value::Integer(1_709_164_800), None)]);
    }
    values
}

pub fn all() -> Vec<Declared> {
    use Value::{Blob, Integer, Malformed, Null, Real};
    let never_in_text = || [(text("a\0b"), None), (Malformed(b"caf\xe9".to_vec()), None)];
    vec![
        Declared {
            names: &[
                "INTEGER",
                "INT",
                "TINYINT",
                "TINYINT(1)",
                "SMALLINT",
                "MEDIUMINT",
                "BIGINT",
                "BIGINT UNSIGNED",
                "UNSIGNED BIG INT",
                "INT2",
                "INT8",
            ],
            cloud: "bigint",
            values: vec![
                (Null, Some("NULL")),
                (Integer(i64::MIN), Some("-9223372036854775808")),
                (Integer(i64::MAX), Some("9223372036854775807")),
                (Integer(9_007_199_254_740_993), Some("9007199254740993")),
                (text("42"), Some("42")),
                (Real(3.0), Some("3")),
                (Real(1e18), Some("1000000000000000000")),
                (Real(1.5), None),
                (Real(1e19), None),
                (text(""), None),
                (text("abc"), None),
                (text("9223372036854775808"), None),
                (Blob(b"1".to_vec()), None),
            ],
        },
        Declared {
            names: &["REAL", "FLOAT", "DOUBLE", "DOUBLE PRECISION"],
            cloud: "double precision",
            values: vec![
                (Null, Some("NULL")),
                (Real(f64::NAN), Some("NULL")),
                (Real(0.1), Some("0.1")),
                (Real(0.1 + 0.2), Some("0.30000000000000004")),
                (Real(f64::INFINITY), Some("Infinity")),
                (Real(f64::NEG_INFINITY), Some("-Infinity")),
                (Real(5e-324), Some("5e-324")),
                (Real(f64::MAX), Some("1.7976931348623157e+308")),
                // SQLite itself stores a zero without a sign.
                (Real(-0.0), Some("0")),
                (Integer(7), Some("7")),
                (text("2.5"), Some("2.5")),
                (text("NaN"), Some("NaN")),
                (text("nan"), None),
                (text("abc"), None),
                (Blob(vec![1]), None),
            ],
        },
        Declared {
            names: &[
                "TEXT",
                "VARCHAR(255)",
                "VARCHAR(3)",
                "CHARACTER(20)",
                "CHAR(2)",
                "NCHAR(55)",
                "NVARCHAR(100)",
                "CLOB",
                "TINYTEXT",
            ],
            cloud: "text",
            values: [
                (Null, Some("NULL")),
                (text(""), Some("")),
                (text("longer than declared "), Some("longer than declared ")),
                (text("é🦀 'q' \\x \"d\" \u{7}\r\n\t"), Some("é🦀 'q' \\x \"d\" \u{7}\r\n\t")),
                (text("NULL"), Some("NULL")),
                (Integer(5), Some("5")),
                (Real(0.5), Some("0.5")),
                (text("007"), Some("007")),
                (text(&"long ".repeat(200_000)), Some("long ".repeat(200_000).leak())),
                (Blob(b"bytes".to_vec()), None),
            ]
            .into_iter()
            .chain(never_in_text())
            .collect(),
        },
        Declared {
            names: &["BLOB", "LONGBLOB", "BINARY(16)", "VARBINARY(255)", "BYTEA", "IMAGE"],
            cloud: "bytea",
            values: vec![
                (Null, Some("NULL")),
                (Blob(vec![]), Some("\\x")),
                (Blob(vec![0, 255, 92]), Some("\\x00ff5c")),
                (text(""), None),
                (text("\\x00"), None),
                (Integer(0), None),
                (Real(0.5), None),
            ],
        },
        Declared {
            names: &["BOOLEAN", "BOOL"],
            cloud: "boolean",
            values: vec![
                (Null, Some("NULL")),
                (Integer(0), Some("f")),
                (Integer(1), Some("t")),
                (text("1"), Some("t")),
                (Real(1.0), Some("t")),
                (Integer(2), None),
                (Integer(-1), None),
                (Real(0.5), None),
                (text("true"), Some("t")),
                (text("No"), Some("f")),
                (text("maybe"), None),
                (text(""), None),
            ],
        },
        Declared {
            names: &["DATE"],
            cloud: "date",
            values: moments(
                &[
                    ("2024-02-29", "2024-02-29"),
                    ("0001-01-01", "0001-01-01"),
                    ("9999-12-31", "9999-12-31"),
                    ("12024-01-01", "12024-01-01"),
                    ("0044-03-15 BC", "0044-03-15 BC"),
                    ("infinity", "infinity"),
                    ("-infinity", "-infinity"),
                    ("2024-2-9", "2024-02-09"),
                    ("2023-02-29", ""),
                    ("0000-01-01", ""),
                    ("29.02.2024", ""),
                    ("2024-02-29 00:00:00", ""),
                    ("today", ""),
                    ("", ""),
                ],
                true,
            ),
        },
        Declared {
            names: &["DATETIME", "TIMESTAMP", "DATETIME(6)"],
            cloud: "timestamp without time zone",
            values: moments(
                &[
                    ("2024-02-29 23:59:59", "2024-02-29 23:59:59"),
                    ("2024-02-29 23:59:59.25", "2024-02-29 23:59:59.25"),
                    ("2024-02-29 23:59:59.999999", "2024-02-29 23:59:59.999999"),
                    ("0044-03-15 12:00:00 BC", "0044-03-15 12:00:00 BC"),
                    ("infinity", "infinity"),
                    ("2024-05-01 10:00:00.120", "2024-05-01 10:00:00.12"),
                    ("2024-05-01 10:00:00.000000", "2024-05-01 10:00:00"),
                    ("2024-02-29T23:59:59", "2024-02-29 23:59:59"),
                    ("2024-02-29 23:59", "2024-02-29 23:59:00"),
                    ("2024-02-29", "2024-02-29 00:00:00"),
                    ("2024-02-29 23:59:59.9999999", ""),
                    ("2024-02-29 23:59:59Z", ""),
                    ("2024-02-29 23:59:59+00:00", ""),
                    ("2024-02-29 23:59:60", ""),
                    ("now", ""),
                ],
                true,
            ),
        },
        Declared {
            names: &["NUMERIC(10,2)", "DECIMAL(10, 2)"],
            cloud: "numeric(10,2)",
            values: vec![
                (Null, Some("NULL")),
                (Integer(12), Some("12.00")),
                (Real(12.5), Some("12.50")),
                (Real(12.25), Some("12.25")),
                (text("12.50"), Some("12.50")),
                (Integer(-99_999_999), Some("-99999999.00")),
                (Real(12.255), None),
                (Integer(100_000_000), None),
                (Real(f64::INFINITY), None),
                (text("abc"), None),
                (Blob(vec![1]), None),
            ],
        },
        Declared {
            names: &["NUMERIC", "DECIMAL", "NUMBER", "NUM", "MONEY"],
            cloud: "numeric",
            values: vec![
                (Null, Some("NULL")),
                (Integer(i64::MAX), Some("9223372036854775807")),
                (Integer(i64::MIN), Some("-9223372036854775808")),
                (Real(0.1), Some("0.1")),
                (Real(0.1 + 0.2), Some("0.30000000000000004")),
                (Real(1e20), Some("100000000000000000000")),
                (Real(1e-20), Some("0.00000000000000000001")),
                // SQLite keeps a real of it, before Tidewater sees it.
                (text("12345678901234567890"), Some("12345678901234567000")),
                (text("NaN"), Some("NaN")),
                (text("Infinity"), Some("Infinity")),
                (Real(f64::INFINITY), None),
                (text("1,5"), None),
                (text(""), None),
            ],
        },
        Declared {
            names: &["JSON"],
            cloud: "json",
            values: [
                (Null, Some("NULL")),
                (text("{ \"b\":1,  \"a\":[1.50], \"a\":2 }"), Some("{ \"b\":1,  \"a\":[1.50], \"a\":2 }")),
                (text("\"\\u00e9\""), Some("\"\\u00e9\"")),
                (Integer(5), Some("5")),
                (Real(1.5), Some("1.5")),
                (text("null"), Some("null")),
                (text("{'a': 1}"), None),
                (text(""), None),
                (Blob(b"{}".to_vec()), None),
            ]
            .into_iter()
            .chain(never_in_text())
            .collect(),
        },
        Declared {
            names: &["UUID"],
            cloud: "uuid",
            values: vec![
                (Null, Some("NULL")),
                (text("6f2c1c2e-3c4b-4f7e-9d35-0242ac120002"), Some("6f2c1c2e-3c4b-4f7e-9d35-0242ac120002")),
                (text("6F2C1C2E-3C4B-4F7E-9D35-0242AC120002"), Some("6f2c1c2e-3c4b-4f7e-9d35-0242ac120002")),
                (text("6f2c1c2e3c4b4f7e9d350242ac12000a"), Some("6f2c1c2e-3c4b-4f7e-9d35-0242ac12000a")),
                (
                    text("{6f2c1c2e-3c4b-4f7e-9d35-0242ac120002}"),
                    Some("6f2c1c2e-3c4b-4f7e-9d35-0242ac120002"),
                ),
                (text("6f2c1c2e-3c4b-4f7e-9d35-0242ac12000"), None),
                (Blob(vec![7; 16]), None),
                (Integer(5), None),
            ],
        },
        Declared {
            names: &["STRING", "TIME", "TIMESTAMPTZ", "JSONB", "ENUM", "BIT", "DEC(10,2)", "YEAR"],
            cloud: "text",
            values: [
                (Null, Some("NULL")),
                (text("12:34:56"), Some("12:34:56")),
                // SQLite keeps numbers in these columns where a text looks like one.
                (text("007"), Some("7")),
                (Integer(2024), Some("2024")),
                (Real(1.5), Some("1.5")),
                (text(""), Some("")),
                (Real(f64::INFINITY), None),
                (Blob(vec![1]), None),
            ]
            .into_iter()
            .chain(never_in_text())
            .collect(),
        },
        Declared {
            names: &[""],
            cloud: "text",
            values: [
                (Null, Some("NULL")),
                (text("abc"), Some("abc")),
                (text("5"), Some("5")),
                (text(""), Some("")),
                (Integer(5), None),
                (Real(1.5), None),
                (Real(-0.0), None),
                (Blob(vec![1]), None),
            ]
            .into_iter()
            .chain(never_in_text())
            .collect(),
        },
    ]
}
