"""Where settings come from: a TOML file, the environment over it, Airflow's variables under it. Nothing is judged here
but where a value stands; settings.py knows the keys.

The file is `--config`, else `$KRBREFRESH_CONFIG`, else /etc/krbrefresh/krbrefresh.toml if it exists. A variable is
`KRBREFRESH__{SECTION}__{KEY}` or `KRBREFRESH__CREDENTIALS__{NAME}__{KEY}`.
"""

from __future__ import annotations

import difflib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping

from ..errors import SettingsError

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover (the same parser under its former name)
    import tomli as tomllib

DEFAULT_CONFIG = "/etc/krbrefresh/krbrefresh.toml"
ENV_PREFIX = "KRBREFRESH__"
AIRFLOW_PREFIX = "AIRFLOW__KERBEROS__"
COMMAND_WITHIN = 30.0  # seconds
_SECTIONS = ("refresher", "kerberos", "credentials")
_CREDENTIAL_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}\Z")
_PRINCIPAL = f"{ENV_PREFIX}KERBEROS__PRINCIPAL"

# What of Airflow's section means the same here: its key -> ours. The rest of it steers kinit, which is not used.
_AIRFLOW = {"PRINCIPAL": "principal", "KEYTAB": "keytab", "CCACHE": "ccache", "FORWARDABLE": "forwardable"}

# A section's raw values: key -> (value, where it stands). The sections are `refresher`, `kerberos` and, by their names,
# the credentials.
Raw = dict[str, tuple[object, str]]


def read(config: str | None, environ: Mapping[str, str], *, airflow: bool = False) -> dict[str, Raw]:
    """All sections with what the sources say, the strongest source's word for each key.

    Raises SettingsError, whose message names the source.
    """
    sections: dict[str, Raw] = {}
    if airflow:
        sections["kerberos"] = {
            key: (environ[AIRFLOW_PREFIX + theirs], AIRFLOW_PREFIX + theirs)
            for theirs, key in _AIRFLOW.items()
            if environ.get(AIRFLOW_PREFIX + theirs)
        }
    for section, raw in _read_file(config, environ).items():
        sections.setdefault(section, {}).update(raw)
    _read_environment(environ, sections)
    return sections


def no_such(what: str, word: str, known: Iterable[str]) -> str:
    """That there is no such thing, and which one may have been meant."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"there is no such {what}" + (f"; did you mean {close[0]}?" if close else "")


def _read_file(config: str | None, environ: Mapping[str, str]) -> dict[str, Raw]:
    path = config or environ.get("KRBREFRESH_CONFIG")
    if not path:
        if not os.path.exists(DEFAULT_CONFIG):
            return {}
        path = DEFAULT_CONFIG
    try:
        with open(path, "rb") as file:
            document = tomllib.load(file)
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}", hint="correct --config or $KRBREFRESH_CONFIG") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: it is not TOML: {error}") from None
    sections: dict[str, Raw] = {}
    for section, values in document.items():
        if section not in _SECTIONS:
            raise SettingsError(f"{path}: [{section}]: {no_such('section', section, _SECTIONS)}")
        if not isinstance(values, dict):
            raise SettingsError(f"{path}: {section}: it has to be a section: [{section}]")
        if section != "credentials":
            sections[section] = {key: (value, f"{path}: [{section}] {key}") for key, value in values.items()}
            continue
        for name, keys in values.items():
            where = f"{path}: [credentials.{name}]"
            if not isinstance(keys, dict):
                raise SettingsError(f"{where}: it has to be a section of its own")
            _check_name(name, where)
            sections[name] = {key: (value, f"{where} {key}") for key, value in keys.items()}
    return sections


def _read_environment(environ: Mapping[str, str], sections: dict[str, Raw]) -> None:
    for variable, value in sorted(environ.items()):
        if not variable.startswith(ENV_PREFIX) or variable in (f"{_PRINCIPAL}_FILE", f"{_PRINCIPAL}_CMD"):
            continue
        words = variable.removeprefix(ENV_PREFIX).lower().split("__")
        section, key = words[0], words[-1]
        if section == "credentials" and len(words) == 3:
            section = words[1]
            _check_name(section, variable)
        elif section not in ("refresher", "kerberos") or len(words) != 2:
            known = [f"{ENV_PREFIX}{name.upper()}__" for name in _SECTIONS]
            raise SettingsError(f"{variable}: {no_such('setting', variable, known)}")
        sections.setdefault(section, {})[key] = value, variable
    _read_principal(environ, sections)


def _read_principal(environ: Mapping[str, str], sections: dict[str, Raw]) -> None:
    """The principal from a file or from a command's output: the only key that can come from there."""
    given = [variable for variable in (_PRINCIPAL, f"{_PRINCIPAL}_FILE", f"{_PRINCIPAL}_CMD") if variable in environ]
    if len(given) > 1:
        raise SettingsError(f"{' and '.join(given)}: both are set", hint="set one of them")
    if not given or given[0] == _PRINCIPAL:
        return
    (variable,) = given
    value = environ[variable]
    try:
        text = _output(value) if variable.endswith("_CMD") else _content(value)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        words = error.strerror if isinstance(error, OSError) else str(error)
        raise SettingsError(f"{variable}: {value}: {words}") from None
    sections.setdefault("kerberos", {})["principal"] = text, variable


def _content(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read().strip()


def _output(command: str) -> str:
    """What a command prints; it is split as a shell would, and run without one."""
    words = shlex.split(command)
    if not words:
        raise ValueError("there is no command")
    ran = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=COMMAND_WITHIN, check=False)
    if ran.returncode:
        raise ValueError(f"it ended with status {ran.returncode}")
    return ran.stdout.decode().strip()


def _check_name(name: str, where: str) -> None:
    if not _CREDENTIAL_NAME.match(name) or name in _SECTIONS:
        raise SettingsError(f"{where}: a credential's name has lower-case letters, digits, - and _, and is no section")
