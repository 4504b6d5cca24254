//! Tables that are made here from the cloud's, as SQLite's text.

use super::{ident, list};
use crate::core::from_cloud::{NewColumn, NewForeignKey, NewIndex, NewTable};

/// The statement that makes the table, without its indexes.
pub(crate) fn create_table(table: &NewTable) -> String {
    let mut parts: Vec<String> = table.columns.iter().map(column).collect();
    parts.push(format!("PRIMARY KEY ({})", names(&table.key)));
    parts.extend(table.uniques.iter().map(|unique| format!("UNIQUE ({})", names(unique))));
    parts.extend(table.foreign_keys.iter().map(foreign_key));
    format!("CREATE TABLE {} (\n  {}\n)", ident(&table.name), parts.join(",\n  "))
}

/// The statement that makes one of its indexes.
pub(crate) fn create_index(table: &NewTable, index: &NewIndex) -> String {
    let unique = if index.unique { "UNIQUE " } else { "" };
    let (name, on, columns) = (ident(&index.name), ident(&table.name), names(&index.columns));
    format!("CREATE {unique}INDEX {name} ON {on} ({columns})")
}

fn column(column: &NewColumn) -> String {
    let not_null = if column.not_null { " NOT NULL" } else { "" };
    let default = column.default.as_ref().map_or(String::new(), |text| format!(" DEFAULT {text}"));
    format!("{} {}{not_null}{default}", ident(&column.name), column.declared)
}

fn foreign_key(key: &NewForeignKey) -> String {
    let action = |event: &str, action: &str| match action {
        "CASCADE" | "SET NULL" | "SET DEFAULT" | "RESTRICT" => format!(" ON {event} {action}"),
        _ => String::new(),
    };
    format!(
        "FOREIGN KEY ({}) REFERENCES {} ({}){}{}{}",
        names(&key.columns),
        ident(&key.parent),
        names(&key.parent_columns),
        action("DELETE", &key.on_delete),
        action("UPDATE", &key.on_update),
        if key.deferred { " DEFERRABLE INITIALLY DEFERRED" } else { "" },
    )
}

fn names(names: &[String]) -> String {
    list(names, |name| ident(name))
}
