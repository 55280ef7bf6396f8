"""docs/recipes.md and what is tested are one: its blocks are the files of tests/servers/recipes."""

from __future__ import annotations

import re
from pathlib import Path

from tests.processes import REPOSITORY

RECIPES = Path(__file__).parent / "recipes"
PAGE = Path(REPOSITORY, "docs", "recipes.md")


def test_the_page_shows_every_recipe_and_nothing_that_is_none() -> None:
    blocks = re.findall(r"^```\w*\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    recipes = {path.read_text(): path.name for path in RECIPES.iterdir() if path.is_file()}
    for block in blocks:
        assert block in recipes, f"no recipe that is tested:\n{block}"
    missing = [name for text, name in recipes.items() if text not in blocks]
    assert not missing


def test_every_recipe_is_named_where_it_is_shown() -> None:
    text = PAGE.read_text()
    for path in RECIPES.iterdir():
        if path.is_file():
            assert re.search(rf"`{re.escape(path.name)}`[^`]*```\w*\n{re.escape(path.read_text())}```", text), path.name
