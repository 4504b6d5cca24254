//! Settings, by what people rely on.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use super::sources::FIXED_VARIABLES;
use super::*;

fn with(variables: &[(&str, &str)]) -> Result<Settings, SettingsError> {
    Settings::builder().environment(variables.iter().copied()).build()
}

/// Without anything set, the values are those of the documentation.
#[test]
fn the_built_in_values_are_the_documented_ones() {
    let settings = Settings::builder().build().unwrap();
    assert_eq!(settings.proxy.endpoint(), "127.0.0.1:5432");
    assert_eq!(settings.proxy.timeout, Duration::from_secs(2));
    assert_eq!(settings.proxy.retry_delay, Duration::from_secs(10));
    assert_eq!(settings.proxy.max_retry_delay, Duration::from_secs(600));
    assert!(!settings.proxy.require);
    assert_eq!(settings.supervisor.environment, Environment::Development);
    assert_eq!(settings.sqlite.path, Path::new("tidewater.db"));
    assert_eq!(settings.sqlite.control_socket(), Path::new("tidewater.db.sock"));
    assert_eq!(settings.cloud.add_columns, AddColumns::Auto);
    assert_eq!(settings.sync.debounce, Duration::from_millis(2));
    assert_eq!(
        settings.log,
        LogSettings {
            format: LogFormat::Text,
            level: LogLevel::Info,
            levels: BTreeMap::new(),
            progress_after: Duration::from_secs(10),
        }
    );
    assert!(settings.effective().iter().all(|it| it.origin == "the built-in default"));
}

/// Each layer wins over the one below it, and the source that won is named.
#[test]
fn each_layer_wins_over_the_one_below() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mine.toml");
    std::fs::write(&file, "[proxy]\nport = 2\n[sqlite]\nread_pool_max = 9\n").unwrap();
    let origin = |settings: &Settings, key: &str| {
        settings.effective().iter().find(|it| it.key == key).unwrap().origin.clone()
    };

    let mut sources = Settings::builder().config_file(&file);
    let mut steps = vec![(2, file.display().to_string())];
    let settings = sources.build().unwrap();
    assert_eq!((u64::from(settings.proxy.port), origin(&settings, "proxy.port")), steps.remove(0));
    assert_eq!(settings.sqlite.read_pool_max, 9);

    sources = sources.environment([("TIDEWATER_PROXY__PORT", "3")]);
    let settings = sources.build().unwrap();
    assert_eq!((settings.proxy.port, origin(&settings, "proxy.port").as_str()), (3, "TIDEWATER_PROXY__PORT"));

    sources = sources.environment([("CLOUD_SQL_PROXY_PORT", "4")]);
    let settings = sources.build().unwrap();
    assert_eq!((settings.proxy.port, origin(&settings, "proxy.port").as_str()), (4, "CLOUD_SQL_PROXY_PORT"));

    sources = sources.flag("--port", "proxy.port", 5);
    let settings = sources.build().unwrap();
    assert_eq!((settings.proxy.port, origin(&settings, "proxy.port").as_str()), (5, "--port"));

    let settings = sources.set("proxy.port", 6).build().unwrap();
    assert_eq!((settings.proxy.port, origin(&settings, "proxy.port").as_str()), (6, "the program"));
}

/// The production overlay lies under everything that a user sets, wherever production is declared.
#[test]
fn production_has_its_overlay_under_what_the_user_sets() {
    let settings = with(&[("JARVIS_ENV", "Production")]).unwrap();
    assert_eq!(settings.supervisor.environment, Environment::Production);
    assert_eq!(settings.cloud.add_columns, AddColumns::Manual);
    let settings = with(&[("TIDEWATER_SUPERVISOR__ENVIRONMENT", "prod")]).unwrap();
    assert_eq!(settings.cloud.add_columns, AddColumns::Manual);
    let settings = with(&[("JARVIS_ENV", "prod"), ("TIDEWATER_CLOUD__ADD_COLUMNS", "auto")]).unwrap();
    assert_eq!(settings.cloud.add_columns, AddColumns::Auto);
    let settings = with(&[("JARVIS_ENV", "dev")]).unwrap();
    assert_eq!(settings.supervisor.environment, Environment::Development);
}

/// Every variable of the documentation reaches its key.
#[test]
fn every_documented_variable_reaches_its_key() {
    let values = [
        ("CLOUD_SQL_PROXY_HOST", "db.example"),
        ("CLOUD_SQL_PROXY_PORT", "5433"),
        ("CLOUD_SQL_PROXY_TIMEOUT", "5.0"),
        ("CLOUD_SQL_RETRY_DELAY", "30"),
        ("CLOUD_SQL_MAX_RETRY_DELAY", "3600.0"),
        ("CLOUD_SQL_REQUIRE_PROXY", "YES"),
        ("CLOUD_SQL_DATABASE", "orders"),
        ("CLOUD_SQL_USER", "ann"),
        ("CLOUD_SQL_PASSWORD", " spaces stay "),
        ("CLOUD_SQL_PASSWORD_FILE", ""),
        ("JARVIS_ENV", "production"),
        ("TIDEWATER_DATABASE", "/var/lib/x.db"),
    ];
    assert_eq!(values.map(|(name, _)| name).into_iter().collect::<BTreeSet<_>>(), {
        FIXED_VARIABLES.iter().map(|(name, _)| *name).collect()
    });
    let settings = with(&values).unwrap();
    assert_eq!(settings.proxy.endpoint(), "db.example:5433");
    assert_eq!(settings.proxy.timeout, Duration::from_secs(5));
    assert_eq!(settings.proxy.retry_delay, Duration::from_secs(30));
    assert_eq!(settings.proxy.max_retry_delay, Duration::from_secs(3600));
    assert!(settings.proxy.require);
    assert_eq!(settings.cloud.database.as_deref(), Some("orders"));
    assert_eq!(settings.cloud.user.as_deref(), Some("ann"));
    assert_eq!(settings.cloud.password.as_ref().unwrap().expose(), " spaces stay ");
    assert_eq!(settings.sqlite.path, Path::new("/var/lib/x.db"));
}

/// An empty variable is a variable that is not set, also where empty would not be allowed.
#[test]
fn an_empty_variable_counts_as_not_set() {
    let settings =
        with(&[("CLOUD_SQL_PROXY_PORT", ""), ("JARVIS_ENV", ""), ("TIDEWATER_LOG__LEVEL", "")]).unwrap();
    assert_eq!(settings.proxy.port, 5432);
    assert_eq!(settings.supervisor.environment, Environment::Development);
}

/// A bad value's message names the key, the variable and what is allowed.
#[test]
fn a_bad_variable_names_its_key_its_source_and_what_is_allowed() {
    let table = [
        ("CLOUD_SQL_PROXY_PORT", "0", "proxy.port", "from 1 to 65535"),
        ("CLOUD_SQL_PROXY_PORT", "65536", "proxy.port", "from 1 to 65535"),
        ("CLOUD_SQL_PROXY_PORT", "http", "proxy.port", "a whole number"),
        ("CLOUD_SQL_PROXY_PORT", "-1", "proxy.port", "a whole number"),
        ("CLOUD_SQL_PROXY_TIMEOUT", "0", "proxy.timeout_s", "seconds from 0.001 to 3600"),
        ("CLOUD_SQL_PROXY_TIMEOUT", "-2", "proxy.timeout_s", "seconds from"),
        ("CLOUD_SQL_PROXY_TIMEOUT", "NaN", "proxy.timeout_s", "seconds from"),
        ("CLOUD_SQL_PROXY_TIMEOUT", "inf", "proxy.timeout_s", "seconds from"),
        ("CLOUD_SQL_PROXY_TIMEOUT", "2s", "proxy.timeout_s", "seconds from"),
        (
            "CLOUD_SQL_RETRY_DELAY",
            "601",
            "proxy.retry_delay_s",
            "at most proxy.max_retry_delay_s, which is 600",
        ),
        ("CLOUD_SQL_MAX_RETRY_DELAY", "1e9", "proxy.max_retry_delay_s", "to 86400"),
        ("CLOUD_SQL_REQUIRE_PROXY", "maybe", "proxy.require", "true, false, 1, 0, yes, no"),
        ("CLOUD_SQL_PROXY_HOST", "127.0.0.1:5432", "proxy.host", "without a port"),
        ("CLOUD_SQL_PROXY_HOST", "a b", "proxy.host", "a host name"),
        ("CLOUD_SQL_PROXY_HOST", "./socket", "proxy.host", "absolute directory"),
        ("JARVIS_ENV", "staging", "supervisor.environment", "development, production, dev, prod"),
        ("TIDEWATER_DATABASE", ":memory:", "sqlite.path", "the path of a file"),
        ("TIDEWATER_CLOUD__SCHEMA", "tidewater", "cloud.schema", "not tidewater"),
        ("TIDEWATER_CLOUD__POOL_MAX", "1", "cloud.pool_max", "from 2 to"),
        ("TIDEWATER_CLOUD__ADD_COLUMNS", "never", "cloud.add_columns", "auto, manual"),
        ("TIDEWATER_SQLITE__READ_POOL_MAX", "0", "sqlite.read_pool_max", "from 1 to"),
        ("TIDEWATER_SYNC__DEBOUNCE_MS", "1.5", "sync.debounce_ms", "whole milliseconds"),
        ("TIDEWATER_CIRCUIT__FAILURE_THRESHOLD", "0", "circuit.failure_threshold", "from 1 to"),
        ("TIDEWATER_LOG__LEVEL", "loud", "log.level", "error, warning, info, debug"),
    ];
    for (variable, value, key, allowed) in table {
        let message = with(&[(variable, value)]).unwrap_err().to_string();
        for part in [key, variable, allowed, value] {
            assert!(message.contains(part), "{variable}={value}: {message:?} lacks {part:?}");
        }
    }
}

/// A file is treated like a variable: bad values, wrong types and unknown keys name the file.
#[test]
fn a_bad_file_names_itself() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mine.toml");
    let table = [
        ("[proxy]\nport = 0", "proxy.port", "from 1 to 65535"),
        ("[proxy]\nport = [1, 2]", "proxy.port", "(not a single value)"),
        ("[proxy]\nprot = 1", "proxy.prot", "did you mean proxy.port?"),
        ("[proxy]\ntimeout = 1", "proxy.timeout", "did you mean proxy.timeout_s?"),
        ("[Proxy]\nport = 1", "Proxy.port", "did you mean proxy.port?"),
        ("[proxy.port]\nx = 1", "proxy.port.x", "not a known key"),
        ("proxy = 1", "proxy", "not a known key"),
        ("[nonsense]\nx = 1", "nonsense.x", "not a known key"),
        ("[proxy]\n[nonsense]", "nonsense", "not a known key"),
        ("[cloud]\nuser = 5", "cloud.user", "a PostgreSQL name"),
        ("[cloud]\nschema = ''", "cloud.schema", "a PostgreSQL name"),
    ];
    for (text, key, part) in table {
        std::fs::write(&file, text).unwrap();
        let message = Settings::builder().config_file(&file).build().unwrap_err().to_string();
        for part in [key, part, &file.display().to_string()] {
            assert!(message.contains(part), "{text}: {message:?} lacks {part:?}");
        }
    }
}

/// A file that is missing or is not TOML is named; the text of the file is not repeated.
#[test]
fn a_broken_file_is_named_without_its_text() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mine.toml");
    let message = Settings::builder().config_file(&file).build().unwrap_err().to_string();
    assert!(message.contains("mine.toml") && message.contains("No such file"), "{message}");
    std::fs::write(&file, "[cloud]\npassword = \"hunter2\n").unwrap();
    let message = Settings::builder().config_file(&file).build().unwrap_err().to_string();
    assert!(message.contains("mine.toml") && message.contains("line 2"), "{message}");
    assert!(!message.contains("hunter2") && !message.contains('\n'), "{message}");
}

/// An unknown key is refused wherever it stands; other programs' variables are left alone.
#[test]
fn an_unknown_key_is_refused_with_the_nearest_known_one() {
    let message = with(&[("TIDEWATER_PROXY__PROT", "1")]).unwrap_err().to_string();
    assert!(message.contains("TIDEWATER_PROXY__PROT"), "{message}");
    assert!(message.ends_with("did you mean TIDEWATER_PROXY__PORT?"), "{message}");
    let message = Settings::builder().set("proxy.prot", 1).build().unwrap_err().to_string();
    assert!(message.contains("the program") && message.ends_with("did you mean proxy.port?"), "{message}");
    let message = Settings::builder().set("proxy[0]", 1).build().unwrap_err().to_string();
    assert!(message.contains("not a known key"), "{message}");
    with(&[("TIDEWATER_TEST", "1"), ("CLOUD_SQL_CONNECTION_NAME", "p:r:i"), ("PATH", "/bin")]).unwrap();
}

/// A variable that is not UTF-8 is refused by name; one that is not ours does not matter.
#[cfg(unix)]
#[test]
fn a_variable_that_is_not_utf_8_is_refused_only_if_it_is_ours() {
    use std::os::unix::ffi::OsStringExt;
    let broken = || OsString::from_vec(vec![0xff]);
    let message =
        Settings::builder().environment([("CLOUD_SQL_USER", broken())]).build().unwrap_err().to_string();
    assert!(message.contains("CLOUD_SQL_USER") && message.contains("UTF-8"), "{message}");
    Settings::builder().environment([("SOMETHING", broken())]).build().unwrap();
}

/// No way of printing settings or their errors shows the password.
#[test]
fn the_password_is_never_printed() {
    let sources = Settings::builder().environment([("CLOUD_SQL_PASSWORD", "hunter2")]);
    let settings = sources.build().unwrap();
    let password = settings.cloud.password.as_ref().unwrap();
    assert_eq!(password.expose(), "hunter2");
    let effective = format!("{:?}", settings.effective());
    let printed = format!("{sources:?} {settings:?} {settings:#?} {effective} {password} {password:?}");
    assert!(!printed.contains("hunter2"), "{printed}");
    assert!(effective.contains("(secret)"));
    let error = with(&[("CLOUD_SQL_PASSWORD", "hunter2\0")]).unwrap_err();
    assert!(!format!("{error} {error:?}").contains("hunter2"));
}

/// The password file's last newline is not part of the password; everything else is.
#[test]
fn the_password_is_read_from_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    let load = || Settings::builder().set("cloud.password_file", file.display()).build();
    for (text, expected) in [("a b \n", "a b "), ("a\r\n", "a"), ("a\n\n", "a\n"), ("a", "a")] {
        std::fs::write(&file, text).unwrap();
        assert_eq!(load().unwrap().cloud.password.as_ref().unwrap().expose(), expected);
    }
    std::fs::write(&file, "\n").unwrap();
    assert!(load().unwrap_err().to_string().contains("it is empty"));
    std::fs::remove_file(&file).unwrap();
    let message = load().unwrap_err().to_string();
    for part in ["cloud.password_file", &file.display().to_string(), "the program", "No such file"] {
        assert!(message.contains(part), "{message}");
    }
}

/// Two passwords may disagree, so both sources are named and nothing is guessed.
#[test]
fn a_password_and_a_password_file_together_are_refused() {
    let message = with(&[("CLOUD_SQL_PASSWORD", "x"), ("TIDEWATER_CLOUD__PASSWORD_FILE", "/y")]).unwrap_err();
    let message = message.to_string();
    assert!(message.contains("CLOUD_SQL_PASSWORD and"), "{message}");
    assert!(message.contains("TIDEWATER_CLOUD__PASSWORD_FILE"), "{message}");
}

/// What is missing for syncing is said in one sentence that names the variables to set.
#[test]
fn what_is_missing_for_syncing_is_said_in_a_sentence() {
    let missing = |variables: &[(&str, &str)]| with(variables).unwrap().cloud.missing();
    assert_eq!(
        missing(&[]).unwrap(),
        "CLOUD_SQL_DATABASE and CLOUD_SQL_USER are not set, so nothing can be synced; set them, and \
         CLOUD_SQL_PASSWORD or CLOUD_SQL_PASSWORD_FILE"
    );
    assert_eq!(
        missing(&[("CLOUD_SQL_DATABASE", "d"), ("CLOUD_SQL_PASSWORD", "p")]).unwrap(),
        "CLOUD_SQL_USER is not set, so nothing can be synced; set it"
    );
    assert_eq!(missing(&[("CLOUD_SQL_DATABASE", "d"), ("CLOUD_SQL_USER", "u")]), None);
}

/// Addresses, names and socket directories are told apart and written as people write them.
#[test]
fn hosts_are_told_apart() {
    let endpoint = |host: &str| Settings::builder().set("proxy.host", host).build().unwrap().proxy.endpoint();
    assert_eq!(endpoint("localhost"), "localhost:5432");
    assert_eq!(endpoint("10.0.0.7"), "10.0.0.7:5432");
    assert_eq!(endpoint("::1"), "[::1]:5432");
    assert_eq!(endpoint("[::1]"), "[::1]:5432");
    assert_eq!(endpoint("/cloudsql/p:r:i"), "/cloudsql/p:r:i/.s.PGSQL.5432");
    let long = format!("/{}", "x".repeat(100));
    assert!(Settings::builder().set("proxy.host", long).build().is_err());
}

/// Every boolean spelling of the documentation is understood, in any case.
#[test]
fn booleans_are_understood_in_every_spelling() {
    for (text, expected) in
        [("true", true), ("1", true), ("Yes", true), ("FALSE", false), ("0", false), ("no", false)]
    {
        assert_eq!(with(&[("CLOUD_SQL_REQUIRE_PROXY", text)]).unwrap().proxy.require, expected);
    }
}

/// A command for the password is words as a shell splits them, or an array; it is shown without its arguments, and what is
/// no command is refused without a word of it.
#[test]
fn a_password_command_is_words_and_shown_without_arguments() {
    let command = |settings: &Settings| match &settings.cloud.link.password {
        PasswordSource::Command(command) => command.argv.clone(),
        source => panic!("{source:?}"),
    };
    let text = Settings::builder()
        .set("cloud.password_command", "vault read '-token=hunter2 x' pg")
        .build()
        .unwrap();
    assert_eq!(command(&text), ["vault", "read", "-token=hunter2 x", "pg"]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mine.toml");
    std::fs::write(&file, "[cloud]\npassword_command = [\"vault\", \"-token=hunter2 x\"]\n").unwrap();
    let array = Settings::builder().config_file(&file).build().unwrap();
    assert_eq!(command(&array), ["vault", "-token=hunter2 x"]);
    for settings in [&text, &array] {
        let shown = format!("{settings:?} {:?}", settings.effective());
        assert!(shown.contains("vault …") && !shown.contains("hunter2"), "{shown}");
        assert_eq!(settings.cloud.password, None);
    }
    for bad in ["vault 'hunter2", "'' hunter2", "vault hunter2\0"] {
        let error = Settings::builder().set("cloud.password_command", bad).build().unwrap_err();
        let text = format!("{error} {error:?}");
        assert!(text.contains("a program and its arguments") && !text.contains("hunter2"), "{text}");
    }
    std::fs::write(&file, "[cloud]\npassword_command = [\"hunter2\", 7]\n").unwrap();
    let error = Settings::builder().config_file(&file).build().unwrap_err().to_string();
    assert!(error.contains("mine.toml") && !error.contains("hunter2"), "{error}");
}

/// Of the three ways to give a password any two are refused together.
#[test]
fn a_password_command_beside_another_password_is_refused() {
    for other in ["cloud.password", "cloud.password_file"] {
        let sources = Settings::builder().set(other, "x").set("cloud.password_command", "vault");
        let message = sources.build().unwrap_err().to_string();
        let expected =
            format!("{other} from the program and cloud.password_command from the program are both set");
        assert!(message.starts_with(&expected), "{message}");
    }
}

/// TLS is required of other machines by default; a certificate without its key, or the other way round, is refused.
#[test]
fn tls_settings_are_read_and_belong_together() {
    let settings = Settings::builder().build().unwrap();
    assert_eq!(settings.cloud.link.tls, TlsOptions::default());
    assert_eq!(TlsOptions::default().mode, TlsMode::Auto);
    let sources = || {
        Settings::builder()
            .set("cloud.tls", "Required")
            .set("cloud.tls_ca_file", "/ca.pem")
            .set("cloud.tls_server_name", "my-project:orders")
    };
    let tls = sources().set("cloud.tls_cert_file", "/c.pem").set("cloud.tls_key_file", "/k.pem");
    let expected = TlsOptions {
        mode: TlsMode::Required,
        ca_file: Some("/ca.pem".into()),
        server_name: Some("my-project:orders".into()),
        cert_file: Some("/c.pem".into()),
        key_file: Some("/k.pem".into()),
    };
    assert_eq!(tls.build().unwrap().cloud.link.tls, expected);
    for (one, other) in
        [("cloud.tls_cert_file", "cloud.tls_key_file"), ("cloud.tls_key_file", "cloud.tls_cert_file")]
    {
        let message = sources().set(one, "/one").build().unwrap_err().to_string();
        assert!(message.starts_with(one) && message.contains(&format!("together with {other}")), "{message}");
    }
    for (key, value) in [("cloud.tls", "on"), ("cloud.tls_server_name", "two words")] {
        assert!(Settings::builder().set(key, value).build().unwrap_err().to_string().starts_with(key));
    }
}

/// HTTP is for this machine unless a word of its own says otherwise; the names that may ask are a list in either form.
#[test]
fn http_is_for_this_machine() {
    let http = |variables: &[(&str, &str)]| with(variables).map(|settings| settings.http.clone());
    let built_in = http(&[]).unwrap();
    assert_eq!(built_in.listen, Some("127.0.0.1:8432".parse().unwrap()));
    assert!(built_in.hosts.is_empty());
    for (text, listen) in [
        ("off", None),
        ("OFF", None),
        ("localhost:80", Some("127.0.0.1:80")),
        ("[::1]:8432", Some("[::1]:8432")),
        ("127.0.0.2:0", Some("127.0.0.2:0")),
    ] {
        let settings = http(&[("TIDEWATER_HTTP__LISTEN", text)]).unwrap();
        assert_eq!(settings.listen, listen.map(|listen| listen.parse().unwrap()), "{text}");
    }
    for text in
        ["0.0.0.0:8432", "10.0.0.7:8432", "[::]:1", "db.example:80", "8432", "localhost", "127.0.0.1:x", "on"]
    {
        let error = http(&[("TIDEWATER_HTTP__LISTEN", text)]).unwrap_err().to_string();
        assert!(error.contains("http.listen") && error.contains("http.allow_remote"), "{error}");
    }
    let remote = [("TIDEWATER_HTTP__LISTEN", "0.0.0.0:80"), ("TIDEWATER_HTTP__ALLOW_REMOTE", "true")];
    assert_eq!(http(&remote).unwrap().listen, Some("0.0.0.0:80".parse().unwrap()));

    let hosts = ["db.example", "10.0.0.7", "fd00::7"];
    assert_eq!(http(&[("TIDEWATER_HTTP__HOSTS", "DB.example, 10.0.0.7,, [fd00::7]")]).unwrap().hosts, hosts);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mine.toml");
    std::fs::write(&file, "[http]\nhosts = [\"DB.example\", \"10.0.0.7\", \"[fd00::7]\"]\n").unwrap();
    let settings = Settings::builder().config_file(&file).build().unwrap();
    assert_eq!(settings.http.hosts, hosts);
    let shown = settings.effective().iter().find(|it| it.key == "http.hosts").unwrap();
    assert_eq!(shown.value, "DB.example, 10.0.0.7, [fd00::7]");
    for bad in ["db.example:80", "http://db.example", "*", "a b"] {
        assert!(
            http(&[("TIDEWATER_HTTP__HOSTS", bad)]).unwrap_err().to_string().contains("http.hosts"),
            "{bad}"
        );
    }
}

/// A table is what SQLite takes for one, whatever the case, in every layer; those that nobody names are as it was built in.
#[test]
fn a_table_has_settings_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mine.toml");
    let text = "[tables.Notes]\ndirection = \"pull\"\n[tables.\"a.b c\"]\ndirection = \"None\"\n[tables.NAME]\ndirection = \"push\"\n";
    std::fs::write(&file, text).unwrap();
    let sources = Settings::builder().config_file(&file);
    let settings = sources.build().unwrap();
    let direction = |settings: &Settings, table: &str| settings.tables.of(table).direction;
    assert_eq!(direction(&settings, "notes"), Direction::Pull);
    assert_eq!(direction(&settings, "NOTES"), Direction::Pull);
    assert_eq!(direction(&settings, "A.B C"), Direction::None);
    assert_eq!(direction(&settings, "name"), Direction::Push);
    assert_eq!(direction(&settings, "others"), Direction::Both);
    let names: Vec<_> = settings.tables.named().map(|it| it.name.as_str()).collect();
    assert_eq!(names, ["a.b c", "NAME", "Notes"]);

    let stronger = sources
        .environment([
            ("TIDEWATER_TABLES__NOTES__DIRECTION", "push"),
            ("TIDEWATER_TABLES__a__b__Direction", "pull"),
        ])
        .set("tables.A.B C.direction", "both");
    let settings = stronger.build().unwrap();
    assert_eq!(direction(&settings, "notes"), Direction::Push);
    assert_eq!(direction(&settings, "a.b c"), Direction::Both);
    assert_eq!(direction(&settings, "a__b"), Direction::Pull);
    let effective = |key: &str| settings.effective().iter().find(|it| it.key == key).cloned();
    let notes = effective("tables.NOTES.direction").unwrap();
    assert_eq!((notes.value.as_str(), notes.origin.as_str()), ("push", "TIDEWATER_TABLES__NOTES__DIRECTION"));
    assert_eq!(notes.allowed, "both, push, pull, none");
    assert_eq!(effective("tables.Notes.direction"), None);

    let settings = Settings::builder().build().unwrap();
    assert_eq!(settings.tables.named().count(), 0);
    assert_eq!(direction(&settings, "NAME"), Direction::Both);
    let shown = settings.effective().iter().find(|it| it.key == "tables.NAME.direction").unwrap();
    assert!(shown.is_built_in() && shown.value == "both");
}

/// What is wrong with a table's settings is named with its key, its source and what would be right.
#[test]
fn bad_settings_of_a_table_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mine.toml");
    for (text, parts) in [
        ("[tables.notes]\ndirection = \"up\"", ["tables.notes.direction", "both, push, pull, none"]),
        ("[tables.notes]\ndirection = [1]", ["tables.notes.direction", "(not a single value)"]),
        (
            "[tables.notes]\ndirecton = \"push\"",
            ["tables.notes.directon", "did you mean tables.notes.direction?"],
        ),
        ("[tables.notes]\nwidth = 1", ["tables.notes.width", "not a known key"]),
        ("[tables.notes.direction]\nx = 1", ["tables.notes.direction", "(not a single value)"]),
        ("[tables]\nnotes = \"push\"", ["tables.notes", "not a known key"]),
        ("tables = 1", ["tables", "not a known key"]),
        ("[tables.\"\"]\ndirection = \"push\"", ["tables.", "not a known key"]),
        (
            "[tables.notes]\ndirection = \"push\"\n[tables.Notes]\ndirection = \"pull\"",
            ["tables.Notes and tables.notes", "one table to SQLite"],
        ),
    ] {
        std::fs::write(&file, text).unwrap();
        let message = Settings::builder().config_file(&file).build().unwrap_err().to_string();
        for part in parts.into_iter().chain([file.display().to_string().as_str()]) {
            assert!(message.contains(part), "{text}: {message:?} lacks {part:?}");
        }
    }
    let message = with(&[("TIDEWATER_TABLES__notes__DIRECTON", "push")]).unwrap_err().to_string();
    assert!(message.ends_with("did you mean TIDEWATER_TABLES__notes__DIRECTION?"), "{message}");
    let message = with(&[("TIDEWATER_TABLES__NOTES", "push")]).unwrap_err().to_string();
    assert!(message.contains("TIDEWATER_TABLES__NOTES") && message.contains("not a known key"), "{message}");
    let message = Settings::builder().set("tables.notes.direction", "up").build().unwrap_err().to_string();
    assert!(message.contains("tables.notes.direction") && message.contains("the program"), "{message}");
}

/// A condition is a text, left-out columns are names in either form, and so are the tables that come from the cloud.
#[test]
fn conditions_and_names_are_read_in_either_form() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mine.toml");
    std::fs::write(
        &file,
        "[sync]\ntables_from_cloud = [\"a, b\", \"c\"]\n[tables.notes]\nwhere = \"a = 1\"\ncolumns_left_out = [\"x, y\", \"z\"]\n",
    )
    .unwrap();
    let settings = Settings::builder().config_file(&file).build().unwrap();
    assert_eq!(settings.sync.tables_from_cloud, TablesFromCloud::Named(vec!["a, b".into(), "c".into()]));
    let notes = settings.tables.of("NOTES");
    assert_eq!(notes.filter.as_deref(), Some("a = 1"));
    assert_eq!(notes.columns_left_out, ["x, y", "z"]);
    let shown = settings.effective().iter().find(|it| it.key == "tables.notes.columns_left_out").unwrap();
    assert_eq!(shown.value, "x, y, z");
    let others = settings.tables.of("others");
    assert_eq!((others.filter.as_deref(), others.columns_left_out.len()), (None, 0));

    let settings = with(&[
        ("TIDEWATER_TABLES__NOTES__WHERE", " "),
        ("TIDEWATER_TABLES__NOTES__COLUMNS_LEFT_OUT", "x, y"),
        ("TIDEWATER_SYNC__TABLES_FROM_CLOUD", "notes, tags"),
    ])
    .unwrap();
    assert_eq!(settings.tables.of("notes").filter, None);
    assert_eq!(settings.tables.of("notes").columns_left_out, ["x", "y"]);
    assert_eq!(settings.sync.tables_from_cloud, TablesFromCloud::Named(vec!["notes".into(), "tags".into()]));
    for (text, expected) in
        [("auto", TablesFromCloud::Auto), ("None", TablesFromCloud::None), (" ALL ", TablesFromCloud::All)]
    {
        let settings = with(&[("TIDEWATER_SYNC__TABLES_FROM_CLOUD", text)]).unwrap();
        assert_eq!(settings.sync.tables_from_cloud, expected);
    }
    for (key, value, allowed) in [
        ("TIDEWATER_TABLES__NOTES__COLUMNS_LEFT_OUT", "x,,y", "the names of columns"),
        ("TIDEWATER_SYNC__TABLES_FROM_CLOUD", "x,", "auto, none, all, or the names of tables"),
    ] {
        assert!(with(&[(key, value)]).unwrap_err().to_string().contains(allowed));
    }
}
