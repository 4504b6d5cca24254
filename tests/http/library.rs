//! The same routes in a server of the app's own.

use actix_web::{App, HttpResponse, HttpServer, web};
use tidewater_test_support::wait;

use crate::client::{Events, exchange};
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
