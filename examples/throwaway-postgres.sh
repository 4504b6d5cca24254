#!/bin/sh
# A PostgreSQL for trying things out: listens where the Cloud SQL Auth Proxy would, has a database and a role named
# `tour` (password `tour`). Ctrl-C stops it, Enter starts it again with its data; it is gone with all of it when this
# script ends, by a second Ctrl-C.
#
#   sh examples/throwaway-postgres.sh [PORT]
set -eu

port=${1:-5432}
initdb=$(command -v initdb || ls /usr/lib/postgresql/*/bin/initdb 2>/dev/null | tail -n 1)
if [ -z "$initdb" ]; then
    echo "PostgreSQL's server programs are missing: make test installs them, or apt-get install postgresql" >&2
    exit 1
fi
bin=$(dirname "$(readlink -f "$initdb")")
folder=$(mktemp -d)
server=""
# The server refuses to run as root.
as=""
if [ "$(id -u)" -eq 0 ]; then
    chown postgres "$folder"
    as="setpriv --reuid=postgres --regid=postgres --clear-groups"
fi
stop() {
    [ -z "$server" ] || kill -INT "$server" 2>/dev/null || true
    [ -z "$server" ] || wait "$server" 2>/dev/null || true
    server=""
}
finish() {
    stop
    rm -rf "$folder"
}
start() {
    $as "$bin/postgres" -D "$folder/data" -p "$port" -k "$folder" -c listen_addresses="$1" -c fsync=off \
        -c log_min_messages=fatal &
    server=$!
    until $as "$bin/pg_isready" -q -h "$folder" -p "$port"; do
        kill -0 "$server" 2>/dev/null || exit 1
        sleep 0.1
    done
}
trap finish EXIT
trap 'exit 0' INT TERM

cd "$folder"
$as "$bin/initdb" -D "$folder/data" -U postgres --auth=trust --no-sync -E UTF8 >/dev/null
# Not to be seen before the role is there: a login that is refused is not tried again for long.
start ""
$as "$bin/psql" -q -h "$folder" -p "$port" -U postgres -c "CREATE ROLE tour LOGIN PASSWORD 'tour'" \
    -c "CREATE DATABASE tour OWNER tour"
stop
start 127.0.0.1
while :; do
    echo "PostgreSQL listens on 127.0.0.1:$port (database, role and password: tour). Ctrl-C stops it."
    trap stop INT
    # Cut short by the signal, or over when the server is.
    [ -z "$server" ] || wait "$server" || true
    trap 'exit 0' INT
    stop
    echo "It is stopped. Enter starts it again with its data; Ctrl-C removes it."
    read -r _ || exit 0
    start 127.0.0.1
done
