//! Every column type that a cloud table may have when Tidewater meets it: what its values are here, and what may be written.

use tidewater::Value;

/// A column of a table that is there already.
pub struct Existing {
    /// Its type in the cloud.
    pub cloud: &'static str,
    /// What has to be there before.
    pub setup: &'static str,
    /// Its declared type here.
    pub here: &'static str,
    /// Values of the cloud, as SQL, and what they are here; none where there is no place for them here.
    pub values: &'static [(&'static str, Option<&'static str>)],
    /// What is written here, and its text in the cloud; none where the row has to be parked.
    pub edits: Vec<(Value, Option<&'static str>)>,
}

const fn of(cloud: &'static str, here: &'static str) -> Existing {
    Existing { cloud, setup: "", here, values: &[], edits: vec![] }
}

fn texts(edits: &[(&'static str, Option<&'static str>)]) -> Vec<(Value, Option<&'static str>)> {
    edits.iter().map(|(written, there)| ((*written).into(), *there)).collect()
}

/// Carried as it is.
fn kept(written: &'static str) -> (Value, Option<&'static str>) {
    (written.into(), Some(written))
}

#[rustfmt::skip]
pub fn all() -> Vec<Existing> {
    use Value::{Blob, Integer, Real};
    vec![
        // Integers.
        Existing {
            values: &[("'-32768'", Some("integer -32768")), ("NULL", Some("null"))],
            edits: vec![(Integer(32_767), Some("32767")), (Integer(32_768), None), (Real(1.5), None)],
            ..of("smallint", "INTEGER")
        },
        Existing {
            values: &[("'2147483647'", Some("integer 2147483647"))],
            edits: vec![(Integer(-2_147_483_648), Some("-2147483648")), (Integer(2_147_483_648), None)],
            ..of("integer", "INTEGER")
        },
        Existing {
            values: &[("'9007199254740993'", Some("integer 9007199254740993")), ("'-9223372036854775808'", Some("integer -9223372036854775808"))],
            edits: vec![(Integer(i64::MAX), Some("9223372036854775807")), ("x".into(), None)],
            ..of("bigint", "INTEGER")
        },
        Existing {
            values: &[("'9007199254740992'", Some("real 9007199254740992.0")), ("'9007199254740993'", None)],
            edits: vec![(Real(5.0), Some("5")), (Real(5.5), None)],
            ..of("bigint", "REAL")
        },
        Existing {
            values: &[("'42'", Some("text 42"))],
            edits: texts(&[("43", Some("43")), ("043", None), ("x", None)]),
            ..of("bigint", "TEXT")
        },
        // Floating point.
        Existing {
            values: &[("'0.1'", Some("real 0.10000000149011612")), ("'NaN'", Some("text NaN")), ("'-Infinity'", Some("real -inf"))],
            edits: vec![(Real(0.5), Some("0.5")), (Real(0.1), None), (Real(1e300), None)],
            ..of("real", "REAL")
        },
        Existing {
            values: &[("'0.1'", Some("real 0.1")), ("'NaN'", Some("text NaN")), ("'Infinity'", Some("real inf")), ("'-0'", Some("real 0.0")), ("'5e-324'", Some("real 5e-324"))],
            edits: vec![(Real(0.1 + 0.2), Some("0.30000000000000004")), (Integer(2), Some("2"))],
            ..of("double precision", "REAL")
        },
        Existing {
            values: &[("'-0'", Some("real -0.0")), ("'2'", Some("real 2.0"))],
            edits: vec![(Real(-0.0), Some("-0")), (Integer(2), None)],
            ..of("double precision", "")
        },
        Existing {
            values: &[("'2'", Some("integer 2")), ("'2.5'", Some("real 2.5")), ("'1e17'", Some("integer 100000000000000000"))],
            edits: vec![(Integer(3), Some("3")), (Integer(9_007_199_254_740_993), None)],
            ..of("double precision", "INTEGER")
        },
        Existing {
            values: &[("'0.1'", Some("text 0.1")), ("'1e-7'", Some("text 0.0000001")), ("'NaN'", Some("text NaN")), ("'-Infinity'", Some("text -Infinity"))],
            edits: texts(&[("0.2", Some("0.2")), ("1.0", Some("1")), ("0.1234567890123456789", None), ("x", None)]),
            ..of("double precision", "TEXT")
        },
        // Numbers beyond floating point.
        Existing {
            values: &[
                ("'12.50'", Some("real 12.5")), ("'12'", Some("integer 12")), ("'0.1'", Some("real 0.1")), ("'9223372036854775807'", Some("integer 9223372036854775807")),
                ("'9223372036854775808'", None), ("'12345678901234567890.123'", None), ("'0.12345678901234567890'", None), ("'NaN'", Some("text NaN")), ("'-Infinity'", Some("text -Infinity")),
            ],
            edits: vec![(Real(0.25), Some("0.25")), (Real(1e20), Some("100000000000000000000")), (Real(f64::INFINITY), None)],
            ..of("numeric", "NUMERIC")
        },
        Existing {
            values: &[("'12.50'", Some("text 12.50")), ("'12345678901234567890.1230'", Some("text 12345678901234567890.1230")), ("'NaN'", Some("text NaN")), ("'1e30'", Some("text 1000000000000000000000000000000"))],
            edits: texts(&[("99999999999999999999.99", Some("99999999999999999999.99")), ("-0.10", Some("-0.10")), ("1e3", Some("1000")), ("+1", Some("1")), (".5", Some("0.5")), (" 1", None), ("01", None), ("x", None)]),
            ..of("numeric", "TEXT")
        },
        Existing {
            values: &[("'12.5'", Some("real 12.5")), ("'12345678901234567890'", Some("text 12345678901234567890"))],
            edits: vec![(Integer(5), Some("5")), kept("12345678901234567890.5"), ("x".into(), None)],
            ..of("numeric", "")
        },
        Existing {
            values: &[("'12.5'", Some("real 12.5")), ("'-12345678.99'", Some("real -12345678.99"))],
            edits: vec![(Real(0.5), Some("0.50")), (Integer(5), Some("5.00")), (Real(0.125), None), (Integer(100_000_000), None)],
            ..of("numeric(10,2)", "NUMERIC")
        },
        Existing {
            values: &[("'12.5'", Some("text 12.50"))],
            // The same number in other words: this file keeps its own.
            edits: texts(&[("0.50", Some("0.50")), ("0.5", Some("0.50")), ("7", Some("7.00")), ("7.500", Some("7.50")), ("1.5e3", Some("1500.00")), ("0.125", None), ("1e8", None)]),
            ..of("numeric(10,2)", "TEXT")
        },
        Existing {
            values: &[("'1200'", Some("integer 1200"))],
            edits: vec![(Integer(3400), Some("3400")), (Integer(1234), None)],
            ..of("numeric(4,-2)", "NUMERIC")
        },
        // Text.
        Existing {
            values: &[("''", Some("text ")), ("'é'", Some("text é")), ("'007'", Some("text 007"))],
            edits: vec![kept("x "), (Blob(vec![1]), None), ("a\0b".into(), None)],
            ..of("text", "TEXT")
        },
        Existing {
            values: &[("'7'", Some("integer 7")), ("'abc'", Some("text abc")), ("'007'", None), ("'1e3'", None)],
            edits: vec![(Integer(8), Some("8")), kept("x")],
            ..of("text", "INTEGER")
        },
        Existing {
            values: &[("'ab '", Some("text ab "))],
            edits: texts(&[("abcde", Some("abcde")), ("abcdef", None), ("abcde ", None)]),
            ..of("character varying(5)", "VARCHAR(5)")
        },
        Existing {
            values: &[("'ab'", Some("text ab"))],
            edits: texts(&[("abcd", Some("abcd")), ("", Some("    ")), ("ab  ", None), ("abcde", None)]),
            ..of("character(4)", "CHAR(4)")
        },
        Existing {
            setup: "CREATE EXTENSION IF NOT EXISTS citext",
            values: &[("'AbC'", Some("text AbC"))],
            edits: vec![kept("aBc")],
            ..of("citext", "TEXT")
        },
        Existing {
            values: &[("'a_name'", Some("text a_name"))],
            edits: texts(&[("other", Some("other")), ("a_name_that_is_longer_than_the_sixty_three_bytes_of_postgresql_names", None)]),
            ..of("name", "TEXT")
        },
        Existing { values: &[("'x'", Some("text x"))], edits: texts(&[("y", Some("y")), ("yz", None)]), ..of("\"char\"", "TEXT") },
        Existing {
            setup: "CREATE TYPE mood AS ENUM ('glad', 'sad')",
            values: &[("'glad'", Some("text glad"))],
            edits: texts(&[("sad", Some("sad")), ("Sad", None), ("bored", None)]),
            ..of("mood", "TEXT")
        },
        // Domains: the type that they are of, and their checks.
        Existing {
            setup: "CREATE DOMAIN word AS text CHECK (VALUE ~ '^[a-z]+$')",
            values: &[("'abc'", Some("text abc"))],
            edits: texts(&[("xyz", Some("xyz")), ("XYZ", None)]),
            ..of("word", "TEXT")
        },
        Existing {
            setup: "CREATE DOMAIN amount AS integer CHECK (VALUE > 0); CREATE DOMAIN small_amount AS amount CHECK (VALUE < 100)",
            values: &[("5", Some("integer 5"))],
            edits: vec![(Integer(7), Some("7")), (Integer(0), None), (Integer(100), None), ("x".into(), None)],
            ..of("small_amount", "INTEGER")
        },
        Existing {
            setup: "CREATE DOMAIN price AS numeric(6,2)",
            values: &[("1.5", Some("real 1.5"))],
            edits: vec![(Real(2.25), Some("2.25")), (Real(2.125), None)],
            ..of("price", "DECIMAL(6,2)")
        },
        Existing {
            setup: "CREATE DOMAIN flag AS boolean; CREATE DOMAIN code AS varchar(3)",
            values: &[("true", Some("integer 1"))],
            edits: vec![(Integer(0), Some("f")), (Integer(2), None)],
            ..of("flag", "BOOLEAN")
        },
        Existing { values: &[("'ab'", Some("text ab"))], edits: texts(&[("abc", Some("abc")), ("abcd", None), ("abc ", None)]), ..of("code", "TEXT") },
        // Truth.
        Existing {
            values: &[("true", Some("integer 1")), ("false", Some("integer 0"))],
            edits: vec![(Integer(1), Some("t")), (Integer(2), None), ("true".into(), Some("t")), ("maybe".into(), None)],
            ..of("boolean", "BOOLEAN")
        },
        Existing { values: &[("true", Some("text 1"))], edits: texts(&[("0", Some("f")), ("true", Some("t")), ("OFF", Some("f")), ("2", None)]), ..of("boolean", "TEXT") },
        Existing { values: &[("true", Some("real 1.0"))], edits: vec![(Real(0.0), Some("f")), (Real(0.5), None)], ..of("boolean", "REAL") },
        // Bytes.
        Existing {
            values: &[("'\\x00ff'", Some("blob 00ff")), ("''", Some("blob "))],
            edits: vec![(Blob(vec![0]), Some("\\x00")), ("\\x00".into(), None)],
            ..of("bytea", "BLOB")
        },
        Existing { values: &[("'\\x41'", Some("blob 41"))], edits: vec![(Blob(vec![66]), Some("\\x42")), ("B".into(), None)], ..of("bytea", "TEXT") },
        // Time.
        Existing {
            values: &[("'2024-02-29'", Some("text 2024-02-29")), ("'infinity'", Some("text infinity")), ("'0044-03-15 BC'", Some("text 0044-03-15 BC")), ("'12024-01-01'", Some("text 12024-01-01"))],
            edits: vec![kept("2024-03-01"), kept("-infinity"), ("2024-3-1".into(), Some("2024-03-01")), ("1.3.2024".into(), None), (Real(2_460_370.5), None), (Integer(0), None)],
            ..of("date", "DATE")
        },
        Existing {
            values: &[("'2024-02-29 01:02:03.5'", Some("text 2024-02-29 01:02:03.5")), ("'infinity'", Some("text infinity")), ("'4713-01-01 00:00:00 BC'", Some("text 4713-01-01 00:00:00 BC"))],
            edits: vec![kept("2024-03-01 00:00:00"), ("2024-03-01T00:00:00".into(), Some("2024-03-01 00:00:00")), ("2024-03-01 00:00:00.50".into(), Some("2024-03-01 00:00:00.5")), ("2024-03-01 00:00:00Z".into(), None), (Integer(0), None)],
            ..of("timestamp", "DATETIME")
        },
        Existing {
            values: &[("'2024-02-29 01:02:03'", Some("text 2024-02-29 01:02:03"))],
            edits: texts(&[("2024-03-01 00:00:01", Some("2024-03-01 00:00:01")), ("2024-03-01 00:00:01.000", Some("2024-03-01 00:00:01")), ("2024-03-01 00:00:00.5", None)]),
            ..of("timestamp(0)", "TEXT")
        },
        Existing {
            values: &[("'2024-02-29 01:02:03+02'", Some("text 2024-02-28 23:02:03+00")), ("'-infinity'", Some("text -infinity")), ("'0044-03-15 12:00:00+00 BC'", Some("text 0044-03-15 12:00:00+00 BC"))],
            edits: texts(&[("2024-03-01 00:00:00+00", Some("2024-03-01 00:00:00+00")), ("2024-03-01T00:00:00.120Z", Some("2024-03-01 00:00:00.12+00")), ("2024-03-01 00:00:00+01", Some("2024-02-29 23:00:00+00")), ("2024-03-01 00:00:00", None), ("2024-03-01 00:00:00 CET", None)]),
            ..of("timestamptz", "TIMESTAMP")
        },
        Existing { values: &[("'01:02:03.5'", Some("text 01:02:03.5")), ("'24:00:00'", Some("text 24:00:00"))], edits: texts(&[("10:00:00", Some("10:00:00")), ("10:00", Some("10:00:00")), ("10:00:00.10", Some("10:00:00.1")), ("1 pm", None), ("25:00:00", None)]), ..of("time", "TIME") },
        Existing { values: &[("'01:02:03+02'", Some("text 01:02:03+02"))], edits: texts(&[("10:00:00-05", Some("10:00:00-05")), ("10:00:00Z", Some("10:00:00+00")), ("10:00:00", None)]), ..of("timetz", "TEXT") },
        Existing { values: &[("'1 year 2 months 3 days 04:05:06.7'", Some("text 1 year 2 mons 3 days 04:05:06.7"))], edits: texts(&[("1 day", Some("1 day")), ("P1D", None), ("24:00:00", Some("24:00:00"))]), ..of("interval", "TEXT") },
        // Documents.
        Existing {
            values: &[("'{\"b\":1,  \"a\":2}'", Some("text {\"b\":1,  \"a\":2}"))],
            edits: vec![kept("[1 , 2]"), ("{".into(), None)],
            ..of("json", "TEXT")
        },
        Existing {
            values: &[("'{\"b\":1,  \"aa\":1.50, \"c\":\"é\"}'", Some("text {\"b\": 1, \"c\": \"é\", \"aa\": 1.50}")), ("'1e2'", Some("text 100"))],
            // The same document in other words: this file keeps its own.
            edits: texts(&[
                ("{\"a\": 1}", Some("{\"a\": 1}")), ("{\"bb\":1,\"a\":2}", Some("{\"a\": 2, \"bb\": 1}")), ("{\"a\":1,\"a\":1e2}", Some("{\"a\": 100}")),
                ("\"\\u0041\"", Some("\"A\"")), ("12345678901234567890.120", Some("12345678901234567890.120")), ("{", None), ("\"\\u0000\"", None), ("", None),
            ]),
            ..of("jsonb", "TEXT")
        },
        Existing { values: &[("'5'", Some("integer 5")), ("'\"5\"'", Some("text \"5\"")), ("'1.50'", None)], edits: vec![(Integer(7), Some("7")), (Real(1.5), Some("1.5")), kept("[7]")], ..of("jsonb", "JSON") },
        Existing { values: &[("'<a>1</a>'", Some("text <a>1</a>"))], edits: texts(&[("<b/>", Some("<b/>")), ("<b>", None)]), ..of("xml", "TEXT") },
        Existing {
            setup: "CREATE EXTENSION IF NOT EXISTS hstore",
            values: &[("'b=>2, a=>NULL'", Some("text \"a\"=>NULL, \"b\"=>\"2\""))],
            edits: texts(&[("\"a\"=>\"1\"", Some("\"a\"=>\"1\"")), ("a=>1", None)]),
            ..of("hstore", "TEXT")
        },
        // Arrays, as JSON.
        Existing {
            values: &[("'{1,NULL,3}'", Some("text [1,null,3]")), ("'{}'", Some("text []")), ("'{{1,2},{3,4}}'", Some("text [[1,2],[3,4]]")), ("'[0:1]={1,2}'", Some("text [0:1]={1,2}"))],
            edits: texts(&[("[4,5]", Some("{4,5}")), ("[ 4, 5 ]", Some("{4,5}")), ("[[1],[2]]", Some("{{1},{2}}")), ("[1.5]", None), ("[[1],[2,3]]", None), ("{4,5}", None), ("4", None), ("[\"x\"]", None)]),
            ..of("integer[]", "TEXT")
        },
        Existing {
            values: &[("ARRAY['a', '', NULL, 'NULL', 'a \"b\" \\ c', '{}']", Some("text [\"a\",\"\",null,\"NULL\",\"a \\\"b\\\" \\\\ c\",\"{}\"]"))],
            edits: texts(&[("[\"x\",\"y z\"]", Some("{x,\"y z\"}")), ("[\"\\u00e9\"]", Some("{é}")), ("[1]", None), ("[\"\\u0000\"]", None)]),
            ..of("text[]", "TEXT")
        },
        Existing { values: &[("'{0.1,NaN,Infinity}'", Some("text [0.1,\"NaN\",\"Infinity\"]"))], edits: texts(&[("[0.5]", Some("{0.5}")), ("[0.50]", None)]), ..of("double precision[]", "TEXT") },
        Existing { values: &[("'{1.50,2}'", Some("text [1.50,2]"))], edits: texts(&[("[3.10]", Some("{3.10}"))]), ..of("numeric[]", "TEXT") },
        Existing { values: &[("'{t,f}'", Some("text [true,false]"))], edits: texts(&[("[false]", Some("{f}")), ("[0]", None)]), ..of("boolean[]", "TEXT") },
        Existing { values: &[("'{2024-02-29}'", Some("text [\"2024-02-29\"]"))], edits: texts(&[("[\"2024-03-01\"]", Some("{2024-03-01}")), ("[\"2024-3-1\"]", None)]), ..of("date[]", "JSON") },
        Existing { values: &[("ARRAY['{\"a\": 1}'::jsonb]", Some("text [\"{\\\"a\\\": 1}\"]"))], edits: texts(&[("[\"[1, 2]\"]", Some("{\"[1, 2]\"}"))]), ..of("jsonb[]", "TEXT") },
        Existing { values: &[("'{ab}'", Some("text [\"ab\"]"))], edits: texts(&[("[\"abc\"]", Some("{abc}")), ("[\"abcd\"]", None)]), ..of("character varying(3)[]", "TEXT") },
        // The rest, as PostgreSQL's own text.
        Existing { values: &[("'6f2c1c2e-3c4b-4f7e-9d35-0242ac120002'", Some("text 6f2c1c2e-3c4b-4f7e-9d35-0242ac120002"))], edits: texts(&[("6f2c1c2e-3c4b-4f7e-9d35-0242ac120003", Some("6f2c1c2e-3c4b-4f7e-9d35-0242ac120003")), ("6F2C1C2E-3C4B-4F7E-9D35-0242AC120003", Some("6f2c1c2e-3c4b-4f7e-9d35-0242ac120003")), ("x", None)]), ..of("uuid", "TEXT") },
        Existing { values: &[("'10.0.0.1'", Some("text 10.0.0.1")), ("'10.0.0.0/8'", Some("text 10.0.0.0/8")), ("'2001:db8::1'", Some("text 2001:db8::1"))], edits: texts(&[("10.0.0.2", Some("10.0.0.2")), ("10.0.0.2/32", Some("10.0.0.2")), ("2001:DB8::1", Some("2001:db8::1")), ("10.2", None), ("x", None)]), ..of("inet", "TEXT") },
        Existing { values: &[("'10.0.0.0/8'", Some("text 10.0.0.0/8"))], edits: texts(&[("10.1.0.0/16", Some("10.1.0.0/16")), ("10.1/16", None)]), ..of("cidr", "TEXT") },
        Existing { values: &[("'08:00:2b:01:02:03'", Some("text 08:00:2b:01:02:03"))], edits: texts(&[("08:00:2b:01:02:04", Some("08:00:2b:01:02:04")), ("08002b010204", None)]), ..of("macaddr", "TEXT") },
        Existing { values: &[("B'101'", Some("text 101"))], edits: texts(&[("010", Some("010")), ("01", None), ("0101", None)]), ..of("bit(3)", "TEXT") },
        Existing { values: &[("B'011'", Some("text 011"))], edits: texts(&[("0", Some("0")), ("", Some("")), ("2", None)]), ..of("bit varying", "TEXT") },
        Existing { values: &[("B'101'", Some("integer 101")), ("B'011'", None)], edits: vec![(Integer(110), Some("110"))], ..of("bit varying", "INTEGER") },
        Existing { values: &[("'12.50'", Some("text $12.50"))], edits: texts(&[("$1.00", Some("$1.00")), ("1", None)]), ..of("money", "TEXT") },
        Existing { values: &[("'[1,5)'", Some("text [1,5)"))], edits: texts(&[("[2,3)", Some("[2,3)")), ("[2,3]", None), ("empty", Some("empty"))]), ..of("int4range", "TEXT") },
        Existing { setup: "CREATE TYPE pair AS (a int, b text)", values: &[("ROW(1, 'x y')", Some("text (1,\"x y\")"))], edits: texts(&[("(2,z)", Some("(2,z)")), ("( 2,z)", None), ("(2)", None)]), ..of("pair", "TEXT") },
        Existing { values: &[("'(1,2)'", Some("text (1,2)"))], edits: texts(&[("(3,4)", Some("(3,4)")), ("3,4", None)]), ..of("point", "TEXT") },
        Existing { values: &[("'(3,4),(1,2)'", Some("text (3,4),(1,2)"))], edits: texts(&[("(7,8),(5,6)", Some("(7,8),(5,6)"))]), ..of("box", "TEXT") },
        Existing { values: &[("'a fat cat'", Some("text 'a' 'cat' 'fat'"))], edits: texts(&[("'dog'", Some("'dog'")), ("dog", None)]), ..of("tsvector", "TEXT") },
        Existing { values: &[("16384", Some("integer 16384"))], edits: vec![(Integer(1), Some("1")), (Integer(-1), None)], ..of("oid", "INTEGER") },
        Existing { values: &[("'1/2'", Some("text 1/2"))], edits: texts(&[("0/1", Some("0/1"))]), ..of("pg_lsn", "TEXT") },
    ]
}
