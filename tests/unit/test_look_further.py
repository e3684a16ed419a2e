"""What a run says to look further with."""

from pathlib import Path

import pytest

from flows.demo import look_further
from lightning_core.settings_file import load_settings


@pytest.mark.parametrize(
    ("home", "prefect"), [("var/mine", "$PWD/var/mine/prefect"), ("/data/mine", "/data/mine/prefect")]
)
def test_prefects_home_is_given_as_a_whole_path(home: str, prefect: str) -> None:
    settings = load_settings(Path("examples/calculator/settings.yaml"), {"home": home})
    assert any(line.startswith(f"PREFECT_HOME={prefect} ") for line in look_further(settings))
