"""The prompts that this attempt is served, by their names in the settings: from the file that `LIGHTNING_PROMPTS` names."""

from __future__ import annotations

import json
import os
import re

from lightning_core import names


def prompt(name: str, /, **fields: object) -> str:
    """Return the text of a prompt with `{field}` filled in for each field that is given; other braces stay as they are.

    Raises LookupError for a prompt that the run has not, and where the agent is run by itself.
    """
    found = prompts()
    if not os.environ.get(names.ENV_PROMPTS):
        raise LookupError(
            f"prompt({name!r}): {names.ENV_PROMPTS} is not set: rollouts have it where the settings have `prompts`. To run the "
            f'agent by itself, have it name a file with {{"{name}": {{"text": "…"}}}}'
        )
    if name not in found:
        raise LookupError(
            f"prompt({name!r}): there is no such prompt; the settings' `prompts` have {', '.join(found) or 'none'}"
        )
    return re.sub(r"\{(\w+)\}", lambda field: str(fields.get(field[1], field[0])), found[name]["text"])


def prompts() -> dict[str, dict[str, str]]:
    """Return all that this attempt is served, each with `version` and `text`; none where there are none."""
    file = os.environ.get(names.ENV_PROMPTS)
    if not file:
        return {}
    with open(file, encoding="utf-8") as opened:
        found: dict[str, dict[str, str]] = json.load(opened)
    return found
