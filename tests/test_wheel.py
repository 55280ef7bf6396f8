"""The wheel where there is nothing else: no compiler, no libkrb5, no other package; on each Python that is here."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from email.parser import Parser
from pathlib import Path
from typing import Any

import pytest

from tests.processes import REPOSITORY
from tests.support import ccache_bytes, ticket
from tests.test_cli import sealed

VERSIONS = ("3.10", "3.11", "3.12", "3.13")
TOOLS = ("gcc", "cc", "clang", "make", "krb5-config", "klist", "kinit")


def candidates(version: str) -> Iterator[str]:
    """Where an interpreter of that version may be: this one, on PATH, among pyenv's."""
    yield sys.executable
    yield from filter(None, [shutil.which(f"python{version}")])
    root = os.environ.get("PYENV_ROOT")
    if not root and shutil.which("pyenv"):
        root = subprocess.run(["pyenv", "root"], capture_output=True, text=True).stdout.strip()
    if root:
        yield from map(str, sorted(Path(root).glob(f"versions/{version}.*/bin/python{version}")))


def interpreter(version: str) -> str | None:
    ask = "import sys, venv; print('%d.%d' % sys.version_info[:2])"
    for candidate in candidates(version):
        try:
            ran = subprocess.run([candidate, "-c", ask], capture_output=True, text=True)
        except OSError:
            continue
        if ran.stdout.strip() == version:  # one of pyenv's shims may be there and lead nowhere
            return candidate
    return None


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(place)]
    subprocess.run(build, cwd=REPOSITORY, check=True, capture_output=True)
    (made,) = place.glob("*.whl")
    return made


def test_the_wheel_is_pure_and_asks_for_nothing(wheel: Path) -> None:
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        fields = Parser().parsestr(archive.read(metadata).decode())
    assert "krbrefresh/py.typed" in names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"krbrefresh"}
    required = fields.get_all("Requires-Dist") or []
    assert [line for line in required if "extra ==" not in line] == []


# What a worker does, and which modules are there when it has done it.
WORK = """
import sys
before = set(sys.modules)  # a site's own start-up modules are not ours
import importlib, json, pkgutil
import krbrefresh

token = krbrefresh.validate(sys.argv[1], principal="etl@EXAMPLE.COM", min_remaining=600)
assert krbrefresh.load(sys.argv[1]).generation == token.generation == 7
assert krbrefresh.wait(sys.argv[1], timeout=5).has_tgt
repr(token), [getattr(token, name) for name in dir(token)]
try:
    krbrefresh.validate(sys.argv[2])
except krbrefresh.CorruptError as error:
    reason = error.reason
for module in pkgutil.iter_modules(krbrefresh.__path__):
    if module.name not in ("__main__", "refresher", "demo", "hooks", "signature"):
        importlib.import_module("krbrefresh." + module.name)
tops = {name.partition(".")[0] for name in set(sys.modules) - before}
for ask in (
    krbrefresh.credentials,
    lambda: krbrefresh.validate(sys.argv[1], principal="etl@EXAMPLE.COM", public_key="/dev/null"),
):
    try:
        ask()
        raise SystemExit("it is not installed")
    except krbrefresh.NotInstalledError:
        pass
absent = []
for name in ("krb5", "gssapi", "cryptography"):
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        absent.append(name)
print(json.dumps({
    "version": "%d.%d" % sys.version_info[:2],
    "where": krbrefresh.__file__,
    "reason": reason,
    "foreign": sorted(tops - set(sys.stdlib_module_names)),
    "refresher": "krbrefresh.refresher" in sys.modules,
    "absent": absent,
}))
"""


def marked(version: str) -> Any:
    """That of this interpreter is for every run."""
    ours = version == "{}.{}".format(*sys.version_info)
    return pytest.param(version, marks=pytest.mark.slow if ours else pytest.mark.long)


@pytest.mark.parametrize("version", [marked(version) for version in VERSIONS])
def test_pip_install_into_a_slim_environment(version: str, wheel: Path, tmp_path: Path) -> None:
    python = interpreter(version)
    if python is None:
        pytest.skip(f"there is no Python {version} here")  # on CI, too: what it runs on is what it has
    slim = tmp_path / "slim"
    subprocess.run([python, "-m", "venv", str(slim)], check=True)
    pip = [str(slim / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "-q", "--no-index", "--no-deps", str(wheel)], check=True)

    good, torn = tmp_path / "krb5cc", tmp_path / "torn"
    good.write_bytes(sealed())
    torn.write_bytes(ccache_bytes(ticket())[:-1])
    env = {"PATH": str(slim / "bin")}  # nothing but what the environment has
    assert [name for name in TOOLS if shutil.which(name, path=env["PATH"])] == []

    def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60)

    done = run(slim / "bin" / "python", "-c", WORK, good, torn)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert Path(found.pop("where")).is_relative_to(slim)
    assert found == {
        "version": version,
        "reason": "corrupt",
        "foreign": ["krbrefresh"],
        "refresher": False,
        "absent": ["krb5", "gssapi", "cryptography"],
    }

    krb = slim / "bin" / "krbrefresh"
    done = run(krb, "check", good)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"valid: {good}: etl@EXAMPLE.COM until ")
    done = run(krb, "check", "--json", "--principal", "other@EXAMPLE.COM", good)
    assert (done.returncode, json.loads(done.stdout)["reason"]) == (1, "wrong_principal")
    done = run(krb, "show", good)
    assert (done.returncode, done.stderr) == (0, "")
    assert "etl@EXAMPLE.COM" in done.stdout
    done = run(krb, "check", "--principal", "etl@EXAMPLE.COM", "--public-key", good, good)
    assert (done.returncode, done.stdout) == (2, "")
    assert "pip install 'krbrefresh[verify]'" in done.stderr
    done = run(krb, "check", torn)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("corrupt: ")
    done = run(krb, "wait", "--timeout", "0", tmp_path / "nowhere")
    assert done.returncode == 1
    assert done.stderr.startswith("missing: ")
    told = "import os; print(os.environ['KRB5CCNAME'])"
    done = run(krb, "exec", "--ccache", good, "--", slim / "bin" / "python", "-c", told)
    assert (done.returncode, done.stdout) == (0, f"FILE:{good}\n")


def test_this_interpreter_is_one_of_them() -> None:
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert version not in VERSIONS or interpreter(version) == sys.executable
