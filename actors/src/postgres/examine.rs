//! One look at the cloud that changes nothing, for `doctor`: one connection, and questions in a transaction that can only
//! read.
//!
//! What `prepare` would do is asked for here, not done: which tables it would create, which columns add, which triggers
//! install, and whether this role may.

use std::time::SystemTime;

use futures_util::{StreamExt as _, TryStreamExt as _};

use super::*;
use crate::core::doctor::{Answers, CloudSide, Dial, Lack, Obstacle as Stopped, Others, Stage};
use crate::core::value::{Value, to_cloud};

/// No question here is worth more than this.
const QUESTION_MAX: Duration = Duration::from_secs(10);

/// How many tables are asked about at a time, on the one connection.
const TABLES_AT_ONCE: usize = 16;

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Questions {
    /// The tables that the file tracks.
    pub tables: Vec<Table>,
    /// This device in the ledger, where it has a name there.
    pub device: Option<String>,
    /// Devices that were not seen for so long do not count.
    pub retire_after: Duration,
}

impl Cloud {
    /// Connects once and asks. `clock` is this machine's.
    pub async fn examine(
        options: CloudOptions,
        questions: &Questions,
        clock: &(dyn Fn() -> SystemTime + Sync),
    ) -> Dial {
        let options = CloudOptions {
            statement_timeout: options.statement_timeout.min(QUESTION_MAX),
            pool_max: 1,
            ..options
        };
        // A pool of its own: its connection ends with this look, and no other thread depends on it.
        let session = match Self::new(options) {
            Ok(cloud) => cloud.connect().await,
            Err(failure) => Err(failure),
        };
        match session {
            Ok(session) => Dial::Answered(Box::new(session.answer(questions, clock).await)),
            Err(failure) => Dial::Failed(stopped(failure)),
        }
    }
}

/// How far it came.
fn stopped(failure: CloudFailure) -> Stopped {
    let refused = matches!(failure.class, FailureClass::Credentials)
        || matches!(failure.sqlstate.as_deref(), Some("42501"));
    let stage = match failure.class {
        _ if refused => Stage::Login,
        FailureClass::NotRunning | FailureClass::CheckFailed => Stage::Connect,
        _ if !failure.accepted => Stage::Connect,
        _ => Stage::Startup,
    };
    let CloudFailure { class, sqlstate, detail, remedy, .. } = failure;
    Stopped { stage, class, sqlstate, detail, remedy }
}

impl CloudSession {
    async fn answer(self, questions: &Questions, clock: &(dyn Fn() -> SystemTime + Sync)) -> Answers {
        let mut answers = Answers { pooler: self.is_shared(), ..Answers::default() };
        if let Err(failure) = self.ask_everything(questions, clock, &mut answers).await {
            answers.unanswered = Some(failure.detail);
        }
        answers
    }

    async fn ask_everything(
        &self,
        questions: &Questions,
        clock: &(dyn Fn() -> SystemTime + Sync),
        answers: &mut Answers,
    ) -> Result<()> {
        self.begin(READING, Phase::Setup).await?;
        (answers.clock_ahead_s, answers.clock_within_s) = self.compare_clocks(clock).await?;
        let schema = self.cloud.options.schema.clone();
        let rows =
            self.query(include_str!("../sql/postgres/examine_server.sql"), &[&schema], Phase::Setup).await?;
        let server = rows.first().ok_or_else(|| unexpected("the server does not say who it is"))?;
        let version: String = server.cell("version")?;
        // "15.8 (Debian 15.8-0+deb12u1)"
        answers.server = version.split(' ').next().unwrap_or_default().to_owned();
        answers.rights.extend(self.writes(server)?);
        answers.rights.extend(self.schemas(server)?);
        self.ask_ours(server, questions, answers).await?;
        let may_look = server.cell::<Option<bool>>("may_use")? == Some(true);
        if may_look {
            // Several questions on their way at a time: hundreds of tables behind a long line would take minutes else.
            let asked = questions.tables.iter().map(|table| self.ask_table(table));
            let asked: Vec<_> =
                futures_util::stream::iter(asked).buffered(TABLES_AT_ONCE).try_collect().await?;
            let (sides, rights): (Vec<CloudSide>, Vec<Option<Lack>>) = asked.into_iter().unzip();
            answers.rights.extend(rights.into_iter().flatten());
            if sides.iter().any(|side| !side.there)
                && server.cell::<Option<bool>>("may_create")? == Some(false)
            {
                answers.rights.push(Lack {
                    what: format!("this role may not create tables in schema {schema}"),
                    who: format!("as {}:", server.cell::<String>("owner_of_schema")?),
                    sql: Some(format!("GRANT CREATE ON SCHEMA {} TO {}", ident(&schema), self.role())),
                });
            }
            answers.tables = sides;
        }
        self.commit(Phase::Setup).await
    }

    fn role(&self) -> String {
        ident(&self.cloud.options.user)
    }

    /// How far the server is ahead, and how exact that is, in seconds.
    async fn compare_clocks(&self, clock: &(dyn Fn() -> SystemTime + Sync)) -> Result<(f64, f64)> {
        let question = "SELECT extract(epoch FROM clock_timestamp())::float8";
        // The first one is prepared, which is an exchange of its own.
        self.query(question, &[], Phase::Setup).await?;
        let since_1970 = || {
            let now = clock().duration_since(SystemTime::UNIX_EPOCH);
            now.map_or_else(|before| -before.duration().as_secs_f64(), |after| after.as_secs_f64())
        };
        let (asked, took) = (since_1970(), tokio::time::Instant::now());
        let rows = self.query(question, &[], Phase::Setup).await?;
        let within = took.elapsed().as_secs_f64() / 2.0;
        let there: f64 = first(&rows)?.ok_or_else(|| unexpected("the server has no clock"))?;
        Ok((there - (asked + within), within))
    }

    /// What keeps everybody from writing there.
    fn writes(&self, server: &Row) -> Result<Option<Lack>> {
        if server.cell("replica")? {
            return Ok(Some(Lack {
                what: "this server is a replica and only reads".into(),
                who: "point the proxy at the primary".into(),
                sql: None,
            }));
        }
        // Where sessions are shared, each transaction says that it writes, whatever somebody has left behind.
        if !server.cell::<bool>("reads_only")? || self.is_shared() {
            return Ok(None);
        }
        let (role, database) = (self.role(), ident(&self.cloud.options.database));
        let reset = "RESET default_transaction_read_only";
        let sql = match server.cell::<Option<String>>("reads_only_by")?.as_deref() {
            Some("user") => Some(format!("ALTER ROLE {role} {reset}")),
            Some("database") => Some(format!("ALTER DATABASE {database} {reset}")),
            Some("database user") => Some(format!("ALTER ROLE {role} IN DATABASE {database} {reset}")),
            _ => None,
        };
        Ok(Some(Lack {
            what: "transactions only read there (default_transaction_read_only)".into(),
            who: match sql {
                Some(_) => "as an administrator:".into(),
                None => "set default_transaction_read_only to off in the server's configuration".into(),
            },
            sql,
        }))
    }

    /// What is missing to use the schemas.
    fn schemas(&self, server: &Row) -> Result<Vec<Lack>> {
        let (role, schema) = (self.role(), &self.cloud.options.schema);
        let mut lacks = vec![];
        let ours: Option<bool> = server.cell("may_use_ours")?;
        if ours.is_none() && !server.cell::<bool>("may_create_schema")? {
            lacks.push(Lack {
                what: "this role may not create Tidewater's schema".into(),
                who: format!("as {}:", server.cell::<String>("owner")?),
                sql: Some(format!(
                    "GRANT CREATE ON DATABASE {} TO {role}",
                    ident(&self.cloud.options.database)
                )),
            });
        }
        if ours == Some(false) {
            lacks.push(Lack {
                what: "this role may not use schema tidewater, which another one made".into(),
                who: format!("as {}:", server.cell::<String>("owner_of_ours")?),
                sql: Some(format!(
                    "GRANT USAGE, CREATE ON SCHEMA tidewater TO {role}; \
                     GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA tidewater TO {role}"
                )),
            });
        }
        match server.cell::<Option<bool>>("may_use")? {
            None => lacks.push(Lack {
                what: format!("schema {schema} is not there"),
                who: format!("set cloud.schema; or, as {}:", server.cell::<String>("owner")?),
                sql: Some(format!("CREATE SCHEMA {} AUTHORIZATION {role}", ident(schema))),
            }),
            Some(false) => lacks.push(Lack {
                what: format!("this role may not use schema {schema}"),
                who: format!("as {}:", server.cell::<String>("owner_of_schema")?),
                sql: Some(format!("GRANT USAGE, CREATE ON SCHEMA {} TO {role}", ident(schema))),
            }),
            Some(true) => {}
        }
        Ok(lacks)
    }

    /// The mark, the version and the devices, and what this role may not do with them.
    async fn ask_ours(&self, server: &Row, questions: &Questions, answers: &mut Answers) -> Result<()> {
        if let Ok(rows) =
            self.query("SELECT system_identifier::text, (SELECT oid::text FROM pg_database WHERE datname = current_database()) FROM pg_control_system()", &[], Phase::Setup).await
        {
            answers.system = first(&rows)?;
            answers.database = rows.first().map(|row| row.cell(1)).transpose()?.flatten();
        } else {
            // The refusal ended the transaction.
            self.rollback(Phase::Setup).await?;
            self.begin(READING, Phase::Setup).await?;
        }
        if server.cell::<Option<bool>>("may_use_ours")? != Some(true) {
            return Ok(());
        }
        let rows = self.query(include_str!("../sql/postgres/examine_ours.sql"), &[], Phase::Setup).await?;
        let lacking = rows.iter().map(|row| Ok((row.cell("name")?, row.cell("lacking")?)));
        let lacking = lacking.collect::<Result<HashMap<String, Vec<String>>>>()?;
        for (name, rights) in lacking.iter().filter(|(_, rights)| !rights.is_empty()) {
            let rights = rights.join(", ");
            answers.rights.push(Lack {
                what: format!("this role may not {} tidewater.{name}", rights.to_lowercase()),
                who: format!("as {}:", server.cell::<String>("owner_of_ours")?),
                sql: Some(format!("GRANT {rights} ON tidewater.{name} TO {}", self.role())),
            });
        }
        let may_read =
            |name: &str| lacking.get(name).is_some_and(|rights| !rights.contains(&"SELECT".to_owned()));
        if may_read("identity") {
            let rows = self
                .query("SELECT id::text, schema_version::int8 FROM tidewater.identity", &[], Phase::Setup)
                .await?;
            if let Some(row) = rows.first() {
                (answers.identity, answers.protocol) = (Some(row.cell(0)?), Some(row.cell(1)?));
            }
        }
        if may_read("devices") {
            let rows = self.query("SELECT count(*) FROM tidewater.devices", &[], Phase::Setup).await?;
            answers.devices = first::<i64>(&rows)?.and_then(|count| u64::try_from(count).ok());
            answers.versions = self.ask_versions(questions).await?;
        }
        Ok(())
    }

    /// What the other devices run, where the ledger has a column for it that this role may read.
    async fn ask_versions(&self, questions: &Questions) -> Result<Option<Vec<Others>>> {
        let may_read = "SELECT has_column_privilege(attrelid, attnum, 'SELECT') FROM pg_attribute \
                        WHERE attrelid = 'tidewater.devices'::regclass AND attname = 'version' AND NOT attisdropped";
        if first::<bool>(&self.query(may_read, &[], Phase::Setup).await?)? != Some(true) {
            return Ok(None);
        }
        let lately = questions.retire_after.as_secs_f64();
        let sql = include_str!("../sql/postgres/examine_versions.sql");
        let rows = self.query(sql, &[&questions.device, &lately], Phase::Setup).await?;
        let others = rows.iter().map(|row| {
            let devices: i64 = row.cell("devices")?;
            Ok(Others {
                version: row.cell("version")?,
                devices: u64::try_from(devices).unwrap_or(0),
                some: row.cell("some")?,
            })
        });
        Ok(Some(others.collect::<Result<_>>()?))
    }

    /// One tracked table as it is there, and what this role may not do with it.
    async fn ask_table(&self, table: &Table) -> Result<(CloudSide, Option<Lack>)> {
        let mut side = CloudSide { name: table.name.clone(), ..CloudSide::default() };
        let found = self.columns(table).await?;
        let Some(oid) = found.values().next().map(|column| column.table_oid) else { return Ok((side, None)) };
        side.there = true;
        let on = cloud::qualified(&self.cloud.options.schema, &table.name);
        let rows =
            self.query(include_str!("../sql/postgres/examine_table.sql"), &[&oid], Phase::Setup).await?;
        let row = rows.first().ok_or_else(|| unexpected("a table disappeared"))?;
        let owner: String = row.cell("owner")?;
        side.may_install = row.cell("owns")?;
        side.let_install = format!("ALTER TABLE {on} OWNER TO {}", self.role());
        let mut lacking: Vec<String> = row.cell("lacking")?;
        lacking.retain(|right| right == "SELECT" || table.rule.direction.sends());
        let rights = (!lacking.is_empty()).then(|| Lack {
            what: format!("this role may not {} {}", lacking.join(", ").to_lowercase(), table.name),
            who: format!("as {owner}:"),
            sql: Some(format!("GRANT {} ON {on} TO {}", lacking.join(", "), self.role())),
        });
        side.drift = self.drift(table, &found, oid, &on, &owner).await?;
        // Where nothing comes home, nobody asks for the feed.
        side.feed = !table.rule.direction.receives() || self.is_covered(table, &found, oid).await?;
        Ok((side, rights))
    }

    /// Whether the feed covers it, as `cover` asks.
    async fn is_covered(
        &self,
        table: &Table,
        found: &HashMap<String, FoundColumn>,
        oid: u32,
    ) -> Result<bool> {
        let unknown = CloudColumn {
            kind: CloudType::Text,
            cast: "text".into(),
            exact: "text".into(),
            generated: false,
            nullable: true,
            number: 0,
        };
        let column = |column: &crate::core::schema::Column| {
            found.get(&column.name).map_or_else(|| unknown.clone(), |found| found.column.clone())
        };
        let as_found = self.as_found(table, oid, table.columns.iter().map(column).collect());
        Ok(self.uncovered(table, &as_found).await?.0.is_empty())
    }

    /// How its columns differ from those here, where that stands in the way of a row.
    async fn drift(
        &self,
        table: &Table,
        found: &HashMap<String, FoundColumn>,
        oid: u32,
        on: &str,
        owner: &str,
    ) -> Result<Vec<Lack>> {
        let lack = |what: String, sql: Option<String>| Lack {
            what: format!("table {}: {what}", table.name),
            who: match sql {
                Some(_) => format!("as {owner}:"),
                None => "make the table there as it is here, or the other way round".into(),
            },
            sql,
        };
        let mut drift = vec![];
        let key = self.query(include_str!("../sql/postgres/key_columns.sql"), &[&oid], Phase::Setup).await?;
        let key = key.iter().map(|row| row.cell(0)).collect::<Result<Vec<String>>>()?;
        if key != table.key_names() {
            let (there, here) = (key.join(", "), table.key_names().join(", "));
            drift.push(lack(format!("its primary key is ({there}) there and ({here}) here"), None));
        }
        for (at, column) in table.columns.iter().enumerate() {
            let name = ident(&column.name);
            let Some(there) = found.get(&column.name) else {
                let definition = cloud::column_definition(table, at, false);
                drift.push(lack(
                    format!("the cloud has no column {}", column.name),
                    Some(format!("ALTER TABLE {on} ADD COLUMN {definition}")),
                ));
                continue;
            };
            if there.column.generated && table.is_key(at) {
                drift.push(lack(
                    format!("the column {} is generated there", column.name),
                    Some(format!("ALTER TABLE {on} ALTER COLUMN {name} DROP EXPRESSION")),
                ));
            } else if !carries(&column.declared, &there.column.kind) {
                let wanted = CloudType::for_declared(&column.declared).sql();
                drift.push(lack(
                    format!(
                        "{} is {} here and {} there",
                        column.name,
                        declared(&column.declared),
                        there.column.cast
                    ),
                    Some(format!(
                        "ALTER TABLE {on} ALTER COLUMN {name} TYPE {wanted} USING {name}::{wanted}"
                    )),
                ));
            }
        }
        let mut demanded: Vec<&String> = found
            .iter()
            .filter(|(name, there)| {
                there.demanded && !table.columns.iter().any(|column| column.name == **name)
            })
            .map(|(name, _)| name)
            .collect();
        demanded.sort();
        for name in demanded {
            drift.push(lack(
                format!("the cloud demands a value for {name}, which is not here"),
                Some(format!("ALTER TABLE {on} ALTER COLUMN {} DROP NOT NULL", ident(name))),
            ));
        }
        Ok(drift)
    }
}

fn declared(text: &str) -> &str {
    if text.is_empty() { "of any type" } else { text }
}

/// Whether a column of this type can carry what is usual in one that is declared so here. An existing cloud table may well
/// have other types than one that Tidewater makes; what matters is that its rows get through.
fn carries(declared: &str, there: &CloudType) -> bool {
    let usual = match CloudType::for_declared(declared) {
        CloudType::Int8 => Value::Integer(2),
        CloudType::Bool => Value::Integer(1),
        CloudType::Float8 => Value::Real(0.5),
        CloudType::Bytea => Value::Blob(vec![0xff]),
        CloudType::Numeric(_) => Value::Integer(1),
        // Texts are of many kinds, and every type that travels as text has its own.
        _ => return there.wire() == Wire::Text,
    };
    to_cloud(&usual, crate::core::value::Affinity::of_declared(declared), there).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A type that is merely another one carries; one that no usual value fits into does not.
    #[test]
    fn a_type_drifts_when_no_usual_value_fits_into_it() {
        for (here, there, carried) in [
            ("INTEGER", CloudType::Int4, true),
            ("INTEGER", CloudType::Bytea, false),
            ("INTEGER", CloudType::Bool, false),
            ("BOOLEAN", CloudType::Int2, true),
            ("TEXT", CloudType::Uuid, true),
            ("TEXT", CloudType::TimestampTz, true),
            ("TEXT", CloudType::Int8, false),
            ("VARCHAR(10)", CloudType::Other("citext".into()), true),
            ("REAL", CloudType::Float4, true),
            ("REAL", CloudType::Int8, false),
            ("BLOB", CloudType::Text, false),
            ("NUMERIC(10,2)", CloudType::Numeric(Some((10, 2))), true),
        ] {
            assert_eq!(carries(here, &there), carried, "{here} in {there:?}");
        }
    }
}
