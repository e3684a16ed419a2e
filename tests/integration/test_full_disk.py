"""A store on a disk that really is full: a small tmpfs in a namespace of its own."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys
from pathlib import Path
from lightning_core.policies.store import Lineage, PolicyStore, StoreError
import torch
from lightning_core.training.errors import WeightsError
from lightning_core.training.weights import whole_folder
from tests.policy_files import write_model

STATE = {"exp_avg": torch.zeros(50_000)}
home, model = Path(sys.argv[1]), Path(sys.argv[2])
store = PolicyStore(home, "policy")
store.publish_base(model, "base")
store.set_current("v0000")
(home / "filler").write_bytes(bytes(100_000))
for write in (lambda to: write_model(to / "model", 1.0, columns=8000), lambda to: torch.save(STATE, to / "optimizer.pt")):
    try:
        with whole_folder(home / "output") as beside:
            write(beside)
        raise SystemExit("the trainer's output fitted")
    except WeightsError as error:
        assert str(error) == f"{home / 'output'}: the disk is full; free some space and run again", error
left = sorted(path.name for path in home.iterdir())
assert left == ["filler", "policies"], left
try:
    PolicyStore(home, "other").publish_base(model, "base")
    raise SystemExit("the base fitted")
except StoreError as error:
    assert "the disk of" in str(error) and "is full" in str(error), error
assert PolicyStore(home, "other").versions() == []
store.verify("v0000")
(home / "filler").unlink()
try:
    with whole_folder(home / "output") as beside:
        raise RuntimeError("something else")
except RuntimeError as error:
    assert str(error) == "something else"
with whole_folder(home / "output") as beside:
    write_model(beside / "model", 1.0, columns=2000)
assert store.publish(home / "output/model", Lineage(base_model="base", parent="v0000")) == "v0001"
store.verify("v0001")
"""


@pytest.mark.skipif(
    shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode != 0,
    reason="this system lets nobody mount a tmpfs of their own",
)
def test_what_does_not_fit_is_no_version_and_what_is_served_stays(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    make = "import sys; from pathlib import Path; from tests.policy_files import write_model; write_model(Path(sys.argv[1]), columns=2000)"
    root, model, home = Path(__file__).parents[2], str(tmp_path / "model"), str(tmp_path / "home")
    subprocess.run([sys.executable, "-c", make, model], cwd=root, check=True)
    inside = 'mount -t tmpfs -o size=160k none "$1" && exec "$2" -c "$3" "$1" "$4"'
    command = ["unshare", "-rm", "sh", "-c", inside, "sh", home, sys.executable, SCRIPT, model]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
