"""Ray: `ray.init(runtime_env={"worker_process_setup_hook": "krbrefresh.hooks.ray.setup"})`.

Ray calls the hook in each process that runs tasks or an actor, before the first of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import krbrefresh

from . import refusal


def hook(path: str | os.PathLike[str] | None = None, **options: Any) -> Callable[[], None]:
    """A worker_process_setup_hook that uses the token at `path`, by `krbrefresh.activate(path, **options)`.

    Raises RuntimeError without a valid token, with the reason and what to do. Ray then ends the worker, shows that, and
    tries the task again in another one.
    """

    def setup() -> None:
        try:
            krbrefresh.activate(path, **options)
        except krbrefresh.KrbrefreshError as error:
            raise RuntimeError(refusal(error)) from None

    return setup


setup = hook()
