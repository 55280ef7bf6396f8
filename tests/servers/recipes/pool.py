import os

from psycopg_pool import ConnectionPool

pool = ConnectionPool(
    os.environ["DATABASE_URL"],
    min_size=2,
    max_lifetime=float(os.environ.get("DATABASE_MAX_LIFETIME", "3600")),
    check=ConnectionPool.check_connection,
    open=True,
)


def ask() -> str:
    with pool.connection() as connection:
        found = connection.execute("SELECT principal, pid FROM pg_stat_gssapi WHERE pid = pg_backend_pid()")
        return "{} by the backend {}".format(*found.fetchone())
