"""Celery: `install()` in the module of the app, and its worker starts with the token or not at all.

The worker waits for the token before it connects to the broker. Each child of the prefork pool then activates it for
itself, and so does each that takes another's place; the other pools work in the worker's own process, which has it.
"""

from __future__ import annotations

import os
from typing import Any

from celery import current_app, signals
from celery.utils.log import get_logger

import krbrefresh

from . import at_most, before_the_fork, refusal


def install(path: str | os.PathLike[str] | None = None, **options: Any) -> None:
    """Has the workers of this process start with the token at `path`, by `krbrefresh.activate(path, **options)`.

    A worker that has no valid token after `timeout` seconds says why in one line and exits with status 1. So does a
    child of the pool, sooner: Celery kills one that is not up after `worker_proc_alive_timeout` seconds, and it waits
    for half of them at most. The pool then starts another in its place, and the tasks stay queued until one has a
    token. No thread is started before the pool forks.
    """

    def worker_init(sender: Any, **_: Any) -> None:
        start = before_the_fork if _announces_its_processes(sender.pool_cls) else _activate
        try:
            start(path, options)
        except Exception as error:  # Celery logs what a handler raises, and goes on
            raise SystemExit(refusal(error)) from error

    def worker_process_init(**_: Any) -> None:
        longest = current_app.conf.worker_proc_alive_timeout / 2
        try:
            _activate(path, at_most(longest, options))
        except Exception as error:
            get_logger(__name__).error(refusal(error))
            raise SystemExit(1) from error

    def worker_process_shutdown(**_: Any) -> None:
        from krbrefresh.private import remove_copies  # a child of the pool ends by os._exit

        remove_copies()

    signals.worker_init.connect(worker_init, weak=False, dispatch_uid=__name__)
    signals.worker_process_init.connect(worker_process_init, weak=False, dispatch_uid=__name__)
    signals.worker_process_shutdown.connect(worker_process_shutdown, weak=False, dispatch_uid=__name__)


def _activate(path: str | os.PathLike[str] | None, options: dict[str, Any]) -> None:
    krbrefresh.activate(path, **options)


def _announces_its_processes(pool: Any) -> bool:
    """Whether this pool (its class, or a name of it) sends worker_process_init where it works."""
    name = pool if isinstance(pool, str) else pool.__module__
    return any(known in name for known in ("prefork", "processes", "solo"))
