"""Dask: `dask worker --preload krbrefresh.hooks.dask`, or `client.register_plugin(TokenPlugin())`.

The preload is what keeps a worker without a token from joining. The plugin is for a cluster whose command line is
somebody else's: whoever registers it is told when a worker has no token, but Dask has a worker that joins later go on.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from typing import Any

from distributed import WorkerPlugin

import krbrefresh

from . import refusal


def hook(path: str | os.PathLike[str] | None = None, **options: Any) -> Callable[[Any], Awaitable[None]]:
    """A `dask_setup` that uses the token at `path`, by `krbrefresh.activate(path, **options)`.

    For a preload of your own: `dask_setup = hook(principal=...)`. Without a valid token the worker's process logs why
    in one line and ends with status 1, before it joins the cluster.
    """

    async def dask_setup(worker: Any) -> None:
        try:
            await asyncio.to_thread(krbrefresh.activate, path, **options)
        except Exception as error:  # Dask logs what a preload raises, and goes on
            logging.getLogger("distributed.krbrefresh").error(refusal(error))
            if getattr(worker, "nanny", None):  # it sees that its child has ended; on SystemExit Dask has a long fall
                os._exit(1)
            raise SystemExit(1) from error

    return dask_setup


dask_setup = hook()


class TokenPlugin(WorkerPlugin):
    """Has each worker use the token at `path`, by `krbrefresh.activate(path, **options)`.

    `client.register_plugin` raises RuntimeError, with the reason and what to do, when a worker has no valid token.
    """

    name = "krbrefresh"

    def __init__(self, path: str | os.PathLike[str] | None = None, **options: Any) -> None:
        self._path, self._options = path, options

    async def setup(self, worker: Any) -> None:
        """Called by Dask in each worker, those that join later too."""
        try:
            await asyncio.to_thread(krbrefresh.activate, self._path, **self._options)
        except krbrefresh.KrbrefreshError as error:
            raise RuntimeError(refusal(error)) from None
