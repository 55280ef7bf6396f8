"""Every case against every KDC, from the keytab to a service's acceptor."""

from __future__ import annotations

import json

import pytest

from tests.interop.cases import CASES, Case, Outcome
from tests.interop.conftest import BRANDS, RESULTS, Brand
from tests.interop.desk import Desk
from tests.interop.kdcs import CannotHoldError, Kdc
from tests.processes import Runner

# A domain takes seconds to make, and more on a machine that has other work.
pytestmark = [pytest.mark.root, pytest.mark.interop, pytest.mark.timeout(300)]


def _by_brand(brand: Brand) -> object:
    return pytest.param(brand, id=brand.name, marks=pytest.mark.xdist_group(brand.name))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("kdc", [_by_brand(brand) for brand in BRANDS], indirect=True)
def test_interop(kdc: Kdc, case: Case, runner: Runner, place: Path, request: pytest.FixtureRequest) -> None:
    brand = request.node.callspec.params["kdc"]
    try:
        word = case.act(kdc, Desk(runner, place, kdc))
        outcome = {"result": word, **({"note": word.note} if isinstance(word, Outcome) else {})}
    except CannotHoldError as why:
        outcome = {"cannot": str(why)}
    (RESULTS / f"{brand.name}--{case.name}.json").write_text(json.dumps(outcome))
