"""The base class of every section of the settings."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from lightning_core.errors import LightningError

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$")]

_NAME: TypeAdapter[str] = TypeAdapter(Name)


def is_name(text: str) -> bool:
    """Return whether the text may name a run, or what else the settings name."""
    try:
        _NAME.validate_python(text)
    except ValidationError:
        return False
    return True


def known_or_sql(name: str, known: tuple[str, ...]) -> str:
    """Return the name. Raises ValueError where it is neither one of `known` nor that of a .sql file."""
    if name not in known and not name.endswith(".sql"):
        raise ValueError(f"{name!r} is neither one of {', '.join(known)} nor a .sql file")
    return name


def is_due(epoch: int, every: int, offset: int) -> bool:
    """Return whether an epoch is every N-th from `offset` on; none is where `every` is 0."""
    return every > 0 and epoch % every == offset


def require_due(every: int, offset: int, otherwise: str) -> None:
    """Raise ValueError where no epoch would ever be due; `otherwise` says what would not happen."""
    if offset and offset >= every:
        raise ValueError(f"train_offset {offset} is not below train_every {every}, so {otherwise}; make it smaller")


class SettingsError(LightningError, ValueError):
    """A settings file that cannot be used: the message names the file, the key and the remedy."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, title=None, allow_inf_nan=False)

    def differs(self, name: str) -> bool:
        """Return whether a setting's value differs from its default; writing the default out changes nothing."""
        return bool(getattr(self, name) != type(self).model_fields[name].get_default(call_default_factory=True))
