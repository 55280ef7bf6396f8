"""The trust boundary, as the imports show it."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import krbrefresh
from krbrefresh import errors

PACKAGE = Path(krbrefresh.__file__).parent
# What extras bring: imported when it is asked for, and not before (test_importing_it_loads_the_standard_library_alone).
EXTRAS = {"client.py": {"gssapi", "typing_extensions"}, "signature.py": {"cryptography"}}
WORKER = sorted(path for path in PACKAGE.glob("*.py") if path.name != "cli.py")


def imports(path: Path, *, top_level_only: bool = False) -> set[str]:
    """The absolute names of the modules that a file imports."""
    tree = ast.parse(path.read_text())
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    names: set[str] = set()
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(parts[: -node.level]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            names |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", WORKER, ids=lambda path: path.name)
def test_the_workers_half_imports_no_refresher_and_nothing_outside_the_standard_library(path: Path) -> None:
    for name in imports(path):
        top = name.partition(".")[0]
        assert top in sys.stdlib_module_names or top in {"krbrefresh", *EXTRAS.get(path.name, ())}, name
        assert not name.startswith(("krbrefresh.refresher", "krbrefresh.demo")), name


def test_the_command_line_imports_the_refresher_only_when_it_is_asked_for() -> None:
    for name in imports(PACKAGE / "cli.py", top_level_only=True):
        assert not name.startswith(("krbrefresh.refresher", "krbrefresh.demo", "asyncio")), name


def test_exchange_alone_touches_the_kerberos_library() -> None:
    holders = {
        path.name for path in (PACKAGE / "refresher").glob("*.py") if imports(path) & {"krb5", "gssapi", "ctypes"}
    }
    assert holders == {"exchange.py"}


def test_nobody_in_the_parent_imports_exchange() -> None:
    for path in (PACKAGE / "refresher").glob("*.py"):
        assert "krbrefresh.refresher.exchange" not in imports(path), path


def test_the_refresher_imports_no_kerberos_library() -> None:
    script = (
        "import sys, krbrefresh.refresher.service, krbrefresh.refresher.settings, krbrefresh.cli\n"
        "assert not {'krb5', 'gssapi'} & set(sys.modules), sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("command", [["check", "/nowhere"], ["wait", "/nowhere", "--timeout", "0"], ["--help"]])
def test_the_workers_commands_load_nothing_outside_the_standard_library(command: list[str]) -> None:
    script = (
        "import sys, os\n"
        "sys.path.insert(0, sys.argv.pop(1))\n"
        "from krbrefresh.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "tops = {name.partition('.')[0] for name in sys.modules} - set(sys.stdlib_module_names) - {'__main__'}\n"
        "assert tops == {'krbrefresh'}, tops\n"
        "assert 'krbrefresh.refresher' not in sys.modules\n"
    )
    # -S: without site-packages, as on an image that has nothing but this package.
    subprocess.run(
        [sys.executable, "-I", "-S", "-c", script, str(PACKAGE.parent), *command], check=True, stdout=subprocess.DEVNULL
    )


def test_every_reason_of_a_token_is_a_class_with_a_hint() -> None:
    classes = errors.TokenError.__subclasses__()
    assert [each.reason for each in classes] == [
        "missing",
        "unreadable",
        "corrupt",
        "untrusted",
        "wrong_principal",
        "no_ticket",
        "not_yet_valid",
        "expired",
        "expiring",
    ]
    for each in classes:
        assert each.__name__ == "".join(word.capitalize() for word in each.reason.split("_")) + "Error"
        assert each.hint
        assert getattr(krbrefresh, each.__name__) is each


def test_the_command_without_the_refreshers_half_says_what_to_install(tmp_path: Path) -> None:
    # A site without krb5: the standard library and this package.
    ran = subprocess.run(
        [sys.executable, "-S", "-m", "krbrefresh", "once"],
        env={
            "PYTHONPATH": str(PACKAGE.parent),
            "KRBREFRESH__KERBEROS__PRINCIPAL": "a@B",
            "KRBREFRESH__KERBEROS__KEYTAB": "/k",
            "KRBREFRESH__KERBEROS__CCACHE": str(tmp_path / "t" / "krb5cc"),
        },
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 2
    assert ran.stderr.startswith("not_installed: the ")
    assert "pip install 'krbrefresh[refresher]'" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert os.listdir(tmp_path) == []
