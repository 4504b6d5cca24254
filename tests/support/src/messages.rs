//! A message log: threads, attachments, read marks, and a full-text table beside it that triggers keep.

use crate::shop::*;

/// The log.
pub const DESIGN: Design = Design {
    schema: SCHEMA,
    synced: &["account", "room", "member", "message", "attachment", "reaction", "read_mark"],
    tables: TABLES,
    special,
};

const SCHEMA: &str = r#"
CREATE TABLE account (
    name   TEXT PRIMARY KEY NOT NULL,
    handle TEXT NOT NULL UNIQUE,
    avatar BLOB
);
CREATE TABLE room (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    topic        TEXT,
    messages     INTEGER NOT NULL DEFAULT 0,
    last_message INTEGER REFERENCES message (id) ON DELETE SET NULL ON UPDATE CASCADE DEFERRABLE INITIALLY DEFERRED
);
CREATE TABLE member (
    room    INTEGER NOT NULL REFERENCES room (id) ON DELETE CASCADE ON UPDATE CASCADE,
    account TEXT NOT NULL REFERENCES account (name) ON DELETE CASCADE ON UPDATE CASCADE,
    role    TEXT NOT NULL DEFAULT 'guest' CHECK (role IN ('guest', 'member', 'owner')),
    PRIMARY KEY (room, account)
) WITHOUT ROWID;
CREATE TABLE message (
    id       INTEGER PRIMARY KEY AUTOINCREMENT,
    room     INTEGER NOT NULL REFERENCES room (id) ON DELETE CASCADE ON UPDATE CASCADE,
    author   TEXT REFERENCES account (name) ON DELETE SET NULL ON UPDATE CASCADE,
    thread   INTEGER REFERENCES message (id) ON DELETE CASCADE ON UPDATE CASCADE,
    reply_to INTEGER REFERENCES message (id) ON DELETE SET NULL ON UPDATE CASCADE,
    body     TEXT,
    sent     DATETIME NOT NULL
);
CREATE INDEX unthreaded ON message (room, sent) WHERE thread IS NULL;
CREATE TABLE attachment (
    message INTEGER NOT NULL REFERENCES message (id) ON DELETE CASCADE ON UPDATE CASCADE,
    n       INTEGER NOT NULL,
    data    BLOB NOT NULL,
    size    INTEGER GENERATED ALWAYS AS (length(data)) STORED,
    PRIMARY KEY (message, n)
);
CREATE TABLE reaction (
    message INTEGER NOT NULL REFERENCES message (id) ON DELETE CASCADE ON UPDATE CASCADE,
    account TEXT NOT NULL REFERENCES account (name) ON DELETE CASCADE ON UPDATE CASCADE,
    emoji   TEXT NOT NULL,
    PRIMARY KEY (message, account, emoji)
) WITHOUT ROWID;
CREATE TABLE read_mark (
    room    INTEGER NOT NULL,
    account TEXT NOT NULL,
    message INTEGER NOT NULL REFERENCES message (id) ON DELETE CASCADE ON UPDATE CASCADE,
    PRIMARY KEY (room, account),
    FOREIGN KEY (room, account) REFERENCES member (room, account) ON DELETE CASCADE ON UPDATE CASCADE
);
CREATE VIRTUAL TABLE message_text USING fts5(body);
CREATE TRIGGER message_comes AFTER INSERT ON message BEGIN INSERT INTO message_text (rowid, body) VALUES (NEW.id, NEW.body); UPDATE room SET messages = messages + 1, last_message = NEW.id WHERE id = NEW.room; END;
CREATE TRIGGER message_goes AFTER DELETE ON message BEGIN DELETE FROM message_text WHERE rowid = OLD.id; UPDATE room SET messages = messages - 1 WHERE id = OLD.room; END;
CREATE TRIGGER message_changes AFTER UPDATE OF id, body ON message BEGIN DELETE FROM message_text WHERE rowid = OLD.id; INSERT INTO message_text (rowid, body) VALUES (NEW.id, NEW.body); END;
"#;

const TABLES: &[Table] = &[
    Table {
        name: "account",
        columns: &[("name", TextKey, false), ("handle", Email, false), ("avatar", Blob, true)],
        key: 1,
        references: &[],
        unique: &[&[1]],
        share: 8,
    },
    Table {
        name: "room",
        columns: &[("id", IntKey, false), ("topic", Text, true)],
        key: 1,
        references: &[],
        unique: &[],
        share: 5,
    },
    Table {
        name: "member",
        columns: &[
            ("room", Refers, false),
            ("account", Refers, false),
            ("role", OneOf(&["guest", "member", "owner"]), false),
        ],
        key: 2,
        references: &[(&[0], "room"), (&[1], "account")],
        unique: &[],
        share: 12,
    },
    Table {
        name: "message",
        columns: &[
            ("id", IntKey, false),
            ("room", Refers, false),
            ("author", Refers, true),
            ("thread", Refers, true),
            ("reply_to", Refers, true),
            ("body", Text, true),
            ("sent", DateTime, false),
        ],
        key: 1,
        references: &[(&[1], "room"), (&[2], "account"), (&[3], "message"), (&[4], "message")],
        unique: &[],
        share: 40,
    },
    Table {
        name: "attachment",
        columns: &[("message", Refers, false), ("n", Place, false), ("data", Blob, false)],
        key: 2,
        references: &[(&[0], "message")],
        unique: &[],
        share: 10,
    },
    Table {
        name: "reaction",
        columns: &[
            ("message", Refers, false),
            ("account", Refers, false),
            ("emoji", OneOf(&["👍", "👩\u{200d}🚀", "❤️", ":-)", ""]), false),
        ],
        key: 3,
        references: &[(&[0], "message"), (&[1], "account")],
        unique: &[],
        share: 14,
    },
    Table {
        name: "read_mark",
        columns: &[("room", Refers, false), ("account", Refers, false), ("message", Refers, false)],
        key: 2,
        references: &[(&[0, 1], "member"), (&[2], "message")],
        unique: &[],
        share: 11,
    },
];

fn special(generator: &mut Generator) -> Option<Vec<Stmt>> {
    match generator.rng.u32(0..20) {
        // Everybody has read everything.
        0..4 => unit(
            &[
                "INSERT INTO read_mark SELECT m.room, m.account, (SELECT max(id) FROM message WHERE room = ?1) \
               FROM member AS m WHERE m.room = ?1 AND EXISTS (SELECT 1 FROM message WHERE room = ?1) \
               ON CONFLICT DO UPDATE SET message = excluded.message",
            ],
            &generator.existing("room")?,
        ),
        // An account is renamed, and so is everything of its.
        4..8 => {
            let mut account = generator.existing("account")?;
            account.push(generator.value(TextKey));
            unit(&["UPDATE account SET name = ?2 WHERE name = ?1"], &account)
        }
        // A thread goes to another room, or goes.
        8..12 => {
            let (room, message) = (generator.existing("room")?, generator.existing("message")?);
            unit(&["UPDATE message SET room = ?1 WHERE id = ?2 OR thread = ?2"], &[room, message].concat())
        }
        12..14 => unit(
            &[
                "UPDATE message SET reply_to = NULL WHERE reply_to = ?1",
                "DELETE FROM message WHERE id = ?1 OR thread = ?1",
            ],
            &generator.existing("message")?,
        ),
        // A room is left to nobody.
        14 => unit(&["DELETE FROM room WHERE id = ?1"], &generator.existing("room")?),
        // The older answer is now an answer to the newer.
        _ => unit(
            &[
                "UPDATE message SET reply_to = (SELECT max(id) FROM message) WHERE id = ?1",
                "UPDATE message SET thread = ?1 WHERE id = (SELECT min(id) FROM message WHERE id <> ?1)",
            ],
            &generator.existing("message")?,
        ),
    }
}
