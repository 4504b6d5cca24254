//! Settings that were read again while they are in use: what changed, and what of it can be used without a restart.
//!
//! ```text
//! those in use ─┐
//!               ├─▶ Settings::reload ─▶ Reload { those to use from now on, taken, waiting, password_changed }
//! those read ───┘
//! ```
//!
//! Pure: nothing is read and nobody is told. What is in use stays a whole: a key that takes a restart keeps its value and its
//! source, also in what `config` prints, until there is one.

use std::collections::BTreeMap;

use super::{Effective, PasswordSource, Sections, Settings, tables};

/// The keys that need no restart; an actor is told, or whoever uses them asks each time.
const LIVE: [&str; 11] = [
    "log.level",
    "log.levels",
    "proxy.health_interval_s",
    "proxy.listen_interval_s",
    "proxy.recently_verified_s",
    "sync.backlog_bytes_max",
    "sync.backlog_entries_max",
    "sync.debounce_ms",
    "sync.feed_poll_interval_s",
    "sync.pull_interval_s",
    "sync.retry_delay_s",
];

/// Sections all of whose keys are live.
const LIVE_SECTIONS: [&str; 1] = ["doctor"];

/// Keys of single tables that are live.
const LIVE_OF_TABLES: [&str; 1] = ["conflicts"];

/// What becomes of settings that were read again.
#[derive(Debug, Clone)]
pub struct Reload {
    /// Those to use from now on.
    pub settings: Settings,
    /// What holds from now on, in the order of the keys.
    pub taken: Vec<Change>,
    /// What a restart would bring.
    pub waiting: Vec<Change>,
    /// The password file is the same one with another password in it, which the next connection uses.
    pub password_changed: bool,
}

/// A key with another value than before. Secrets are not in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// `section.key`.
    pub key: String,
    /// As it is shown, before.
    pub before: String,
    /// As it is shown, now.
    pub after: String,
    /// Where the new value comes from.
    pub origin: String,
}

impl Settings {
    /// What of `read` can be used in the place of these, and what has to wait for a restart.
    ///
    /// ```
    /// use tidewater::settings::Settings;
    ///
    /// let running = Settings::builder().build()?;
    /// let read = Settings::builder().set("sync.pull_interval_s", 2).set("cloud.schema", "shop").build()?;
    /// let reload = running.reload(&read);
    /// assert_eq!(reload.taken[0].key, "sync.pull_interval_s");
    /// assert_eq!(reload.waiting[0].key, "cloud.schema");
    /// assert_eq!(reload.settings.cloud.schema, "public");
    /// # Ok::<(), tidewater::settings::SettingsError>(())
    /// ```
    #[must_use]
    pub fn reload(&self, read: &Self) -> Reload {
        let [old, new] = [self, read].map(|it| by_key(&it.effective));
        let mut effective: BTreeMap<&str, Effective> = BTreeMap::new();
        let (mut taken, mut waiting) = (vec![], vec![]);
        for key in old.keys().chain(new.keys().filter(|key| said(&old, key).is_none())) {
            let (Some(before), Some(after)) = (holds(&old, key), holds(&new, key)) else { continue };
            let changed = before.value != after.value || self.differs_unseen(read, key);
            let live = is_live(key);
            if changed {
                let (before, after, origin) =
                    (before.value.clone(), after.value.clone(), after.origin.clone());
                let changes = if live { &mut taken } else { &mut waiting };
                changes.push(Change { key: (*key).to_owned(), before, after, origin });
            }
            // The same value from another source is from there now. A table that is named for the first time gets the rows that
            // hold for it.
            let used = if live || !changed { after } else { before };
            effective.insert(key, Effective { key: (*key).to_owned(), ..used.clone() });
        }
        for changes in [&mut taken, &mut waiting] {
            changes.sort_by(|a, b| a.key.cmp(&b.key));
        }
        let mut sections = Sections::clone(&self.sections);
        sections.take_live(&read.sections);
        let password_changed = self.has_other_password_in_file(read);
        if password_changed {
            sections.cloud.password.clone_from(&read.cloud.password);
        }
        let effective = effective.into_values().collect::<Vec<_>>().into();
        Reload {
            settings: Self { sections: sections.into(), effective, resolver: self.resolver.clone() },
            taken,
            waiting,
            password_changed,
        }
    }

    /// Whether a value that is not shown, or not as a whole, is another one.
    fn differs_unseen(&self, read: &Self, key: &str) -> bool {
        let [old, new] = [&self.cloud, &read.cloud];
        match key {
            "cloud.password" => {
                let fixed = |source: &PasswordSource| *source == PasswordSource::Fixed;
                fixed(&old.link.password) && fixed(&new.link.password) && old.password != new.password
            }
            "cloud.password_command" => match (&old.link.password, &new.link.password) {
                (PasswordSource::Command(old), PasswordSource::Command(new)) => old.argv != new.argv,
                _ => false,
            },
            _ => false,
        }
    }

    fn has_other_password_in_file(&self, read: &Self) -> bool {
        let [old, new] = [&self.cloud, &read.cloud];
        matches!(old.link.password, PasswordSource::File(_))
            && old.link.password == new.link.password
            && old.password != new.password
    }
}

impl Sections {
    /// Every value of [`LIVE`] and its like, and no other.
    fn take_live(&mut self, read: &Self) {
        self.log.level = read.log.level;
        self.log.levels.clone_from(&read.log.levels);
        self.proxy.health_interval = read.proxy.health_interval;
        self.proxy.listen_interval = read.proxy.listen_interval;
        self.proxy.recently_verified = read.proxy.recently_verified;
        self.sync.backlog = read.sync.backlog;
        self.sync.debounce = read.sync.debounce;
        self.sync.feed_poll_interval = read.sync.feed_poll_interval;
        self.sync.pull_interval = read.sync.pull_interval;
        self.sync.retry_delay = read.sync.retry_delay;
        self.doctor = read.doctor.clone();
        self.tables.take_policies(&read.tables);
    }
}

fn is_live(key: &str) -> bool {
    if let Some((_, key)) = tables::split(key) {
        return LIVE_OF_TABLES.contains(&key);
    }
    LIVE.contains(&key) || key.split_once('.').is_some_and(|(section, _)| LIVE_SECTIONS.contains(&section))
}

fn by_key(effective: &[Effective]) -> BTreeMap<&str, &Effective> {
    effective.iter().map(|it| (it.key.as_str(), it)).collect()
}

/// What is said of a key; of a table's, whatever the case of its name.
fn said<'a>(all: &BTreeMap<&str, &'a Effective>, key: &str) -> Option<&'a Effective> {
    let otherwise = || {
        let (table, key) = tables::split(key)?;
        let same = |other: &str| {
            tables::split(other).is_some_and(|(name, it)| it == key && name.eq_ignore_ascii_case(table))
        };
        all.iter().find(|(other, _)| same(other)).map(|(_, it)| *it)
    };
    all.get(key).copied().or_else(otherwise)
}

/// What holds for a key: a table that is not named has what holds for every table.
fn holds<'a>(all: &BTreeMap<&str, &'a Effective>, key: &str) -> Option<&'a Effective> {
    said(all, key).or_else(|| all.get(tables::full_key(tables::ANY, tables::split(key)?.1).as_str()).copied())
}

#[cfg(test)]
mod tests {
    use super::super::{Policy, Sources};
    use super::*;

    fn reloaded(before: Sources, after: Sources) -> Reload {
        before.build().unwrap().reload(&after.build().unwrap())
    }

    fn keys(changes: &[Change]) -> Vec<&str> {
        changes.iter().map(|change| change.key.as_str()).collect()
    }

    /// Another value for a key: for each kind of value that there is, one that is allowed and not the built-in one.
    fn another(it: &Effective) -> String {
        let mut candidates = [it.value.parse().map_or(7, |n: i64| n + 1).to_string()].into_iter().chain(
            [
                "true",
                "false",
                "json",
                "debug",
                "SqliteWriter=debug",
                "pull",
                "local",
                "manual",
                "required",
                "off",
                "none",
                "production",
                "/a/b",
            ]
            .map(str::to_owned),
        );
        let builds =
            |value: &String| *value != it.value && Settings::builder().set(&it.key, value).build().is_ok();
        candidates.find(builds).unwrap_or_default()
    }

    /// Each key that there is, changed by itself: it is either taken, and then in what holds from now on, or it waits, and
    /// then everything is as it was. Nothing is passed over, and nothing else changes.
    #[test]
    fn every_key_is_either_taken_or_waits() {
        let running = Settings::builder().build().unwrap();
        let (mut taken, mut waiting) = (0, 0);
        for it in running.effective() {
            let key = it.key.replace("tables.NAME", "tables.note");
            let value = another(&Effective { key: key.clone(), ..it.clone() });
            if value.is_empty() {
                // Files that have to be there, or go together.
                assert!(key.contains("password") || key.contains("tls"), "{key} is not tried");
                continue;
            }
            let read = Settings::builder().set(&key, &value).build().unwrap();
            let reload = running.reload(&read);
            let all: Vec<_> = reload.taken.iter().chain(&reload.waiting).map(|it| it.key.as_str()).collect();
            assert!(all.contains(&key.as_str()), "{key}: {all:?}");
            let after = by_key(reload.settings.effective())[key.as_str()].clone();
            let whole = format!("{:?}", reload.settings);
            if is_live(&key) {
                taken += 1;
                assert_eq!((all.as_slice(), after.value.as_str()), (&[key.as_str()][..], value.as_str()));
                assert_ne!(whole, format!("{running:?}"), "{key} is taken, and changes nothing");
                // And back.
                let back = reload.settings.reload(&running);
                assert_eq!(keys(&back.taken), [key.as_str()]);
                assert!(back.waiting.is_empty());
            } else {
                waiting += 1;
                assert_eq!(after.value, it.value, "{key}");
                if !key.starts_with("tables.") {
                    assert_eq!(whole, format!("{running:?}"), "{key} waits, and changes something");
                }
            }
        }
        assert!(taken >= 16 && waiting >= 50, "{taken} taken, {waiting} waiting");
    }

    /// What the built-in file says of SIGHUP names each key that is taken, and no other.
    #[test]
    fn the_built_in_file_says_what_is_taken() {
        let head: String = super::super::DEFAULT_TOML
            .lines()
            .skip_while(|line| !line.starts_with("# SIGHUP"))
            .take_while(|line| line.starts_with('#'))
            .map(|line| format!("{} ", line.trim_start_matches("# ")))
            .collect();
        let named = |key: &str| head.split([' ', ',', ';']).any(|word| word == key);
        for it in Settings::builder().build().unwrap().effective() {
            let plain = tables::split(&it.key).is_none() && !it.key.starts_with("doctor.");
            assert!(!plain || named(&it.key) == is_live(&it.key), "{}", it.key);
        }
        assert!(head.contains("[doctor]") && head.contains("`conflicts` of [tables.NAME]"), "{head}");
    }

    /// Nothing changed: nothing is taken, nothing waits. A value that is said elsewhere now is from there.
    #[test]
    fn the_same_settings_change_nothing() {
        let sources =
            || Settings::builder().set("cloud.password", "hunter2").set("tables.note.where", "a = 1");
        let same = reloaded(sources(), sources());
        assert!(same.taken.is_empty() && same.waiting.is_empty() && !same.password_changed);
        let by_flag = reloaded(
            Settings::builder().set("cloud.schema", "shop"),
            Settings::builder().flag("--schema", "cloud.schema", "shop"),
        );
        assert!(by_flag.taken.is_empty() && by_flag.waiting.is_empty());
        assert_eq!(by_key(by_flag.settings.effective())["cloud.schema"].origin, "--schema");
    }

    /// What is not shown is compared all the same, and is not in what is told of it.
    #[test]
    fn a_secret_that_changed_is_noticed_and_not_told() {
        let with = |key: &str, value: &str| Settings::builder().set(key, value);
        let password = reloaded(with("cloud.password", "hunter2"), with("cloud.password", "hunter3"));
        assert_eq!(keys(&password.waiting), ["cloud.password"]);
        let command = reloaded(
            with("cloud.password_command", "print-it --for hunter2"),
            with("cloud.password_command", "print-it --for hunter3"),
        );
        assert_eq!(keys(&command.waiting), ["cloud.password_command"]);
        for reload in [password, command] {
            assert!(!format!("{reload:?}").contains("hunter"), "{reload:?}");
        }
    }

    /// Another password in the same file is used by the next connection; another file takes a restart.
    #[test]
    fn a_password_file_is_read_anew() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("password");
        std::fs::write(&file, "one").unwrap();
        let load = || Settings::builder().set("cloud.password_file", file.display()).build().unwrap();
        let running = load();
        std::fs::write(&file, "two").unwrap();
        let reload = running.reload(&load());
        assert!(reload.password_changed && reload.taken.is_empty() && reload.waiting.is_empty());
        assert!(!reload.settings.reload(&load()).password_changed, "it is known now");
        let other = Settings::builder().set("cloud.password", "two").build().unwrap();
        let reload = running.reload(&other);
        assert_eq!(keys(&reload.waiting), ["cloud.password", "cloud.password_file"]);
        assert!(!reload.password_changed);
    }

    /// Of a table, who wins in a conflict holds at once; which way its rows go takes a restart. A section that is new, or gone,
    /// or written otherwise, is compared with what holds without it.
    #[test]
    fn of_tables_only_who_wins_is_taken() {
        let note = |direction: &str, conflicts: &str| {
            Settings::builder()
                .set("tables.note.direction", direction)
                .set("tables.note.conflicts", conflicts)
        };
        let plain = Settings::builder;
        let named = reloaded(plain(), note("pull", "local"));
        assert_eq!(
            (keys(&named.taken), keys(&named.waiting)),
            (vec!["tables.note.conflicts"], vec!["tables.note.direction"])
        );
        assert_eq!(named.settings.tables.of("Note").conflicts, Policy::Local);
        assert_eq!(named.settings.tables.of("note").direction, super::super::Direction::Both);
        let gone = reloaded(note("pull", "local"), plain());
        assert_eq!(
            (keys(&gone.taken), keys(&gone.waiting)),
            (vec!["tables.note.conflicts"], vec!["tables.note.direction"])
        );
        assert_eq!(gone.settings.tables.of("note").conflicts, Policy::Newest);
        assert_eq!(gone.settings.tables.of("note").direction, super::super::Direction::Pull);
        let spelled = reloaded(
            note("pull", "local"),
            plain().set("tables.NOTE.direction", "pull").set("tables.NOTE.conflicts", "local"),
        );
        assert!(spelled.taken.is_empty() && spelled.waiting.is_empty(), "{spelled:?}");
    }
}
