#!/bin/sh
# The demo's realm: makes it once, and hands out two keytabs, each to a place that one other container sees.
#   /keytab     the refresher's (secret `keytab` in compose.yaml)
#   /db-keytab  PostgreSQL's
set -eu
umask 077
realm=EXAMPLE.COM
mkdir -p /run/kdc
rm -f /run/kdc/ready

# Atomic, as every rotation should be: whoever reads it sees the old keytab or the new one.
hand_out() { # PRINCIPAL FILE UID [OPTION]
    rm -f "$2.new"
    kadmin.local -q "ktadd -norandkey -k $2.new $1" >/dev/null
    chown "$3:$3" "$2.new"
    chmod 0400 "$2.new"
    mv "$2.new" "$2"
}

if [ ! -f /var/lib/krb5kdc/ready ]; then
    rm -rf /var/lib/krb5kdc/*
    kdb5_util create -s -r "$realm" -P "$(head -c 32 /dev/urandom | base64)" >/dev/null
    kadmin.local -q "addprinc -randkey etl" >/dev/null
    kadmin.local -q "addprinc -randkey postgres/db.example.com" >/dev/null
    touch /var/lib/krb5kdc/ready
fi
hand_out etl /keytab/etl.keytab 10001
hand_out postgres/db.example.com /db-keytab/postgres.keytab 10003
touch /run/kdc/ready
echo "the realm $realm, with the principals etl and postgres/db.example.com"
exec krb5kdc -n
