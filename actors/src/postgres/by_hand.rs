//! What an administrator runs in the cloud for a role that may not do it itself: the statements that a device would run, as
//! scripts. Each is one transaction, and can be run again at any time.

use serde::Serialize;

use super::{ADVISORY_LOCK, our_side};
use crate::core::schema::Table;
use crate::core::value::CloudType;
use crate::sql::cloud::{self, qualified};
use crate::sql::{ident, list};

/// For whom, and for what.
#[derive(Debug, Clone, Copy)]
pub struct ByHand<'a> {
    /// The role of the devices.
    pub role: &'a str,
    /// The database, where it is known.
    pub database: Option<&'a str>,
    /// The schema of the synced tables.
    pub schema: &'a str,
    /// The tables that are synced.
    pub tables: &'a [Table],
}

/// The scripts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Scripts {
    /// What a device needs to push, and no more.
    pub push: String,
    /// What it needs on top of that to pull.
    pub pull: String,
}

impl ByHand<'_> {
    /// The scripts. None of them names a secret.
    #[must_use]
    pub fn scripts(&self) -> Scripts {
        Scripts { push: transaction(&self.push()), pull: transaction(&self.pull()) }
    }

    /// Tidewater's own side, the tables, and what the role may do with both. As `examine_ours.sql` and `examine_table.sql` ask
    /// for it.
    fn push(&self) -> String {
        let role = ident(self.role);
        let mut sql = format!("{}\n", our_side());
        sql += &self.make_tables();
        if let Some(database) = self.database {
            sql += &format!("GRANT CONNECT ON DATABASE {} TO {role};\n", ident(database));
        }
        // What an older version granted, or one that asked for more.
        sql += &block(&format!(
            "DECLARE\n    ours regclass;\nBEGIN\n    FOR ours IN SELECT c.oid FROM pg_class c WHERE c.relnamespace = \
             'tidewater'::regnamespace AND c.relkind = 'r' AND pg_get_userbyid(c.relowner) <> {} LOOP\n        \
             EXECUTE format('REVOKE ALL ON %s FROM %I', ours, {});\n    END LOOP;\nEND ",
            quoted(self.role),
            quoted(self.role),
        ));
        sql += &format!(
            "GRANT USAGE ON SCHEMA tidewater, {} TO {role};\n\
             GRANT SELECT ON tidewater.identity TO {role};\n\
             GRANT SELECT, INSERT, UPDATE ON tidewater.devices TO {role};\n\
             GRANT SELECT, UPDATE (origin) ON tidewater.changes TO {role};\n\
             GRANT SELECT, UPDATE (one) ON tidewater.feed TO {role};\n\
             GRANT SELECT, INSERT, UPDATE ON tidewater.cursors TO {role};\n\
             GRANT INSERT ON tidewater.conflicts TO {role};\n\
             GRANT EXECUTE ON FUNCTION tidewater.register(uuid, uuid), \
             tidewater.trim(float8, float8, bigint, bigint, bigint) TO {role};\n",
            ident(self.schema)
        );
        for table in self.tables {
            let on = qualified(self.schema, &table.name);
            let rights =
                if table.rule.direction.sends() { "SELECT, INSERT, UPDATE, DELETE" } else { "SELECT" };
            sql += &format!("GRANT {rights} ON {on} TO {role};\n");
        }
        sql
    }

    /// The tables that are missing, with their foreign keys; of those that are there, the columns that are missing.
    fn make_tables(&self) -> String {
        let mut tables = String::new();
        let mut foreign_keys = String::new();
        for table in self.tables.iter().filter(|table| table.rule.direction.sends()) {
            let (on, name) = (qualified(self.schema, &table.name), quoted(&table.name));
            let create = cloud::create_table(table, self.schema, &table.referred_to(self.tables));
            // Asked for first: to alter a table locks it, and takes its owner.
            let columns: String = (0..table.columns.len())
                .map(|c| {
                    format!(
                        "        IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass({}) AND attname = {} \
                         AND NOT attisdropped) THEN\n            ALTER TABLE {on} ADD COLUMN {};\n        END IF;\n",
                        quoted(&on),
                        quoted(&table.columns[c].name),
                        cloud::column_definition(table, c, false)
                    )
                })
                .collect();
            tables += &format!(
                "    IF to_regclass({}) IS NULL THEN\n        {create};\n        made := array_append(made, {name});\n    \
                 ELSE\n{columns}    END IF;\n",
                quoted(&on)
            );
            for sql in cloud::foreign_keys(table, self.tables, self.schema) {
                // As a device does: a table without one of its foreign keys is better than no table.
                foreign_keys += &format!(
                    "    IF {name} = ANY (made) THEN\n        BEGIN {sql};\n        \
                     EXCEPTION WHEN OTHERS THEN RAISE WARNING 'a foreign key is not kept: %', SQLERRM; END;\n    END IF;\n"
                );
            }
        }
        let schema = format!(
            "    IF to_regnamespace({}) IS NULL THEN\n        CREATE SCHEMA {};\n    END IF;\n",
            quoted(&ident(self.schema)),
            ident(self.schema)
        );
        block(&format!("DECLARE\n    made text[] := '{{}}';\nBEGIN\n{schema}{tables}{foreign_keys}END "))
    }

    /// The feed of each table.
    fn pull(&self) -> String {
        let mut sql = format!("{}\n", include_str!("../sql/postgres/cover.sql"));
        let triggers = ["INSERT", "UPDATE", "DELETE", "TRUNCATE"].map(cloud::feed_trigger);
        let texts = [
            include_str!("../sql/postgres/columns.sql"),
            include_str!("../sql/postgres/feed_targets.sql"),
            &cloud::feed_body_of("<oid>", "<key>", "<same>"),
            &cloud::feed_function("<oid>", "<body>"),
            &cloud::feed_triggers("<oid>", "<target>"),
        ];
        let mut calls = String::new();
        for table in self.tables.iter().filter(|table| table.rule.direction.receives()) {
            let key = || table.key.iter().map(|c| ident(&table.columns[*c].name));
            let written = |kind: &CloudType| array(key().map(|name| cloud::text_of(kind, &name)));
            let kept = |is_its_text| array(key().map(|name| cloud::key_is_kept(&name, is_its_text)));
            calls += &format!(
                "    PERFORM pg_temp.tidewater_cover({}, {}, {}, {}, {}, {}, {}, triggers, find_columns, find_targets, body, \
                 make_function, make_triggers);\n",
                quoted(self.schema),
                quoted(&table.name),
                array(table.key_names()),
                written(&CloudType::Text),
                written(&CloudType::Other("inet".into())),
                kept(true),
                kept(false),
            );
        }
        let names = ["find_columns", "find_targets", "body", "make_function", "make_triggers"];
        let texts: String = names
            .iter()
            .zip(texts)
            .map(|(name, text)| format!("    {name} text := {};\n", quoted(text)))
            .collect();
        sql += &block(&format!(
            "DECLARE\n    triggers text[] := {};\n{texts}BEGIN\n{calls}END ",
            array(triggers)
        ));
        sql + "DROP FUNCTION pg_temp.tidewater_cover;\n"
    }
}

/// All of it or nothing, without holding up who uses the tables, and one after the other with the devices that make such things themselves.
fn transaction(sql: &str) -> String {
    let lock = block(&format!("BEGIN PERFORM pg_advisory_xact_lock({ADVISORY_LOCK}); END "));
    format!(
        "BEGIN;\nSET LOCAL client_min_messages = warning;\nSET LOCAL lock_timeout = '10s';\n{lock}{sql}COMMIT;\n"
    )
}

fn block(sql: &str) -> String {
    format!("DO {};\n", quoted(sql))
}

/// Text that PostgreSQL takes as it is, whatever is in it.
fn quoted(text: &str) -> String {
    // A tag that ends where the text does not: what is quoted may have quoted text in it.
    let tag = (0..).map(|n| format!("$q{n}$")).find(|tag| !text.contains(tag.as_str())).unwrap_or_default();
    format!("{tag}{text}{tag}")
}

fn array<T: AsRef<str>>(texts: impl IntoIterator<Item = T>) -> String {
    format!("ARRAY[{}]", list(texts, |text| quoted(text.as_ref())))
}
