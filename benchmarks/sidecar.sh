#!/bin/sh
# A kinit sidecar as they are published: takes a ticket, looks whether it is one, lets the workers' group read it, and
# sleeps. It ends at the first error, and whoever runs the container starts it again.
#     sidecar.sh KEYTAB CCACHE PRINCIPAL SECONDS
set -e
while true; do
    echo "kinit at $(date --utc)"
    kinit -k -t "$1" -c "$2" "$3"
    klist -s -c "$2"
    chmod 0640 "$2"
    sleep "$4"
done
