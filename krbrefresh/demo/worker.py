"""The demo's worker: samples the token, and proves itself to the service with it."""

from __future__ import annotations

import json
import os
import select
import socket
import stat
import sys
import time
from typing import Any

from ..client import activate, validate
from ..errors import TokenError
from ..token import Token
from .story import COUNTS, MESSAGE, TOKEN_MODE

SAMPLE_EVERY = 0.1
CONTEXT_EVERY = 1.0


def worker(token_path: str, socket_path: str, keytab: str, group: str) -> int:
    """The worker's process: samples the token and proves itself to the service until its standard input ends, and
    reports each event as a line of JSON."""
    counts = dict.fromkeys(COUNTS, 0)

    def tell(event: str, **fields: object) -> None:
        print(json.dumps({"event": event, "counts": counts, **fields}), flush=True)

    try:
        with open(keytab, "rb"):
            tell("keytab", refused=False, message="it can be read")
    except OSError as error:
        tell("keytab", refused=isinstance(error, PermissionError), message=error.strerror)
    while True:
        try:
            activate(token_path, timeout=0, min_remaining=0)
            break
        except TokenError as error:
            if _input_ended():
                tell("trouble", message=f"{error.reason}: {error}")
                return 0
    generation, trouble, next_context = None, "", 0.0
    while not _input_ended():
        before = trouble
        token, trouble = _sample(token_path, int(group), counts)
        if trouble and not before:
            tell("trouble", message=trouble)
        if token and token.manifest and token.generation != generation:
            generation = token.generation
            window = token.manifest.window_opens_at
            tell("token", principal=token.principal, generation=generation, life=(token.starts, window, token.expires))
        if time.monotonic() >= next_context:
            next_context = time.monotonic() + CONTEXT_EVERY
            tell(**_prove(socket_path, counts))
    tell("finished")
    return 0


def _input_ended() -> bool:
    """Waits for the next sample's time, or for the word to end, which also comes if the demo itself is killed."""
    return bool(select.select([sys.stdin], [], [], SAMPLE_EVERY)[0])


def _sample(path: str, group: int, counts: dict[str, int]) -> tuple[Token | None, str]:
    """The token, if it is valid now, and what is wrong with it or its file."""
    counts["samples"] += 1
    try:
        token = validate(min_remaining=0)
        found = os.stat(path)
    except (TokenError, OSError) as error:
        counts["invalid"] += 1
        return None, f"{getattr(error, 'reason', 'unreadable')}: {error}"
    if stat.S_IMODE(found.st_mode) == TOKEN_MODE and found.st_gid == group:
        return token, ""
    counts["changed"] += 1
    return token, f"the token has mode {stat.S_IMODE(found.st_mode):04o} and group {found.st_gid}"


def _prove(path: str, counts: dict[str, int]) -> dict[str, Any]:
    """A GSSAPI context with the service, mutually authenticated, and a question answered under its key: a report."""
    import gssapi

    start = time.monotonic()
    flags = gssapi.RequirementFlag.mutual_authentication | gssapi.RequirementFlag.confidentiality
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as service:
            service.settimeout(5)
            service.connect(path)
            name = gssapi.Name("demo@localhost", gssapi.NameType.hostbased_service)
            context = gssapi.SecurityContext(name=name, flags=flags, usage="initiate")
            reply = None
            while not context.complete:
                message = context.step(reply)
                if message:
                    service.send(message)
                if not context.complete:
                    reply = service.recv(MESSAGE)
            if not context.actual_flags & gssapi.RequirementFlag.mutual_authentication:
                raise OSError("the service did not prove itself")
            service.send(context.wrap(b"who am I?", True).message)
            initiator = context.unwrap(service.recv(MESSAGE)).message.decode()
    except (gssapi.raw.GSSError, OSError) as error:
        counts["failed"] += 1
        return {"event": "trouble", "message": f"no context: {error}"}
    counts["contexts"] += 1
    return {"event": "context", "initiator": initiator, "ms": (time.monotonic() - start) * 1000}


if __name__ == "__main__":
    sys.exit(worker(*sys.argv[1:]))
