"""The hooks' place in the house; tests/frameworks tries them in the frameworks."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from krbrefresh.hooks import refusal
from tests.test_house import PACKAGE, imports

FRAMEWORK = {"celery": "celery", "dask": "distributed", "gunicorn": None, "ray": None}
HOOKS = sorted(path for path in (PACKAGE / "hooks").glob("*.py") if path.name != "__init__.py")


def test_every_hook_is_known_here() -> None:
    assert {path.stem for path in HOOKS} == set(FRAMEWORK)


@pytest.mark.parametrize("path", [*HOOKS, PACKAGE / "hooks" / "__init__.py"], ids=lambda path: path.stem)
def test_a_hook_imports_its_framework_alone_and_nothing_of_the_refresher(path: Path) -> None:
    for name in imports(path):
        top = name.partition(".")[0]
        assert top in sys.stdlib_module_names or top in {"krbrefresh", FRAMEWORK.get(path.stem)}, name
        assert not name.startswith(("krbrefresh.refresher", "krbrefresh.demo")), name


def test_nobody_imports_the_hooks() -> None:
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name != "hooks":
            assert not any(name.startswith("krbrefresh.hooks") for name in imports(path)), path


def test_what_is_no_reason_of_ours_is_told_by_its_kind() -> None:
    assert refusal(ValueError("KCM:: a token is a FILE ccache")) == (
        "krbrefresh: ValueError: KCM:: a token is a FILE ccache"
    )
