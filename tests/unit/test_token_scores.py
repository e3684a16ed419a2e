"""An algorithm of one's own, as its project would be: from the class and its SQL to trained weights, views, and what-if."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lightning_core.checks.check import check
from lightning_core.config import PolicySettings, Settings
from lightning_core.training.errors import TrainingError
from lightning_core.training.job import Job, Progress
from lightning_core.training.micro_batches import MicroBatch
from lightning_core.training.steps import StepPlan
from lightning_core.training.token_rows import token_scores
from lightning_core.training.train_job import run_job
from tests.tiny_model import make_tiny_llama
from tests.training_data import make_sequence, one_thread
from tests.unit.test_ppo import base, make_job, make_ppo
from tests.unit.test_training_resume import Dying, Killed

__all__ = ["base", "make_job", "make_ppo"]  # fixtures

EXAMPLE = Path(__file__).resolve().parents[2] / "examples/own_algorithm"


@pytest.fixture(scope="module", autouse=True)
def _trl() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The example as a project of its own, elsewhere."""
    folder = tmp_path / "project"
    shutil.copytree(EXAMPLE, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.slow
def test_a_policy_comes_nearer_to_its_teacher_with_a_class_and_a_query_of_ones_own(
    project: Path, make_ppo: Callable[..., Job], tmp_path: Path
) -> None:
    teacher = make_tiny_llama(tmp_path / "teacher", seed=5, positions=256)
    distances = []
    for packing in ("tree", "none"):
        fields: dict[str, Any] = {"output": tmp_path / packing, "state": tmp_path / f"state-{packing}"}
        training = {"learning_rate": 1e-3, "packing": packing, "max_mismatch": None}
        job = make_ppo("distillation.py:Distillation", {"teacher": str(teacher)}, training=training, **fields)
        first = run_job(job, Progress(job.progress))
        before = _apart(job)
        again = job.model_copy(update={"weights": job.output, "output": tmp_path / f"{packing}-2", "epoch": 1})
        run_job(again, Progress(job.progress))
        assert _apart(again) < before
        distances.append(first["reverse_kl"])
        scores = token_scores(again.state)
        assert scores is not None
        by = {(row["name"], row["sequence_id"]): np.array(row["numbers"]) for row in scores.to_pylist()}
        for name, sequence in by:
            if name == "advantages":
                assert by[name, sequence] == pytest.approx(by["teacher", sequence] - by["logprobs", sequence], abs=1e-5)
    assert distances[0] == pytest.approx(distances[1], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("changed", "resumed"), [(None, 1), ("distillation.sql", None), ("distillation.py", None)])
def test_a_killed_training_goes_on_unless_its_class_or_query_was_changed(
    project: Path, make_ppo: Callable[..., Job], base: Path, changed: str | None, resumed: int | None
) -> None:
    job = make_ppo("distillation.py:Distillation", {"teacher": str(base)})
    with pytest.raises(Killed):
        run_job(job, Dying(job.progress, 2))
    if changed is not None:
        (project / changed).write_text((project / changed).read_text() + "\n")
    progress = Dying(job.progress, 2)
    with pytest.raises(Killed):
        run_job(job, progress)
    assert progress.resumed == resumed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("SELECT sequence_id, teacher FROM token_scores", "no column `advantages`"),
        ("SELECT sequence_id, teacher AS advantages FROM token_scores LIMIT 1", "it returns 1 rows for 14 sequences"),
        ("SELECT sequence_id, teacher[2:] AS advantages FROM token_scores", "one for each of its"),
        ("SELECT sequence_id, [1 / 0.0 FOR t IN teacher] AS advantages FROM token_scores", "one that is not finite"),
        ("SELECT no_such FROM token_scores", r"distillation\.sql: .*no_such"),
        ("SELECT sequence_id, nullif(teacher, max(teacher) OVER ()) AS advantages FROM token_scores", "has 0 numbers"),
        (
            "SELECT nullif(sequence_id, max(sequence_id) OVER ()) AS sequence_id, teacher AS advantages FROM token_scores",
            "it returns 14 rows for 14 sequences",
        ),
        ("SELECT sequence_id, teacher AS advantages, 'mine' AS note FROM token_scores", "column `note` is string"),
        (
            "SELECT sequence_id, ['mine' FOR t IN teacher] AS advantages FROM token_scores",
            r"`advantages` is list<.*string>",
        ),
    ],
)
def test_sql_that_misses_a_token_ends_the_training_with_an_error_that_says_so(
    project: Path, make_ppo: Callable[..., Job], base: Path, query: str, message: str
) -> None:
    (project / "distillation.sql").write_text(query)
    job = make_ppo("distillation.py:Distillation", {"teacher": str(base)})
    with pytest.raises(TrainingError, match=message):
        run_job(job, Progress(job.progress))


@pytest.mark.parametrize(("split", "passes"), [("false", 1), ("true", 2)])
def test_ranks_that_hold_parts_of_the_weights_score_in_equally_many_passes(
    monkeypatch: pytest.MonkeyPatch, split: str, passes: int
) -> None:
    """A rank with less to do repeats a small pass, which may be one of its own; alone in a pass, it would wait for ever."""
    from lightning_core.training import token_scores as module

    batch = MicroBatch([[make_sequence("s", "g", [([1, 2], [3, 4, 5])])]], [1.0], "none", 5)
    seen = []

    def score(model: Any, unwrapped: Any, layout: Any, on_hidden: Callable[[Any], None]) -> Any:
        seen.append(layout)
        on_hidden(None)
        return torch.zeros(1, 3), torch.zeros(1, 3)

    monkeypatch.setattr(module, "score", score)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", split)
    trainer = SimpleNamespace(
        step_plan=StepPlan(),
        accelerator=SimpleNamespace(unwrap_model=lambda model: model, autocast=nullcontext),
        model=torch.nn.Linear(1, 1),
        args=SimpleNamespace(device="cpu"),
        planned=[SimpleNamespace(micro_batches=[batch, batch])],
        part=None,
    )
    policy = PolicySettings()
    scored = module._score(trainer, policy.made_algorithm, SimpleNamespace(policy_settings=policy))  # type: ignore[arg-type]
    assert len(seen) == passes
    assert scored["logprobs"]["s"].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ({"algorithm": "ppoo"}, "'ppoo' is none of grpo, ppo, sft, and no class of your own"),
        ({"algorithm": "ppo", "options": {"lambda": 1}}, "lambda: Extra inputs are not permitted; it knows the options: gae_lambda, value_clip"),
        ({"algorithm": "grpo", "options": {"a": 1}}, "it knows the options: none"),
        ({"algorithm": "ppo", "advantages": "rloo"}, "`algorithm: ppo` ignores advantages"),
    ],
)  # fmt: skip
def test_settings_that_name_no_algorithm_or_no_option_of_it_are_an_error(policy: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _settings(policy)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ({"algorithm": "none.py:Distillation"}, "none.py: no such file"),
        ({"algorithm": "distillation.py:Options2"}, "has no function 'Options2'"),
        ({"algorithm": "distillation.py:Path"}, "is no class made from lightning_core.algorithms.Algorithm"),
        ({"algorithm": "distillation.py:Distillation", "options": {}}, "teacher: Field required"),
    ],
)
def test_a_class_that_cannot_be_used_is_found_before_the_first_rollout(
    project: Path, policy: dict[str, Any], message: str
) -> None:
    settings = _settings(policy)
    (found,) = [each for each in check(settings, parts=["rules"]) if each.level == "error"]
    assert message in found.found, found.found


def test_a_query_that_is_not_there_is_found_before_the_first_rollout(project: Path) -> None:
    (project / "distillation.sql").unlink()
    settings = _settings({"algorithm": "distillation.py:Distillation", "options": {"teacher": "t"}})
    (found,) = [each for each in check(settings, parts=["rules"]) if each.level == "error"]
    assert "distillation.sql" in found.found


def test_the_projects_own_tests_pass(project: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def _apart(job: Job) -> float:
    """Mean distance of the policy's logprobs to the teacher's."""
    scores = token_scores(job.state)
    assert scores is not None
    return float(
        np.mean([abs(number) for row in scores.to_pylist() if row["name"] == "advantages" for number in row["numbers"]])
    )


def _settings(policy: dict[str, Any]) -> Settings:
    return Settings.model_validate(
        {
            "run": "r",
            "agent": {"callable": "agent.py:run"},
            "tasks": {"train": "tasks.jsonl"},
            "policies": [{"name": "policy", "model": "m", **policy}],
        }
    )
