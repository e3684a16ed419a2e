"""On-policy distillation as an algorithm of one's own: each token that the policy sampled is judged by a better model.

No reward is used. A token's advantage is how much likelier the teacher finds it than the policy does: its share of the reverse
KL divergence, which training makes smaller (Agarwal et al. 2024, arXiv:2306.13649, on-policy data and reverse KL).
"""

from pathlib import Path
from typing import Any

from pydantic import Field

from lightning_core.algorithms import Algorithm, Options, Tokens


class DistillationOptions(Options):
    teacher: Path = Field(
        description="folder of a model with the policy's tokenizer, for example another run's best version"
    )


class Distillation(Algorithm):
    Options = DistillationOptions

    def __init__(self, policy: Any) -> None:
        super().__init__(policy)
        self._teacher: Any = None

    def select(self) -> str:
        """Every rollout trains; what its reward was does not matter."""
        return "reinforce"

    def score(self, tokens: Tokens) -> dict[str, Any]:
        if self._teacher is None:
            from transformers import AutoModelForCausalLM

            self._teacher = AutoModelForCausalLM.from_pretrained(self.options.teacher, dtype=tokens.logprobs.dtype)
            self._teacher.to(tokens.logprobs.device).eval()
        return {"teacher": tokens.logprobs_by(self._teacher)}

    def weigh(self) -> Path:
        return Path(__file__).with_name("distillation.sql")
