"""The command line: parses, calls, prints. `check`, `wait` and `exec` run in worker images and import nothing but the
standard library; the refresher's half is imported by the commands that need it."""

from __future__ import annotations

import argparse
import os
import sys

from . import __version__
from ._text import moment_text, parse_duration, printable, seconds_text
from .client import activate, resolve, validate, wait
from .errors import KrbrefreshError, LayoutError, NotInstalledError, SettingsError, TokenError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .token import Token

CANNOT_RUN = 126  # as a shell says it (POSIX, "Exit Status for Commands")
NOT_FOUND = 127


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit status: 0, 1 for a failure, 2 for a usage or settings mistake."""
    options = _parser().parse_args(arguments)
    try:
        status: int = options.run(options)
    except (SettingsError, LayoutError, NotInstalledError) as error:
        _complain(error)
        return 2
    except KrbrefreshError as error:
        _complain(error)
        return 1
    except ValueError as error:
        if options.run not in (_check, _wait, _exec):  # then it is no mistake of the user's
            raise
        print(printable(f"krbrefresh: {error}"), file=sys.stderr)  # a path that is no FILE ccache, for one
        return 2
    except KeyboardInterrupt:
        return 130
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="krbrefresh", description="A Kerberos token that is always fresh, for workers that never see a keytab."
    )
    parser.add_argument("--version", action="version", version=f"krbrefresh {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, run: Any, summary: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        added.set_defaults(run=run)
        return added

    for name, run, summary in (
        ("run", _run, "the refresher, in the foreground, until TERM"),
        ("once", _once, "one exchange and one publication for each credential"),
    ):
        added = command(name, run, summary)
        added.add_argument("--config", metavar="FILE", help="the settings, in TOML")

    added = command("check", _check, "validate a token: for health checks and probes")
    _add_checks(added)
    added.add_argument("--json", action="store_true", help="print what is known of the token as JSON")

    added = command("wait", _wait, "block until a token is valid")
    _add_checks(added)
    added.add_argument("--timeout", type=_duration, default=60.0, metavar="60s", help="for how long at the most")
    added.add_argument("--json", action="store_true", help="print what is known of the token as JSON")

    added = command("exec", _exec, "wait for a valid token, then become CMD with KRB5CCNAME set")
    added.add_argument("--ccache", metavar="CCACHE", help="the token's path")
    _add_checks(added, positional=False)
    added.add_argument("--timeout", type=_duration, default=60.0, metavar="60s", help="for how long at the most")
    added.add_argument("argv", nargs=argparse.REMAINDER, metavar="-- CMD ...", help="the command and its arguments")

    command("demo", _demo, "a throwaway realm, a refresher and a worker on this machine, for 40 seconds")
    return parser


def _add_checks(parser: argparse.ArgumentParser, *, positional: bool = True) -> None:
    if positional:
        parser.add_argument(
            "ccache",
            nargs="?",
            metavar="CCACHE",
            help="the token's path; $KRBREFRESH_CCACHE, $KRB5CCNAME or /run/krbrefresh/default/krb5cc without one",
        )
    parser.add_argument("--principal", metavar="NAME@REALM", help="whose token it has to be")
    parser.add_argument(
        "--min-remaining", type=_duration, default=60.0, metavar="60s", help="for how long it has to be valid still"
    )
    parser.add_argument(
        "--service", action="append", default=[], metavar="NAME@REALM", help="what it has to be good for; repeatable"
    )


def _duration(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _checks(options: argparse.Namespace) -> dict[str, Any]:
    return {"principal": options.principal, "min_remaining": options.min_remaining, "services": options.service}


def _check(options: argparse.Namespace) -> int:
    return _report(options, lambda: validate(options.ccache, **_checks(options)))


def _wait(options: argparse.Namespace) -> int:
    return _report(options, lambda: wait(options.ccache, timeout=options.timeout, **_checks(options)))


def _report(options: argparse.Namespace, look: Any) -> int:
    """Says of a token what `look` finds: in words, or as JSON with always the same keys."""
    path = resolve(options.ccache)
    token: Token | None = None
    error: TokenError | None = None
    try:
        token = look()
    except TokenError as caught:
        error = caught
    if options.json:
        _print_json(path, token, error)
    elif token:
        left = seconds_text(token.remaining.total_seconds())
        generation = "" if token.generation is None else f", generation {token.generation}"
        print(
            printable(f"valid: {path}: {token.principal} until {moment_text(token.expires)} ({left} left){generation}")
        )
    if error:
        _complain(error)
        return 1
    return 0


def _print_json(path: str, token: Token | None, error: TokenError | None) -> None:
    import json

    from .client import load

    if token is None:
        try:
            token = load(path)  # a token that does not pass can be read all the same, often
        except TokenError:
            pass
    print(
        json.dumps(
            {
                "valid": error is None,
                "reason": error.reason if error else None,
                "hint": error.hint if error else None,
                "path": path,
                "principal": token.principal if token else None,
                "expires_at": moment_text(token.expires) if token else None,
                "remaining_seconds": int(token.remaining.total_seconds()) if token else None,
                "services": list(token.services) if token else None,
                "has_tgt": token.has_tgt if token else None,
                "generation": token.generation if token else None,
                "modified": token.modified if token else None,
            }
        )
    )


def _exec(options: argparse.Namespace) -> int:
    argv = options.argv[1:] if options.argv[:1] == ["--"] else options.argv
    if not argv:
        print("krbrefresh exec: there is no command; write it after --", file=sys.stderr)
        return 2
    activate(options.ccache, timeout=options.timeout, **_checks(options))
    import signal

    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and the command would inherit that
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvp(argv[0], argv)  # noqa: S606  (that is what exec is for)
    except OSError as error:
        if isinstance(error, (FileNotFoundError, NotADirectoryError)) or not _is_somewhere(argv[0]):
            print(f"krbrefresh exec: {argv[0]}: there is no such command", file=sys.stderr)
            return NOT_FOUND
        print(f"krbrefresh exec: {argv[0]}: {error.strerror}", file=sys.stderr)
        return CANNOT_RUN


def _is_somewhere(command: str) -> bool:
    """Whether there is such a command at all; a directory of PATH that may not be entered has none."""
    return "/" in command or any(os.path.exists(os.path.join(place, command)) for place in os.get_exec_path())


def _run(options: argparse.Namespace) -> int:
    import signal

    # Until the loop's own handlers are there: as pid 1 a TERM without a handler would be lost.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os._exit(0))

    import asyncio

    async def serve() -> None:
        service, write_the_rest = _service(options)
        await service.run()
        # Ends here, while the loop's handlers still stand: once it is closed, a second TERM would be the status.
        write_the_rest()
        os._exit(0)

    asyncio.run(serve())
    return 0


def _once(options: argparse.Namespace) -> int:
    import asyncio

    service, _ = _service(options)
    return 0 if asyncio.run(service.once()) else 1


def _service(options: argparse.Namespace) -> Any:
    """The service that the settings describe, and what writes the last lines of its log."""
    try:
        from .refresher import settings as settings_module
        from .refresher.log import set_up
        from .refresher.service import Service
    except ModuleNotFoundError as error:
        raise NotInstalledError(f"the module {error.name} is not installed here") from None
    settings = settings_module.load(options.config)
    write_the_rest = set_up(settings.refresher.log_format)
    return Service(settings), write_the_rest


def _demo(options: argparse.Namespace) -> int:
    from .demo import demo

    return demo()


def _complain(error: KrbrefreshError) -> None:
    print(printable(f"{error.reason}: {error}"), file=sys.stderr)
    print(printable(f"  {error.hint}"), file=sys.stderr)
