//! `cloud-sql`: what an administrator runs in the cloud for a role that owns nothing there.

use clap::Args;
use serde::Serialize;
use tidewater_actors::postgres::{ByHand, Scripts};
use tidewater_actors::sqlite;

use super::rows::{Answered, answered, failed};
use super::{Exit, Output, on_one_line};
use crate::parked::require_readable;
use crate::settings::Settings;

/// What `cloud-sql` takes.
#[derive(Debug, Clone, Args)]
#[command(
    long_about = "Prints the SQL that makes the cloud ready for a role that may create nothing there: Tidewater's schema, the \
                  tables of this file, the least rights to push, and the change feed, which is what it takes to pull. An \
                  administrator runs it, once and after each change of the tables; what is there already stays. Needs \
                  neither a supervisor nor a connection, and changes nothing.",
    after_help = "Examples, as a superuser, or as the owner of the database and of its tables:\n  \
                  run_supervisor cloud-sql --role app | psql -v ON_ERROR_STOP=1 -d orders\n\n\
                  --json prints {role, schema, tables, local, push, pull}: push and pull are SQL, one transaction each; \
                  without pull where --push-only is given.\n\
                  Exit status: 0 printed, 1 the file cannot be read, 2 usage."
)]
pub struct CloudSqlArgs {
    /// The role of the devices [default: that of CLOUD_SQL_USER]
    #[arg(long, value_name = "NAME")]
    pub role: Option<String>,
    /// Only what it takes to push
    #[arg(long)]
    pub push_only: bool,
    /// How to print
    #[command(flatten)]
    pub output: Output,
}

/// What is printed as JSON.
#[derive(Serialize)]
struct Printed<'a> {
    role: &'a str,
    schema: &'a str,
    tables: Vec<&'a str>,
    local: Vec<&'a str>,
    push: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pull: Option<&'a str>,
}

impl CloudSqlArgs {
    /// Prints it. The error is the exit status with the reason.
    ///
    /// # Errors
    /// [`Exit::Usage`] where nobody names a role, [`Exit::Failed`] where the file cannot be read.
    pub fn run(&self, settings: &Settings) -> Result<Answered, (Exit, String)> {
        let cloud = &settings.cloud;
        let Some(role) = self.role.as_deref().or(cloud.user.as_deref()) else {
            return Err((Exit::Usage, "name the role of the devices: --role NAME, or CLOUD_SQL_USER".into()));
        };
        require_readable(&settings.sqlite.path).map_err(failed)?;
        let (tables, local) =
            sqlite::syncable(&settings.sqlite.path, settings.sqlite.busy_timeout, &settings.tables.rules())
                .map_err(failed)?;
        let database = cloud.database.as_deref();
        let scripts = ByHand { role, database, schema: &cloud.schema, tables: &tables }.scripts();
        let Scripts { push, pull } = &scripts;
        let pull = (!self.push_only).then_some(pull.as_str());
        let printed = Printed {
            role,
            schema: &cloud.schema,
            tables: tables.iter().map(|table| table.name.as_str()).collect(),
            local: local.iter().map(|(name, _)| name.as_str()).collect(),
            push,
            pull,
        };
        let mut text = format!(
            "-- What Tidewater needs in this database for role {}. To be run as a superuser, or as the owner of the database\n\
             -- and of its tables; again whenever the tables have changed, or Tidewater is a newer one. What is there already\n\
             -- stays as it is.\n",
            on_one_line(role)
        );
        for (name, reason) in &local {
            text += &format!("-- Table {} stays local: {}.\n", on_one_line(name), on_one_line(reason));
        }
        text +=
            &format!("\n-- Push only: Tidewater's tables, those of this file, and the least rights.\n{push}");
        if let Some(pull) = pull {
            text += &format!("\n-- Push and pull: the change feed on top of that.\n{pull}");
        }
        answered(&printed, &self.output, text)
    }
}
