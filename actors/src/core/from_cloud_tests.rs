//! Which SQLite table stands for a table of the cloud.

use super::super::rules::TableRule;
use super::super::schema::{Column, Unique};
use super::super::value::Element;
use super::*;

fn column(name: &str, kind: CloudType) -> DefinedColumn {
    DefinedColumn {
        name: name.into(),
        type_name: kind.sql(),
        kind,
        not_null: false,
        generated: false,
        identity: false,
        default: None,
    }
}

fn table(name: &str, columns: Vec<DefinedColumn>) -> Definition {
    let key = columns.first().map(|column| column.name.clone()).into_iter().collect();
    Definition { name: name.into(), columns, key, ..Definition::default() }
}

fn numbered(name: &str) -> Definition {
    table(name, vec![DefinedColumn { not_null: true, ..column("id", CloudType::Int8) }])
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn refers(to: &str, columns: &[&str]) -> DefinedForeignKey {
    DefinedForeignKey {
        columns: names(&["parent"]),
        parent: Some(to.into()),
        parent_columns: names(columns),
        on_delete: "CASCADE".into(),
        on_update: "NO ACTION".into(),
        deferred: false,
    }
}

fn only(definition: Definition) -> (NewTable, Vec<String>) {
    let (mut made, lines) = new_tables(&[definition], &[], &[]);
    assert_eq!(lines, [""; 0]);
    made.remove(0)
}

/// The type that a column gets is one from which Tidewater would make the cloud's column, where there is one.
#[test]
fn a_declared_type_means_the_cloud_s() {
    for kind in [
        CloudType::Int8,
        CloudType::Float8,
        CloudType::Bool,
        CloudType::Text,
        CloudType::Bytea,
        CloudType::Numeric(None),
        CloudType::Numeric(Some((10, 2))),
        CloudType::Date,
        CloudType::Timestamp,
        CloudType::Json,
        CloudType::Uuid,
    ] {
        let (declared, same) = declared(&kind);
        assert_eq!((CloudType::for_declared(&declared), same), (kind, true), "{declared}");
    }
    for (kind, expected, is_same) in [
        (CloudType::Int2, "INTEGER", true),
        (CloudType::Int4, "INTEGER", true),
        (CloudType::Float4, "REAL", true),
        (CloudType::TimestampTz, "TEXT", true),
        (CloudType::Jsonb, "TEXT", true),
        (CloudType::Other("interval".into()), "TEXT", false),
        (CloudType::Array(Element::Number, "integer[]".into()), "TEXT", false),
    ] {
        assert_eq!(declared(&kind), (expected.into(), is_same), "{kind:?}");
    }
}

/// A default is kept where it means the same here; one that does not is told of.
#[test]
fn a_default_is_kept_where_it_means_the_same() {
    let numeric = CloudType::Numeric(Some((10, 2)));
    for (text, kind, expected) in [
        ("5", CloudType::Int8, "5"),
        ("'-5'::integer", CloudType::Int4, "-5"),
        ("'5'::bigint", CloudType::Int8, "5"),
        ("(-5)", CloudType::Int8, "-5"),
        ("(5)::bigint", CloudType::Int8, "5"),
        ("1.5", CloudType::Float8, "1.5"),
        ("2", CloudType::Float8, "2.0"),
        ("'Infinity'::double precision", CloudType::Float8, "9e999"),
        ("true", CloudType::Bool, "1"),
        ("false", CloudType::Bool, "0"),
        ("1.50", numeric.clone(), "1.5"),
        ("'-3'::numeric", numeric.clone(), "-3"),
        ("'it''s :: (5)'::text", CloudType::Text, "'it''s :: (5)'"),
        ("''::character varying", CloudType::Text, "''"),
        ("'\\x00ff'::bytea", CloudType::Bytea, "X'00FF'"),
        ("'2024-02-29'::date", CloudType::Date, "'2024-02-29'"),
        ("'{\"a\": 1}'::json", CloudType::Json, "'{\"a\": 1}'"),
        ("'{1,2}'::integer[]", CloudType::Array(Element::Number, "integer[]".into()), "'[1,2]'"),
        (
            "date_trunc('second'::text, (now() AT TIME ZONE 'utc'::text))",
            CloudType::Timestamp,
            "CURRENT_TIMESTAMP",
        ),
        (
            "date_trunc('second'::text, timezone('utc'::text, now()))",
            CloudType::Timestamp,
            "CURRENT_TIMESTAMP",
        ),
        ("CURRENT_TIMESTAMP", CloudType::Timestamp, "CURRENT_TIMESTAMP"),
        ("now()", CloudType::TimestampTz, "(strftime('%Y-%m-%d %H:%M:%S+00', 'now'))"),
        ("((now() AT TIME ZONE 'utc'::text))::date", CloudType::Date, "CURRENT_DATE"),
        ("CURRENT_DATE", CloudType::Date, "CURRENT_DATE"),
        (
            "to_char((now() AT TIME ZONE 'utc'::text), 'YYYY-MM-DD HH24:MI:SS'::text)",
            CloudType::Text,
            "CURRENT_TIMESTAMP",
        ),
        ("to_char((now() AT TIME ZONE 'utc'::text), 'HH24:MI:SS'::text)", CloudType::Text, "CURRENT_TIME"),
    ] {
        let affinity = Affinity::of_declared(&declared(&kind).0);
        assert_eq!(here(text, &kind, affinity).as_deref(), Some(expected), "{text}");
    }
    for (text, kind) in [
        ("gen_random_uuid()", CloudType::Uuid),
        ("(now() + '1 day'::interval)", CloudType::TimestampTz),
        ("now()", CloudType::Text),
        ("CURRENT_USER", CloudType::Text),
        ("('a'::text || 'b'::text)", CloudType::Text),
        ("'abc'::character varying(2)", CloudType::Text),
        ("(1 + 2)", CloudType::Int8),
        ("nextval('t_id_seq'::regclass)", CloudType::Int8),
        ("'1.5'::numeric", CloudType::Int8),
        ("NULL::text", CloudType::Text),
        ("'open", CloudType::Text),
    ] {
        assert_eq!(here(text, &kind, Affinity::of_declared(&declared(&kind).0)), None, "{text}");
    }
    let with =
        |default: &str| DefinedColumn { default: Some(default.into()), ..column("a", CloudType::Timestamp) };
    let made = |default| {
        only(Definition {
            columns: vec![column("id", CloudType::Int8), with(default)],
            key: names(&["id"]),
            name: "t".into(),
            ..Definition::default()
        })
    };
    assert_eq!(made("clock_timestamp()").1, ["the default of a"]);
    assert_eq!(made("NULL::timestamp without time zone").1, [""; 0]);
}

/// An integer key is SQLite's number of the row, and numbers itself; any other key refuses NULL.
#[test]
fn an_integer_key_is_the_rowid() {
    let serial = |kind: CloudType| DefinedColumn {
        not_null: true,
        default: Some("nextval('t_id_seq'::regclass)".into()),
        ..column("id", kind)
    };
    let (made, lacks) = only(table("t", vec![serial(CloudType::Int4)]));
    assert_eq!(
        (made.columns[0].declared.as_str(), made.columns[0].not_null, lacks.len()),
        ("INTEGER", false, 0)
    );
    let two = Definition {
        key: names(&["id", "part"]),
        ..table("t", vec![serial(CloudType::Int8), column("part", CloudType::Text)])
    };
    let (made, lacks) = only(two);
    assert!(made.columns[0].not_null);
    assert_eq!(lacks, ["the default of id"]);
    let (made, _) = only(table("t", vec![DefinedColumn { not_null: true, ..column("id", CloudType::Uuid) }]));
    assert!(made.columns[0].not_null);
}

/// What has no place in SQLite is refused, or left out, and said either way.
#[test]
fn what_sqlite_cannot_have_is_said() {
    let keyless = Definition { key: vec![], ..numbered("keyless") };
    let folded = table("folded", vec![column("a", CloudType::Int8), column("A", CloudType::Text)]);
    let computed = table("computed", vec![DefinedColumn { generated: true, ..column("a", CloudType::Int8) }]);
    let (made, lines) = new_tables(
        &[
            keyless,
            folded,
            computed,
            numbered("sqlite_x"),
            numbered("Twice"),
            numbered("twice"),
            numbered("taken"),
        ],
        &[],
        &names(&["TAKEN"]),
    );
    assert_eq!(made.iter().map(|(table, _)| table.name.as_str()).collect::<Vec<_>>(), ["Twice"]);
    for (line, part) in lines.iter().zip([
        "keyless of the cloud is not made here: it has no primary key",
        "folded of the cloud is not made here: two of its columns",
        "computed of the cloud is not made here: its key has the column a",
        "sqlite_x of the cloud is not made here: SQLite does not allow its name",
        "twice of the cloud is not made here: SQLite has another of that name",
        "taken of the cloud is not made here: SQLite has another of that name",
    ]) {
        assert!(line.contains(part), "{line} lacks {part}");
    }
    assert_eq!(lines.len(), 6);

    let index = |name: &str, unique, constraint, plain| DefinedIndex {
        name: name.into(),
        columns: names(&["a"]),
        unique,
        constraint,
        plain,
    };
    let (made, lacks) = only(Definition {
        indexes: vec![
            index("of_constraint", true, true, true),
            index("of_its_own", true, false, true),
            index("by_a", false, false, true),
            index("partial", true, false, false),
            index("by_expression", false, false, false),
        ],
        foreign_keys: vec![refers("nowhere", &["id"])],
        checks: true,
        ..table(
            "t",
            vec![
                column("id", CloudType::Int8),
                column("a", CloudType::Other("interval".into())),
                DefinedColumn { not_null: true, generated: true, ..column("b", CloudType::Int8) },
            ],
        )
    });
    assert_eq!(made.uniques, [names(&["a"])]);
    let indexes: Vec<_> = made.indexes.iter().map(|index| (index.name.as_str(), index.unique)).collect();
    assert_eq!(indexes, [("of_its_own", true), ("by_a", false)]);
    assert!(!made.columns[2].not_null);
    assert_eq!(
        lacks,
        [
            "the type interval of a",
            "the expression of b",
            "the unique index partial",
            "its checks, which are made there",
            "its foreign key by parent",
        ]
    );
}

/// A foreign key comes along when its parent is here, or comes too, with a key or a unique constraint that it can refer to.
#[test]
fn a_foreign_key_needs_its_parent() {
    let child = |name: &str, key: DefinedForeignKey| Definition {
        foreign_keys: vec![key],
        ..table(name, vec![column("id", CloudType::Int8), column("parent", CloudType::Int8)])
    };
    let by_code = Definition {
        indexes: vec![DefinedIndex {
            name: "code".into(),
            columns: names(&["code"]),
            unique: true,
            constraint: false,
            plain: true,
        }],
        ..table("coded", vec![column("id", CloudType::Int8), column("code", CloudType::Int8)])
    };
    let here = Table {
        id: 1,
        name: "Old".into(),
        columns: ["id", "code", "title"]
            .map(|name| Column {
                id: 0,
                name: name.into(),
                declared: "INTEGER".into(),
                not_null: false,
                default: None,
            })
            .into(),
        key: vec![0],
        uniques: vec![
            Unique { columns: vec![(1, "BINARY".into())], declared: true },
            Unique { columns: vec![(2, "NOCASE".into())], declared: true },
        ],
        rowid: None,
        foreign_keys: vec![],
        rule: TableRule::default(),
    };
    for (key, expected) in [
        (refers("coded", &["id"]), Some("coded")),
        (refers("coded", &["code"]), Some("coded")),
        (refers("a", &["parent"]), None),
        (refers("a", &["id"]), Some("a")),
        (refers("old", &["id"]), Some("Old")),
        (refers("old", &["code"]), Some("Old")),
        // It would compare otherwise than the cloud.
        (refers("old", &["title"]), None),
        (refers("gone", &["id"]), None),
        (DefinedForeignKey { parent: None, ..refers("coded", &["id"]) }, None),
    ] {
        let (made, _) = new_tables(
            &[child("a", key.clone()), by_code.clone()],
            std::slice::from_ref(&here),
            &names(&["Old"]),
        );
        let found = made[0].0.foreign_keys.first();
        assert_eq!(found.map(|key| key.parent.as_str()), expected, "{key:?}");
        assert_eq!(made[0].1.is_empty(), expected.is_some());
        if let Some(found) = found {
            assert_eq!((found.on_delete.as_str(), &found.columns), ("CASCADE", &key.columns));
        }
    }
}

/// An index whose name is taken gets another one.
#[test]
fn an_index_gets_a_name_of_its_own() {
    let index = DefinedIndex {
        name: "By_Name".into(),
        columns: names(&["id"]),
        unique: false,
        constraint: false,
        plain: true,
    };
    let with = |name: &str| Definition { indexes: vec![index.clone()], ..numbered(name) };
    let (made, _) = new_tables(&[with("a"), with("b")], &[], &names(&["by_name"]));
    let found: Vec<_> = made.iter().map(|(table, _)| table.indexes[0].name.as_str()).collect();
    assert_eq!(found, ["By_Name_2", "By_Name_3"]);
}

/// By default a file without any table gets what devices sync; one that has tables gets what it names.
#[test]
fn a_file_gets_what_it_asks_for() {
    let offer = |name: &str, synced, may_read| Offer { name: name.into(), synced, may_read };
    let offers = [
        offer("notes", true, true),
        offer("plain", false, true),
        offer("secret", true, false),
        offer("Tags", true, true),
        offer("ours", true, true),
    ];
    let alone = TableRule { direction: Direction::None, ..TableRule::default() };
    let rules: TableRules = [("OURS".to_owned(), alone)].into_iter().collect();
    let chosen = |wanted: Wanted, here: &[&str]| {
        let (chosen, lines) = choose(&wanted, &offers, &names(here), &rules);
        (chosen.into_iter().map(|offer| offer.name.clone()).collect::<Vec<_>>(), lines)
    };
    let named = |these: &[&str]| Wanted::Named(names(these));
    assert_eq!(chosen(Wanted::Nothing, &[]), (vec![], vec![]));
    assert_eq!(chosen(Wanted::WhenEmpty, &[]).0, ["notes", "Tags"]);
    assert_eq!(chosen(Wanted::WhenEmpty, &["anything"]).0, [""; 0]);
    assert_eq!(chosen(Wanted::Synced, &["NOTES"]).0, ["Tags"]);
    assert_eq!(chosen(named(&["plain", "tags", "TAGS", "notes"]), &["notes"]).0, ["plain", "Tags"]);
    let (made, lines) = chosen(named(&["nowhere", "secret", "ours"]), &[]);
    assert_eq!(made, [""; 0]);
    for (line, part) in
        lines.iter().zip(["no table nowhere", "may not read it", "tables.ours.direction is none"])
    {
        assert!(line.contains(part), "{line} lacks {part}");
    }
    assert_eq!(lines.len(), 3);
}
