//! A throwaway PgBouncer: a connection pooler that lends servers by the transaction.
//!
//! It lives behind a guard process, as [`crate::postgres`] does, and is gone however the tests end.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use crate::port::Port;
use crate::postgres::{Account, Database, Guard, Postgres, tail};
use crate::wait;

/// `$1`: the program, `$2`: the folder. Requests come line by line, each is answered by one line.
const GUARD: &str = r#"
trap '' HUP INT TERM PIPE
program=$1 dir=$2 pid=
cd "$dir" || exit 1

halt() {
    [ -n "$pid" ] || return 0
    kill -s KILL "$pid" 2>/dev/null
    wait "$pid"
    pid=
}

while read -r request; do
    case $request in
    start) ( trap - HUP INT TERM PIPE
             exec "$program" "$dir/pgbouncer.ini" ) </dev/null >>"$dir/server.log" 2>&1 &
           pid=$!; echo "$pid" ;;
    kill) halt; echo done ;;
    esac
done
halt
cd /
rm -rf "$dir"
"#;

const MISSING: &str =
    "PgBouncer was not found: run `make test`, which installs it, or `apt-get install pgbouncer`";

/// How a pooler is to be set up.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// How many servers it has for all clients of one role and database.
    pub servers: usize,
    /// Whether it lets pass, and drops, the settings that a client asks for at its log-in. Otherwise it refuses the client.
    pub drops_options: bool,
    /// `transaction`, `session` or `statement`.
    pub mode: &'static str,
}

impl Default for Options {
    fn default() -> Self {
        Self { servers: 2, drops_options: false, mode: "transaction" }
    }
}

/// A PgBouncer in front of one database, on a loopback port of its own.
#[derive(Debug)]
pub struct PgBouncer {
    folder: PathBuf,
    port: Port,
    guard: Mutex<Guard>,
}

impl PgBouncer {
    /// Starts one, for the given database.
    pub fn start(server: &Postgres, database: &Database, options: &Options) -> PgBouncer {
        let program = program().unwrap_or_else(|| panic!("{MISSING}"));
        let account = Account::of_server();
        let folder = account.create_folder();
        let port = Port::reserve();
        let Options { servers, drops_options, mode } = options;
        let ignored = if *drops_options { "ignore_startup_parameters = options\n" } else { "" };
        let settings = format!(
            "[databases]\n{name} = host=127.0.0.1 port={server} dbname={name}\n\
             [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n\
             auth_type = scram-sha-256\nauth_file = {folder}/users.txt\npool_mode = {mode}\n\
             default_pool_size = {servers}\nmax_client_conn = 200\nserver_login_retry = 0.2\n{ignored}",
            name = database.name,
            server = server.port(),
            port = port.number(),
            folder = folder.display(),
        );
        fs::write(folder.join("pgbouncer.ini"), settings).unwrap();
        let users = format!("\"{}\" \"{}\"\n", database.user, database.password);
        fs::write(folder.join("users.txt"), users).unwrap();
        let guard = Mutex::new(Guard::spawn(GUARD, &program, &folder, &account));
        let pooler = PgBouncer { folder, port, guard };
        pooler.start_again();
        pooler
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port()))
    }

    /// The port on 127.0.0.1 where it listens.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// Ends it at once, with everything that is under way.
    pub fn kill(&self) {
        self.ask("kill");
    }

    /// Starts it again after [`PgBouncer::kill`], on the same port.
    pub fn start_again(&self) {
        self.ask("start");
        wait::until_blocking("PgBouncer to listen", Duration::from_secs(20), || {
            let connected = TcpStream::connect_timeout(&self.address(), Duration::from_secs(1));
            connected.map(drop).map_err(|error| format!("{error}\n{}", tail(&self.folder.join("server.log"))))
        });
    }

    fn ask(&self, request: &str) -> String {
        self.guard.lock().unwrap_or_else(std::sync::PoisonError::into_inner).ask(request)
    }
}

fn program() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Debian's is where only an administrator's path leads.
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin")])
        .map(|folder| folder.join("pgbouncer"))
        .find(|program| Path::is_file(program))
}
