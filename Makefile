# The two commands of the README. Each does its own set-up on a fresh Debian or Ubuntu; the Rust toolchain is presupposed.

.PHONY: run test long fleet bench check setup

# The main job, with SQLite embedded: nothing else is needed.
run:
	@sh tests/setup.sh run
	cargo run --release --bin run_supervisor

# Everything: unit tests, and the tests by promise against a real PostgreSQL. Fail points are in test builds only.
test: setup
	cargo test --workspace --features failpoints --locked

# What takes minutes: every pair of places where actors die, and 10,000 panics in one run (TIDEWATER_PANICS says how many); a cut
# at every byte of a round (TIDEWATER_CUT_STEP=n: at every n-th), and a SIGKILL each time that a fail point is passed; 200 random
# histories of plain SQL in the cloud (TIDEWATER_HISTORIES), and a first sync of a million rows that is interrupted ten times; a row of
# 100 MiB among ten million (TIDEWATER_HEAVY_MIB, TIDEWATER_LIGHT_ROWS), which takes some gigabytes of disk; ten
# minutes of random histories of several devices (TIDEWATER_HISTORIES_S says how long, TIDEWATER_SEED where they begin), and devices
# that hammer the same rows. The same build as for `test`.
long: setup
	cargo test -p tidewater --features failpoints --locked --test panics --test cuts --test crash --test history --test feed_fuzz --test first_sync --test flush_bounds --test histories --test hammer -- --ignored --nocapture --test-threads=1

# Two hundred devices (TIDEWATER_FLEET says how many) that lose one PostgreSQL at the same moment, and get it back; what 100,000 of
# them are in its tables, and how these come back after an outage (in virtual time).
fleet: setup
	cargo test --release -p tidewater --features failpoints --locked --test fleet -- --ignored --nocapture --test-threads=1
	cargo test --release -p tidewater-actors --features failpoints --locked --lib fleet_tests -- --ignored --nocapture

# Speed, each figure beside its raw twin's of the same run.
bench:
	cargo bench -p tidewater-actors --bench control_plane
	cargo bench -p tidewater --bench local
	cargo bench -p tidewater --bench flush
	cargo bench -p tidewater --bench warm

# Format and lints, as CI runs them first.
check:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --features failpoints --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked

# A C compiler for the embedded SQLite; PostgreSQL's server programs, PgBouncer, the sqlite3 shell, Python and Chromium for the tests.
setup:
	@sh tests/setup.sh
