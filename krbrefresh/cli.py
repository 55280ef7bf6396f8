"""The command line: parses, calls, prints. `check`, `wait`, `exec` and `show` run in worker images and import nothing
but the standard library, and [verify] for --public-key; the refresher's half is imported by the commands that need it.
"""

from __future__ import annotations

import argparse
import os
import sys
import time

from . import __version__
from ._text import moment_text, parse_duration, printable, seconds_text
from .client import activate, assert_no_keytab, resolve, validate, wait
from .errors import (
    CommandError,
    KeyFileError,
    KeytabReadableError,
    KrbrefreshError,
    LayoutError,
    NotInstalledError,
    SettingsError,
    TokenError,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from .client import CheckOptions
    from .token import Token

CANNOT_RUN = 126  # as a shell says it (POSIX, "Exit Status for Commands")
NOT_FOUND = 127


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit status: 0, 1 for a failure, 2 for a usage or settings mistake."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parser(arguments[0] if arguments else "").parse_args(arguments)
    try:
        status: int = options.run(options)
    except (SettingsError, LayoutError, NotInstalledError, KeyFileError) as error:
        _complain(error)
        return 2
    except KrbrefreshError as error:
        _complain(error)
        return 1
    except ValueError as error:
        if options.run not in (_check, _wait, _exec, _show):  # then it is no mistake of the user's
            raise
        print(printable(f"krbrefresh: {error}"), file=sys.stderr)  # a path that is no FILE ccache, for one
        return 2
    except KeyboardInterrupt:
        return 130
    return status


class _Formatter(argparse.HelpFormatter):
    """argparse's own asks shutil for the width, and to import that costs a probe 3 ms."""

    def __init__(self, prog: str) -> None:
        columns = os.environ.get("COLUMNS", "")
        try:
            width = int(columns) if columns.isdecimal() else os.get_terminal_size(1).columns
        except OSError:  # it is no terminal
            width = 0
        super().__init__(prog, width=(width or 80) - 2)


class _NotAsked:
    """In place of a command that is not the one asked for: eleven parsers would be a sixth of a probe's time."""

    def add_argument(self, *_: Any, **__: Any) -> None: ...


def _parser(asked: str = "") -> argparse.ArgumentParser:
    """The parser of that command, or of all of them where there is none of that name."""
    parser = argparse.ArgumentParser(
        prog="krbrefresh",
        description="A Kerberos token that is always fresh, for workers that never see a keytab.",
        formatter_class=_Formatter,
    )
    parser.add_argument("--version", action="version", version=f"krbrefresh {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, run: Any, summary: str) -> Any:
        if asked not in ("", name):
            return _NotAsked()
        added = commands.add_parser(
            name, help=summary, description=summary[0].upper() + summary[1:] + ".", formatter_class=_Formatter
        )
        added.set_defaults(run=run)
        return added

    for name, run, summary in (
        ("run", _run, "the refresher, in the foreground, until TERM"),
        ("once", _once, "one exchange and one publication for each credential"),
        ("config", _config, "print the settings as they are in effect, each with its source"),
    ):
        added = command(name, run, summary)
        added.add_argument("--config", metavar="FILE", help="the settings, in TOML")
        added.add_argument(
            "--airflow", action="store_true", help="read AIRFLOW__KERBEROS__*, too, as the weakest source"
        )
        if name == "once":
            added.add_argument(
                "--keep-trying", action="store_true", help="until there is a valid token of each, as `run` tries"
            )
        if name == "config":
            added.add_argument("--json", action="store_true", help="print them as JSON")

    added = command("check", _check, "validate a token: for health checks and probes")
    _add_checks(added)
    added.add_argument(
        "--no-keytab", action="store_true", help="fail, too, if this process could read a keytab: a worker must not"
    )
    added.add_argument("--json", action="store_true", help="print what is known of the token as JSON")

    added = command("wait", _wait, "block until a token is valid")
    _add_checks(added)
    added.add_argument("--timeout", type=_duration, default=60.0, metavar="60s", help="for how long at the most")
    added.add_argument("--json", action="store_true", help="print what is known of the token as JSON")

    added = command("exec", _exec, "wait for a valid token, then become CMD with KRB5CCNAME set")
    added.add_argument("--ccache", metavar="CCACHE", help="the token's path")
    _add_checks(added, positional=False)
    added.add_argument("--timeout", type=_duration, default=60.0, metavar="60s", help="for how long at the most")
    added.add_argument(
        "--private",
        action="store_true",
        help="give CMD a copy of its own, and stay to keep it fresh; so has --public-key",
    )
    added.add_argument(
        "--on-refresh", type=_signal, metavar="SIG", help="stay, and send CMD this signal at each new generation"
    )
    added.add_argument("argv", nargs=argparse.REMAINDER, metavar="-- CMD ...", help="the command and its arguments")

    added = command("show", _show, "a token for people: its life, its times, its tickets")
    _add_checks(added)
    added.add_argument("--json", action="store_true", help="print what is known of the token as JSON")

    added = command("keygen", _keygen, "make an Ed25519 key pair, for tokens that are signed")
    added.add_argument("path", metavar="PATH", help="the private key's path; the public one is PATH.pub")

    added = command("doctor", _doctor, "look at all that has to be right here, and say what to do where it is not")
    added.add_argument("--config", metavar="FILE", help="the settings, in TOML")
    added.add_argument("--airflow", action="store_true", help="read AIRFLOW__KERBEROS__*, too, as the weakest source")
    added.add_argument("--worker", action="store_true", help="look as a worker, though a refresher's settings are here")
    added.add_argument("--offline", action="store_true", help="ask no KDC; otherwise each credential is tried once")
    added.add_argument("--json", action="store_true", help="print the checks as JSON")

    command("demo", _demo, "a throwaway realm, a refresher and a worker on this machine, for 40 seconds")
    return parser if commands.choices else _parser()


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
    parser.add_argument(
        "--public-key",
        action="append",
        metavar="FILE",
        help="it has to be signed with this key; repeatable, any of them will do; needs --principal",
    )


def _duration(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _signal(text: str) -> int:
    import signal

    name = text.upper() if text.upper().startswith("SIG") else f"SIG{text.upper()}"
    try:
        return int(signal.Signals(int(text)) if text.isdecimal() else signal.Signals[name])
    except (KeyError, ValueError):
        raise argparse.ArgumentTypeError(f"{text!r} is not a signal: write HUP, SIGHUP or a number") from None


def _checks(options: argparse.Namespace) -> CheckOptions:
    return {
        "principal": options.principal,
        "min_remaining": options.min_remaining,
        "services": options.service,
        "public_key": options.public_key,
    }


def _check(options: argparse.Namespace) -> int:
    return _report(options, lambda: validate(options.ccache, **_checks(options)))


def _wait(options: argparse.Namespace) -> int:
    _end_on_term()
    return _report(options, lambda: wait(options.ccache, timeout=options.timeout, **_checks(options)))


def _report(options: argparse.Namespace, look: Any) -> int:
    """Says of a token what `look` finds: in words, or as JSON with always the same keys."""
    path = resolve(options.ccache)
    token: Token | None = None
    error: KrbrefreshError | None = None
    try:
        token = look()
        if getattr(options, "no_keytab", False):
            assert_no_keytab()
    except (TokenError, KeytabReadableError) as caught:
        error = caught
    if options.json:
        _print_json(path, token, error)
    elif token and not error:
        left = seconds_text(token.expires - time.time())  # `remaining` imports datetime
        generation = "" if token.generation is None else f", generation {token.generation}"
        print(
            printable(f"valid: {path}: {token.principal} until {moment_text(token.expires)} ({left} left){generation}")
        )
    if error:
        _complain(error)
        return 1
    return 0


def _print_json(path: str, token: Token | None, error: KrbrefreshError | None) -> None:
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
                "remaining_seconds": int(token.expires - time.time()) if token else None,
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
    _end_on_term()
    try:
        if options.private or options.public_key or options.on_refresh is not None:
            return _stay(options, argv)
        activate(options.ccache, timeout=options.timeout, **_checks(options))
        _become(argv)
    except CommandError as error:
        cause = error.cause
        if isinstance(cause, (FileNotFoundError, NotADirectoryError)) or not _is_somewhere(argv[0]):
            print(f"krbrefresh exec: {argv[0]}: there is no such command", file=sys.stderr)
            return NOT_FOUND
        print(f"krbrefresh exec: {argv[0]}: {cause.strerror}", file=sys.stderr)
        return CANNOT_RUN


def _become(argv: list[str]) -> NoReturn:
    import signal

    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and the command would inherit that
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvp(argv[0], argv)  # that is what exec is for  # noqa: S606  # nosec B606
    except OSError as error:
        raise CommandError(error) from None


def _stay(options: argparse.Namespace, argv: list[str]) -> int:
    from .supervise import run

    path = os.path.abspath(resolve(options.ccache))
    wait(path, timeout=options.timeout, **_checks(options))
    return run(argv, path, private=options.private, on_refresh=options.on_refresh, options=_checks(options))


def _end_on_term() -> None:
    """As a container's first process, TERM would be ignored while a token is waited for: it has no handler there."""
    import signal

    def end(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, end)


def _is_somewhere(command: str) -> bool:
    """Whether there is such a command at all; a directory of PATH that may not be entered has none."""
    return "/" in command or any(os.path.exists(os.path.join(place, command)) for place in os.get_exec_path())


def _show(options: argparse.Namespace) -> int:
    if options.json:
        return _check(options)
    from .show import page

    path = resolve(options.ccache)
    error = None
    try:
        validate(path, **_checks(options))
    except TokenError as caught:
        error = caught
    encoding = (sys.stdout.encoding or "").lower().replace("-", "")
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    unicode = sys.stdout.isatty() and encoding == "utf8"
    for line in page(path, valid=error is None, colour=colour, unicode=unicode):
        print(line)
    if error is None:
        return 0
    print(flush=True)  # what is wrong stands last
    _complain(error)
    return 1


def _keygen(options: argparse.Namespace) -> int:
    from .signature import generate

    key_id = generate(options.path)
    print(f"{options.path}: the private key, for signing_key of the refresher alone")
    print(f"{options.path}.pub: the public key, for the workers; its id is {key_id}")
    return 0


def _run(options: argparse.Namespace, *, until_valid: bool = False) -> int:
    import signal

    # Until the loop's own handlers are there: as pid 1 a TERM without a handler would be lost.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os._exit(1 if until_valid else 0))
    for number in (signal.SIGHUP, signal.SIGUSR1):  # nothing has been read yet that could be read anew
        signal.signal(number, lambda *_: None)

    import asyncio

    async def serve() -> None:
        service, write_the_rest = _service(options)
        status = 0
        try:
            if until_valid:
                status = 0 if await service.run_until_valid() else 1
            else:
                await service.run()
        except LayoutError as error:
            _complain(error)
            status = 2
        # Ends here, while the loop's handlers still stand: once it is closed, a second TERM would be the status. And a
        # thread that waits for a file system would hold up Python's own end.
        write_the_rest()
        os._exit(status)

    asyncio.run(serve())
    return 0


def _once(options: argparse.Namespace) -> int:
    if options.keep_trying:
        return _run(options, until_valid=True)

    import asyncio

    async def once() -> None:
        service, write_the_rest = _service(options)
        status = 0 if await service.once() else 1
        write_the_rest()
        os._exit(status)  # a thread that waits for a file system that hangs would be waited for

    asyncio.run(once())
    return 0


def _config(options: argparse.Namespace) -> int:
    settings = _settings(options)
    explain = _refreshers("explain")
    print(explain.as_json(settings) if options.json else explain.as_toml(settings).rstrip("\n"))
    return 0


def _service(options: argparse.Namespace) -> Any:
    """The service that the settings describe, and what writes the last lines of its log."""
    service, log = _refreshers("service"), _refreshers("log")
    _refreshers("isolation").no_core_dump()
    settings = _settings(options)
    write_the_rest = log.set_up(settings.refresher.log_format)
    return service.Service(settings, reread=lambda: _settings(options)), write_the_rest


def _settings(options: argparse.Namespace) -> Any:
    return _refreshers("settings").load(options.config, airflow=options.airflow)


def _refreshers(module: str) -> Any:
    """A module of the refresher's half, which may not be installed here."""
    import importlib

    try:
        return importlib.import_module(f"krbrefresh.refresher.{module}")
    except ModuleNotFoundError as error:
        raise NotInstalledError(f"the module {error.name} is not installed here") from None


def _doctor(options: argparse.Namespace) -> int:
    from . import doctor

    found = doctor.settings_here(options.config, airflow=options.airflow)
    side = "refresher" if found and not options.worker else "worker"
    if side == "worker":
        # Settings that are here all the same name keytabs that a worker had better not read.
        checks = doctor.worker(keytab_paths=_keytab_paths(options) if found else (), forced=options.worker)
    else:
        try:
            refresher = _refreshers("doctor").refresher
            checks = refresher(options.config, airflow=options.airflow, offline=options.offline, found=found)
        except NotInstalledError as error:
            checks = doctor.not_installed(str(found), error)
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    made = []
    try:
        for check in checks:
            made.append(check)
            if not options.json:
                print(doctor.as_text(check, colour=colour), flush=True)
        if options.json:
            print(doctor.as_json(side, made), flush=True)
        else:
            print(", ".join(f"{number} {status}" for status, number in doctor.count(made).items()), flush=True)
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1 if doctor.count(made)[doctor.FAIL] else 0


def _keytab_paths(options: argparse.Namespace) -> list[str]:
    try:
        credentials = _settings(options).credentials
    except KrbrefreshError:
        return []
    return [path for each in credentials for path in (each.keytab, each.fast_keytab) if path]


def _demo(options: argparse.Namespace) -> int:
    from .demo import demo

    return demo()


def _complain(error: KrbrefreshError) -> None:
    print(printable(f"{error.reason}: {error}"), file=sys.stderr)
    print(printable(f"  {error.hint}"), file=sys.stderr)
