"""`python -m pytest` in this folder: the SQL alone, and the options. No model is needed."""

from pathlib import Path

import duckdb
import pytest

from lightning_core.config import PolicySettings

HERE = Path(__file__).parent


def test_a_tokens_advantage_is_how_much_likelier_the_teacher_finds_it() -> None:
    with duckdb.connect() as con:
        con.execute(
            "CREATE TABLE token_scores AS FROM (VALUES ('a', [-1.0, -2.0], [-3.0, -2.0]), ('b', [-0.5], [-0.1])) "
            "AS scores(sequence_id, teacher, logprobs)"
        )
        rows = con.execute((HERE / "distillation.sql").read_text()).fetchall()
    advantages = {name: [float(number) for number in numbers] for name, numbers, _ in rows}
    assert advantages == {"a": [2.0, 0.0], "b": pytest.approx([-0.4])}
    assert [float(kl) for *_, kl in rows] == pytest.approx([-(2.0 + 0.0 - 0.4) / 3] * 2)


def test_it_needs_a_teacher() -> None:
    policy = PolicySettings(algorithm=f"{HERE / 'distillation.py'}:Distillation")
    with pytest.raises(ValueError, match="teacher: Field required"):
        policy.made_algorithm  # noqa: B018 - a property that raises
