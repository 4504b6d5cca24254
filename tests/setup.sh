#!/bin/sh
# Installs what is missing: with `run`, what building needs; otherwise what the tests need as well. Nothing happens where
# everything is there.
set -eu

for_what=${1:-test}

have_postgres() {
    command -v initdb >/dev/null 2>&1 || ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1
}

# The system's own Python, where another one comes first, is as good.
have_python_module() {
    for python in python3 /usr/bin/python3; do
        "$python" -c "import $1" >/dev/null 2>&1 && return
    done
    return 1
}

missing=""
command -v cc >/dev/null 2>&1 || missing="$missing gcc libc6-dev"
if [ "$for_what" = test ]; then
    command -v chromium >/dev/null 2>&1 || missing="$missing chromium"
    command -v chromedriver >/dev/null 2>&1 || missing="$missing chromium-driver"
    # Debian's is where only an administrator's path leads.
    command -v pgbouncer >/dev/null 2>&1 || [ -x /usr/sbin/pgbouncer ] || missing="$missing pgbouncer"
    have_postgres || missing="$missing postgresql"
    command -v sqlite3 >/dev/null 2>&1 || missing="$missing sqlite3"
    command -v python3 >/dev/null 2>&1 || missing="$missing python3"
    command -v curl >/dev/null 2>&1 || missing="$missing curl"
    have_python_module prometheus_client || missing="$missing python3-prometheus-client"
    have_python_module yaml || missing="$missing python3-yaml"
fi
[ -n "$missing" ] || exit 0

if ! command -v apt-get >/dev/null 2>&1; then
    echo "Missing:$missing. Install them with your system's package manager, then run make again." >&2
    exit 1
fi

as_root=""
if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo >/dev/null 2>&1; then
        echo "Missing:$missing. Run as root: apt-get install$missing" >&2
        exit 1
    fi
    as_root="sudo"
fi

# Debian's packages would start servers of their own, which no test wants: PostgreSQL's on port 5432, unless it is told not to make
# one; PgBouncer's on port 6432, unless the policy of the system says no, which it does until everything is installed.
if [ "$for_what" = test ] && [ ! -e /etc/postgresql-common/createcluster.conf ]; then
    $as_root mkdir -p /etc/postgresql-common
    echo "create_main_cluster = false" | $as_root tee /etc/postgresql-common/createcluster.conf >/dev/null
fi
echo "Installing:$missing"
$as_root env DEBIAN_FRONTEND=noninteractive apt-get update -q
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap '$as_root rm -f "$policy"' EXIT
    trap 'exit 1' HUP INT TERM
    printf '#!/bin/sh\nexit 101\n' | $as_root tee "$policy" >/dev/null
    $as_root chmod 755 "$policy"
fi
# shellcheck disable=SC2086
$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $missing
case $missing in
*pgbouncer*) $as_root update-rc.d pgbouncer disable ;;
esac
