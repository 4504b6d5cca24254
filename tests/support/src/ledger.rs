//! An accounting ledger: double entry, whose balances triggers keep and whose rules constraints keep.

use crate::shop::*;

/// The ledger.
pub const DESIGN: Design = Design {
    schema: SCHEMA,
    synced: &["currency", "account", "period", "entry", "line", "budget", "rate"],
    tables: TABLES,
    special,
};

const SCHEMA: &str = r#"
CREATE TABLE currency (
    code   TEXT PRIMARY KEY NOT NULL,
    symbol TEXT UNIQUE,
    digits INTEGER NOT NULL DEFAULT 2 CHECK (digits BETWEEN -5 AND 1000)
) WITHOUT ROWID;
CREATE TABLE account (
    code     TEXT PRIMARY KEY NOT NULL,
    parent   TEXT REFERENCES account (code) ON DELETE RESTRICT ON UPDATE CASCADE DEFERRABLE INITIALLY DEFERRED,
    currency TEXT NOT NULL REFERENCES currency (code) ON DELETE RESTRICT ON UPDATE CASCADE,
    kind     TEXT NOT NULL CHECK (kind IN ('asset', 'debt', 'income', 'cost')),
    label    TEXT GENERATED ALWAYS AS (code || ' (' || kind || ')') STORED,
    balance  INTEGER NOT NULL DEFAULT 0,
    limits   NUMERIC(14,4)
);
CREATE INDEX account_by_case ON account (lower(code));
CREATE TABLE period (
    year   INTEGER NOT NULL,
    month  INTEGER NOT NULL CHECK (month BETWEEN 1 AND 12),
    closed BOOLEAN NOT NULL DEFAULT 0,
    PRIMARY KEY (year, month)
) WITHOUT ROWID;
CREATE TABLE entry (
    id       INTEGER PRIMARY KEY,
    year     INTEGER NOT NULL,
    month    INTEGER NOT NULL,
    number   INTEGER,
    memo     TEXT,
    posted   DATETIME,
    reverses INTEGER UNIQUE REFERENCES entry (id) ON DELETE RESTRICT ON UPDATE CASCADE,
    UNIQUE (year, number),
    FOREIGN KEY (year, month) REFERENCES period (year, month) ON DELETE RESTRICT ON UPDATE CASCADE
);
CREATE UNIQUE INDEX one_draft ON entry (year, month, memo) WHERE posted IS NULL;
CREATE TABLE line (
    entry   INTEGER NOT NULL REFERENCES entry (id) ON DELETE CASCADE ON UPDATE CASCADE,
    n       INTEGER NOT NULL,
    account TEXT NOT NULL REFERENCES account (code) ON DELETE RESTRICT ON UPDATE CASCADE DEFERRABLE INITIALLY DEFERRED,
    cents   INTEGER NOT NULL CHECK (cents <> 0),
    price   TEXT,
    PRIMARY KEY (entry, n)
) STRICT, WITHOUT ROWID;
CREATE INDEX line_by_account ON line (account, abs(cents));
CREATE TABLE budget (
    account TEXT NOT NULL REFERENCES account (code) ON DELETE CASCADE ON UPDATE CASCADE,
    year    INTEGER NOT NULL,
    month   INTEGER NOT NULL,
    amount  NUMERIC(10,2) NOT NULL,
    PRIMARY KEY (account, year, month),
    FOREIGN KEY (year, month) REFERENCES period (year, month) ON DELETE CASCADE ON UPDATE CASCADE
);
CREATE TABLE rate (
    base  TEXT NOT NULL REFERENCES currency (code) ON DELETE CASCADE ON UPDATE CASCADE,
    quote TEXT NOT NULL REFERENCES currency (code) ON DELETE CASCADE ON UPDATE CASCADE,
    day   TEXT NOT NULL,
    rate  REAL NOT NULL,
    typed TEXT,
    PRIMARY KEY (base, quote, day)
) STRICT;
CREATE VIEW trial_balance AS SELECT currency, sum(balance) AS total FROM account GROUP BY currency;
CREATE VIEW transfer AS SELECT e.id, e.year, e.month, a.account AS debit, b.account AS credit, a.cents FROM entry AS e JOIN line AS a ON a.entry = e.id AND a.n = 1 JOIN line AS b ON b.entry = e.id AND b.n = 2;
CREATE TRIGGER transfer_made INSTEAD OF INSERT ON transfer BEGIN INSERT INTO entry (id, year, month) VALUES (NEW.id, NEW.year, NEW.month); INSERT INTO line (entry, n, account, cents) VALUES (NEW.id, 1, NEW.debit, NEW.cents), (NEW.id, 2, NEW.credit, -NEW.cents); UPDATE entry SET posted = '2024-01-31 12:00:00' WHERE id = NEW.id; END;
CREATE TRIGGER line_comes AFTER INSERT ON line BEGIN UPDATE account SET balance = balance + NEW.cents WHERE code = NEW.account; END;
CREATE TRIGGER line_goes AFTER DELETE ON line BEGIN UPDATE account SET balance = balance - OLD.cents WHERE code = OLD.account; END;
CREATE TRIGGER line_changes AFTER UPDATE OF cents, account ON line BEGIN UPDATE account SET balance = balance - OLD.cents WHERE code = OLD.account; UPDATE account SET balance = balance + NEW.cents WHERE code = NEW.account; END;
CREATE TRIGGER entry_balances BEFORE UPDATE OF posted ON entry WHEN NEW.posted IS NOT NULL AND (SELECT coalesce(sum(cents), 0) FROM line WHERE entry = NEW.id) <> 0 BEGIN SELECT RAISE(ABORT, 'debit is not credit'); END;
CREATE TRIGGER closed_is_closed BEFORE INSERT ON entry WHEN (SELECT closed FROM period WHERE year = NEW.year AND month = NEW.month) BEGIN SELECT RAISE(ABORT, 'the period is closed'); END;
"#;

const TABLES: &[Table] = &[
    Table {
        name: "currency",
        columns: &[("code", TextKey, false), ("symbol", Name, true), ("digits", Small, false)],
        key: 1,
        references: &[],
        unique: &[&[1]],
        share: 5,
    },
    Table {
        name: "account",
        columns: &[
            ("code", TextKey, false),
            ("parent", Refers, true),
            ("currency", Refers, false),
            ("kind", OneOf(&["asset", "debt", "income", "cost"]), false),
            ("limits", Money, true),
        ],
        key: 1,
        references: &[(&[1], "account"), (&[2], "currency")],
        unique: &[],
        share: 14,
    },
    Table {
        name: "period",
        columns: &[("year", Small, false), ("month", Place, false), ("closed", Bool, false)],
        key: 2,
        references: &[],
        unique: &[],
        share: 8,
    },
    Table {
        name: "entry",
        columns: &[
            ("id", IntKey, false),
            ("year", Refers, false),
            ("month", Refers, false),
            ("number", Small, true),
            ("memo", Text, true),
            ("posted", DateTime, true),
            ("reverses", Refers, true),
        ],
        key: 1,
        references: &[(&[1, 2], "period"), (&[6], "entry")],
        unique: &[&[3], &[6]],
        share: 20,
    },
    Table {
        name: "line",
        columns: &[
            ("entry", Refers, false),
            ("n", Place, false),
            ("account", Refers, false),
            ("cents", Small, false),
            ("price", Figure, true),
        ],
        key: 2,
        references: &[(&[0], "entry"), (&[2], "account")],
        unique: &[],
        share: 36,
    },
    Table {
        name: "budget",
        columns: &[
            ("account", Refers, false),
            ("year", Refers, false),
            ("month", Refers, false),
            ("amount", Money, false),
        ],
        key: 3,
        references: &[(&[0], "account"), (&[1, 2], "period")],
        unique: &[],
        share: 10,
    },
    Table {
        name: "rate",
        columns: &[
            ("base", Refers, false),
            ("quote", Refers, false),
            ("day", Day, false),
            ("rate", Real, false),
            ("typed", Figure, true),
        ],
        key: 3,
        references: &[(&[0], "currency"), (&[1], "currency")],
        unique: &[],
        share: 7,
    },
];

fn special(generator: &mut Generator) -> Option<Vec<Stmt>> {
    match generator.rng.u32(0..7) {
        // Through the view.
        0 => {
            let cents = generator.rng.i64(1..1_000_000);
            let mut params = vec![generator.value(IntKey), cents.into()];
            params.extend(generator.existing("period")?);
            params.extend(generator.existing("account")?);
            params.extend(generator.existing("account")?);
            unit(
                &[
                    "INSERT INTO transfer (id, cents, year, month, debit, credit) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                ],
                &params,
            )
        }
        // An entry is taken back by another.
        1 => {
            let mut params = generator.existing("entry")?;
            params.push(generator.value(IntKey));
            unit(
                &[
                    "INSERT INTO entry (id, year, month, memo, reverses) SELECT ?2, year, month, 'back', id FROM entry WHERE id = ?1",
                    "INSERT INTO line (entry, n, account, cents) SELECT ?2, n, account, -cents FROM line WHERE entry = ?1",
                ],
                &params,
            )
        }
        // The chart of accounts is renumbered: keys that keys refer to.
        2 => {
            let mut params = generator.existing("account")?;
            params.push(generator.value(TextKey));
            unit(&["UPDATE account SET code = ?2 WHERE code = ?1"], &params)
        }
        // Two accounts change their codes, with all that hangs on them.
        3 => {
            let mut params = generator.existing("account")?;
            params.extend(generator.existing("account")?);
            params.push(generator.value(TextKey));
            unit(
                &[
                    "UPDATE account SET code = ?3 WHERE code = ?1 AND ?1 <> ?2",
                    "UPDATE account SET code = ?1 WHERE code = ?2 AND ?1 <> ?2",
                    "UPDATE account SET code = ?2 WHERE code = ?3",
                ],
                &params,
            )
        }
        // Closed, and numbered without gaps.
        4 => unit(
            &[
                "UPDATE period SET closed = 1 - closed WHERE year = ?1 AND month = ?2",
                "UPDATE entry SET number = NULL WHERE year = ?1",
                "UPDATE entry SET number = (SELECT count(*) FROM entry AS e WHERE e.year = ?1 AND e.id <= entry.id) WHERE year = ?1",
            ],
            &generator.existing("period")?,
        ),
        // The lines of an entry in another order.
        5 => unit(
            &["UPDATE line SET n = -n WHERE entry = ?1", "UPDATE line SET n = 13 + n WHERE entry = ?1"],
            &generator.existing("entry")?,
        ),
        // A child before its parent: the key is deferred.
        _ => {
            let (child, parent) = (generator.value(TextKey), generator.value(TextKey));
            let currency = generator.existing("currency")?;
            unit(
                &[
                    "INSERT INTO account (code, parent, currency, kind) VALUES (?1, ?2, ?3, 'asset')",
                    "INSERT INTO account (code, parent, currency, kind) VALUES (?2, ?1, ?3, 'asset')",
                ],
                &[vec![child, parent], currency].concat(),
            )
        }
    }
}
