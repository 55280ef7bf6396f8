"""One line in a framework's own start-up that gives each of its workers the token; docs/hooks.md has an example each.

Every hook calls `krbrefresh.activate` in the process that does the work, and takes the same: a path and keyword
arguments. A framework that calls a hook by its name gets the defaults: the path is `$KRBREFRESH_CCACHE` there. A module
here imports its framework; nothing imports these modules but who names them.
"""

from __future__ import annotations

import os
from typing import Any

from ..client import activate, seconds, wait
from ..errors import KrbrefreshError


def before_the_fork(path: str | os.PathLike[str] | None, options: dict[str, Any]) -> None:
    """Activates the token in a process whose workers fork from it, or only waits for it where each of them is to make
    a copy of its own: a copy has a thread, which had better not be there when the process forks."""
    if options.get("private") or options.get("public_key"):
        wait(path, **{name: value for name, value in options.items() if name != "private"})
    else:
        activate(path, **options)


def at_most(longest: float, options: dict[str, Any]) -> dict[str, Any]:
    """The options with a `timeout` of no more than so many seconds: a framework kills who takes longer to start."""
    return {**options, "timeout": min(seconds(options.get("timeout", 60)), longest)}


def refusal(error: Exception) -> str:
    """One line for the framework's log: what is wrong, by its reason, and what to do about it."""
    if isinstance(error, KrbrefreshError):
        return f"krbrefresh: {error.reason}: {error}; {error.hint}"
    return f"krbrefresh: {type(error).__name__}: {error}"
