"""gunicorn: `from krbrefresh.hooks.gunicorn import on_starting, post_fork` in gunicorn.conf.py.

`on_starting` waits for the token before gunicorn listens, so that nobody is sent to a server that cannot work yet.
`post_fork` activates it in each worker; it is of use alone as well.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import krbrefresh

from . import at_most, before_the_fork, refusal


def hooks(
    path: str | os.PathLike[str] | None = None, **options: Any
) -> tuple[Callable[[Any], None], Callable[[Any, Any], None]]:
    """`on_starting` and `post_fork` that use the token at `path`, by `krbrefresh.activate(path, **options)`.

    Without a valid token each logs why in one line. `on_starting` then ends gunicorn with status 1. `post_fork` ends
    its worker as one that cannot boot, on which gunicorn halts with status 3. It waits for half of gunicorn's `timeout`
    at most, because gunicorn kills a worker that is silent for longer.
    """

    def on_starting(server: Any) -> None:
        try:
            before_the_fork(path, options)
        except Exception as error:
            server.log.error("%s", refusal(error))
            raise SystemExit(1) from error

    def post_fork(server: Any, worker: Any) -> None:
        longest = server.cfg.timeout / 2 or 60
        try:
            krbrefresh.activate(path, **at_most(longest, options))
        except Exception as error:
            server.log.error("%s", refusal(error))
            raise SystemExit(server.WORKER_BOOT_ERROR) from error

    return on_starting, post_fork


on_starting, post_fork = hooks()
