#!/usr/bin/env python3
"""The demo's worker: a query a second, each on a new connection, as the token's principal.

It ends with 0 on TERM, also as a container's first process, or after as many queries as its argument says.
"""

from __future__ import annotations

import signal
import sys
import threading
import time

import psycopg2

import krbrefresh

# Encrypted by GSSAPI; PostgreSQL would let in nothing else.
WHERE = "host=db.example.com user=etl dbname=postgres gssencmode=require connect_timeout=10"
QUERY = "SELECT principal, encrypted FROM pg_stat_gssapi WHERE pid = pg_backend_pid()"


def main() -> int:
    """Asks until it is told to end."""
    end = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: end.set())
    most = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    began = time.time()
    number = 0
    waiting_for = ""
    while not end.is_set() and not (most and number == most):
        try:
            token = krbrefresh.validate(min_remaining=1)
        except krbrefresh.TokenError as error:
            if error.reason != waiting_for:
                waiting_for = error.reason
                print(f"{time.time() - began:7.1f} s  WAITING {error.reason}: {error}")
            end.wait(0.2)
            continue
        waiting_for = ""
        number += 1
        started = time.monotonic()
        try:
            connection = psycopg2.connect(WHERE)
            try:
                with connection.cursor() as cursor:
                    cursor.execute(QUERY)
                    principal, encrypted = cursor.fetchone()
            finally:
                connection.close()
        except psycopg2.Error as error:
            print(f"{time.time() - began:7.1f} s  FAILED query {number}: {str(error).strip()}")
        else:
            print(
                f"{time.time() - began:7.1f} s  query {number}: db.example.com answered {principal}"
                f"{', encrypted,' if encrypted else ''} in {(time.monotonic() - started) * 1000:.0f} ms; generation "
                f"{token.generation}, {token.remaining.total_seconds():.0f} s left"
            )
        end.wait(1 - (time.monotonic() - started))
    return 0


if __name__ == "__main__":
    sys.exit(main())
