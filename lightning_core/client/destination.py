"""Where spans go: to the rollout of the block that is current (opened.py), else to the attempt of this process's environment."""

from __future__ import annotations

import contextvars
import os
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lightning_core.client import fallback


@dataclass(frozen=True)
class Destination:
    """An endpoint (`<endpoint>/v1/traces` takes spans) with its headers, the resource of the spans, and the file where they wait."""

    endpoint: str
    headers: Mapping[str, str] = field(repr=False)
    resource: Mapping[str, str] = field(repr=False)
    waiting: Path


current_rollout: contextvars.ContextVar[Destination | None] = contextvars.ContextVar("lightning_rollout", default=None)


def destination() -> Destination | None:
    """Return where spans go now; None where there is no rollout and `OTEL_EXPORTER_OTLP_ENDPOINT` is not set."""
    return current_rollout.get() or of_environment()


def of_environment() -> Destination | None:
    """Return what this process's environment names; None without `OTEL_EXPORTER_OTLP_ENDPOINT`."""
    endpoint = os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    if not endpoint:
        return None
    resource = _pairs(os.environ.get("OTEL_RESOURCE_ATTRIBUTES", ""))
    if service := os.environ.get("OTEL_SERVICE_NAME"):
        resource["service.name"] = service
    headers = _pairs(os.environ.get("OTEL_EXPORTER_OTLP_HEADERS", ""))
    return Destination(endpoint, headers, resource, fallback.fallback_path(endpoint))


def variables(url: str, token: str) -> dict[str, str]:
    """Return the environment by which an agent reaches its attempt at this address with this token: calls and spans."""
    return {
        "OPENAI_BASE_URL": f"{url}/v1",
        "OPENAI_API_BASE": f"{url}/v1",
        "OPENAI_API_KEY": token,
        "OTEL_EXPORTER_OTLP_ENDPOINT": url,
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_EXPORTER_OTLP_HEADERS": f"authorization=Bearer%20{urllib.parse.quote(token, safe='')}",
    }


def resource_text(resource: Mapping[str, str]) -> str:
    """Return resource attributes as `OTEL_RESOURCE_ATTRIBUTES` has them; those without a value are left out."""
    return ",".join(f"{key}={urllib.parse.quote(value, safe='')}" for key, value in resource.items() if value)


def _pairs(text: str) -> dict[str, str]:
    """Parse `k=v,k=v` and URL-decode both sides, as OpenTelemetry writes headers and resource attributes."""
    pairs = (item.split("=", 1) for item in text.split(",") if "=" in item)
    return {urllib.parse.unquote(key.strip()): urllib.parse.unquote(value.strip()) for key, value in pairs}
