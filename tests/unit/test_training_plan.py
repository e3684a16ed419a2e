"""Groups become steps, steps become micro-batches, and every token weighs what the loss type says."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pytest

from lightning_core.training.dataset import Sequence
from lightning_core.training.micro_batches import Step, line_up, plan_steps
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


@pytest.mark.parametrize("packing", ["tree", "concat", "none"])
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


@pytest.mark.parametrize(("count", "sizes"), [(1, [1]), (3, [3]), (7, [7]), (8, [4, 4]), (11, [5, 6]), (30, [6] * 5)])
def test_no_step_has_fewer_groups_than_asked_for_but_the_only_one(count: int, sizes: list[int]) -> None:
    steps = plan(groups(count), steps=5, min_groups=4)
    assert sorted(len(groups_of(step)) for step in steps) == sizes


@pytest.mark.parametrize(
    ("count", "max_passes", "sizes"),
    [
        (30, 3, [6] * 5),  # enough: one pass
        (11, 1, [6, 5]),
        (11, 2, [6, 5, 6, 5]),
        (11, 3, [6, 5, 6, 5, 6]),  # the last pass ends with the last step
        (3, 4, [3] * 4),
        (3, 9, [3] * 5),
    ],
)
def test_too_few_groups_for_the_steps_are_gone_through_again(count: int, max_passes: int, sizes: list[int]) -> None:
    steps = plan(groups(count), steps=5, min_groups=4, max_passes=max_passes)
    assert [len(groups_of(step)) for step in steps] == sizes
    once = plan(groups(count), steps=5, min_groups=4)
    assert [groups_of(step) for step in steps[: len(once)]] == [groups_of(step) for step in once]
    of_pass = [groups_of(step) for step in steps[len(once) : 2 * len(once)]]
    if len(of_pass) == len(once) > 1:  # a whole pass: every group once, in another order
        assert of_pass != [groups_of(step) for step in once]
        assert set().union(*of_pass) == set().union(*(groups_of(step) for step in once))


@pytest.mark.parametrize("packing", ["tree", "concat", "none"])
def test_micro_batches_keep_to_the_budget_unless_one_sequence_is_longer(packing: str) -> None:
    long = make_sequence("long", "g0", [(list(range(150)), [1, 2])])
    for batch in plan([*groups(3, size=8), long], packing=packing, budget=100)[0].micro_batches:
        padded = max(map(len, batch.sequences)) * len(batch.sequences)
        computed = padded if packing == "none" else batch.unique_tokens
        assert computed <= 100 or [s.sequence_id for s in batch.sequences] == ["long"]


def test_what_groups_share_is_computed_once_too_and_a_group_that_fits_is_not_cut() -> None:
    system = list(range(100))
    rows = [make_sequence(f"{g}.{i}", g, [([*system, ord(g)], [i, i])]) for g in "abcd" for i in range(3)]
    (step,) = plan(rows, budget=4096)
    assert [batch.unique_tokens for batch in step.micro_batches] == [100 + 4 * 7]
    (step,) = plan(rows, budget=120)  # 107 for one group, 114 for two, 121 for three
    assert sorted(len({s.group_id for s in batch.sequences}) for batch in step.micro_batches) == [2, 2]


def test_grpo_gives_each_rollout_the_same_weight_however_many_rows_and_tokens_it_has() -> None:
    split = [make_sequence(f"r0.{i}", "g", [([1, 2], [3] * n)]) for i, n in enumerate((5, 2))]
    split = [Sequence(**{**vars(s), "rollout_id": "r0"}) for s in split]
    sequences = [*split, make_sequence("r1", "g", [([1, 2], [4])])]
    (step,) = plan(sequences, loss_type="grpo")
    assert mass(step) == pytest.approx({"r0": 0.5, "r1": 0.5})


def test_dapo_is_the_mean_over_all_trained_tokens_and_dr_grpo_divides_by_a_constant_length() -> None:
    sequences = groups(2)
    trained = sum(s.trained_tokens for s in sequences)
    (dapo,), (dr_grpo,) = plan(sequences), plan(sequences, loss_type="dr_grpo")
    assert dapo.normalizer == trained
    assert dr_grpo.normalizer == 8 * 64
    assert {w for step in (dapo, dr_grpo) for batch in step.micro_batches for w in batch.weights} == {1.0}


def mass(step: Step) -> dict[str, float]:
    """What each rollout weighs in the loss."""
    weighs: defaultdict[str, float] = defaultdict(float)
    for batch in step.micro_batches:
        for sequence, weight in zip(batch.sequences, batch.weights, strict=True):
            weighs[sequence.rollout_id] += weight * sequence.trained_tokens / step.normalizer
    return weighs


@pytest.mark.parametrize("loss_type", ["grpo", "sapo", "dapo", "cispo", "vespo", "bnpo", "luspo", "dr_grpo"])
@pytest.mark.parametrize("normalization", ["token", "rollout", None])
def test_a_rollout_weighs_by_its_tokens_or_as_much_as_any_other(loss_type: str, normalization: str | None) -> None:
    rows = [make_sequence(f"r{i}", "g", [([1, 2], [3] * n)]) for i, n in enumerate((1, 4, 5))]
    rows = [Sequence(**{**vars(s), "rollout_id": f"r{min(i, 1)}"}) for i, s in enumerate(rows)]
    (step,) = plan(rows, loss_type=loss_type, normalization=normalization)
    if loss_type == "luspo":
        expected = {"r0": 1 / 2, "r1": 9 / 2}
    elif loss_type == "dr_grpo":
        expected = {"r0": 1 / 128, "r1": 9 / 128}
    elif (normalization or ("rollout" if loss_type in ("grpo", "sapo") else "token")) == "rollout":
        expected = {"r0": 0.5, "r1": 0.5}
    else:
        expected = {"r0": 0.1, "r1": 0.9}
    assert mass(step) == pytest.approx(expected)


def test_steps_line_up_with_equally_many_micro_batches_and_end_with_a_real_one() -> None:
    steps = plan(groups(5), steps=2, budget=64)
    width = max(len(step.micro_batches) for step in steps)
    assert {len(step.micro_batches) for step in steps} != {width}
    queue = line_up(steps)
    assert len(queue) == 2 * width
    for number, step in enumerate(steps):
        part = [batch for _, batch in queue[number * width : (number + 1) * width]]
        assert part == [None] * (width - len(step.micro_batches)) + step.micro_batches


def test_ranks_share_a_step_without_overlap_and_in_equally_many_passes() -> None:
    sequences = groups(5)
    shares = [plan(sequences, rank=rank, ranks=3)[0].micro_batches for rank in range(3)]
    assert len({len(share) for share in shares}) == 1
    real = Counter(s.sequence_id for share in shares for batch in share if any(batch.weights) for s in batch.sequences)
    assert real == Counter(s.sequence_id for s in sequences)


def test_an_unknown_loss_type_is_named() -> None:
    with pytest.raises(ValueError, match="loss_type 'ppo'"):
        plan(groups(1), loss_type="ppo")
