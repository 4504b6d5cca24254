//! What the cloud's tables are, for a file that does not have them: the catalogue in the terms of `core/from_cloud.rs`.

use serde::Deserialize;

use super::cells::{Cells as _, first};
use super::{CloudSession, FoundColumn, Phase, Result, unexpected};
use crate::core::failure::FailureClass;
use crate::core::from_cloud::{DefinedColumn, DefinedForeignKey, DefinedIndex, Definition, Offer};
use crate::core::schema::{CloudTable, Table};
use crate::sql::cloud;

/// What `definition.sql` answers.
#[derive(Deserialize)]
struct Answer {
    columns: Vec<Column>,
    indexes: Vec<Index>,
    foreign_keys: Vec<ForeignKey>,
    checks: bool,
}

#[derive(Deserialize)]
struct Column {
    name: String,
    identity: bool,
    default: Option<String>,
}

#[derive(Deserialize)]
struct Index {
    name: String,
    unique: bool,
    constraint: bool,
    columns: Vec<String>,
    plain: bool,
}

#[derive(Deserialize)]
struct ForeignKey {
    columns: Vec<String>,
    parent: Option<String>,
    parent_columns: Vec<String>,
    on_delete: Option<String>,
    on_update: Option<String>,
    deferred: bool,
}

impl CloudSession {
    /// Why the condition that is set for a table is none to PostgreSQL.
    pub(super) async fn misread_filter(
        &self,
        table: &Table,
        cloud_table: &CloudTable,
    ) -> Result<Option<String>> {
        if table.rule.filter.is_none() {
            return Ok(None);
        }
        let sql = format!("SELECT FROM {} AS t LIMIT 0", cloud::wanted(table, cloud_table));
        match self.query(&sql, &[], Phase::Round).await {
            Ok(_) => Ok(None),
            Err(failure) if failure.class == FailureClass::DataRefused => {
                Ok(Some(format!("tables.{}.where cannot be used: {}", table.name, failure.detail)))
            }
            Err(failure) => Err(failure),
        }
    }

    /// The tables of the schema.
    pub async fn offers(&self) -> Result<Vec<Offer>> {
        let rows = self
            .query(include_str!("../sql/postgres/offers.sql"), &[&self.cloud.options.schema], Phase::Setup)
            .await?;
        rows.iter()
            .map(|row| {
                Ok(Offer {
                    name: row.cell("name")?,
                    synced: row.cell("synced")?,
                    may_read: row.cell("may_read")?,
                })
            })
            .collect()
    }

    /// One of these tables as it is made; none where it is gone.
    pub async fn definition(&self, name: &str) -> Result<Option<Definition>> {
        let mut found: Vec<(String, FoundColumn)> = self.columns_of(name).await?.into_iter().collect();
        found.sort_by_key(|(_, found)| found.column.number);
        let Some(oid) = found.first().map(|(_, found)| found.table_oid) else { return Ok(None) };
        let key = self.query(include_str!("../sql/postgres/key_columns.sql"), &[&oid], Phase::Setup).await?;
        let key = key.iter().map(|row| row.cell(0)).collect::<Result<Vec<String>>>()?;
        let rows = self.query(include_str!("../sql/postgres/definition.sql"), &[&oid], Phase::Setup).await?;
        let text: String = first(&rows)?.ok_or_else(|| unexpected("a table has no definition"))?;
        let answer: Answer = serde_json::from_str(&text).map_err(|error| unexpected(&error.to_string()))?;
        let columns = found
            .into_iter()
            .map(|(name, found)| {
                let more = answer.columns.iter().find(|column| column.name == name);
                let FoundColumn { column, .. } = found;
                DefinedColumn {
                    name,
                    kind: column.kind,
                    type_name: column.exact,
                    not_null: !column.nullable,
                    generated: column.generated,
                    identity: more.is_some_and(|more| more.identity),
                    default: more.and_then(|more| more.default.clone()),
                }
            })
            .collect();
        let indexes = answer.indexes.into_iter().map(|index| {
            let Index { name, unique, constraint, columns, plain } = index;
            DefinedIndex { name, columns, unique, constraint, plain }
        });
        let foreign_keys = answer.foreign_keys.into_iter().map(|key| DefinedForeignKey {
            columns: key.columns,
            parent: key.parent,
            parent_columns: key.parent_columns,
            on_delete: key.on_delete.unwrap_or_default(),
            on_update: key.on_update.unwrap_or_default(),
            deferred: key.deferred,
        });
        Ok(Some(Definition {
            name: name.to_owned(),
            columns,
            key,
            indexes: indexes.collect(),
            foreign_keys: foreign_keys.collect(),
            checks: answer.checks,
        }))
    }
}
