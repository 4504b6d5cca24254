//! What findings mean, by what people do with them. The faults themselves are planted in `tests/doctor.rs` of the workspace.

use super::*;

const ID: &str = "6f1c2e5a-0d35-4b0e-9a55-1d9d2f1c7b11";

fn healthy() -> Evidence {
    Evidence {
        path: "notes.db".into(),
        file: File::Opened(Box::new(Inside {
            bytes: 4096,
            ours: Some(Ours {
                format: FORMAT,
                tracked: vec!["note".into()],
                cloud: Some(ID.into()),
                system: Some("71".into()),
                ..Ours::default()
            }),
            ..Inside::default()
        })),
        lock: Lock::Free,
        integrity: Integrity::Looked { damage: vec![], orphans: vec![] },
        disk: Disk::Seen { free_bytes: 1 << 40, read_only: false },
        supervisor: Supervisor::NotRunning { stale_socket: false },
        cloud: Cloud {
            endpoint: "127.0.0.1:5432".into(),
            port: 5432,
            listening: Some(true),
            proxies: vec![],
            required: false,
            missing: None,
            database: "notes".into(),
            user: "app".into(),
            dial: Some(Dial::Answered(Box::new(Answers {
                server: "15.8".into(),
                identity: Some(ID.into()),
                system: Some("71".into()),
                protocol: Some(PROTOCOL),
                devices: Some(1),
                tables: vec![CloudSide {
                    name: "note".into(),
                    there: true,
                    feed: true,
                    may_install: true,
                    ..CloudSide::default()
                }],
                ..Answers::default()
            }))),
        },
        limits: Limits { disk_free_bytes: 1, clock_skew_s: 10.0, backlog_age_s: 3600.0 },
        now_us: 1_700_000_000_000_000,
        version: "1.0.0".into(),
    }
}

fn with(change: impl FnOnce(&mut Evidence)) -> Evidence {
    let mut evidence = healthy();
    change(&mut evidence);
    evidence
}

fn ours(evidence: &mut Evidence) -> &mut Ours {
    match &mut evidence.file {
        File::Opened(inside) => inside.ours.as_mut().unwrap(),
        _ => panic!("it is open"),
    }
}

fn answers(evidence: &mut Evidence) -> &mut Answers {
    match &mut evidence.cloud.dial {
        Some(Dial::Answered(answers)) => answers,
        _ => panic!("it answers"),
    }
}

fn failed(stage: Stage, class: FailureClass) -> Option<Dial> {
    let detail = "what happened".into();
    Some(Dial::Failed(Obstacle { stage, class, sqlstate: None, detail, remedy: None }))
}

fn running(change: impl FnOnce(&mut Running)) -> Supervisor {
    let mut running = Running {
        version: "1.0.0".into(),
        actors: 4,
        proxy: "available".into(),
        sync: "idle".into(),
        ..Running::default()
    };
    change(&mut running);
    Supervisor::Runs(Box::new(running))
}

fn marked(evidence: &Evidence, mark: Mark) -> Vec<Check> {
    judge(evidence).into_iter().filter(|finding| finding.mark == mark).map(|finding| finding.check).collect()
}

fn found(evidence: &Evidence, check: Check) -> Finding {
    judge(evidence).into_iter().find(|finding| finding.check == check).unwrap()
}

/// Every check has its line, in one order, and a device that is well has only green ones.
#[test]
fn every_check_has_its_line() {
    let findings = judge(&healthy());
    assert_eq!(findings.iter().map(|finding| finding.check).collect::<Vec<_>>(), Check::ALL);
    assert_eq!(marked(&healthy(), Mark::Green), Check::ALL);
    let mut sorted = Check::ALL;
    sorted.sort();
    assert_eq!(sorted, Check::ALL, "the order of the page is that of the type");
}

/// What is red has a remedy, and nothing else has one, whatever was seen.
#[test]
fn red_and_only_red_has_a_remedy() {
    use FailureClass as Class;
    let mut all = vec![
        with(|it| it.file = File::Missing),
        with(|it| it.file = File::Unusable { reason: "r".into(), remedy: "m".into() }),
        with(|it| it.lock = Lock::Held { pid: 1, name: None }),
        with(|it| it.lock = Lock::CannotSee),
        with(|it| it.integrity = Integrity::Looked { damage: vec!["d".into(); 9], orphans: vec![] }),
        with(|it| it.integrity = Integrity::Looked { damage: vec![], orphans: vec!["o".into()] }),
        with(|it| it.integrity = Integrity::NotLooked("w".into())),
        with(|it| it.disk = Disk::Seen { free_bytes: 0, read_only: false }),
        with(|it| it.disk = Disk::Seen { free_bytes: 9, read_only: true }),
        with(|it| it.disk = Disk::CannotSee("w".into())),
        with(|it| it.supervisor = Supervisor::Silent("w".into())),
        with(|it| it.supervisor = Supervisor::NotASocket("p".into())),
        with(|it| it.supervisor = running(|it| it.unwell = vec!["CloudSyncer is silent".into()])),
        with(|it| it.cloud.listening = None),
        with(|it| ours(it).cloud = None),
        with(|it| answers(it).identity = None),
        with(|it| answers(it).unanswered = Some("w".into())),
        with(|it| answers(it).tables.clear()),
        with(|it| answers(it).tables[0].there = false),
        with(|it| answers(it).clock_ahead_s = -11.0),
    ];
    for stage in [Stage::Connect, Stage::Startup, Stage::Login] {
        for class in
            [Class::NotRunning, Class::NotAnswering, Class::Busy, Class::Credentials, Class::CheckFailed]
        {
            all.push(with(|it| it.cloud.dial = failed(stage, class)));
        }
    }
    for evidence in &all {
        for finding in judge(evidence) {
            assert_eq!(finding.mark == Mark::Red, finding.remedy.is_some(), "{finding:#?}");
            assert!(!finding.finding.is_empty());
        }
    }
}

/// The rung that fails is the only red one: what is above it is green, what is behind it is not looked at.
#[test]
fn one_rung_is_red_and_what_is_behind_it_is_not_looked_at() {
    let rungs = [Check::Connect, Check::Startup, Check::Login];
    let behind =
        [Check::Identity, Check::Rights, Check::Feed, Check::SchemaDrift, Check::ClockSkew, Check::Versions];
    for (at, stage) in [Stage::Connect, Stage::Startup, Stage::Login].into_iter().enumerate() {
        let evidence = with(|it| it.cloud.dial = failed(stage, FailureClass::NotAnswering));
        assert_eq!(marked(&evidence, Mark::Red), [rungs[at]]);
        let unseen: Vec<_> = rungs[at + 1..].iter().chain(&behind).copied().collect();
        assert_eq!(marked(&evidence, Mark::NotLookedAt), unseen);
    }
}

/// Without a file there is nothing to compare with the cloud; the way to it is looked at all the same.
#[test]
fn without_a_file_the_way_to_the_cloud_is_looked_at() {
    let evidence = with(|it| it.file = File::Missing);
    assert_eq!(marked(&evidence, Mark::Red), [Check::File]);
    for check in [Check::Connect, Check::Startup, Check::Login, Check::Rights, Check::ClockSkew] {
        assert_eq!(found(&evidence, check).mark, Mark::Green, "{check:?}");
    }
    assert_eq!(found(&evidence, Check::SchemaDrift).mark, Mark::NotLookedAt);
}

/// A stranger is asked nothing more, except what the time is.
#[test]
fn nothing_is_asked_of_a_stranger() {
    let evidence = with(|it| answers(it).identity = Some("11111111-0000-0000-0000-000000000000".into()));
    assert_eq!(marked(&evidence, Mark::Red), [Check::Identity]);
    assert_eq!(
        marked(&evidence, Mark::NotLookedAt),
        [Check::Rights, Check::Feed, Check::SchemaDrift, Check::Versions]
    );
}

/// A mark that this role may not read makes nobody a stranger: the right is what is missing.
#[test]
fn a_mark_that_may_not_be_read_is_a_missing_right() {
    let evidence = with(|it| {
        let answers = answers(it);
        answers.identity = None;
        answers.rights = vec![Lack { what: "w".into(), who: "as ann:".into(), sql: Some("GRANT x".into()) }];
    });
    assert_eq!(marked(&evidence, Mark::Red), [Check::Rights]);
}

/// Where no cloud is set its absence is no fault, unless it is required; where something listens, what is not set is named.
#[test]
fn an_absent_cloud_is_a_fault_only_where_one_is_wanted() {
    let unset = |listening, required| {
        with(|it| {
            it.cloud.missing = Some("CLOUD_SQL_DATABASE is not set".into());
            (it.cloud.listening, it.cloud.required, it.cloud.dial) = (Some(listening), required, None);
            ours(it).pending = 7;
            ours(it).oldest_us = Some(0);
        })
    };
    assert_eq!(marked(&unset(false, false), Mark::Red), []);
    assert_eq!(marked(&unset(false, true), Mark::Red), [Check::Endpoint, Check::Backlog]);
    assert_eq!(marked(&unset(true, false), Mark::Red), [Check::Login]);
}

/// A proxy that runs and listens elsewhere explains why nothing listens here; alone, a process makes nothing red or green.
#[test]
fn a_process_explains_and_decides_nothing() {
    let proxies = vec!["cloud-sql-proxy (process 8)".to_owned()];
    let elsewhere = with(|it| {
        (it.cloud.listening, it.cloud.dial) = (Some(false), None);
        it.cloud.proxies = proxies.clone();
    });
    assert_eq!(marked(&elsewhere, Mark::Red), [Check::Endpoint, Check::Process]);
    let none = with(|it| (it.cloud.listening, it.cloud.dial) = (Some(false), None));
    assert_eq!(marked(&none, Mark::Red), [Check::Endpoint]);
    assert_eq!(marked(&with(|it| it.cloud.proxies = proxies), Mark::Red), []);
}

/// What a supervisor knows of itself: an actor that is away, a circuit that is held, a wait or a block that has no reason any
/// more, another version.
#[test]
fn what_the_supervisor_says_of_itself() {
    let say = |change: fn(&mut Running)| with(|it| it.supervisor = running(change));
    for (change, check, shell) in [
        (
            (|it| it.unwell = vec!["CloudSyncer is restarting".into()]) as fn(&mut Running),
            Check::Supervisor,
            None,
        ),
        (|it| it.circuit_held = Some("open".into()), Check::Supervisor, Some("run_supervisor circuit auto")),
        (
            |it| (it.proxy, it.waits) = ("unavailable".into(), true),
            Check::Supervisor,
            Some("run_supervisor reset"),
        ),
        (|it| it.sync = "blocked".into(), Check::Supervisor, Some("run_supervisor reset")),
        (|it| it.version = "0.9.0".into(), Check::Versions, None),
    ] {
        let evidence = say(change);
        assert_eq!(marked(&evidence, Mark::Red), [check]);
        assert_eq!(found(&evidence, check).remedy.unwrap().shell.as_deref(), shell);
    }
    // While the cloud does not answer, waiting is what it should do.
    let offline = with(|it| {
        it.supervisor = running(|it| (it.proxy, it.waits) = ("unavailable".into(), true));
        (it.cloud.listening, it.cloud.dial) = (Some(false), None);
    });
    assert_eq!(marked(&offline, Mark::Red), [Check::Endpoint]);
}

/// Who runs what, from this device's side: what is older is to be updated there, what is newer is a reason to update here, and who
/// does not say is older than the first that does. A build of the same version is the same version.
#[test]
fn versions_of_other_devices() {
    let others = |all: &[(Option<&str>, u64)]| {
        with(|it| {
            answers(it).versions = Some(
                all.iter()
                    .map(|(version, devices)| Others {
                        version: version.map(str::to_owned),
                        devices: *devices,
                        some: vec![ID.into(); usize::try_from(*devices).unwrap().min(5)],
                    })
                    .collect(),
            );
        })
    };
    let line = |all: &[(Option<&str>, u64)]| found(&others(all), Check::Versions).finding;
    assert_eq!(line(&[]), "protocol 3, 1 device, 1.0.0");
    assert_eq!(line(&[(Some("1.0.0"), 4)]), "protocol 3, 1 device, 1.0.0 on all seen lately");
    assert_eq!(line(&[(Some("1.0.0+debian"), 4)]), "protocol 3, 1 device, 1.0.0 on all seen lately");
    for (all, says, remedies) in [
        (
            &[(Some("1.0.0"), 2), (Some("1.0.0-rc.1"), 1)][..],
            "1.0.0 here and on 2, 1.0.0-rc.1 on 1",
            &["the device with an older"][..],
        ),
        (
            &[(Some("0.10.0"), 3), (Some("0.9.0"), 2)],
            "1.0.0 here, 0.10.0 on 3, 0.9.0 on 2",
            &["the devices with an older"],
        ),
        (&[(Some("10.0.0"), 1)], "1.0.0 here, 10.0.0 on 1", &["on this device, which has 1.0.0"]),
        (
            &[(None, 7), (Some("2.0.0"), 1)],
            "1.0.0 here, 2.0.0 on 1, 7 devices say not",
            &["on this device", "the devices with an older"],
        ),
        (&[(Some(""), 1), (None, 1)], "1.0.0 here, 2 devices say not", &["the devices with an older"]),
    ] {
        let evidence = others(all);
        assert_eq!(marked(&evidence, Mark::Red), [Check::Versions]);
        let finding = found(&evidence, Check::Versions);
        assert_eq!(finding.finding, format!("versions differ: {says}"));
        let text = finding.remedy.unwrap().text;
        assert!(remedies.iter().all(|remedy| text.contains(remedy)), "{text}");
        assert_eq!(text.matches("update Tidewater").count(), remedies.len(), "{text}");
    }
    let many = found(&others(&[(Some("0.9.0"), 9)]), Check::Versions);
    assert_eq!(many.details, [format!("0.9.0: {} and 4 more", ["6f1c2e5a"; 5].join(", "))]);
}

/// A cloud of before the ledger had versions says nothing of them, which is no fault; what this device's own supervisor is to do
/// stands above the others.
#[test]
fn versions_that_nobody_says() {
    let old = with(|it| (answers(it).protocol, answers(it).versions) = (Some(PROTOCOL - 1), None));
    let finding = found(&old, Check::Versions);
    assert_eq!((finding.mark, finding.finding.as_str()), (Mark::Green, "protocol 2, 1 device"));
    assert!(finding.details[0].contains("run_supervisor cloud-sql"), "{finding:#?}");
    // One that may not read them.
    let blind = found(&with(|it| answers(it).versions = None), Check::Versions);
    assert_eq!((blind.finding.as_str(), blind.details.len()), ("protocol 3, 1 device", 0));
    let running = with(|it| {
        it.supervisor = running(|it| it.version = "0.9.0".into());
        let version = Some("2.0.0".into());
        answers(it).versions = Some(vec![Others { version, devices: 1, some: vec![] }]);
    });
    assert!(
        found(&running, Check::Versions).finding.starts_with("the supervisor that runs is version 0.9.0")
    );
}

/// A difference of clocks counts only as far as it is certain.
#[test]
fn clocks_are_compared_as_far_as_the_network_lets_them() {
    let apart =
        |ahead, within| with(|it| (answers(it).clock_ahead_s, answers(it).clock_within_s) = (ahead, within));
    assert_eq!(marked(&apart(12.0, 3.0), Mark::Red), []);
    assert_eq!(marked(&apart(12.0, 1.0), Mark::Red), [Check::ClockSkew]);
    assert_eq!(marked(&apart(-12.0, 1.0), Mark::Red), [Check::ClockSkew]);
}

/// Paths and names are quoted so that a shell, or PostgreSQL, takes them for what they are.
#[test]
fn commands_are_quoted() {
    assert_eq!(quoted("/var/notes.db"), "/var/notes.db");
    assert_eq!(quoted("my notes.db"), "'my notes.db'");
    assert_eq!(quoted("it's; rm -rf"), "'it'\\''s; rm -rf'");
    assert_eq!(quoted("-rf"), "'-rf'");
    assert_eq!(quoted(""), "''");
}
