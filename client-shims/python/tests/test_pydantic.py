"""The settings source, where pydantic-settings is installed."""

from __future__ import annotations

from typing import Annotated, Any, Callable, Optional

import pytest

import keyhatch
from conftest import CANARY, KEEP, problem, value

pytest.importorskip("pydantic_settings")
from pydantic import SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from keyhatch.pydantic import FromKeyhatch, KeyhatchSettingsSource


def settings(client: keyhatch.Client, fields: dict[str, Any], hide: bool = False) -> type[BaseSettings]:
    def sources(_: Any, settings_cls: type[BaseSettings], **rest: Any) -> tuple[Any, ...]:
        return (KeyhatchSettingsSource(settings_cls, client), *rest.values())

    body: dict[str, Any] = {"__annotations__": fields, "other": "default", "none": None}
    body["model_config"] = SettingsConfigDict(hide_input_in_errors=hide)
    body["settings_customise_sources"] = classmethod(sources)  # type: ignore[arg-type]
    return type("Settings", (BaseSettings,), body)


FIELDS = {
    "key": Annotated[SecretStr, FromKeyhatch("a")],
    "none": Annotated[Optional[SecretStr], FromKeyhatch("none")],
    "other": str,
}


def test_marked_fields_are_filled_and_masked(fake: Callable[..., Any]) -> None:
    agent = fake(lambda c, n, request: (problem(404, "not_found") if "none" in request else value(), KEEP))
    client = keyhatch.Client(agent.path)
    filled: Any = settings(client, FIELDS)()
    assert filled.key.get_secret_value() == CANARY and (filled.other, filled.none) == ("default", None)
    assert CANARY not in repr(filled) + filled.model_dump_json()


def test_a_plain_field_must_not_show_in_errors(fake: Callable[..., Any]) -> None:
    client = keyhatch.Client(fake(lambda *_: (value(), KEEP)).path)
    number = {"port": Annotated[int, FromKeyhatch("a")], "other": str, "none": Optional[str]}
    with pytest.raises(TypeError, match="hide_input_in_errors"):
        settings(client, number)()
    with pytest.raises(ValidationError) as caught:
        settings(client, number, hide=True)()
    assert CANARY not in str(caught.value)
