"""A settings file, read and checked: an error names the file, the key and the remedy."""

from __future__ import annotations

import copy
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from lightning_core.config import Settings, SettingsError

DEEPEST = 50  # levels of nesting; a setting needs six


class _TooDeep(yaml.YAMLError):
    """A node deeper than DEEPEST, in `line` (from 1)."""

    def __init__(self, line: int) -> None:
        super().__init__(f"{line}: {_NESTED}")


_NESTED = f"nested more than {DEEPEST} deep"


class _Loader(yaml.SafeLoader):
    """Safe, and no deeper than Python can follow."""

    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self._depth += 1
        if self._depth > DEEPEST:
            raise _TooDeep(self.peek_event().start_mark.line + 1)  # type: ignore[no-untyped-call]
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1


def read_yaml(text: str, name: str) -> Any:
    """Return the value of a YAML (or JSON) text. Raises SettingsError that begins with `name`."""
    try:
        return yaml.load(text, _Loader)
    except _TooDeep as error:
        raise SettingsError(f"{name}:{error}") from None
    except yaml.YAMLError as error:
        raise SettingsError(f"{name}: not valid YAML: {error}") from None


def load_settings(path: Path | str, overrides: dict[str, Any] | None = None) -> Settings:
    """Read a YAML file of settings; `overrides` maps dotted keys to values (`{"rollout.group_size": 4}`).

    Raises SettingsError, naming file and key, where the file is no YAML, has unknown keys, or holds wrong values.
    """
    path = Path(path)
    try:
        text = path.read_text()
    except FileNotFoundError:
        raise SettingsError(f"{path}: no such settings file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: cannot be read as a settings file: {error}") from None
    raw = read_yaml(text, str(path))
    try:
        return make_settings(raw, overrides, path.parent)
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from None


def make_settings(raw: Any, overrides: Any = None, folder: Path = Path()) -> Settings:
    """Make settings of plain values, with `overrides` on top of them, as in `load_settings`; neither is changed.

    Raises SettingsError, naming the key, where one of the two is no mapping, has unknown keys, or holds wrong values.
    """
    if not isinstance(raw, dict):
        raise SettingsError(f"expected a mapping of settings at the top, got {type(raw).__name__}")
    if not isinstance(overrides or {}, dict):
        raise SettingsError(f"overrides: expected a mapping of dotted keys to values, got {type(overrides).__name__}")
    for given in (raw, overrides):
        _require_shallow(given)
    raw = copy.deepcopy(raw)
    for dotted, value in (overrides or {}).items():
        try:
            _assign(raw, dotted, value)
        except (TypeError, IndexError, ValueError, AttributeError):
            raise SettingsError(f"cannot set `{dotted}`: there is no such place in the settings") from None
    _require_shallow(raw)
    _find_files(raw, folder)
    try:
        return Settings.model_validate(raw)
    except ValidationError as error:
        raise SettingsError(explain_validation(error)) from None


def _require_shallow(value: Any) -> None:
    """Raise SettingsError for a value that nests deeper than DEEPEST, by aliases, too; it may hold itself."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(DEEPEST):
        inner = [item for each in level for item in (each.values() if isinstance(each, dict) else each)]
        level = list({id(item): item for item in inner if isinstance(item, dict | list)}.values())
        if not level:
            return
    raise SettingsError(_NESTED)


def _find_files(raw: dict[str, Any], folder: Path) -> None:
    """Find the files of `prompts`, and the .sql files of `policies[].advantages` and `tasks.sampler`: in the working directory, else
    beside the settings.
    """
    policies, prompts = raw.get("policies"), raw.get("prompts")
    sections = [(each, "advantages", ".sql") for each in (policies if isinstance(policies, list) else [])]
    sections += [(each, "file", "") for each in (prompts.values() if isinstance(prompts, dict) else [])]
    for section, key, ending in [*sections, (raw.get("tasks"), "sampler", ".sql")]:
        name = section.get(key) if isinstance(section, dict) else None
        if isinstance(name, str) and name.endswith(ending) and not Path(name).is_file() and (folder / name).is_file():
            section[key] = str(folder / name)


def _assign(raw: dict[str, Any], dotted: str, value: Any) -> None:
    here: Any = raw
    parts = dotted.split(".")
    for key, within in pairwise(parts):
        # What the file leaves out is a section, or a list of one: that is what `policies` is by default.
        missing: Any = [{}] if within == "0" else {}
        here = here[int(key)] if isinstance(here, list) else here.setdefault(key, missing)
    if isinstance(here, list):
        here[int(parts[-1])] = value
    else:
        here[parts[-1]] = value


def explain_validation(error: ValidationError, model: type[BaseModel] = Settings) -> str:
    """Return the problems of a validation error of `model`, joined by `; `, each with its key and what is allowed there."""
    lines = []
    for problem in error.errors():
        # Without pydantic's words for the types it tried (`list[…]`) and for a mapping's key (`[key]`).
        key = ".".join(str(part) for part in problem["loc"] if "[" not in str(part)) or "settings"
        if problem["type"] == "extra_forbidden":
            lines.append(f"unknown key `{key}`; {_known_keys(problem['loc'][:-1], model)}")
        elif problem["type"] == "missing":
            lines.append(f"`{key}` is missing")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            got = "" if problem["type"] == "value_error" else f" (got {problem['input']!r:.80})"
            lines.append(f"`{key}`: {message}{got}")
    return "; ".join(lines)


def _known_keys(location: tuple[int | str, ...], model: type[BaseModel]) -> str:
    for part in location:
        field = model.model_fields.get(str(part))
        if field is not None:  # else a place in a list, a name in a mapping, or one of the types that were tried
            model = _section_in(field.annotation) or model
    return "known here: " + ", ".join(model.model_fields)


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """Return the section that a setting holds, or holds several of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_section_in, get_args(annotation))), None)


def flat(value: Any, prefix: str = "") -> dict[str, str]:
    """Return nested settings by their keys: `rollout.group_size`, `policies.0.name`."""
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        items = {str(i): v for i, v in enumerate(value)}.items()
    else:
        return {prefix: str(value)[:6000]}
    found: dict[str, str] = {}
    for key, inner in items:
        found |= flat(inner, f"{prefix}.{key}" if prefix else str(key))
    return found
