"""Who may import whom: flows → tasks → lightning_core, and the core knows no Prefect."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FORBIDDEN = {
    "lightning_core": {"prefect", "lightning_flows.flows", "lightning_flows.tasks", "tests", "examples"},
    "tasks": {"lightning_flows.flows", "tests", "examples"},
    "flows": {"tests", "examples"},
    "lightning_core/client": {"torch", "pydantic", "duckdb", "opentelemetry", "httpx", "requests"},
    "lightning_core/otlp": {"torch", "pydantic", "duckdb", "starlette", "aiohttp"},
}

# The rooms of lightning_core, each importing those before it alone. `cpu_demo` stands beside them: it takes the place of parts of
# `policies` and `training` where two cores have to suffice.
ROOMS = (
    *(
        "algorithms",
        "config",
        "process",
        "spool",
        "otlp",
        "client",
        "lake",
        "policies",
        "prompts",
        "tracking",
        "gateway",
    ),
    *("agents", "training", "epoch", "checks", "doctor", "ui"),
)
FORBIDDEN |= {
    f"lightning_core/{room}": FORBIDDEN.get(f"lightning_core/{room}", set())
    | {f"lightning_core.{above}" for above in ROOMS[n + 1 :]}
    for n, room in enumerate(ROOMS)
}


def imported(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {".".join(name.split(".")[:n]) for name in found for n in (1, 2)}


def test_every_room_has_its_layer() -> None:
    rooms = {folder.name for folder in (ROOT / "lightning_core").iterdir() if any(folder.glob("*.py"))}
    assert rooms == {*ROOMS, "cpu_demo"}


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_no_layer_imports_one_above_it(folder: str) -> None:
    wrong = {
        str(file.relative_to(ROOT)): names
        for file in (ROOT / folder).rglob("*.py")
        if (names := imported(file) & FORBIDDEN[folder])
    }
    assert wrong == {}


def test_flows_and_tasks_are_imported_from_lightning_flows_alone() -> None:
    """From the root of the repository Python finds the folders themselves, too; a user's modules may have their names."""
    folders = ("lightning_core", "flows", "tasks", "tests", "bench", "docs")
    files = [file for folder in folders for file in (ROOT / folder).rglob("*.py")]
    assert [file for file in files if imported(file) & {"flows", "tasks", "sql"}] == []


def test_the_client_an_agent_imports_brings_nothing_heavy() -> None:
    heavy = {"torch", "pydantic", "duckdb", "pyarrow", "prefect", "opentelemetry"}
    code = f"import sys, lightning_core.client; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_client_an_agent_imports_needs_the_standard_library_alone() -> None:
    code = "import sys, lightning_core.client; print(*sorted({m.partition('.')[0] for m in sys.modules} - {*sys.stdlib_module_names}))"
    command = [sys.executable, "-S", "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["__main__", "lightning_core"]


def test_otlp_knows_nothing_of_what_reads_it() -> None:
    """Of the rest of the library only the record of a spool."""
    wrong = {
        (file.name, node.module)
        for file in (ROOT / "lightning_core/otlp").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("lightning_core.")
        if not node.module.startswith(("lightning_core.otlp", "lightning_core.spool.spool_format"))
    }
    assert wrong == set()


def test_an_analysts_light_base_can_ask_the_catalog() -> None:
    """`lightning-flows sql` needs no pipeline, no training, no vLLM."""
    code = (
        "import sys; from lightning_core.lake import ask; "
        "print(sorted({'torch', 'prefect', 'polars', 'mlflow', 'aiohttp', 'starlette', 'psutil'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Of the agent's own process, which imports nothing of ours; of files that nobody needs after a crash (a log, a socket).
_BY_THEMSELVES = {"client/fallback.py", "agents/child.py", "policies/vllm.py", "files.py"}
_BY_THEMSELVES |= {"gateway/admin.py"}  # replaces routes, not a file


def test_what_has_to_survive_a_power_cut_is_written_by_one_module() -> None:
    """tests/property/test_power_loss.py cuts the power at its calls; whoever syncs or renames by themselves does it half."""
    found = set()
    for file in (ROOT / "lightning_core").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            of_os = isinstance(node.func.value, ast.Name) and node.func.value.id == "os"
            name = node.func.attr
            syncs = of_os and name in ("fsync", "fdatasync", "rename", "replace", "pwrite", "pwritev")
            if syncs or (not of_os and name in ("rename", "replace") and len(node.args) == 1 and not node.keywords):
                found.add(str(file.relative_to(ROOT / "lightning_core")))
    assert found - _BY_THEMSELVES == set()
