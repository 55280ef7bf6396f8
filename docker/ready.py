#!/usr/bin/python3 -I
"""The refresher's health check: exit status 0 where it answers 200, else 1, with what it says.

    krbrefresh-ready [--config FILE] [--airflow] [PATH]     PATH is /readyz, or /livez for a liveness probe

Where it listens is read from the settings, as the refresher itself reads them: give it the options that `run` has.
"""

from __future__ import annotations

import argparse
import http.client
import ssl
import sys

from krbrefresh.errors import KrbrefreshError
from krbrefresh.refresher import settings

EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104  (where to ask who listens there)
TIMEOUT = 4.0


def main() -> int:
    """Asks, and says what it heard."""
    parser = argparse.ArgumentParser(prog="krbrefresh-ready")
    parser.add_argument("--config")
    parser.add_argument("--airflow", action="store_true")
    parser.add_argument("path", nargs="?", default="/readyz")
    options = parser.parse_args()
    try:
        listen = settings.load(options.config, airflow=options.airflow).refresher.listen
    except KrbrefreshError as error:
        print(f"{error.reason}: {error}")
        return 1
    if listen is None:
        print('listen is "": there is nobody to ask; take `krbrefresh check CCACHE` as the health check')
        return 1
    host = EVERYWHERE.get(listen.host, listen.host)
    connection = http.client.HTTPConnection(host, listen.port, timeout=TIMEOUT)
    if listen.certificate:
        # It is to ourselves: that it answers matters, not who signed its certificate.
        context = ssl._create_unverified_context()  # noqa: S323
        connection = http.client.HTTPSConnection(host, listen.port, timeout=TIMEOUT, context=context)
    try:
        connection.request("GET", options.path)
        answer = connection.getresponse()
        said = answer.read().decode("utf-8", "replace").strip()
    except (OSError, http.client.HTTPException) as error:
        print(f"{listen}: {error}")
        return 1
    print(said)
    return 0 if answer.status == 200 else 1


if __name__ == "__main__":
    sys.exit(main())
