"""The environment an attempt runs in, and nothing else of the flow's own.

Handed on from the flow: PATH, HOME, locale, temporary folder, certificates, proxies, the virtual environment,
everything that begins with PYTHON, and what `agent.pass_environment` names. An agent with a Python of its own
(`agent.python`) has that first on its PATH, and nothing that would lead it to the flow's packages. Then `agent.environment`. Then, per attempt:

| variable | value |
|---|---|
| OPENAI_BASE_URL, OPENAI_API_BASE | `<base_url>/v1` |
| OPENAI_API_KEY | the attempt's token |
| OTEL_EXPORTER_OTLP_ENDPOINT | `<base_url>` (exporters add `/v1/traces`) |
| OTEL_EXPORTER_OTLP_PROTOCOL | `http/protobuf` |
| OTEL_EXPORTER_OTLP_HEADERS | `authorization=Bearer%20<token>` |
| OTEL_RESOURCE_ATTRIBUTES | what was there, with `lightning.rollout_id`, `lightning.attempt_id`, and a proof of the two |
| OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT | 4096 unless set (128 would drop an agent's name) |
| OTEL_SERVICE_NAME | `agent` unless set, here or as `service.name` above |
| LIGHTNING_TASK | path of a file that holds the task as JSON |
| LIGHTNING_PROMPTS | path of a file with the prompts as JSON, where the settings have `prompts` |
| LIGHTNING_ROLLOUT_ID, LIGHTNING_ATTEMPT_ID, LIGHTNING_MODEL | ids, and the name of the policy |
| NO_PROXY, no_proxy | what was there, with loopback |
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from lightning_core import names
from lightning_core.agents.attempt import AttemptSpec
from lightning_core.client.destination import resource_text, variables
from lightning_core.config import AgentSettings, SettingsError

_INHERITED = frozenset(
    [
        "PATH",
        "HOME",
        "USER",
        "LOGNAME",
        "SHELL",
        "LANG",
        "LANGUAGE",
        "TZ",
        "TMPDIR",
        "TEMP",
        "TMP",
        "TERM",
        "VIRTUAL_ENV",
        "CONDA_PREFIX",
        "LD_LIBRARY_PATH",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "REQUESTS_CA_BUNDLE",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "NO_PROXY",
        "http_proxy",
        "https_proxy",
        "all_proxy",
        "no_proxy",
        "HF_HOME",
        "HF_HUB_OFFLINE",
        "OTEL_SERVICE_NAME",
        "OTEL_RESOURCE_ATTRIBUTES",
    ]
)
_INHERITED_PREFIXES = ("PYTHON", "LC_", "XDG_")
_OF_OUR_PYTHON = frozenset({"PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "VIRTUAL_ENV", "CONDA_PREFIX"})
_PER_ATTEMPT = frozenset(
    {
        "OPENAI_BASE_URL",
        "OPENAI_API_BASE",
        "OPENAI_API_KEY",
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "OTEL_EXPORTER_OTLP_PROTOCOL",
        "OTEL_EXPORTER_OTLP_HEADERS",
        names.ENV_TASK,
        names.ENV_PROMPTS,
        names.ENV_ROLLOUT_ID,
        names.ENV_ATTEMPT_ID,
    }
)
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def base_environment(
    settings: AgentSettings, outer: Mapping[str, str] | None = None, python: Path | None = None
) -> dict[str, str]:
    """Return what all attempts share, from `outer` (default: this process's environment) and the settings.

    `python`: the agent's own interpreter, where it has one.

    Raises SettingsError where `pass_environment` names a variable that is not set, or a setting would replace one
    that has to be the attempt's own.
    """
    outer = os.environ if outer is None else outer
    missing = [name for name in settings.pass_environment if name not in outer]
    if missing:
        raise SettingsError(
            f"agent.pass_environment: {', '.join(missing)} is not set where the flow runs; export it, or take it out"
        )
    for key, given in (("environment", settings.environment), ("pass_environment", settings.pass_environment)):
        own = sorted(_PER_ATTEMPT.intersection(given))
        if own:
            raise SettingsError(
                f"agent.{key}: {', '.join(own)} is set for each attempt by the runner, so that calls and spans reach it; "
                "take it out (an agent that also talks to another endpoint needs a variable of another name)"
            )
    environment = {
        name: value for name, value in outer.items() if name in _INHERITED or name.startswith(_INHERITED_PREFIXES)
    }
    # Behind the rest: `python` still means what it means in the user's shell, where that has one.
    folder = str(Path(sys.executable).parent)
    path = environment.get("PATH", os.defpath)
    environment["PATH"] = path if folder in path.split(os.pathsep) else path + os.pathsep + folder
    if python is not None:
        environment = {name: value for name, value in environment.items() if name not in _OF_OUR_PYTHON}
        environment["PATH"] = str(python.parent) + os.pathsep + environment["PATH"]
        if (python.parent.parent / "pyvenv.cfg").is_file():
            environment["VIRTUAL_ENV"] = str(python.parent.parent)
    environment.update({name: outer[name] for name in settings.pass_environment})
    environment.update(settings.environment)
    environment.setdefault("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "4096")
    if "service.name=" not in environment.get("OTEL_RESOURCE_ATTRIBUTES", ""):
        environment.setdefault("OTEL_SERVICE_NAME", "agent")
    for name in ("NO_PROXY", "no_proxy"):
        hosts = [host for host in environment.get(name, "").split(",") if host]
        environment[name] = ",".join(hosts + [host for host in _LOOPBACK if host not in hosts])
    return environment


def import_folder(inside: Path) -> Path:
    """Make a folder where Python finds this package and nothing that is installed beside it, for an agent's own Python."""
    folder = inside / "import"
    folder.mkdir()
    (folder / "lightning_core").symlink_to(Path(__file__).resolve().parents[1])
    return folder


def attempt_environment(
    base: Mapping[str, str], spec: AttemptSpec, task_file: Path, model: str, prompts_file: Path | None = None
) -> dict[str, str]:
    """Return what one attempt has beyond `base` (`base_environment`); the table at the top of this file lists it."""
    url = spec.base_url.rstrip("/")
    own = spec.resource() | {names.PROOF: spec.proof}
    resource = [item for item in base.get("OTEL_RESOURCE_ATTRIBUTES", "").split(",") if item]
    resource = [item for item in resource if item.split("=", 1)[0].strip() not in own]
    resource.append(resource_text(own))
    environment = {
        **variables(url, spec.token),
        "OTEL_RESOURCE_ATTRIBUTES": ",".join(resource),
        names.ENV_TASK: str(task_file),
        names.ENV_ROLLOUT_ID: spec.rollout_id,
        names.ENV_ATTEMPT_ID: spec.attempt_id,
    }
    if prompts_file is not None:
        environment[names.ENV_PROMPTS] = str(prompts_file)
    if names.ENV_MODEL not in base:
        environment[names.ENV_MODEL] = model
    return environment
