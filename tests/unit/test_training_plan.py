"""Groups become steps, steps become micro-batches, and every token weighs what the loss type says."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from lightning_core.training.dataset import Sequence
from lightning_core.training.plan import Step, line_up, plan_steps
from tests.training_data import make_sequence, random_group


def plan(sequences: list[Sequence], **overrides: Any) -> list[Step]:
    options: dict[str, Any] = {
        "steps": 1,
        "seed": 0,
        "packing": "tree",
        "budget": 4096,
        "loss_type": "dapo",
        "completion_limit": 64,
    }
    return plan_steps(sequences, **(options | overrides))


def groups(count: int, size: int = 4) -> list[Sequence]:
    rng = np.random.default_rng(3)
    return [sequence for number in range(count) for sequence in random_group(f"g{number}", size, rng)]


def groups_of(step: Step) -> set[str]:
    return {s.group_id for batch in step.micro_batches for s in batch.sequences}


@pytest.mark.parametrize("packing", ["tree", "none"])
def test_every_sequence_is_trained_in_exactly_one_step_and_groups_stay_together(packing: str) -> None:
    sequences = groups(7)
    steps = plan(sequences, steps=3, packing=packing, budget=90)
    seen = Counter(s.sequence_id for step in steps for batch in step.micro_batches for s in batch.sequences)
    assert seen == Counter(s.sequence_id for s in sequences)
    assert sorted(len(groups_of(step)) for step in steps) == [2, 2, 3]
    assert sum(len(groups_of(step)) for step in steps) == 7


def test_the_plan_depends_on_the_seed_and_not_on_the_order_of_the_file() -> None:
    sequences = groups(6)
    first, again = plan(sequences, steps=3), plan(sequences[::-1], steps=3)
    assert [groups_of(s) for s in first] == [groups_of(s) for s in again]
    assert any(
        [groups_of(s) for s in plan(sequences, steps=3, seed=seed)] != [groups_of(s) for s in first] for seed in (1, 2)
    )


def test_fewer_groups_than_steps_give_fewer_steps() -> None:
    assert len(plan(groups(2), steps=5)) == 2


@pytest.mark.parametrize("packing", ["tree", "none"])
def test_micro_batches_keep_to_the_budget_unless_one_sequence_is_longer(packing: str) -> None:
    long = make_sequence("long", "g0", [(list(range(150)), [1, 2])])
    for batch in plan([*groups(3, size=8), long], packing=packing, budget=100)[0].micro_batches:
        computed = batch.unique_tokens if packing == "tree" else max(map(len, batch.sequences)) * len(batch.sequences)
        assert computed <= 100 or [s.sequence_id for s in batch.sequences] == ["long"]


def test_tries_share_a_pass_only_where_that_was_asked_for() -> None:
    sequences = groups(4)
    assert len(plan(sequences)[0].micro_batches) == 4
    assert len(plan(sequences, rows_together=True)[0].micro_batches) == 1


def test_grpo_gives_each_rollout_the_same_weight_however_many_rows_and_tokens_it_has() -> None:
    split = [make_sequence(f"r0.{i}", "g", [([1, 2], [3] * n)]) for i, n in enumerate((5, 2))]
    split = [Sequence(**{**vars(s), "rollout_id": "r0"}) for s in split]
    sequences = [*split, make_sequence("r1", "g", [([1, 2], [4])])]
    (step,) = plan(sequences, loss_type="grpo")
    mass: Counter[str] = Counter()
    for batch in step.micro_batches:
        for sequence, weight in zip(batch.sequences, batch.weights, strict=True):
            mass[sequence.rollout_id] += weight * sequence.trained_tokens / step.normalizer
    assert mass == pytest.approx({"r0": 0.5, "r1": 0.5})


def test_dapo_is_the_mean_over_all_trained_tokens_and_dr_grpo_divides_by_a_constant_length() -> None:
    sequences = groups(2)
    trained = sum(s.trained_tokens for s in sequences)
    (dapo,), (dr_grpo,) = plan(sequences), plan(sequences, loss_type="dr_grpo")
    assert dapo.normalizer == trained
    assert dr_grpo.normalizer == 8 * 64
    assert {w for step in (dapo, dr_grpo) for batch in step.micro_batches for w in batch.weights} == {1.0}


def test_steps_line_up_with_equally_many_micro_batches_and_end_with_a_real_one() -> None:
    steps = plan(groups(5), steps=2)
    queue = line_up(steps)
    assert len(queue) == 6
    assert [batch is None for _, batch in queue] in ([False] * 3 + [True, False, False], [True, *[False] * 5])


def test_ranks_share_a_step_without_overlap_and_in_equally_many_passes() -> None:
    sequences = groups(5)
    shares = [plan(sequences, rank=rank, ranks=3)[0].micro_batches for rank in range(3)]
    assert len({len(share) for share in shares}) == 1
    real = Counter(s.sequence_id for share in shares for batch in share if any(batch.weights) for s in batch.sequences)
    assert real == Counter(s.sequence_id for s in sequences)


def test_an_unknown_loss_type_is_named() -> None:
    with pytest.raises(ValueError, match="loss_type 'ppo'"):
        plan(groups(1), loss_type="ppo")
