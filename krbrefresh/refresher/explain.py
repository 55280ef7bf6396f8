"""The settings as they are in effect, each with the place it comes from: what `krbrefresh config` prints."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from .._text import printable
from .settings import CredentialSettings, RefresherSettings, Settings, title


def explain(settings: Settings) -> dict[str, dict[str, tuple[Any, str]]]:
    """Section -> key -> (value as it would be written in TOML, or None where it is not set; where it comes from)."""
    sections: dict[str, RefresherSettings | CredentialSettings] = {"refresher": settings.refresher}
    sections.update((each.name, each) for each in settings.credentials)
    return {
        name if name == "refresher" else title(name): {
            field.name: _value(field, section, settings.origins.get(name, {}))
            for field in dataclasses.fields(section)
            if field.metadata
        }
        for name, section in sections.items()
    }


def as_toml(settings: Settings) -> str:
    """The same as a TOML file, with the places as comments."""
    lines: list[str] = []
    for section, keys in explain(settings).items():
        lines += ["", f"[{section}]"]
        for key, (value, where) in keys.items():
            if value is None:
                lines.append(f"# {key} is not set")
            else:
                # A text, number or truth value in JSON is one in TOML.
                lines.append(f"{key} = {json.dumps(value, ensure_ascii=False)}  # {printable(where)}")
    return "\n".join(lines[1:]) + "\n"


def as_json(settings: Settings) -> str:
    """The same for machines: section -> key -> {value, source}."""
    return json.dumps(
        {
            section: {key: {"value": value, "source": where} for key, (value, where) in keys.items()}
            for section, keys in explain(settings).items()
        },
        indent=2,
    )


def _value(field: dataclasses.Field[Any], section: object, raw: dict[str, tuple[object, str]]) -> tuple[Any, str]:
    if field.name in raw:
        return raw[field.name]
    if field.metadata["default"] is not None:
        return field.metadata["default"], "default"
    derived = getattr(section, field.name)
    if isinstance(derived, float):  # a duration
        derived = f"{derived:.0f}s"
    return derived or None, "default"
