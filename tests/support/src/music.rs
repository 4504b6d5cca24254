//! A music library: who refers to whom goes in circles, and what stands where is moved all the time.

use crate::shop::*;

/// The library.
pub const DESIGN: Design = Design {
    schema: SCHEMA,
    synced: &["genre", "artist", "album", "track", "track_genre", "playlist", "playlist_track", "play"],
    tables: TABLES,
    special,
};

const SCHEMA: &str = r#"
CREATE TABLE genre (
    name   TEXT PRIMARY KEY NOT NULL,
    parent TEXT REFERENCES genre (name) ON DELETE SET NULL ON UPDATE CASCADE
) WITHOUT ROWID;
CREATE TABLE artist (
    id            INTEGER PRIMARY KEY AUTOINCREMENT,
    name          TEXT NOT NULL UNIQUE COLLATE NOCASE,
    sort_name     TEXT GENERATED ALWAYS AS (lower(name)) VIRTUAL,
    born          DATE,
    influenced_by INTEGER REFERENCES artist (id) ON DELETE SET NULL ON UPDATE CASCADE
);
CREATE INDEX artist_by_sort_name ON artist (sort_name);
CREATE TABLE album (
    id         UUID PRIMARY KEY NOT NULL,
    artist_id  INTEGER NOT NULL REFERENCES artist (id) ON DELETE CASCADE ON UPDATE CASCADE,
    title      TEXT NOT NULL,
    released   DATE,
    cover      BLOB,
    best_track INTEGER REFERENCES track (id) ON DELETE SET NULL ON UPDATE CASCADE,
    UNIQUE (artist_id, title)
);
CREATE TABLE track (
    id       INTEGER PRIMARY KEY,
    album_id UUID NOT NULL REFERENCES album (id) ON DELETE CASCADE ON UPDATE CASCADE,
    number   INTEGER NOT NULL,
    title    TEXT NOT NULL,
    seconds  REAL,
    isrc     TEXT UNIQUE,
    plays    INTEGER NOT NULL DEFAULT 0,
    UNIQUE (album_id, number)
);
CREATE TABLE track_genre (
    track_id INTEGER NOT NULL REFERENCES track (id) ON DELETE CASCADE ON UPDATE CASCADE,
    genre    TEXT NOT NULL REFERENCES genre (name) ON DELETE CASCADE ON UPDATE CASCADE,
    PRIMARY KEY (track_id, genre)
) WITHOUT ROWID;
CREATE TABLE playlist (
    id   INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL
);
CREATE TABLE playlist_track (
    playlist_id INTEGER NOT NULL REFERENCES playlist (id) ON DELETE CASCADE ON UPDATE CASCADE,
    position    INTEGER NOT NULL,
    track_id    INTEGER NOT NULL REFERENCES track (id) ON DELETE CASCADE ON UPDATE CASCADE,
    added       DATETIME,
    PRIMARY KEY (playlist_id, position),
    UNIQUE (playlist_id, track_id)
);
CREATE TABLE play (
    id       INTEGER PRIMARY KEY AUTOINCREMENT,
    track_id INTEGER REFERENCES track (id) ON DELETE SET NULL ON UPDATE CASCADE,
    at       DATETIME NOT NULL
);
CREATE VIEW top_track AS SELECT id, title, plays FROM track ORDER BY plays DESC LIMIT 10;
CREATE TRIGGER play_counts AFTER INSERT ON play BEGIN UPDATE track SET plays = plays + 1 WHERE id = NEW.track_id; END;
CREATE TRIGGER play_uncounts AFTER DELETE ON play BEGIN UPDATE track SET plays = plays - 1 WHERE id = OLD.track_id; END;
"#;

const TABLES: &[Table] = &[
    Table {
        name: "genre",
        columns: &[("name", TextKey, false), ("parent", Refers, true)],
        key: 1,
        references: &[(&[1], "genre")],
        unique: &[],
        share: 4,
    },
    Table {
        name: "artist",
        columns: &[
            ("id", IntKey, false),
            ("name", Name, false),
            ("born", Day, true),
            ("influenced_by", Refers, true),
        ],
        key: 1,
        references: &[(&[3], "artist")],
        unique: &[&[1]],
        share: 10,
    },
    Table {
        name: "album",
        columns: &[
            ("id", UuidKey, false),
            ("artist_id", Refers, false),
            ("title", Name, false),
            ("released", Day, true),
            ("cover", Blob, true),
            ("best_track", Refers, true),
        ],
        key: 1,
        references: &[(&[1], "artist"), (&[5], "track")],
        unique: &[&[1, 2]],
        share: 14,
    },
    Table {
        name: "track",
        columns: &[
            ("id", IntKey, false),
            ("album_id", Refers, false),
            ("number", Place, false),
            ("title", Name, false),
            ("seconds", Real, true),
            ("isrc", Name, true),
        ],
        key: 1,
        references: &[(&[1], "album")],
        unique: &[&[1, 2], &[5]],
        share: 30,
    },
    Table {
        name: "track_genre",
        columns: &[("track_id", Refers, false), ("genre", Refers, false)],
        key: 2,
        references: &[(&[0], "track"), (&[1], "genre")],
        unique: &[],
        share: 14,
    },
    Table {
        name: "playlist",
        columns: &[("id", IntKey, false), ("name", Name, false)],
        key: 1,
        references: &[],
        unique: &[],
        share: 4,
    },
    Table {
        name: "playlist_track",
        columns: &[
            ("playlist_id", Refers, false),
            ("position", Place, false),
            ("track_id", Refers, false),
            ("added", DateTime, true),
        ],
        key: 2,
        references: &[(&[0], "playlist"), (&[2], "track")],
        unique: &[&[2]],
        share: 14,
    },
    Table {
        name: "play",
        columns: &[("id", IntKey, false), ("track_id", Refers, true), ("at", DateTime, false)],
        key: 1,
        references: &[(&[1], "track")],
        unique: &[],
        share: 10,
    },
];

fn special(generator: &mut Generator) -> Option<Vec<Stmt>> {
    match generator.rng.u32(0..6) {
        // The last track of an album comes first; no number is there twice at any time.
        0 => {
            let album = generator.existing("album")?;
            unit(
                &[
                    "UPDATE track SET number = -number WHERE album_id = ?1",
                    "UPDATE track SET number = CASE WHEN number = (SELECT min(number) FROM track WHERE album_id = ?1) \
                     THEN 1 ELSE 1 - number END WHERE album_id = ?1",
                ],
                &album,
            )
        }
        // A playlist is turned round: its keys are.
        1 => {
            let playlist = generator.existing("playlist")?;
            unit(
                &[
                    "UPDATE playlist_track SET position = -position WHERE playlist_id = ?1",
                    "UPDATE playlist_track SET position = 13 + position WHERE playlist_id = ?1",
                ],
                &playlist,
            )
        }
        // Albums and their best tracks refer to each other.
        2 => unit(
            &[
                "UPDATE album SET best_track = (SELECT max(id) FROM track WHERE album_id = album.id) WHERE artist_id = ?1",
            ],
            &generator.existing("artist")?,
        ),
        // Somebody listens.
        3 => {
            let track = generator.existing("track")?;
            unit(
                &[
                    "INSERT INTO play (track_id, at) VALUES (?1, '2024-05-05 20:15:00')",
                    "INSERT INTO play (track_id, at) VALUES (?1, '2024-05-05 20:19:00.5')",
                ],
                &track,
            )
        }
        // Two albums become one.
        4 => {
            let (from, into) = (generator.existing("album")?, generator.existing("album")?);
            unit(
                &[
                    "UPDATE OR IGNORE track SET album_id = ?2 WHERE album_id = ?1 AND ?1 <> ?2",
                    "DELETE FROM album WHERE id = ?1 AND ?1 <> ?2",
                ],
                &[from, into].concat(),
            )
        }
        _ => unit(
            &["DELETE FROM play WHERE track_id IN (SELECT id FROM track WHERE album_id = ?1)"],
            &generator.existing("album")?,
        ),
    }
}
