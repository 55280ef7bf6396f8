import os

import psycopg

import krbrefresh

krbrefresh.activate()
with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
    found = connection.execute(
        "SELECT gss_authenticated, encrypted, principal FROM pg_stat_gssapi WHERE pid = pg_backend_pid()"
    )
    print(*found.fetchone())
