"""What keeps the contents of a process to itself. For the refresher and for the child that has the keys."""

from __future__ import annotations

import resource


def no_core_dump() -> None:
    """This process and those that it starts leave no core dump. There are tickets in it, and now and then a key."""
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (OSError, ValueError):  # a sandbox that forbids the call, and has its own limit
        pass
