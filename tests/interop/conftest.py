"""The KDCs, each started once."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.interop.brands import RESULTS
from tests.interop.kdcs import Kdc


@pytest.fixture(scope="session")
def kdc(request: pytest.FixtureRequest) -> Iterator[Kdc]:
    with request.param.start() as running:
        RESULTS.mkdir(parents=True, exist_ok=True)
        about = {"name": request.param.name, "title": request.param.title, "version": running.version}
        (RESULTS / f"{request.param.name}.json").write_text(json.dumps(about))
        yield running
