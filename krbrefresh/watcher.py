"""Tells of each new generation of a token, from a thread of its own."""

from __future__ import annotations

import logging
import threading

from .client import look
from .errors import KeyFileError, KrbrefreshError, TokenError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from .client import Checks
    from .token import Token

_LEAST_INTERVAL = 0.01  # seconds; a look costs some microseconds

_log = logging.getLogger("krbrefresh")


class Watcher:
    """What `watch` gives; as a context manager it stops at the end.

    `token` is the last token that passed the checks, None before the first; `error` is why what is at the path now does
    not pass, or None.
    """

    def __init__(self, callback: Callable[[Token], object], path: str, interval: float, checks: Checks) -> None:
        self._callback, self._path, self._checks = callback, path, checks
        self._interval = min(max(interval, _LEAST_INTERVAL), threading.TIMEOUT_MAX)
        self._stop = threading.Event()
        self._newest = self._last = -1  # generations: of all that have passed, and of the last one
        self.token: Token | None = None
        self.error: KrbrefreshError | None = None
        self._look()  # what is there now is not new
        if isinstance(self.error, KeyFileError):
            raise self.error  # a mistake in the arguments, and not in what is at the path
        self._thread = threading.Thread(target=self._run, name="krbrefresh-watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread and waits for it, and so for a callback that is under way; not in a callback itself."""
        self._stop.set()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def __enter__(self) -> Watcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self) -> None:
        while not self._stop.wait(self._interval):
            try:
                new = self._look()
                if new is not None:
                    self._callback(new)
            except (Exception, SystemExit):  # noqa: BLE001  (whatever it was, the next one is worth a call, too)
                _log.exception("%s: what was to be done about a new token has failed", self._path)

    def _look(self) -> Token | None:
        """The token at the path, if it passes and is a newer one than any before it."""
        try:
            token = look(self._path, self._checks)
        except (TokenError, KeyFileError) as error:
            if self.error is None or error.reason != self.error.reason:
                _log.warning("%s: %s; %s", error.reason, error, error.hint)
            self.error = error
            return None
        self.error = None
        # One from kinit or k5start has no generation; when its ticket starts orders these, too.
        generation = int(token.starts) if token.generation is None else token.generation
        newest, last = self._newest, self._last
        self._newest, self._last, self.token = max(newest, generation), generation, token
        if generation < newest and generation != last:
            _log.warning("%s: generation %d was put back in place of %d", self._path, generation, newest)
        return token if generation > newest else None
