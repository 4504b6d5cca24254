//! The same routes in a server of the app's own.

use actix_web::{App, HttpResponse, HttpServer, web};
use tidewater::http::Token;
use tidewater_test_support::wait;

use crate::client::{Events, ask, exchange, post_with};
use crate::harness::{Bench, PATIENCE, run};

/// The library listens nowhere by itself. Mounted below a path of the app's own server, on several threads, the routes answer
/// and are guarded as in the process; what the app serves besides is its own affair.
#[actix_rt::test]
async fn the_routes_are_mounted_in_the_apps_own_server() {
    let bench = Bench::new().await;
    bench.proxy.start();
    let db = bench.open_with(bench.settings().set("http.hosts", "app.example")).await;
    assert_eq!(db.status_summary().await.http.listen, None);
    run(&db, "CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT)").await;
    run(&db, "INSERT INTO note (body) VALUES ('a')").await;
    let count: i64 =
        db.read(|conn| conn.query_row("SELECT count(*) FROM note", [], |row| row.get(0))).unwrap();
    assert_eq!(count, 1);

    let routes = tidewater::http::configure(&db);
    let app = move || {
        App::new()
            .service(web::scope("/tidewater").configure(routes.clone()))
            .route("/own", web::to(|| async { HttpResponse::Ok().body("the app's own") }))
    };
    let server = HttpServer::new(app).workers(2).disable_signals().bind("127.0.0.1:0").unwrap();
    let address = server.addrs()[0];
    let server = server.run();
    let handle = server.handle();
    actix_rt::spawn(server);
    let client = move || {
        wait::until_blocking("everything is flushed", PATIENCE, || {
            let metrics = get_and_close(address, "/tidewater/metrics");
            match metrics.metric("tidewater_propagation_delay_seconds_count") {
                Some(1.0) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
        let metrics = get_and_close(address, "/tidewater/metrics");
        assert_eq!(metrics.metric("tidewater_cloud_available"), Some(1.0));
        assert_eq!(metrics.metric("tidewater_write_duration_seconds_count"), Some(2.0));
        assert_eq!(metrics.metric("tidewater_read_duration_seconds_count"), Some(1.0));
        assert_eq!(get_and_close(address, "/tidewater/healthz").status, 200);
        assert_eq!(get_and_close(address, "/healthz").status, 404);
        let page = get_and_close(address, "/tidewater/");
        assert!(page.status == 200 && page.body.contains("data-actions=\"none\""), "{page:?}");
        // Without a token of the app's there is nothing to do and no row to see.
        assert_eq!(get_and_close(address, "/tidewater/parked").status, 404);
        let json = "Connection: close\r\nContent-Type: application/json\r\n";
        assert_eq!(post_with(address, "/tidewater/flush", json, "{}").status, 404);
        let mut events = Events::follow(address, "/tidewater/events");
        events.wait_for("availability", |it| it["status"] == "available");
        for (host, path, status) in [
            ("app.example", "/tidewater/readyz", 200),
            ("evil.example", "/tidewater/readyz", 421),
            ("evil.example", "/own", 200),
        ] {
            let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
            let answer = exchange(address, request.as_bytes()).unwrap();
            assert_eq!(answer.status, status, "{host} {path}: {answer:?}");
        }
        events
    };
    let mut events = actix_rt::task::spawn_blocking(client).await.unwrap();
    db.shutdown().await.unwrap();
    let ended = move || {
        while events.next().is_some() {}
        // Nobody is well who has been shut down, and nobody hangs.
        get_and_close(address, "/tidewater/healthz").status
    };
    assert_eq!(actix_rt::task::spawn_blocking(ended).await.unwrap(), 503);
    handle.stop(true).await;
}

/// The app's server keeps its connections.
fn get_and_close(address: std::net::SocketAddr, path: &str) -> crate::client::Answer {
    crate::client::ask(address, "GET", path, "Connection: close\r\n")
}

/// With a token of the app's own the actions are there as well, for whoever has it; no file is made for it.
#[actix_rt::test]
async fn the_app_decides_by_a_token_whether_there_are_actions() {
    const WORD: &str = "the-app's-own-word-of-more-than-32-letters";
    let bench = Bench::new().await;
    bench.proxy.start();
    let db = bench.open().await;
    run(&db, "CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT)").await;
    let routes = tidewater::http::configure_with_actions(&db, Token::new(WORD).unwrap());
    let app = move || App::new().service(web::scope("/tidewater").configure(routes.clone()));
    let server = HttpServer::new(app).workers(1).disable_signals().bind("127.0.0.1:0").unwrap();
    let address = server.addrs()[0];
    let server = server.run();
    let handle = server.handle();
    actix_rt::spawn(server);
    let client = move || {
        let page = get_and_close(address, "/tidewater/");
        assert!(page.body.contains("data-actions=\"token\"") && !page.body.contains(WORD), "{page:?}");
        let headers = "Connection: close\r\nContent-Type: application/json\r\n";
        let with = format!("{headers}Authorization: Bearer {WORD}\r\n");
        wait::until_blocking("the cloud is there", PATIENCE, || {
            let flushed = post_with(address, "/tidewater/flush", &with, "{\"wait\":true}");
            if flushed.status == 200 { Ok(()) } else { Err(format!("{flushed:?}")) }
        });
        let listed = ask(address, "GET", "/tidewater/parked", &with);
        assert_eq!((listed.status, &listed.json()["total"]), (200, &0.into()), "{listed:?}");
        assert_eq!(post_with(address, "/tidewater/flush", headers, "{}").status, 401);
        assert_eq!(get_and_close(address, "/tidewater/conflicts").status, 401);
        assert_eq!(
            get_and_close(address, "/tidewater/status").status,
            200,
            "the state is the app's to guard"
        );
    };
    actix_rt::task::spawn_blocking(client).await.unwrap();
    assert_eq!(
        bench.folder.path().read_dir().unwrap().filter(|it| is_token(it.as_ref().unwrap())).count(),
        0
    );
    db.shutdown().await.unwrap();
    handle.stop(true).await;
}

fn is_token(entry: &std::fs::DirEntry) -> bool {
    entry.file_name().to_string_lossy().ends_with(".token")
}
