"""A lake in which one place holds two spans is refused, not joined."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lightning_core.epoch.derive import derive
from lightning_core.epoch.epoch import Epoch
from lightning_core.lake.lake import Lake
from lightning_core.lake.manifest import EpochManifest, LakeError
from lightning_core.lake.repair import repair
from tests import lake_maker
from tests.lake_maker import derived
from tests.unit.test_rewards import two_agents

pytestmark = pytest.mark.slow  # many lakes


def with_another_file(home: Path, moved: int, rollout: str | None = None) -> tuple[Lake, EpochManifest]:
    """A derived epoch whose lake then gets its span file again, `moved` places on (as spans of `rollout`)."""
    lake, epoch = derived(home, [row for number in range(3) for row in two_agents(number)[0].rows])
    manifest = lake.manifests.spans()
    again = manifest.files[0].model_copy(update={"path": "spans/1.parquet"})
    shutil.copy(lake.root / manifest.files[0].path, lake.root / again.path)
    table = pq.read_table(lake.root / again.path)
    columns = {"record_index": [index + moved for index in table["record_index"].to_pylist()]}
    if rollout is not None:
        columns["rollout_id"] = [rollout] * table.num_rows
    for name, values in columns.items():
        place = table.schema.get_field_index(name)
        table = table.set_column(place, table.schema.field(name), pa.array(values, table.schema.field(name).type))
    pq.write_table(table, lake.root / again.path)
    manifest.files.append(again)
    lake.manifests.put_spans(manifest)
    return lake, epoch


@pytest.mark.parametrize("rollout", [None, "r.of-another-lake"])
@pytest.mark.parametrize("spans_a_bucket", [1_000_000, 7])
def test_two_spans_in_one_place_are_an_error_that_names_it_and_the_files(
    tmp_path: Path, rollout: str | None, spans_a_bucket: int
) -> None:
    lake, epoch = with_another_file(tmp_path, 0, rollout)
    settings = lake_maker.settings(tmp_path)
    if rollout is not None and spans_a_bucket == 7:
        # Of another bucket's rollouts, or none's: nothing is joined with them.
        derive(Epoch(settings, epoch), "again", spans_a_bucket=spans_a_bucket)
        return
    with pytest.raises(LakeError, match=r"record_offset 0, record_index 0 \(in 0\.parquet, 1\.parquet\).*lake repair"):
        derive(Epoch(settings, epoch), "again", spans_a_bucket=spans_a_bucket)
    (said,) = repair(lake)
    assert said.startswith("spans/1.parquet: its 21 places are those of other files")
    assert (lake.root / "damaged" / "1.parquet").is_file()
    assert [file.path for file in lake.manifests.spans().files] == ["spans/0.parquet"]
    manifest = lake.manifests.spans()
    manifest.files *= 2
    lake.manifests.put_spans(manifest)
    assert [*repair(lake)] == ["manifests/spans.json: named a file twice"]
    derive(Epoch(settings, epoch), "again", spans_a_bucket=spans_a_bucket)


def test_the_same_spans_in_other_places_are_none(tmp_path: Path) -> None:
    _, epoch = with_another_file(tmp_path, 1000, "r.more")
    derive(Epoch(lake_maker.settings(tmp_path), epoch), "again")
