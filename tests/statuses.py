"""Statuses of a refresher, made by hand."""

from __future__ import annotations

from typing import Any

from krbrefresh.refresher.status import DEGRADED, EXPIRED, STANDBY, STARTING, VALID, CredentialStatus, Status, Tally

NOW = 1_800_000_000.0
HOUR = 3600.0


def credential(name: str = "etl", state: str = VALID, **fields: Any) -> CredentialStatus:
    """One in the middle of its life, as far as its state and `fields` do not say otherwise."""
    known: dict[str, Any] = {"principal": f"{name}@EXAMPLE.COM", "path": f"/run/krbrefresh/{name}/krb5cc"}
    if state != STARTING:
        known |= {
            "starts_at": NOW - (11 if state == EXPIRED else 2) * HOUR,
            "window_opens_at": NOW + (-5 if state == EXPIRED else 4) * HOUR,
            "expires_at": NOW + (-1 if state == EXPIRED else 8) * HOUR,
            "renew_until": NOW + 24 * HOUR,
            "generation": 7,
        }
    if state != STANDBY:
        known |= {"next_attempt_at": NOW + 4 * HOUR, "last_success_at": None if state == STARTING else NOW - 2 * HOUR}
        known["refreshes"] = {"keytab": 0 if state == STARTING else 3, "renewal": 0 if state == STARTING else 2}
    if state in (DEGRADED, EXPIRED):
        known |= {"reason": "kdc_timeout", "message": "no answer in 15 s", "hint": "check its load", "failures": 4}
    return CredentialStatus(name=name, state=state, **{**known, **fields})


def status(*credentials: CredentialStatus, **fields: Any) -> Status:
    """A refresher with these credentials, which leads where `fields` do not say otherwise."""
    tally = fields.pop("tally", None) or Tally()
    known = {"refresher": "node1", "version": "1.2.3", "now": NOW, "leader": True, "clock_offset": -0.25}
    return Status(credentials=credentials, tally=tally, **{**known, **fields})


def many(count: int) -> Status:
    """A refresher with so many credentials, in all states."""
    states = (VALID, DEGRADED, EXPIRED, STARTING, STANDBY)
    return status(*(credential(f"credential{index:04}", states[index % len(states)]) for index in range(count)))
