"""The count of the house finds what it is for."""

from __future__ import annotations

import ast
import json
import subprocess
import sys

import pytest

from bench.house import circles
from tests.unit.test_layers import ROOT

pytestmark = pytest.mark.slow  # it counts the whole program

MODULES = {
    "tasks.a": "from tasks import b\nif TYPE_CHECKING:\n    import tasks.d",
    "tasks.b": "class B:\n    import lightning_flows.tasks.c",
    "tasks.c": "try:\n    from tasks.a import A\nexcept ImportError:\n    pass",
    "tasks.d": "import tasks.a",
    "tasks.e": "import tasks.f",
    "tasks.f": "def later():\n    import tasks.e",
}


def test_modules_that_import_each_other_around_are_a_circle_and_later_imports_are_none() -> None:
    assert circles({name: ast.parse(text) for name, text in MODULES.items()}) == [["tasks.a", "tasks.b", "tasks.c"]]


def test_the_house_is_one_line_and_nothing_in_it_imports_upwards_or_in_circles() -> None:
    done = subprocess.run([sys.executable, "-m", "bench.house"], cwd=ROOT, capture_output=True, text=True, check=True)
    house = json.loads(done.stdout)
    assert house["lines"] == sum(package["lines"] for package in house["packages"].values()) > 20_000
    assert house["files"] > 200 and house["statements"] < house["lines"] and house["settings"] > 80
    ((_, longest),) = house["longest"].items()
    assert longest <= 400
    assert (house["circles"], house["upward"]) == ([], [])
