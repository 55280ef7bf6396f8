"""The KDCs, each started once."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.interop.brands import RESULTS
from tests.interop.kdcs import Kdc


@pytest.fixture(scope="class")
def kdc(request: pytest.FixtureRequest) -> Iterator[Kdc]:
    brand = request.cls.brand
    with brand.start() as running:
        RESULTS.mkdir(parents=True, exist_ok=True)
        about = {"name": brand.name, "title": brand.title, "version": running.version}
        (RESULTS / f"{brand.name}.json").write_text(json.dumps(about))
        yield running
