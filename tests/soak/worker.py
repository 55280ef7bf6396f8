"""A worker of the soak: reads the tokens that it is told of five times a second, and says what did not pass.

`worker.py JSON`: `paths` and `principals` by the credentials' names, the first of which is the one it uses; `kind`
(`shared`, `private`, `gss`, `gss-private`), `acceptor` (a port on loopback) and `service`. Ends with the end of
standard input. Prints a JSON object a line: samples in a row that did not pass; its figures at the end.
"""

import json
import os
import select
import socket
import struct
import sys
import time

import krbrefresh

EVERY = 0.2  # seconds
COPY_LAG = 1.0  # seconds in which a private copy has to follow a token that lives for four
CONTEXT_EVERY = 1.0
LEFT = 1.0  # seconds that a token has to live on after a context that fails for that to be a failure

brief = json.loads(sys.argv[1])
paths, principals, kind = brief["paths"], brief["principals"], brief["kind"]
first = next(iter(paths))
figures = dict.fromkeys(
    ("samples", "valid", "generations", "watched", "backwards", "copies", "contexts", "authenticated"), 0
)
newest = dict.fromkeys(paths, 0)  # generations
last = dict.fromkeys(paths)  # when the last valid token ends, and when it arrived
runs = {}  # of samples that did not pass


def say(**what):
    print(json.dumps(what), flush=True)


def watched(token):
    figures["watched"] += 1


def close(name):
    run = runs.pop(name, None)
    if run:
        say(run=run)


def failed(name, reason, now, words=""):
    run = runs.get(name)
    if run and run["reason"] != reason:
        close(name)
        run = None
    if not run:
        runs[name] = run = {
            "credential": name.partition("/")[0],
            "reason": reason,
            "last": last[name.partition("/")[0]],
            "words": words,
            "at": [],
        }
    run["at"].append(round(now, 3))


def check(path, name):
    return krbrefresh.validate(path, principal=principals[name], min_remaining=0)


def sample(name):
    now = time.time()
    figures["samples"] += 1
    try:
        token = check(paths[name], name)
    except krbrefresh.TokenError as error:
        failed(name, error.reason, now, str(error))
        return None
    figures["valid"] += 1
    close(name)
    if token.generation > newest[name]:
        newest[name] = token.generation
        figures["generations"] += 1
        try:
            last[name] = token.expires, os.stat(paths[name]).st_mtime
        except OSError:
            pass
    elif token.generation < newest[name]:
        figures["backwards"] += 1
        say(backwards={"credential": name, "at": now, "from": newest[name], "to": token.generation})
        newest[name] = token.generation
    return token


def sample_copy(name, token):
    """The private copy, where it had time enough to follow."""
    now = time.time()
    figures["copies"] += 1
    try:
        check(os.environ["KRB5CCNAME"], name)
    except krbrefresh.TokenError as error:
        if token and last[name] and now - last[name][1] > COPY_LAG and token.expires > now:
            failed(f"{name}/copy", f"copy: {error.reason}", now, str(error))
            return
    close(f"{name}/copy")


def counted(message):
    return struct.pack(">I", len(message)) + message


def context(name, token):
    """One context with the acceptor, by GSSAPI and the token alone."""
    import gssapi

    began = time.time()
    figures["contexts"] += 1
    try:
        target = gssapi.Name(brief["service"], gssapi.NameType.kerberos_principal)
        made = gssapi.SecurityContext(name=target, creds=krbrefresh.credentials(paths[name]), usage="initiate")
        message = made.step()
        with socket.create_connection(("127.0.0.1", brief["acceptor"]), timeout=10) as connection:
            connection.sendall(counted(message))
            size = struct.unpack(">I", connection.recv(4, socket.MSG_WAITALL))[0]
            answer = connection.recv(size, socket.MSG_WAITALL).decode()
        if answer != principals[name]:
            raise RuntimeError(f"the acceptor said: {answer}")
        figures["authenticated"] += 1
    except Exception as error:
        ended = time.time()
        if token and token.expires - ended > LEFT and (not last[name] or began - last[name][1] > COPY_LAG):
            say(
                run={
                    "credential": name,
                    "reason": "context",
                    "last": last[name],
                    "at": [round(ended, 3)],
                    "words": f"{type(error).__name__}: {error}",
                }
            )


token = krbrefresh.activate(
    paths[first], private="private" in kind, timeout=60, principal=principals[first], min_remaining=0
)
say(ready=True)
next_context = time.monotonic()
with krbrefresh.watch(watched, paths[first], interval=0.5, principal=principals[first], min_remaining=0):
    while not select.select([sys.stdin], [], [], EVERY)[0]:
        seen = {name: sample(name) for name in paths}
        if "private" in kind:
            sample_copy(first, seen[first])
        if "gss" in kind and time.monotonic() >= next_context:
            next_context = time.monotonic() + CONTEXT_EVERY
            context(first, seen[first])
for name in list(runs):
    close(name)
say(figures=figures)
