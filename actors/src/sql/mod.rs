//! SQL text: fixed statements in `.sql` files beside this module, generated ones in functions that only build
//! strings. What runs them is `sqlite.rs` and `postgres.rs`.

pub(crate) mod capture;
pub(crate) mod cloud;
pub(crate) mod made;

/// An identifier, quoted for both databases.
pub(crate) fn ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A list of the given items.
pub(crate) fn list<T>(items: impl IntoIterator<Item = T>, each: impl FnMut(T) -> String) -> String {
    items.into_iter().map(each).collect::<Vec<_>>().join(", ")
}

/// A conjunction of the given items.
pub(crate) fn all<T>(items: impl IntoIterator<Item = T>, each: impl FnMut(T) -> String) -> String {
    items.into_iter().map(each).collect::<Vec<_>>().join(" AND ")
}
