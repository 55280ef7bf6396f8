"""Every case against every KDC, from the keytab to a service's acceptor."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.interop.brands import BRANDS, RESULTS, Brand
from tests.interop.cases import CASES, Case
from tests.interop.desk import Desk
from tests.interop.kdcs import CannotHoldError, Kdc
from tests.processes import Runner

# A domain takes seconds to make, and more on a machine that has other work.
pytestmark = [pytest.mark.root, pytest.mark.interop, pytest.mark.timeout(300)]


class Against:
    """The cases against one KDC: a class of its own, which `--dist loadscope` gives to one process."""

    brand: Brand

    @pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
    def test_case(self, kdc: Kdc, case: Case, runner: Runner, place: Path) -> None:
        try:
            outcome = case.act(kdc, Desk(runner, place, kdc))
        except CannotHoldError as why:
            found = {"cannot": str(why)}
        else:
            word, note = outcome if isinstance(outcome, tuple) else (outcome, None)
            found = {"result": word, **({"note": note} if note else {})}
        (RESULTS / f"{self.brand.name}--{case.name}.json").write_text(json.dumps(found))


for _brand in BRANDS:
    _name = "Test" + _brand.name.title().replace("-", "")
    globals()[_name] = type(_name, (Against,), {"brand": _brand})
