from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.frameworks.workshop import Workshop
from tests.processes import Runner
from tests.support import Realm


@pytest.fixture
def workshop(realm: Realm, place: Path, krb5_env: Callable[..., Any]) -> Workshop:
    krb5_env("KRB5RCACHEDIR", str(place))
    return Workshop(realm, place, Runner())
