//! A shop: a schema with what real ones have in it, and its data, the same for the same seed.
//!
//! The values are of the awkward kind (extremes, empty ones, every script, quotes and control characters) and
//! yet each fits the declared type of its column.

use std::collections::HashMap;

use fastrand::Rng;
use rusqlite::config::DbConfig;
use rusqlite::types::Value;
use rusqlite::{Connection, params_from_iter};

/// The shop's tables, for SQLite.
pub const SCHEMA: &str = r#"
CREATE TABLE category (
    id        INTEGER PRIMARY KEY,
    parent_id INTEGER REFERENCES category (id) ON DELETE SET NULL ON UPDATE CASCADE,
    name      TEXT NOT NULL,
    position  INTEGER NOT NULL DEFAULT 0,
    UNIQUE (parent_id, name)
);
CREATE TABLE product (
    sku         TEXT PRIMARY KEY NOT NULL,
    category_id INTEGER REFERENCES category (id) ON DELETE SET NULL ON UPDATE CASCADE,
    title       TEXT NOT NULL,
    description TEXT,
    price       NUMERIC(10,2) NOT NULL DEFAULT 0,
    weight      REAL,
    stock       INTEGER NOT NULL DEFAULT 0,
    active      BOOLEAN NOT NULL DEFAULT 1,
    attributes  JSON,
    added       DATE
);
CREATE INDEX product_by_category ON product (category_id);
CREATE TABLE product_image (
    sku  TEXT NOT NULL REFERENCES product (sku) ON DELETE CASCADE ON UPDATE CASCADE,
    n    INTEGER NOT NULL,
    data BLOB NOT NULL,
    alt  TEXT,
    PRIMARY KEY (sku, n)
);
CREATE TABLE customer (
    id             UUID PRIMARY KEY NOT NULL,
    email          TEXT NOT NULL UNIQUE,
    name           TEXT NOT NULL DEFAULT '',
    born           DATE,
    newsletter     BOOLEAN NOT NULL DEFAULT 0,
    credit         NUMERIC(10,2) NOT NULL DEFAULT 0,
    loyalty_points INTEGER,
    preferences    JSON,
    referred_by    UUID REFERENCES customer (id) ON DELETE SET NULL ON UPDATE CASCADE,
    created_at     DATETIME NOT NULL
);
CREATE TABLE "order" (
    "id"           INTEGER PRIMARY KEY AUTOINCREMENT,
    "customer"     UUID NOT NULL REFERENCES customer (id) ON DELETE RESTRICT ON UPDATE CASCADE,
    "group"        TEXT,
    "ship to"      TEXT,
    "say ""hi"""   TEXT,
    "TOTAL"        NUMERIC(10,2) NOT NULL,
    "PaidAt"       DATETIME,
    "placed"       TIMESTAMP NOT NULL
);
CREATE TABLE order_line (
    order_id   INTEGER NOT NULL REFERENCES "order" ("id") ON DELETE CASCADE ON UPDATE CASCADE,
    line       INTEGER NOT NULL,
    sku        TEXT NOT NULL REFERENCES product (sku) ON DELETE RESTRICT ON UPDATE CASCADE,
    quantity   INTEGER NOT NULL DEFAULT 1,
    unit_price DECIMAL(10,2) NOT NULL,
    note       TEXT,
    PRIMARY KEY (order_id, line),
    UNIQUE (order_id, sku)
);
CREATE TABLE returned (
    order_id INTEGER NOT NULL,
    line     INTEGER NOT NULL,
    day      DATE NOT NULL,
    reason   TEXT,
    refunded BOOLEAN,
    PRIMARY KEY (order_id, line, day),
    FOREIGN KEY (order_id, line) REFERENCES order_line (order_id, line) ON DELETE CASCADE ON UPDATE CASCADE
);
CREATE TABLE review (
    id       UUID PRIMARY KEY NOT NULL,
    sku      TEXT NOT NULL REFERENCES product (sku) ON DELETE CASCADE ON UPDATE CASCADE,
    customer UUID REFERENCES customer (id) ON DELETE SET NULL ON UPDATE CASCADE,
    stars    INTEGER NOT NULL CHECK (stars BETWEEN 1 AND 5),
    body     TEXT,
    helpful  BOOLEAN,
    score    DOUBLE,
    written  DATETIME,
    UNIQUE (sku, customer)
);
CREATE TABLE stock_place (
    warehouse  TEXT NOT NULL,
    sku        TEXT NOT NULL REFERENCES product (sku) ON DELETE CASCADE ON UPDATE CASCADE,
    quantity   INTEGER NOT NULL,
    counted_at DATETIME,
    PRIMARY KEY (warehouse, sku)
) WITHOUT ROWID;
CREATE TABLE measurement (
    id     INTEGER PRIMARY KEY,
    sensor TEXT NOT NULL,
    value  REAL,
    raw    BLOB,
    total  INTEGER
) STRICT;
CREATE TABLE "SETTING" (
    "KEY"   TEXT PRIMARY KEY NOT NULL,
    "Value" TEXT
);
CREATE TABLE audit_note (
    message TEXT,
    at      DATETIME
);
"#;

/// The tables with a primary key, parents before their children. `audit_note` has none and stays local.
pub const TABLES: &[&str] = &[
    "category",
    "product",
    "product_image",
    "customer",
    "order",
    "order_line",
    "returned",
    "review",
    "stock_place",
    "measurement",
    "SETTING",
];

/// A schema as a [`Generator`] knows it.
#[derive(Debug)]
pub struct Design {
    /// Its statements.
    pub schema: &'static str,
    /// The tables that are synced, parents before their children.
    pub synced: &'static [&'static str],
    /// What the generator fills, parents before their children.
    pub(crate) tables: &'static [Table],
    /// A change that only this schema knows: statements that are valid as one unit.
    pub(crate) special: fn(&mut Generator) -> Option<Vec<Stmt>>,
}

/// The shop.
pub const DESIGN: Design = Design { schema: SCHEMA, synced: TABLES, tables: SHOP, special: shop_special };

/// What a column holds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Kind {
    /// Keys that no other row of any generator with another seed has.
    IntKey,
    TextKey,
    UuidKey,
    Email,
    /// One of a few, as the last part of a key.
    Place,
    Day,
    Warehouse,
    /// Set by the table's [`Reference`].
    Refers,
    Name,
    Text,
    Json,
    Money,
    Bool,
    DateTime,
    Real,
    Int,
    Small,
    Stars,
    Blob,
    /// One of these.
    OneOf(&'static [&'static str]),
    /// A number as a text, as it was typed.
    Figure,
}

/// Name, what it holds, whether it may be NULL.
pub(crate) type Column = (&'static str, Kind, bool);

#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) name: &'static str,
    pub(crate) columns: &'static [Column],
    /// How many of the columns, the first ones, are the primary key.
    pub(crate) key: usize,
    /// The columns that refer, and the table whose primary key they refer to.
    pub(crate) references: &'static [(&'static [usize], &'static str)],
    /// Columns whose values are unique, within those that come with them.
    pub(crate) unique: &'static [&'static [usize]],
    /// How many of a hundred rows belong to it.
    pub(crate) share: u32,
}

pub(crate) use Kind::*;

const SHOP: &[Table] = &[
    Table {
        name: "category",
        columns: &[
            ("id", IntKey, false),
            ("parent_id", Refers, true),
            ("name", Name, false),
            ("position", Small, false),
        ],
        key: 1,
        references: &[(&[1], "category")],
        unique: &[&[1, 2]],
        share: 3,
    },
    Table {
        name: "product",
        columns: &[
            ("sku", TextKey, false),
            ("category_id", Refers, true),
            ("title", Name, false),
            ("description", Text, true),
            ("price", Money, false),
            ("weight", Real, true),
            ("stock", Small, false),
            ("active", Bool, false),
            ("attributes", Json, true),
            ("added", Day, true),
        ],
        key: 1,
        references: &[(&[1], "category")],
        unique: &[],
        share: 12,
    },
    Table {
        name: "product_image",
        columns: &[("sku", Refers, false), ("n", Place, false), ("data", Blob, false), ("alt", Text, true)],
        key: 2,
        references: &[(&[0], "product")],
        unique: &[],
        share: 7,
    },
    Table {
        name: "customer",
        columns: &[
            ("id", UuidKey, false),
            ("email", Email, false),
            ("name", Name, false),
            ("born", Day, true),
            ("newsletter", Bool, false),
            ("credit", Money, false),
            ("loyalty_points", Int, true),
            ("preferences", Json, true),
            ("referred_by", Refers, true),
            ("created_at", DateTime, false),
        ],
        key: 1,
        references: &[(&[8], "customer")],
        unique: &[&[1]],
        share: 12,
    },
    Table {
        name: "order",
        columns: &[
            ("id", IntKey, false),
            ("customer", Refers, false),
            ("group", Name, true),
            ("ship to", Text, true),
            ("say \"hi\"", Text, true),
            ("TOTAL", Money, false),
            ("PaidAt", DateTime, true),
            ("placed", DateTime, false),
        ],
        key: 1,
        references: &[(&[1], "customer")],
        unique: &[],
        share: 14,
    },
    Table {
        name: "order_line",
        columns: &[
            ("order_id", Refers, false),
            ("line", Place, false),
            ("sku", Refers, false),
            ("quantity", Small, false),
            ("unit_price", Money, false),
            ("note", Text, true),
        ],
        key: 2,
        references: &[(&[0], "order"), (&[2], "product")],
        unique: &[&[0, 2]],
        share: 22,
    },
    Table {
        name: "returned",
        columns: &[
            ("order_id", Refers, false),
            ("line", Refers, false),
            ("day", Day, false),
            ("reason", Text, true),
            ("refunded", Bool, true),
        ],
        key: 3,
        references: &[(&[0, 1], "order_line")],
        unique: &[],
        share: 5,
    },
    Table {
        name: "review",
        columns: &[
            ("id", UuidKey, false),
            ("sku", Refers, false),
            ("customer", Refers, true),
            ("stars", Stars, false),
            ("body", Text, true),
            ("helpful", Bool, true),
            ("score", Real, true),
            ("written", DateTime, true),
        ],
        key: 1,
        references: &[(&[1], "product"), (&[2], "customer")],
        unique: &[&[1, 2]],
        share: 8,
    },
    Table {
        name: "stock_place",
        columns: &[
            ("warehouse", Warehouse, false),
            ("sku", Refers, false),
            ("quantity", Small, false),
            ("counted_at", DateTime, true),
        ],
        key: 2,
        references: &[(&[1], "product")],
        unique: &[],
        share: 7,
    },
    Table {
        name: "measurement",
        columns: &[
            ("id", IntKey, false),
            ("sensor", Name, false),
            ("value", Real, true),
            ("raw", Blob, true),
            ("total", Int, true),
        ],
        key: 1,
        references: &[],
        unique: &[],
        share: 6,
    },
    Table {
        name: "SETTING",
        columns: &[("KEY", TextKey, false), ("Value", Text, true)],
        key: 1,
        references: &[],
        unique: &[],
        share: 2,
    },
    Table {
        name: "audit_note",
        columns: &[("message", Text, true), ("at", DateTime, true)],
        key: 0,
        references: &[],
        unique: &[],
        share: 2,
    },
];

/// A statement and its parameters `?1`, `?2` and so on.
#[derive(Debug, Clone, PartialEq)]
pub struct Stmt {
    /// Its text.
    pub sql: String,
    /// Its parameters.
    pub params: Vec<Value>,
}

impl Stmt {
    /// Executes it and returns the number of rows it changed itself.
    pub fn execute(&self, conn: &Connection) -> rusqlite::Result<usize> {
        conn.prepare_cached(&self.sql)?.execute(params_from_iter(&self.params))
    }

    /// The statement with its parameters written out and a semicolon, on a single line, for SQLite's shell.
    pub fn to_sql_text(&self) -> String {
        let mut text = String::new();
        let mut quote = None;
        let mut rest = self.sql.chars().peekable();
        while let Some(c) = rest.next() {
            match (quote, c) {
                (None, '?') => {
                    let mut number = 0;
                    while let Some(digit) = rest.peek().and_then(|c| c.to_digit(10)) {
                        number = number * 10 + digit as usize;
                        rest.next();
                    }
                    text += &literal(&self.params[number - 1]);
                    continue;
                }
                (None, '\'' | '"') => quote = Some(c),
                (Some(open), _) if open == c => quote = None,
                _ => {}
            }
            text.push(c);
        }
        text + ";"
    }
}

fn literal(value: &Value) -> String {
    match value {
        Value::Null => "NULL".to_owned(),
        Value::Integer(number) => number.to_string(),
        // With an exponent it stays a REAL.
        Value::Real(number) => format!("{number:e}"),
        // The shell reads line by line and is particular about their ends: no control characters there.
        Value::Text(text) if text.contains(|c: char| c.is_ascii_control()) => {
            format!("CAST({} AS TEXT)", hexadecimal(text.as_bytes()))
        }
        Value::Text(text) => format!("'{}'", text.replace('\'', "''")),
        Value::Blob(bytes) => hexadecimal(bytes),
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    let digits: String = bytes.iter().map(|byte| format!("{byte:02X}")).collect();
    format!("X'{digits}'")
}

/// Makes statements. With the same seed and the same calls they are the same.
///
/// Generators with different seeds (below a million) make rows with different keys, so that several devices
/// can fill a shop each without meeting.
#[derive(Debug)]
pub struct Generator {
    design: &'static Design,
    pub(crate) rng: Rng,
    seed: u64,
    /// How many unique values there were.
    serial: u64,
    /// The shop as it is after all statements so far: what is executed here without an error is valid.
    shop: Connection,
    /// The primary keys of the tables that are referred to. Empty when out of date.
    keys: HashMap<&'static str, Vec<Vec<Value>>>,
}

impl Generator {
    /// A generator for an empty shop.
    pub fn new(seed: u64) -> Generator {
        Generator::of(&DESIGN, seed)
    }

    /// A generator for an empty file of this design.
    pub fn of(design: &'static Design, seed: u64) -> Generator {
        Generator {
            design,
            rng: Rng::with_seed(seed),
            seed,
            serial: 0,
            shop: empty(design.schema),
            keys: HashMap::new(),
        }
    }

    /// Inserts of as many rows, spread over all tables, each after those that it refers to.
    pub fn statements(&mut self, rows: usize) -> impl Iterator<Item = Stmt> + '_ {
        (0..rows).map(move |_| {
            let mut inserted = None;
            let statement = self.valid(|generator| {
                let (table, row) = generator.new_row()?;
                let statement = insert_into(table, "INSERT", &row);
                inserted = Some((table, row));
                Some(statement)
            });
            if let Some((table, mut row)) = inserted
                && let Some(keys) = self.keys.get_mut(table.name)
            {
                row.truncate(table.key);
                keys.push(row);
            }
            statement
        })
    }

    /// `n` changes to the shop as it is in `conn`, to be executed one after the other: inserts, updates of one
    /// row and of many, changes of keys, deletes (with what hangs on them), deletes with the same key inserted
    /// again, upserts and `INSERT OR REPLACE`. Each is valid with foreign keys switched on and changes at least
    /// one row. `conn` is only read.
    pub fn churn(&mut self, conn: &Connection, n: usize) -> Vec<Stmt> {
        self.load(conn);
        let mut statements = Vec::with_capacity(n);
        while statements.len() < n {
            self.keys.clear();
            // A unit of several is not for here.
            let statement = self.valid(|generator| {
                let mut change = generator.change()?;
                change.pop().filter(|_| change.is_empty())
            });
            let deleted =
                statement.sql.starts_with("DELETE").then(|| self.last_deleted(&statement)).flatten();
            statements.push(statement);
            if let Some(again) = deleted
                && statements.len() < n
                && matches!(again.execute(&self.shop), Ok(1))
            {
                statements.push(again);
            }
        }
        self.keys.clear();
        statements
    }

    /// `n` changes as [`Generator::churn`] makes them, alone or a few as one unit, and units that only this design knows:
    /// each is valid as one transaction.
    pub fn units(&mut self, conn: &Connection, n: usize) -> Vec<Vec<Stmt>> {
        self.load(conn);
        let mut units = Vec::with_capacity(n);
        for _ in 0..10_000 {
            if units.len() == n {
                break;
            }
            self.keys.clear();
            self.shop.execute_batch("BEGIN").unwrap();
            let unit = self.unit().filter(|_| self.shop.execute_batch("COMMIT").is_ok());
            match unit {
                Some(unit) => units.push(unit),
                // A trigger of its own may have ended it already.
                None if self.shop.is_autocommit() => {}
                None => self.shop.execute_batch("ROLLBACK").unwrap(),
            }
        }
        self.keys.clear();
        assert_eq!(units.len(), n, "no more valid units");
        units
    }

    fn unit(&mut self) -> Option<Vec<Stmt>> {
        let special = match self.rng.u32(0..10) {
            0..3 => (self.design.special)(self)?,
            3..5 => self.trade()?,
            5 | 6 => vec![self.insert()?],
            _ => vec![],
        };
        let mut changed = 0;
        for statement in &special {
            changed += statement.execute(&self.shop).ok()?;
        }
        let mut unit = special;
        for _ in 0..if unit.is_empty() { self.rng.choice([1, 1, 2, 3]).unwrap() } else { 0 } {
            self.keys.clear();
            let statement = self.change()?.pop()?;
            changed += statement.execute(&self.shop).ok()?;
            unit.push(statement);
        }
        (changed > 0).then_some(unit)
    }

    /// Two or three rows hand on what is unique in them to each other.
    fn trade(&mut self) -> Option<Vec<Stmt>> {
        let table = self.any_table();
        let unique = *self.rng.choice(table.unique)?;
        let mut keys = vec![];
        for _ in 0..self.rng.usize(2..=3) {
            keys.push(self.existing(table.name)?);
            keys.dedup();
        }
        let rows: Vec<Vec<Value>> =
            keys.iter().map(|key| self.stored_row(table, unique, key)).collect::<Option<_>>()?;
        let mut trade = vec![];
        let mut row = |values: &[Value], key: &[Value], generator: &Generator| {
            let mut all = vec![Value::Null; table.columns.len()];
            unique.iter().zip(values).for_each(|(column, value)| all[*column] = value.clone());
            let columns: Vec<usize> = unique.iter().copied().filter(|column| *column >= table.key).collect();
            trade.push(generator.update(table, &columns, &all, key.to_vec()));
        };
        for key in &keys {
            let fresh = self.row(table)?;
            let fresh: Vec<Value> = unique.iter().map(|column| fresh[*column].clone()).collect();
            row(&fresh, key, self);
        }
        for (n, key) in keys.iter().enumerate() {
            row(&rows[(n + 1) % rows.len()], key, self);
        }
        Some(trade)
    }

    fn stored_row(&self, table: &Table, columns: &[usize], key: &[Value]) -> Option<Vec<Value>> {
        let names: Vec<String> = columns.iter().map(|column| quoted(table.columns[*column].0)).collect();
        let sql =
            format!("SELECT {} FROM {} WHERE {}", names.join(", "), quoted(table.name), key_is(table, 1));
        let read = |row: &rusqlite::Row<'_>| (0..columns.len()).map(|n| row.get(n)).collect();
        self.shop.query_row(&sql, params_from_iter(key), read).ok()
    }

    /// Tries until a statement goes through and changes something.
    fn valid(&mut self, mut make: impl FnMut(&mut Generator) -> Option<Stmt>) -> Stmt {
        for _ in 0..10_000 {
            if let Some(statement) = make(self)
                && matches!(statement.execute(&self.shop), Ok(1..))
            {
                return statement;
            }
        }
        panic!("no valid statement in 10,000 attempts");
    }

    fn load(&mut self, conn: &Connection) {
        self.shop = empty(self.design.schema);
        self.keys.clear();
        // Within the copy rows come table by table, a category perhaps before its parent, and what the app's triggers made
        // of them comes with them.
        self.shop.execute_batch("PRAGMA foreign_keys = OFF").unwrap();
        self.shop.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false).unwrap();
        let transaction = self.shop.unchecked_transaction().unwrap();
        let tables: Vec<String> = self.design.tables.iter().map(|table| table.name.to_owned()).collect();
        for table in tables.iter().chain(&[String::from("message_text")]) {
            // Without the generated ones.
            let names: Vec<String> = self
                .shop
                .prepare("SELECT name FROM pragma_table_info(?1)")
                .unwrap()
                .query_map([table], |row| row.get::<_, String>(0))
                .unwrap()
                .map(|name| quoted(&name.unwrap()))
                .collect();
            if names.is_empty() {
                continue;
            }
            let marks: Vec<String> = (1..=names.len()).map(|n| format!("?{n}")).collect();
            let (columns, marks) = (names.join(", "), marks.join(", "));
            let name = quoted(table);
            let mut from = conn.prepare(&format!("SELECT {columns} FROM {name}")).unwrap();
            let mut into =
                transaction.prepare(&format!("INSERT INTO {name} ({columns}) VALUES ({marks})")).unwrap();
            let mut rows = from.query([]).unwrap();
            while let Some(row) = rows.next().unwrap() {
                let values = (0..names.len()).map(|n| row.get::<_, Value>(n).unwrap());
                into.execute(params_from_iter(values)).unwrap();
            }
        }
        transaction.commit().unwrap();
        self.shop.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, true).unwrap();
        self.shop.execute_batch("PRAGMA foreign_keys = ON").unwrap();
    }

    fn new_row(&mut self) -> Option<(&'static Table, Vec<Value>)> {
        let table = self.any_table();
        Some((table, self.row(table)?))
    }

    fn insert(&mut self) -> Option<Stmt> {
        self.new_row().map(|(table, row)| insert_into(table, "INSERT", &row))
    }

    fn change(&mut self) -> Option<Vec<Stmt>> {
        let table = self.any_table();
        if table.key == 0 {
            return Some(vec![self.insert()?]);
        }
        let name = quoted(table.name);
        let key = self.existing(table.name)?;
        let changeable = table.key..table.columns.len();
        // Of a table that is all key, only the key changes.
        let all_key = changeable.is_empty();
        let statement = match self.rng.u32(0..100) {
            0..20 => self.insert(),
            20..50 if !all_key => {
                // One row, one to three columns.
                let row = self.row(table)?;
                let count = self.rng.usize(1..=3);
                let mut columns: Vec<usize> =
                    (0..count).map(|_| self.rng.usize(changeable.clone())).collect();
                columns.sort_unstable();
                columns.dedup();
                Some(self.update(table, &columns, &row, key))
            }
            20..58 => {
                // Another key, with whatever refers to it.
                let row = self.row(table)?;
                let column = self.rng.usize(0..table.key);
                Some(self.update(table, &[column], &row, key))
            }
            58..70 => {
                Some(Stmt { sql: format!("DELETE FROM {name} WHERE {}", key_is(table, 1)), params: key })
            }
            70..82 if !all_key => {
                let mut row = self.row(table)?;
                row[..table.key].clone_from_slice(&key);
                let mut statement = insert_into(table, "INSERT", &row);
                let keys: Vec<String> =
                    table.columns[..table.key].iter().map(|column| quoted(column.0)).collect();
                let sets: Vec<String> = changeable
                    .map(|column| quoted(table.columns[column].0))
                    .map(|column| format!("{column} = excluded.{column}"))
                    .collect();
                statement.sql +=
                    &format!(" ON CONFLICT ({}) DO UPDATE SET {}", keys.join(", "), sets.join(", "));
                Some(statement)
            }
            70..92 => {
                // In the place of one row by its key, or of another by a unique value, or of both.
                let mut row = self.row(table)?;
                if self.rng.u32(0..3) > 0 {
                    row[..table.key].clone_from_slice(&key);
                }
                if let [[column]] = table.unique
                    && self.rng.bool()
                {
                    let other = self.existing(table.name)?;
                    row[*column] = self.stored_row(table, &[*column], &other)?.pop()?;
                }
                Some(insert_into(table, "INSERT OR REPLACE", &row))
            }
            _ => return (self.design.special)(self),
        };
        statement.map(|statement| vec![statement])
    }

    fn update(&self, table: &Table, columns: &[usize], row: &[Value], key: Vec<Value>) -> Stmt {
        let sets: Vec<String> = columns
            .iter()
            .enumerate()
            .map(|(n, column)| format!("{} = ?{}", quoted(table.columns[*column].0), n + 1))
            .collect();
        let condition = key_is(table, columns.len() + 1);
        let params = columns.iter().map(|column| row[*column].clone()).chain(key).collect();
        Stmt {
            sql: format!("UPDATE {} SET {} WHERE {condition}", quoted(table.name), sets.join(", ")),
            params,
        }
    }

    /// For some of the deletes of a single row: a new row with the same key.
    fn last_deleted(&mut self, delete: &Stmt) -> Option<Stmt> {
        let table = self
            .design
            .tables
            .iter()
            .find(|table| delete.sql.starts_with(&format!("DELETE FROM {} WHERE", quoted(table.name))))?;
        if table.key != delete.params.len() || self.rng.u32(0..4) > 0 {
            return None;
        }
        let mut row = self.row(table)?;
        row[..table.key].clone_from_slice(&delete.params);
        Some(insert_into(table, "INSERT", &row))
    }

    fn any_table(&mut self) -> &'static Table {
        let tables = self.design.tables;
        let mut left = self.rng.u32(0..tables.iter().map(|table| table.share).sum());
        tables
            .iter()
            .find(|table| match left.checked_sub(table.share) {
                Some(less) => {
                    left = less;
                    false
                }
                None => true,
            })
            .unwrap()
    }

    /// The primary key of some row, `None` when there is none.
    pub(crate) fn existing(&mut self, table: &'static str) -> Option<Vec<Value>> {
        if !self.keys.contains_key(table) {
            let table = self.design.tables.iter().find(|candidate| candidate.name == table).unwrap();
            let columns: Vec<String> =
                table.columns[..table.key].iter().map(|column| quoted(column.0)).collect();
            let columns = columns.join(", ");
            let sql = format!("SELECT {columns} FROM {} ORDER BY {columns}", quoted(table.name));
            let mut statement = self.shop.prepare_cached(&sql).unwrap();
            let keys = statement
                .query_map([], |row| (0..table.key).map(|n| row.get(n)).collect())
                .unwrap()
                .collect::<Result<_, _>>()
                .unwrap();
            drop(statement);
            self.keys.insert(table.name, keys);
        }
        let keys = &self.keys[table];
        if keys.is_empty() { None } else { Some(keys[self.rng.usize(0..keys.len())].clone()) }
    }

    /// A whole row, `None` when a table that it has to refer to is empty.
    pub(crate) fn row(&mut self, table: &'static Table) -> Option<Vec<Value>> {
        let mut row = Vec::with_capacity(table.columns.len());
        for (_, kind, nullable) in table.columns {
            let value = if *nullable && self.rng.u32(0..5) == 0 { Value::Null } else { self.value(*kind) };
            row.push(value);
        }
        for (columns, target) in table.references {
            let nullable = columns.iter().all(|column| table.columns[*column].2);
            let found = if nullable && self.rng.u32(0..4) == 0 { None } else { self.existing(target) };
            match found {
                Some(key) => columns.iter().zip(key).for_each(|(column, part)| row[*column] = part),
                None if nullable => {}
                None => return None,
            }
        }
        Some(row)
    }

    pub(crate) fn unique(&mut self) -> u64 {
        self.serial += 1;
        self.seed % 1_000_000 * 10_000_000 + self.serial
    }

    pub(crate) fn value(&mut self, kind: Kind) -> Value {
        match kind {
            IntKey => {
                let unique = self.unique() as i64;
                Value::Integer(match self.rng.u32(0..20) {
                    0 => -unique,
                    // Beyond 2^53, where a double no longer holds every integer.
                    1 => (1 << 60) + unique,
                    _ => unique,
                })
            }
            TextKey => {
                let unique = self.unique();
                let pattern =
                    self.rng.choice(["SKU-#", "sku-#", "Ä/#", "#", "№ # ", "'#\"", "👕-#", "a.b_c%#"]);
                Value::Text(pattern.unwrap().replace('#', &format!("{unique:06}")))
            }
            UuidKey => {
                let bytes = self.rng.u128(..).to_be_bytes();
                Value::Text(uuid::Builder::from_random_bytes(bytes).into_uuid().to_string())
            }
            Email => {
                let unique = self.unique();
                let name = self.rng.choice(["anna", "josé", "o'neill", "名無し", "B+shop"]).unwrap();
                Value::Text(format!("{name}.{unique}@example.org"))
            }
            Place => Value::Integer(self.rng.i64(1..=12)),
            Warehouse => {
                Value::Text(self.rng.choice(["NORD", "Süd", "west 2", "", "восток"]).unwrap().to_owned())
            }
            Refers => Value::Null,
            Name => {
                let word = self.rng.choice(WORDS).unwrap();
                let unique = self.unique();
                Value::Text(format!("{word} {unique}"))
            }
            Text => Value::Text(self.text()),
            Json => Value::Text(self.json()),
            Money => {
                let cents = match self.rng.u32(0..12) {
                    0 => 0,
                    1 => 1,
                    2 => 9_999_999_999,
                    3 => -self.rng.i64(1..100_000),
                    4 => self.rng.i64(0..1_000) * 100,
                    _ => self.rng.i64(0..1_000_000),
                };
                if cents % 100 == 0 { Value::Integer(cents / 100) } else { Value::Real(cents as f64 / 100.0) }
            }
            Bool => Value::Integer(self.rng.i64(0..=1)),
            Day => Value::Text(self.day()),
            DateTime => Value::Text(self.date_time()),
            Real => Value::Real(match self.rng.u32(0..14) {
                0 => 0.0,
                1 => f64::MAX,
                2 => f64::MIN,
                3 => f64::MIN_POSITIVE,
                // The smallest there is.
                4 => f64::from_bits(1),
                5 => 0.1 + 0.2,
                6 => -1.0 / 3.0,
                7 => 9_007_199_254_740_993.0,
                8 => self.rng.i32(-1000..1000).into(),
                9 => 1e300 * self.rng.f64(),
                10 => 1e-300 * self.rng.f64(),
                _ => (self.rng.f64() - 0.5) * 1000.0,
            }),
            Int => Value::Integer(match self.rng.u32(0..9) {
                0 => i64::MAX,
                1 => i64::MIN,
                2 => (1 << 53) + 1,
                3 => -(1 << 53) - 1,
                4 => self.rng.i64(..),
                5 => 0,
                _ => self.rng.i64(-1000..100_000),
            }),
            Small => Value::Integer(self.rng.i64(-5..1000)),
            Stars => Value::Integer(self.rng.i64(1..=5)),
            OneOf(texts) => Value::Text(self.rng.choice(texts).unwrap().to_string()),
            Figure => {
                let (whole, part) = (self.rng.u32(0..100_000), self.rng.u32(0..10_000));
                Value::Text(
                    self.rng
                        .choice([format!("{whole}.{part:04}"), format!("-{whole:08}.0"), format!("{whole}")])
                        .unwrap(),
                )
            }
            Blob => {
                let length = match self.rng.u32(0..8) {
                    0 => 0,
                    1 => 1,
                    2 => self.rng.usize(5_000..20_000),
                    _ => self.rng.usize(2..300),
                };
                let mut bytes = vec![0; length];
                self.rng.fill(&mut bytes);
                // A picture's first bytes, a zero among them.
                bytes.iter_mut().zip(b"\x89PNG\r\n\x1a\n\0\0").for_each(|(byte, first)| *byte = *first);
                Value::Blob(bytes)
            }
        }
    }

    fn text(&mut self) -> String {
        match self.rng.u32(0..30) {
            0..3 => String::new(),
            3 => {
                // 10 kB.
                let mut text = String::new();
                while text.len() < 10_000 {
                    text += self.rng.choice(WORDS).unwrap();
                    text += self.rng.choice([" ", "\n", ", ", "\t"]).unwrap();
                }
                text
            }
            4 => format!("{}\n{}\r\n\t{}", self.word(), self.word(), self.word()),
            5 => (1..=127).map(char::from).collect(),
            6 => format!("{}", self.rng.i64(..)),
            7 => format!("  {}  ", self.word()),
            _ => {
                let count = self.rng.usize(1..12);
                let words: Vec<&str> = (0..count).map(|_| self.word()).collect();
                words.join(" ")
            }
        }
    }

    fn word(&mut self) -> &'static str {
        self.rng.choice(WORDS).unwrap()
    }

    fn json(&mut self) -> String {
        let number = self.rng.i64(..);
        match self.rng.u32(0..9) {
            0 => "{}".to_owned(),
            1 => "[]".to_owned(),
            2 => format!("{{ \"b\" :1,\"a\":  [ {number} , 1.50, 1e5, -0.0 ],\n\t\"a\": null }}"),
            3 => r#"{"text":"\u00e4 \"quoted\" \\ \/ \n 👩‍👩‍👧 é","empty":""}"#.to_owned(),
            4 => format!("  [true,false , null,[[[{{\"deep\":{number}}}]]]]  "),
            5 => r#"{"":0," ":1,"große":2.0}"#.to_owned(),
            _ => format!(
                r#"{{"size":"{}","colours":["rot","blå"],"n":{number}}}"#,
                self.rng.choice(["S", "M", "XL"]).unwrap()
            ),
        }
    }

    fn day(&mut self) -> String {
        match self.rng.u32(0..20) {
            0 => "2024-02-29".to_owned(),
            1 => "1999-12-31".to_owned(),
            2 => "0001-01-01".to_owned(),
            3 => "9999-12-31".to_owned(),
            4 => "1900-02-28".to_owned(),
            _ => {
                format!(
                    "{:04}-{:02}-{:02}",
                    self.rng.u32(1950..2038),
                    self.rng.u32(1..=12),
                    self.rng.u32(1..=28)
                )
            }
        }
    }

    fn date_time(&mut self) -> String {
        let mut text = self.day();
        match self.rng.u32(0..12) {
            0 => text += " 00:00:00",
            1 => text += " 23:59:59.999999",
            // A clock that a change to summer time leaves out.
            2 => text = "2024-03-31 02:30:00".to_owned(),
            _ => {
                let (hour, minute, second) = (self.rng.u32(0..24), self.rng.u32(0..60), self.rng.u32(0..60));
                text += &format!(" {hour:02}:{minute:02}:{second:02}");
                if self.rng.u32(0..3) == 0 {
                    // Without zeros at its end.
                    let fraction = format!(".{:06}", self.rng.u32(1..1_000_000));
                    let digits = self.rng.usize(2..=7);
                    let fraction = fraction[..digits].trim_end_matches('0');
                    text += if fraction == "." { "" } else { fraction };
                }
            }
        }
        text
    }
}

/// Every script and every character that somebody forgot to escape once.
const WORDS: &[&str] = &[
    "Hose",
    "größe",
    "e\u{301}clair",
    "éclair",
    "ÅNGSTRÖM",
    "日本語",
    "한국어",
    "עברית",
    "العربية",
    "\u{202e}reversed\u{202c}",
    "👩\u{200d}👩\u{200d}👧",
    "🏳\u{fe0f}\u{200d}🌈",
    "𝒳",
    "O'Brien",
    "''",
    "\"quoted\"",
    "back\\slash",
    "\\n",
    "\\x41",
    "100%",
    "_",
    "$1",
    "?1",
    ":name",
    "{}",
    "NULL",
    "null",
    "a;b",
    "--",
    "/* */",
    "<b>&amp;</b>",
    "0x1F",
    "1e5",
    "\u{feff}bom",
    "\u{a0}",
    "\u{200b}",
    "\u{fffd}",
    "\u{10ffff}",
    "\u{7f}",
    "İı",
    "ß",
    "ﬁ",
];

/// Statements that belong together, each with as many of the parameters as it names.
pub(crate) fn unit(sql: &[&str], params: &[Value]) -> Option<Vec<Stmt>> {
    let named = |sql: &str| {
        sql.split('?').skip(1).filter_map(|rest| rest.chars().next()?.to_digit(10)).max().unwrap_or(0)
            as usize
    };
    let statements =
        sql.iter().map(|sql| Stmt { sql: (*sql).to_owned(), params: params[..named(sql)].to_vec() });
    Some(statements.collect())
}

/// Changes of many rows.
fn shop_special(generator: &mut Generator) -> Option<Vec<Stmt>> {
    let sql = match generator.rng.u32(0..5) {
        0 => "UPDATE product SET stock = stock + 1 WHERE category_id = ?1",
        1 => "UPDATE product SET active = 1 - active WHERE category_id = ?1",
        2 => "UPDATE category SET position = position + 1 WHERE parent_id IS ?1",
        3 => "UPDATE measurement SET value = NULL, total = NULL WHERE id > ?1 AND id < ?1 + 5",
        _ => {
            "DELETE FROM product_image WHERE n = 3 AND ?1 IS NOT NULL AND sku IN \
                          (SELECT sku FROM product WHERE category_id = ?1)"
        }
    };
    let of = if sql.starts_with("UPDATE measurement") { "measurement" } else { "category" };
    Some(vec![Stmt { sql: sql.to_owned(), params: generator.existing(of)? }])
}

#[cfg(test)]
fn empty_shop() -> Connection {
    empty(SCHEMA)
}

fn empty(schema: &str) -> Connection {
    let shop = Connection::open_in_memory().unwrap();
    shop.set_prepared_statement_cache_capacity(256);
    shop.execute_batch(schema).unwrap();
    shop.execute_batch("PRAGMA foreign_keys = ON").unwrap();
    shop
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn insert_into(table: &Table, verb: &str, values: &[Value]) -> Stmt {
    let names: Vec<String> = table.columns.iter().map(|column| quoted(column.0)).collect();
    let marks: Vec<String> = (1..=names.len()).map(|n| format!("?{n}")).collect();
    let sql =
        format!("{verb} INTO {} ({}) VALUES ({})", quoted(table.name), names.join(", "), marks.join(", "));
    Stmt { sql, params: values.to_vec() }
}

/// The condition for the primary key, with parameters from `first` on.
fn key_is(table: &Table, first: usize) -> String {
    let parts: Vec<String> = table.columns[..table.key]
        .iter()
        .enumerate()
        .map(|(n, column)| format!("{} = ?{}", quoted(column.0), first + n))
        .collect();
    parts.join(" AND ")
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::shell::sqlite3_shell;

    /// Every row of every table, in a fixed order.
    fn content(conn: &Connection) -> Vec<(String, Vec<Vec<Value>>)> {
        SHOP.iter()
            .map(|table| {
                let order: Vec<String> = (1..=table.columns.len()).map(|n| n.to_string()).collect();
                let sql = format!("SELECT * FROM {} ORDER BY {}", quoted(table.name), order.join(", "));
                let mut statement = conn.prepare(&sql).unwrap();
                let rows = statement
                    .query_map([], |row| (0..table.columns.len()).map(|n| row.get(n)).collect())
                    .unwrap()
                    .collect::<Result<_, _>>()
                    .unwrap();
                (table.name.to_owned(), rows)
            })
            .collect()
    }

    #[test]
    fn valid_with_foreign_keys_on_for_several_seeds() {
        for seed in [1, 2, 3] {
            let shop = empty_shop();
            let mut generator = Generator::new(seed);
            for statement in generator.statements(3_000) {
                assert_eq!(statement.execute(&shop), Ok(1), "{statement:?}");
            }
            for (name, rows) in content(&shop) {
                assert!(rows.len() >= 20, "only {} rows in {name}", rows.len());
            }
            let churn = generator.churn(&shop, 500);
            assert_eq!(churn.len(), 500);
            for statement in &churn {
                assert!(statement.execute(&shop).unwrap() > 0, "{statement:?}");
            }
            for verb in ["INSERT INTO", "INSERT OR REPLACE", "UPDATE", "DELETE"] {
                assert!(
                    churn.iter().filter(|statement| statement.sql.starts_with(verb)).count() > 20,
                    "{verb}"
                );
            }
            assert!(churn.iter().filter(|statement| statement.sql.contains("DO UPDATE")).count() > 20);
            assert_eq!(
                shop.prepare("PRAGMA foreign_key_check").unwrap().query_map([], |_| Ok(())).unwrap().count(),
                0
            );
            // And on from there.
            for statement in generator.statements(200) {
                assert_eq!(statement.execute(&shop), Ok(1), "{statement:?}");
            }
            check_types(&shop);
        }
    }

    /// Each value fits its declared type, also after SQLite's own conversions.
    fn check_types(conn: &Connection) {
        for (table, (_, rows)) in SHOP.iter().zip(content(conn)) {
            for row in rows {
                for ((name, kind, nullable), value) in table.columns.iter().zip(row) {
                    let fits = match (kind, &value) {
                        (_, Value::Null) => *nullable,
                        (Bool, Value::Integer(0 | 1)) => true,
                        (IntKey | Place | Int | Small | Stars, Value::Integer(_)) => true,
                        (Money, Value::Integer(number)) => number.abs() < 100_000_000,
                        (Money, Value::Real(number)) => {
                            let text = number.abs().to_string();
                            text.split('.').nth(1).is_some_and(|decimals| decimals.len() <= 2)
                        }
                        (Real, Value::Real(number)) => number.is_finite(),
                        (Blob, Value::Blob(_)) => true,
                        (UuidKey, Value::Text(text)) => {
                            uuid::Uuid::try_parse(text).is_ok_and(|uuid| uuid.to_string() == *text)
                        }
                        (Day, Value::Text(text)) => text.len() == 10,
                        (DateTime, Value::Text(text)) => {
                            text.len() >= 19 && !(text.contains('.') && text.ends_with('0'))
                        }
                        (Refers, Value::Text(_) | Value::Integer(_)) => true,
                        (TextKey | Email | Warehouse | Name | Text | Json, Value::Text(text)) => {
                            !text.contains('\0')
                        }
                        _ => false,
                    };
                    assert!(fits, "{}.{name}: {value:?}", table.name);
                }
            }
        }
    }

    #[test]
    fn the_same_for_the_same_seed_and_other_keys_for_another() {
        let make = |seed| Generator::new(seed).statements(300).collect::<Vec<_>>();
        assert_eq!(make(7), make(7));
        let churn = || {
            let mut generator = Generator::new(7);
            let shop = empty_shop();
            generator.statements(300).for_each(|statement| drop(statement.execute(&shop)));
            generator.churn(&shop, 50)
        };
        assert_eq!(churn(), churn());
        // Two devices' shops go into one.
        let shop = empty_shop();
        for statement in make(7).into_iter().chain(make(8)) {
            assert_eq!(statement.execute(&shop), Ok(1), "{statement:?}");
        }
    }

    /// Units of every design are valid with foreign keys on, as one transaction each, and are of many kinds.
    #[test]
    fn other_designs_make_valid_units_too() {
        for design in [&DESIGN, &crate::music::DESIGN, &crate::messages::DESIGN, &crate::ledger::DESIGN] {
            let file = empty(design.schema);
            let mut generator = Generator::of(design, 4);
            for statement in generator.statements(600) {
                assert_eq!(statement.execute(&file), Ok(1), "{statement:?}");
            }
            let mut kinds = HashSet::new();
            for unit in generator.units(&file, 300) {
                file.execute_batch("BEGIN").unwrap();
                for statement in &unit {
                    statement.execute(&file).unwrap_or_else(|error| panic!("{unit:#?}: {error}"));
                    kinds.insert(statement.sql.clone());
                }
                file.execute_batch("COMMIT").unwrap_or_else(|error| panic!("{unit:#?}: {error}"));
            }
            assert!(kinds.len() > 60, "{}", kinds.len());
            assert!(!file.prepare("PRAGMA foreign_key_check").unwrap().exists([]).unwrap());
            for table in design.synced {
                let sql = format!("SELECT count(*) FROM {}", quoted(table));
                let count: i64 = file.query_row(&sql, [], |row| row.get(0)).unwrap();
                assert!(count > 0, "{table} is empty");
            }
        }
    }

    #[test]
    fn what_the_tables_list_says() {
        let shop = empty_shop();
        let tracked: HashSet<&str> = TABLES.iter().copied().collect();
        for table in SHOP {
            assert_eq!(tracked.contains(table.name), table.key > 0);
            let columns: Vec<(String, bool, u32)> = shop
                .prepare("SELECT name, \"notnull\", pk FROM pragma_table_info(?1)")
                .unwrap()
                .query_map([table.name], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
                .unwrap()
                .collect::<Result<_, _>>()
                .unwrap();
            assert_eq!(columns.len(), table.columns.len());
            for (n, ((name, kind, nullable), (declared, not_null, pk))) in
                table.columns.iter().zip(columns).enumerate()
            {
                assert_eq!(*name, declared);
                assert!(*nullable != not_null || *kind == IntKey, "{}.{name}", table.name);
                assert_eq!(pk as usize, if n < table.key { n + 1 } else { 0 }, "{}.{name}", table.name);
            }
        }
    }

    #[test]
    fn the_shell_makes_the_same_of_the_text() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("shop.db");
        let shop = empty_shop();
        let mut generator = Generator::new(11);
        let mut text = format!("{SCHEMA}\nPRAGMA foreign_keys = ON;\nBEGIN;\n");
        for statement in generator.statements(600) {
            statement.execute(&shop).unwrap();
            text += &statement.to_sql_text();
            text.push('\n');
        }
        for statement in generator.churn(&shop, 200) {
            statement.execute(&shop).unwrap();
            text += &statement.to_sql_text();
            text.push('\n');
        }
        sqlite3_shell(&file, &(text + "COMMIT;\n"));
        let from_shell = content(&Connection::open(&file).unwrap());
        for ((name, here), (_, there)) in content(&shop).into_iter().zip(from_shell) {
            assert_eq!(here.len(), there.len(), "{name}");
            for (here, there) in here.into_iter().zip(there) {
                for (here, there) in here.into_iter().zip(there) {
                    match (here, there) {
                        // Another version of SQLite may read a number's text otherwise in its last digit.
                        (Value::Real(here), Value::Real(there)) => {
                            let close = (here - there).abs() <= here.abs() * 1e-14 || here.abs() < 1e-300;
                            assert!(close || here.abs() > 1e300, "{here:e} {there:e}");
                        }
                        (here, there) => assert_eq!(here, there, "{name}"),
                    }
                }
            }
        }
    }

    #[test]
    fn texts_are_written_out_without_control_characters() {
        let statement = Stmt {
            sql: "INSERT INTO \"a?1\" VALUES (?2, ?1, '?1', ?3)".to_owned(),
            params: vec![
                Value::Text("it\r\n\t".to_owned()),
                Value::Real(5.0),
                Value::Text("it's".to_owned()),
            ],
        };
        assert_eq!(
            statement.to_sql_text(),
            "INSERT INTO \"a?1\" VALUES (5e0, CAST(X'69740D0A09' AS TEXT), '?1', 'it''s');"
        );
    }
}
