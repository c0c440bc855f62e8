"""A settings source for pydantic-settings: `pip install keyhatch[pydantic]`.

    class Settings(BaseSettings):
        openai_api_key: Annotated[SecretStr, FromKeyhatch("openai/api-key")]

        @classmethod
        def settings_customise_sources(cls, settings_cls, **sources):
            return (KeyhatchSettingsSource(settings_cls), *sources.values())

Sources that come first win.
"""

from __future__ import annotations

import typing
from dataclasses import dataclass
from typing import Any

from pydantic import SecretBytes, SecretStr
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from ._client import Client
from ._errors import NotFound
from ._secret import Secret


@dataclass(frozen=True)
class FromKeyhatch:
    """Marks a field of settings as the secret `NAME`, or `NAME#field`."""

    name: str


class KeyhatchSettingsSource(PydanticBaseSettingsSource):
    """Fills the fields that are marked with `FromKeyhatch`.

    A `SecretStr`, `SecretBytes` or `Secret` field is filled masked. For a field of any other type the settings must
    have `hide_input_in_errors=True`, since an error of pydantic's would otherwise quote the value. A secret that does
    not exist leaves its field to the next source, or to its default.
    """

    def __init__(self, settings_cls: type[BaseSettings], client: Client | None = None) -> None:
        super().__init__(settings_cls)
        self._client = Client() if client is None else client

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """The value of one field; None where it is not marked or there is no such secret."""
        marks = [mark for mark in field.metadata if isinstance(mark, FromKeyhatch)]
        if not marks:
            return None, field_name, False
        try:
            secret = self._client.get(marks[0].name)
        except NotFound:
            return None, field_name, False
        return self._shaped(field, field_name, secret), field_name, False

    def __call__(self) -> dict[str, Any]:
        """The values of all marked fields."""
        values = {name: self.get_field_value(field, name)[0] for name, field in self.settings_cls.model_fields.items()}
        return {name: value for name, value in values.items() if value is not None}

    def _shaped(self, field: FieldInfo, field_name: str, secret: Secret) -> object:
        types = {field.annotation, *typing.get_args(field.annotation)}
        if Secret in types:
            return secret
        if SecretBytes in types:
            return SecretBytes(secret.reveal_bytes())
        if SecretStr in types:
            return SecretStr(secret.reveal())
        if not self.settings_cls.model_config.get("hide_input_in_errors"):
            raise TypeError(
                f"{field_name} would show in pydantic's errors: make it a SecretStr, or set hide_input_in_errors=True"
            )
        return secret.reveal_bytes() if bytes in types else secret.reveal()
