//! Pages of the change feed: which keys others' transactions touched.
//!
//! ```text
//! feed_page.sql ─▶ Text, Text, … (a row for each text of a key) ─▶ page ─▶ FeedEntry { keys }, and where the next page begins
//! ```
//!
//! An entry has many keys, a page may have fewer, down to one: the rows that they name may be heavy. So an entry can come in
//! several pages. The cursor moves to an entry when its last key was read, and is durable; how far the one behind it was read is
//! known to this process alone, and after a crash it is read again from its first key, which changes nothing.

use super::cells::Cells as _;
use super::{CloudSession, Cursor, Param, Phase, Result, Row, trim};

/// One entry of the feed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeedEntry {
    /// Its position.
    pub cursor: Cursor,
    /// PostgreSQL's number of the table.
    pub table_oid: u32,
    /// The keys in PostgreSQL's text; none means the whole table.
    pub keys: Option<Vec<Vec<String>>>,
    /// Whether this device's round wrote it, and the rows are as sent.
    pub own: bool,
}

/// The next entries of the feed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FeedPage {
    /// In order. Of the first and the last one there may be only a part.
    pub entries: Vec<FeedEntry>,
    /// The last entry that was read to its end.
    pub reached: Option<Cursor>,
    /// How many texts of the entry behind that were read.
    pub texts: usize,
    /// Whether the feed had no more.
    pub is_last: bool,
}

/// An entry with more keys than this is no trigger's: to read it page by page costs the server all of it each time.
const KEYS_MAX: usize = 1024;

/// One text of an entry, or all there is of one that has no keys.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Text {
    cursor: Cursor,
    table_oid: u32,
    own: bool,
    /// So many texts are a key.
    width: Option<usize>,
    /// So many texts has the entry.
    texts: usize,
    text: Option<String>,
}

impl CloudSession {
    /// The next entries of the feed beyond the cursor, in order, with so many keys at most, each of so many texts at most, without
    /// the texts of the first entry that were read already. An entry without keys counts as one.
    ///
    /// # Errors
    /// Where the feed was trimmed beyond the cursor, too.
    pub async fn feed_page(
        &self,
        cursor: &Cursor,
        read: usize,
        (keys_max, width_max): (usize, usize),
        device: &str,
    ) -> Result<FeedPage> {
        let sql = include_str!("../sql/postgres/feed_page.sql");
        let texts_max = keys_max.saturating_mul(width_max);
        let [limit, read_already] = [texts_max, read].map(|texts| i64::try_from(texts).unwrap_or(i64::MAX));
        let params: [&dyn Param; 5] = [&cursor.xid, &cursor.id, &limit, &device, &read_already];
        let rows = self.query(sql, &params, Phase::Pull).await?;
        if rows.first().map(|row| row.cell::<bool>("whole")).transpose()? != Some(true) {
            return Err(trim::passed_over());
        }
        let texts = rows.iter().filter_map(|row| text(row).transpose()).collect::<Result<Vec<_>>>()?;
        Ok(page(&texts, read, (keys_max, width_max)))
    }
}

fn text(row: &Row) -> Result<Option<Text>> {
    let Some(id) = row.cell("id")? else { return Ok(None) };
    let number = |at| Ok(row.cell::<Option<i32>>(at)?.and_then(|number| usize::try_from(number).ok()));
    Ok(Some(Text {
        cursor: Cursor { xid: row.cell("xid")?, id, tag: Some(row.cell("tag")?) },
        table_oid: row.cell("tbl")?,
        own: row.cell("own")?,
        width: number("width")?,
        texts: number("texts")?.unwrap_or_default(),
        text: row.cell("text")?,
    }))
}

/// Puts the texts together to keys. What cannot be a key of these tables is somebody's nonsense: it means the whole table, and
/// nobody waits for the rest of it.
fn page(texts: &[Text], mut read: usize, (keys_max, width_max): (usize, usize)) -> FeedPage {
    let mut page =
        FeedPage { is_last: texts.len() < keys_max.saturating_mul(width_max), ..FeedPage::default() };
    let mut room = keys_max;
    for entry in texts.chunk_by(|a, b| a.cursor == b.cursor) {
        if room == 0 {
            page.is_last = false;
            break;
        }
        let Text { cursor, table_oid, own, texts, .. } = &entry[0];
        let keys = if *own { None } else { keys(entry, width_max, room) };
        let came = read + keys.as_ref().map_or(0, |keys| keys.iter().map(Vec::len).sum());
        if keys.is_none() || came >= *texts {
            (page.reached, page.texts) = (Some(cursor.clone()), 0);
        } else {
            page.texts = came;
            page.is_last = false;
        }
        room -= keys.as_ref().map_or(1, Vec::len);
        page.entries.push(FeedEntry { cursor: cursor.clone(), table_oid: *table_oid, keys, own: *own });
        read = 0;
    }
    page
}

/// The keys that are here with all their texts, as many as there is room for; an empty list where even the first is cut.
fn keys(entry: &[Text], width_max: usize, room: usize) -> Option<Vec<Vec<String>>> {
    let width = entry[0].width.filter(|width| (1..=width_max).contains(width))?;
    if entry[0].texts > width * KEYS_MAX {
        return None;
    }
    let keys = entry.chunks_exact(width).take(room);
    keys.map(|key| key.iter().map(|text| text.text.clone()).collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(id: i64) -> Cursor {
        Cursor { xid: "7".into(), id, tag: Some(0) }
    }

    fn entry(id: i64, width: usize, texts: usize) -> Vec<Text> {
        let text = |place: usize| Some(format!("{id}.{place}"));
        let one = Text { cursor: at(id), table_oid: 1, own: false, width: Some(width), texts, text: None };
        (0..texts).map(|place| Text { text: text(place), ..one.clone() }).collect()
    }

    /// However small the pages are, each key comes once and in order, and the cursor gets to the end of every entry.
    #[test]
    fn pages_of_every_size_have_every_key_once() {
        let own = Text { own: true, width: Some(1), texts: 1, text: None, ..entry(3, 1, 1)[0].clone() };
        let whole = Text { width: None, texts: 1, text: None, ..entry(4, 1, 1)[0].clone() };
        let feed: Vec<Vec<Text>> =
            vec![entry(1, 1, 5), entry(2, 2, 8), vec![own], vec![whole], entry(5, 3, 3), entry(6, 1, 1)];
        let all: Vec<String> = [0, 1, 4, 5]
            .iter()
            .flat_map(|at| feed[*at].iter().filter_map(|text| text.text.clone()))
            .collect();
        for keys_max in 1..30 {
            let (mut cursor, mut read) = (0, 0);
            let (mut found, mut emptied, mut owns) = (vec![], 0, 0);
            loop {
                let beyond = feed.iter().flatten().filter(|text| text.cursor.id > cursor);
                let rows: Vec<Text> = beyond.skip(read).take(3 * keys_max).cloned().collect();
                let page = page(&rows, read, (keys_max, 3));
                let named = page.entries.iter().map(|entry| entry.keys.as_ref().map_or(1, Vec::len));
                assert!(named.sum::<usize>() <= keys_max);
                for entry in page.entries {
                    owns += usize::from(entry.own);
                    emptied += usize::from(!entry.own && entry.keys.is_none());
                    found.extend(entry.keys.into_iter().flatten().flatten());
                }
                cursor = page.reached.map_or(cursor, |reached| reached.id);
                read = page.texts;
                if page.is_last {
                    break;
                }
            }
            assert_eq!(
                (found.as_slice(), emptied, owns, cursor, read),
                (all.as_slice(), 1, 1, 6, 0),
                "{keys_max}"
            );
        }
    }

    /// What cannot be a key means the whole table, and is passed at once, however much of it there is.
    #[test]
    fn nonsense_means_the_whole_table() {
        let with_null = entry(1, 1, 4).into_iter().enumerate();
        let with_null = with_null.map(|(at, text)| Text { text: text.text.filter(|_| at != 2), ..text });
        for nonsense in [
            with_null.collect(),
            entry(1, 0, 4),
            entry(1, 9, 9).into_iter().take(4).collect(),
            entry(1, 1, KEYS_MAX + 1).into_iter().take(4).collect::<Vec<_>>(),
        ] {
            let page = page(&nonsense, 0, (4, 1));
            assert_eq!(page.entries.iter().map(|entry| &entry.keys).collect::<Vec<_>>(), [&None]);
            assert_eq!((page.reached, page.texts), (Some(at(1)), 0));
        }
    }
}
