"""What is kept of spans and of policies."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, model_validator

from lightning_core.config.section import Section


class AgentRule(Section):
    """Where spans hold an agent's name, for conventions that sql/hierarchy/agent_rules.sql does not know."""

    source: Literal["attribute", "span_name", "resource"] = "attribute"
    key: str | None = Field(None, description="attribute (or resource attribute) that holds the name")
    pattern: str = Field("^(.+)$", description="regex (RE2); its first group is the name")
    when: str | None = Field(
        None, description="regex (RE2) on the span's name; the rule applies only to matching spans"
    )

    @model_validator(mode="after")
    def _has_a_name(self) -> AgentRule:
        if (self.source == "span_name") != (self.key is None):
            raise ValueError(f"`source: {self.source}` " + ("takes no `key`" if self.key else "needs a `key` to read"))
        if not re.search(r"(?<!\\)\((?!\?(?!P?<))", self.pattern):
            raise ValueError(f"pattern {self.pattern!r} has no group; its first group is the name: (…)")
        return self


class RedactionPattern(Section):
    pattern: str = Field(description="regex (RE2)")
    replacement: str = Field("[redacted]", description=r"the replacement text; \\1 is the first group")


class LakeSettings(Section):
    """What is kept of spans, and how long."""

    redact: list[RedactionPattern] = Field(
        default_factory=list, description="patterns to rewrite in every text of a span before it reaches Parquet"
    )
    keep_days: float | None = Field(
        None, gt=0, description="spans older than this are removed by `lightning-flows lake retain`; null: none are"
    )
    storage: str | None = Field(
        None,
        pattern=r"^[a-z][a-z0-9+.-]*://[^\s?#]+$",
        description="URL (`s3://bucket/prefix`) to which the lake is published, after an epoch's rollouts and at its end; from there another machine reads it, or goes on with it; docs/scale.md",
    )


class StoreSettings(Section):
    """Versions of the policies on disk. After every epoch those that nothing needs are removed; docs/policies.md lists what stays."""

    keep_every: int | None = Field(
        10, ge=1, description="every N-th version stays; 1: all stay; null: none stays for its number"
    )
