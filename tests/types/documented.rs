//! The documentation of the types says what the code does.

use std::collections::BTreeSet;

use super::{declared, existing};

const MODULE: &str = include_str!("../../actors/src/core/value.rs");
const README: &str = include_str!("../../README.md");

/// The cells of a Markdown table, below the line that begins with this.
fn table(text: &str, header: &str) -> Vec<Vec<String>> {
    let lines = text.lines().map(|line| line.trim_start_matches("//!").trim());
    let rows: Vec<Vec<String>> = lines
        .skip_while(|line| !line.starts_with(header))
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .map(|line| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect())
        .collect();
    assert!(!rows.is_empty(), "a table under {header}");
    rows
}

/// What stands between backticks.
fn names(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

/// Without "any name with …", which says how the list goes on.
fn listed(cell: &str) -> Vec<&str> {
    let cell = cell.split("any name with").next().unwrap_or(cell);
    if cell == "no type" { vec![""] } else { names(cell) }
}

/// Every declared type that is documented is tested with the column that is documented, and the other way round.
#[test]
fn the_declared_types_are_documented_as_they_are() {
    let tested: BTreeSet<(String, String)> = declared::all()
        .iter()
        .flat_map(|declared| {
            declared.names.iter().map(|name| ((*name).to_owned(), declared.cloud.to_owned()))
        })
        .collect();
    let documented: BTreeSet<(String, String)> = table(MODULE, "| declared here")
        .iter()
        .flat_map(|row| {
            let cloud = names(&row[1])[0].to_owned();
            listed(&row[0]).into_iter().map(move |name| (name.to_owned(), cloud.clone())).collect::<Vec<_>>()
        })
        .collect();
    assert_eq!(documented, tested);
    for row in table(README, "| declared here") {
        let cloud = names(&row[1])[0];
        for name in listed(&row[0]) {
            assert!(
                tested.contains(&(name.to_owned(), cloud.to_owned())),
                "the README says {name} is {cloud}"
            );
        }
    }
}

/// Every column type that is documented is tested, and the other way round, and its values are of the class that is documented.
#[test]
fn the_existing_column_types_are_documented_as_they_are() {
    let all = existing::all();
    // By the type without length and precision, or what kind of type it is.
    let kind = |cloud: &str, setup: &str| {
        let made = |what: &str| all.iter().any(|e| e.setup.contains(&format!("{what} {cloud} AS ")));
        if made("DOMAIN") {
            "domain".to_owned()
        } else if setup.contains("AS ENUM") {
            "enum".to_owned()
        } else if setup.contains("CREATE TYPE") {
            "composite".to_owned()
        } else {
            match (cloud.find('('), cloud.rfind(')')) {
                (Some(from), Some(to)) => format!("{}{}", &cloud[..from], &cloud[to + 1..]),
                _ => cloud.to_owned(),
            }
        }
    };
    let tested: BTreeSet<String> = all.iter().map(|e| kind(e.cloud, e.setup)).collect();
    let mut documented = BTreeSet::new();
    for row in table(MODULE, "| column in the cloud") {
        let mut types: Vec<String> = names(&row[0]).into_iter().map(str::to_owned).collect();
        types.extend(
            ["enum", "domain", "composite"].iter().filter(|word| row[0].contains(*word)).map(|w| (*w).into()),
        );
        for documented in &types {
            let of_this_type = all.iter().filter(|e| kind(e.cloud, e.setup) == *documented);
            let classes: BTreeSet<&str> = of_this_type
                .flat_map(|e| e.values)
                .filter_map(|(_, here)| here.and_then(|form| form.split_once(' ')))
                .map(|(class, _)| class)
                .collect();
            let as_documented = classes.iter().any(|class| row[1].contains(class)) || documented == "domain";
            assert!(as_documented, "{documented} is {classes:?}, documented as {}", row[1]);
        }
        documented.extend(types);
    }
    assert_eq!(documented, tested);
}
