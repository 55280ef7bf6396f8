#!/bin/sh
# The demo's PostgreSQL: nobody gets in over the network but by Kerberos, and only encrypted by it.
set -eu
data=/data/postgresql
PATH=$(echo /usr/lib/postgresql/*/bin):$PATH

if [ ! -f "$data/ready" ]; then
    rm -rf "$data"
    initdb --username=postgres --pgdata "$data" --auth=reject --encoding=UTF8 --locale=C --no-sync >/dev/null
    # The socket's directory lets in nobody but this user: for the health check.
    printf '%s\n' 'local postgres postgres trust' \
        'hostgssenc all etl all gss include_realm=0 krb_realm=EXAMPLE.COM' >"$data/pg_hba.conf"
    echo 'CREATE ROLE etl LOGIN' | postgres --single -D "$data" postgres >/dev/null
    touch "$data/ready"
fi
exec postgres -D "$data" -c listen_addresses='*' -c fsync=off -c unix_socket_directories=/run/postgresql \
    -c krb_server_keyfile=/run/secrets/db-keytab/postgres.keytab
