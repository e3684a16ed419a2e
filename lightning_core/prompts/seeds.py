"""The files of prompts that the settings name: read, and checked before a run."""

from __future__ import annotations

from collections.abc import Mapping

from lightning_core.config import SettingsError
from lightning_core.config.prompts import PromptSettings


def read_seeds(prompts: Mapping[str, PromptSettings]) -> dict[str, str]:
    """Return prompt → text of its file. Raises SettingsError, naming the key, for one that cannot be used."""
    texts: dict[str, str] = {}
    for name, prompt in prompts.items():
        key = f"prompts.{name}.file"
        try:
            text = prompt.file.read_text(encoding="utf-8")
        except OSError as error:
            raise SettingsError(f"{key}: {prompt.file}: {error.strerror}; write the agent's prompt there") from None
        except UnicodeDecodeError as error:
            raise SettingsError(f"{key}: {prompt.file} is no text in UTF-8 ({error.reason})") from None
        if not text.strip():
            raise SettingsError(f"{key}: {prompt.file} is empty; write the agent's prompt there")
        for other, known in texts.items():
            if known.strip() == text.strip():
                raise SettingsError(
                    f"{key}: {prompt.file} has the text of prompt {other!r}, so nobody could tell them apart; keep one of them"
                )
        texts[name] = text
    return texts
