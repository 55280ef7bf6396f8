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


def by_brand(brand: Brand) -> object:
    """All cases of a KDC go to one process, which starts it."""
    return pytest.param(brand, id=brand.name, marks=pytest.mark.xdist_group(brand.name))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("kdc", [by_brand(brand) for brand in BRANDS], indirect=True)
def test_interop(kdc: Kdc, case: Case, runner: Runner, place: Path, request: pytest.FixtureRequest) -> None:
    try:
        outcome = case.act(kdc, Desk(runner, place, kdc))
    except CannotHoldError as why:
        found = {"cannot": str(why)}
    else:
        word, note = outcome if isinstance(outcome, tuple) else (outcome, None)
        found = {"result": word, **({"note": note} if note else {})}
    brand = request.node.callspec.params["kdc"]
    (RESULTS / f"{brand.name}--{case.name}.json").write_text(json.dumps(found))
