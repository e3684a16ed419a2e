"""A table is the list of files in its newest manifest, never a glob.

`lake/manifests/spans.json` names the files of `spans`; `lake/manifests/<run>/<epoch>.json` the derived tables of an
epoch and the stages that made them. A manifest is replaced as one small file, so a reader sees the old list or the new.
Paths in it are relative to the lake. It begins with a digest of its bytes, and `lake/copies/` has each a second time: repair.py puts
a damaged one back.
"""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any, Literal

from blake3 import blake3
from pydantic import BaseModel, ConfigDict, Field, model_validator

from lightning_core import home_format
from lightning_core.digests import digest
from lightning_core.errors import LightningError
from lightning_core.events import named
from lightning_core.files import write_atomic
from lightning_core.lake import schema

Mode = Literal["train", "evaluate"]
_DIGEST = b'{\n "digest": "'  # how a manifest begins: the digest of what follows it
_DIGITS = 64


class LakeError(LightningError):
    """The lake cannot do what was asked; the message names the place and the remedy."""


def stage_key(*parts: Any) -> str:
    """Return the digest of all that a stage reads: settings sections, digests of tables and SQL, versions of code."""
    text = json.dumps(
        [p.model_dump(mode="json") if isinstance(p, BaseModel) else p for p in parts], sort_keys=True, default=str
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class _Manifest(BaseModel):
    model_config = ConfigDict(extra="forbid")


class SpanFile(_Manifest):
    path: str
    rows: int
    bytes: int
    start: int  # spool offsets that the file decodes
    end: int
    digest: str | None = None  # of its bytes (digests.py); null: written before there were digests
    columns: str = Field(default_factory=schema.columns_digest)  # schema.SPANS as it was when the file was written

    @classmethod
    def at(cls, lake: Path, path: str, rows: int, start: int, end: int, **more: str) -> SpanFile:
        """Return the entry of a file that lies at `path` in the folder `lake`."""
        file = lake / path
        return cls(path=path, rows=rows, bytes=file.stat().st_size, start=start, end=end, digest=digest(file), **more)


class Retired(_Manifest):
    """A file that no table names any more; it is removed once nobody can be reading it."""

    path: str
    since_ns: int


class Removed(_Manifest):
    """Spans that retention took out of an epoch (of none: `run` is None)."""

    run: str | None
    epoch: int | None
    mode: str | None
    spans: int
    until_offset: int  # what was decoded then; an epoch of the same name that opens later is another one
    at_ns: int


class SpanManifest(_Manifest):
    decoded_offset: int = 0
    rejected_spans: int = 0
    retries: int = 0  # spans that came again and were not stored again
    redaction: str | None = None  # digest of the rules that the last decoding redacted by
    files: list[SpanFile] = []
    retired: list[Retired] = []
    removed: list[Removed] = []
    lost: list[SpanFile] = []  # that were not what was written (verify.py)

    def swap(self, gone: list[SpanFile], new: list[SpanFile], now_ns: int) -> None:
        """Replace files by others and retire them. Raises LakeError where one of them is not in the manifest."""
        paths = {f.path for f in gone}
        kept = [f for f in self.files if f.path not in paths]
        if len(kept) + len(paths) != len(self.files):
            raise LakeError("the span files changed underneath; nothing was replaced, try again")
        self.files = sorted([*kept, *new], key=lambda f: (f.start, f.end, f.path))
        self.retired += [Retired(path=path, since_ns=now_ns) for path in sorted(paths)]


class Stage(_Manifest):
    key: str  # digest of everything the stage read
    output: dict[str, Any]
    seconds: float
    finished_ns: int


class DerivedTable(_Manifest):
    path: str
    rows: int
    digest: str  # of the file's bytes


class ComputedPattern(_Manifest):
    """An `agent_match` that was computed when the epoch began."""

    setting: str  # as it is in the settings
    pattern: str  # the regex that it gave


class Source(_Manifest):
    """A training epoch whose rollouts a finetuning takes its examples from."""

    run: str
    epoch: int


class Draw(BaseModel):
    """The tasks that a sampler drew for an epoch, with their weights, in the order of the draw. `key`: of all that it read but rewards."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    key: str
    weights: dict[str, float]  # task id → how many times as often it is drawn as one of weight 1


class EpochManifest(_Manifest):
    """What is known of one epoch of a run: where in the spool it lies, what was derived, which stages are done.

    mode `evaluate`: the evaluation after `epoch` epochs of training.
    """

    run: str
    epoch: int
    mode: Mode = "train"
    versions: dict[
        str, str
    ] = {}  # policy → version that is trained, and sampled from; none yet while it is `sampled` ahead
    sampled: dict[str, str] = {}  # policy → version sampled from while the epoch before was trained; empty: `versions`
    prompt_versions: dict[str, str] = {}  # name of a prompt → version that the rollouts are served
    opened_offset: int
    sealed_offset: int | None = None
    planned: list[str] = []  # rollouts that belong to it; others of the same number are not counted
    replaced: int = 0  # groups rolled out in the place of such that teach nothing
    rolled_out_with: str | None = None  # key of the rollouts since `opened_offset`; with another one they begin anew
    draw: Draw | None = (
        None  # kept, so that the plan stays what it was when the rewards it was drawn by are graded anew
    )
    redone_for: str | None = None  # who last had stages forgotten: a retry of the same flow run does not again
    sources: list[Source] = []  # of a finetuning; others have rollouts of their own
    of_search: bool = False  # an evaluation that is a batch of a search for prompts, and its number that of the batch
    patterns: dict[str, ComputedPattern] = {}  # policy → its computed agent_match
    prompts: dict[str, str] | None = None  # prompt → agent, of earlier epochs; None where that was not settled yet
    settings: dict[str, str] = {}  # by their keys, those not at their default, with which it was last worked on
    tables: dict[str, DerivedTable] = {}
    stages: dict[str, Stage] = {}

    @model_validator(mode="before")
    @classmethod
    def _read_older(cls, found: Any) -> Any:
        """Leave out what older versions kept of tasks that were tried again."""
        return {k: v for k, v in found.items() if k not in ("again", "repeated")} if isinstance(found, dict) else found

    @property
    def named(self) -> str:
        """Return the name that people read: `epoch 4`, `evaluation after epoch 3`, `batch 2`."""
        return f"batch {self.epoch}" if self.of_search else named(self.mode, self.epoch)

    @property
    def span_range(self) -> tuple[int, int | None]:
        """Return where in the spool the epoch's spans lie: [opened, sealed); open-ended while it is not sealed."""
        return self.opened_offset, self.sealed_offset

    @property
    def sampled_from(self) -> dict[str, str]:
        """Return policy → version that the rollouts are sampled from."""
        return self.sampled or self.versions

    @property
    def ended_with(self) -> dict[str, str]:
        """Return policy → version after its training in this epoch, for the policies whose training is done.

        Where the training was skipped, this is the version before.
        """
        return {policy: output["version"] for policy, output in self._trainings.items()}

    @property
    def _trainings(self) -> dict[str, dict[str, Any]]:
        """Return policy → the output of its training, for the policies whose training is done."""
        return {n.removeprefix("train "): s.output for n, s in self.stages.items() if n.startswith("train ")}

    @property
    def scope(self) -> list[tuple[str, int, str]]:
        """Return (run, epoch, mode) of each epoch that its rollouts come from."""
        return [(s.run, s.epoch, self.mode) for s in self.sources] or [(self.run, self.epoch, self.mode)]

    @property
    def trained(self) -> dict[str, str]:
        """Return policy → version that was trained on `sequences` as they are now.

        Policies whose training was skipped are not in it.
        """
        sequences = self.tables.get("sequences")
        return {
            policy: output["version"]
            for policy, output in self._trainings.items()
            # An older version did not record what it trained on.
            if "skipped" not in output
            and (sequences is None or output.get("sequences", sequences.digest) == sequences.digest)
        }

    @property
    def outputs(self) -> dict[str, dict[str, Any]]:
        """Return what each stage that is done returned, by its name."""
        return {name: stage.output for name, stage in self.stages.items()}

    @property
    def recorded(self) -> bool:
        """Return whether the epoch is complete: its last stage is done."""
        return "record" in self.stages

    def done(self, stage: str, key: str) -> dict[str, Any] | None:
        """Return the output of a stage that has run with this key already, else None."""
        found = self.stages.get(stage)
        return found.output if found is not None and found.key == key else None

    def finish(self, stage: str, key: str, output: dict[str, Any], seconds: float) -> None:
        self.stages[stage] = Stage(key=key, output=output, seconds=round(seconds, 3), finished_ns=time.time_ns())


class Manifests:
    """Reads and replaces the manifests of a lake."""

    def __init__(self, lake: Path) -> None:
        self._lake = lake
        self._directory = lake / "manifests"

    def spans(self) -> SpanManifest:
        return self._read(self.spans_path, SpanManifest) or SpanManifest()

    def put_spans(self, manifest: SpanManifest) -> None:
        self._put(self.spans_path, manifest)

    @property
    def spans_path(self) -> Path:
        return self._directory / "spans.json"

    def epoch(self, run: str, epoch: int, mode: str = "train") -> EpochManifest | None:
        return self._read(self._path(run, epoch, mode), EpochManifest)

    def put_epoch(self, manifest: EpochManifest) -> None:
        self._put(self._path(manifest.run, manifest.epoch, manifest.mode), manifest)

    def drop_epoch(self, manifest: EpochManifest) -> None:
        path = self._path(manifest.run, manifest.epoch, manifest.mode)
        self.copy_of(path).unlink(missing_ok=True)  # first: else a repair would bring it back
        path.unlink(missing_ok=True)

    def epochs(self, run: str | None = None, mode: str | None = None) -> list[EpochManifest]:
        """Return all epochs and evaluations (of a run, of a mode), in order of run and epoch."""
        paths = sorted(self._directory.glob(f"{run or '*'}/*.json"))
        found = [m for p in paths if (m := self._read(p, EpochManifest)) is not None and mode in (None, m.mode)]
        return sorted(found, key=lambda m: (m.run, m.epoch, m.mode))  # by name, 10000 is before 9999

    def files(self) -> set[str]:
        """Return the paths of all files that are part of a table, of `spans` or a derived one."""
        derived = {table.path for epoch in self.epochs() for table in epoch.tables.values()}
        return derived | {file.path for file in self.spans().files}

    def next_epoch(self, run: str) -> int:
        """Return the number of a run's first training epoch that is not complete; the next number where all are."""
        epochs = self.epochs(run, "train")
        return next((e.epoch for e in epochs if not e.recorded), epochs[-1].epoch + 1 if epochs else 0)

    def copy_of(self, path: Path) -> Path:
        """Return where the copy of a manifest lies."""
        return self._lake / "copies" / path.relative_to(self._directory)

    def _path(self, run: str, epoch: int, mode: str) -> Path:
        return self._directory / run / (f"{epoch:04d}.json" if mode == "train" else f"{epoch:04d}-{mode}.json")

    def _put(self, path: Path, manifest: _Manifest) -> None:
        home_format.begin(self._lake.parent)
        content = encode_manifest(manifest)
        # The copy first: what it names is on disk, so it may be newer than the manifest, never older.
        write_atomic(self.copy_of(path), content)
        write_atomic(path, content)

    def _read(self, path: Path, kind: type[Any]) -> Any:
        try:
            return kind.model_validate_json(checked(path.read_bytes()))
        except FileNotFoundError:
            return None
        except ValueError as error:
            why = " ".join(str(error).split())[:200]
            raise LakeError(
                f"{path}: cannot be read ({why}); `lightning-flows lake repair --home {self._lake.parent}` puts its copy back"
            ) from None


def encode_manifest(manifest: BaseModel) -> bytes:
    """Return the bytes of a manifest's file."""
    content = manifest.model_dump_json(indent=1).encode().removeprefix(b"{\n")
    return _DIGEST + blake3(content).hexdigest().encode() + b'",\n' + content


def checked(data: bytes) -> bytes:
    """Return the JSON of a manifest's file. Raises ValueError where it is not what was written."""
    if not data.startswith(_DIGEST):  # from before they had a digest
        return data
    end = len(_DIGEST) + _DIGITS
    written = _DIGEST + blake3(data[end + 3 :]).hexdigest().encode() + b'",\n'
    if data[: end + 3] != written:
        raise ValueError("its bytes are not those that were written")
    return b"{\n" + data[end + 3 :]
