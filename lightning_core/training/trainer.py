"""Policy gradients on planned steps: TRL's losses on packed sequences, scored only where they are trained.

What is fed to TRL, and how that is measured. How TRL is made to take it: trl_bridge.py.
"""

from __future__ import annotations

import math
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lightning_core.algorithms import Tokens
from lightning_core.config import PolicySettings
from lightning_core.training.correction import bounded, from_all_ranks
from lightning_core.training.errors import TrainingError
from lightning_core.training.inputs import Start, materialise
from lightning_core.training.micro_batches import MicroBatch, Step, line_up
from lightning_core.training.packing import Layout
from lightning_core.training.schedule import EntropyBonus
from lightning_core.training.scoring import score, spread
from lightning_core.training.steps import Stepping, StepPlan
from lightning_core.training.token_scores import put_trained
from lightning_core.training.trl_bridge import PlannedGRPOTrainer, grpo_arguments

_MOST_NATS = 20.0  # by which a token can be more likely in what is logged: e^20, before numbers overflow
# What is summed over a step's trained tokens: the metrics that are not TRL's.
_SUMS = (
    "tokens", "entropy", "mismatch", "mismatch_kl", "kl", "ratio", "sampled", "informative_entropy", "importance_ratio",
    "importance_bounded", "unlikely",
)  # fmt: skip


class SequenceTrainer(Stepping, PlannedGRPOTrainer):
    """Trains `model` on planned steps, one optimizer step each, as `step_plan` says.

    `starts`: what `correction.look` found of each micro-batch before the first step; `informative`: tokens of high entropy
    of each step, by its id; `scores`: what `token_scores.weigh` made of each trained token, by name and sequence. Raises TrainingError where loss or gradient stop being finite; nothing has been saved then.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        steps: list[Step],
        policy: PolicySettings,
        *,
        scratch: Path,
        step_plan: StepPlan,
        peft_config: Any = None,
    ) -> None:
        settings = policy.training
        self.planned = steps
        self.step_plan = step_plan
        self.starts: list[Start] | None = None
        self.informative: dict[int, int] = {}
        self.scores: dict[str, dict[str, np.ndarray]] = {}
        self.algorithm = policy.made_algorithm
        self.bonus = EntropyBonus(settings, settings.of_trl("entropy_coef"))
        self.settings = settings
        # More than one step an epoch: from the second on, the weights are no longer those that sampled.
        self.use_sampling_logps = settings.steps_per_epoch > 1 and not settings.corrected and not policy.imitates
        self._queue = line_up(steps, step_plan.first)
        left = len(steps) - step_plan.first
        self._current: Any = None
        self._batch: MicroBatch | None = None
        self._hidden: list[torch.Tensor] = []  # of the micro-batch under way
        self._sums = dict.fromkeys(_SUMS, 0.0)
        self._measured: dict[str, float] = {}  # what the algorithm sums over the step's trained tokens
        self.of_algorithm: list[str] = []  # names of what it measured in the step before
        self._weights: list[float] = []  # of each micro-batch of this step, in TRL's metrics
        super().__init__(
            model,
            tokenizer,
            grpo_arguments(policy, left, len(self._queue) // left, scratch, step_plan.seed),
            micro_batches=len(self._queue),
            beta=settings.beta,
            peft_config=peft_config,
        )
        self.make_part(self.algorithm)

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any) -> torch.Tensor:
        step, at = divmod(inputs["number"], self.args.gradient_accumulation_steps)
        if at == 0:
            self.begin_step(self.step_plan.first + step)
        if self._queue[inputs["number"]][1] is None:
            self._step += 1
            return torch.zeros((), device=self.args.device)
        loss = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):
            raise TrainingError(
                f"step {self.done}: the loss is {loss.item()}; lower "
                "`training.learning_rate`, or look at the advantages and logprobs of this epoch's sequences"
            )
        is_last = at == self.args.gradient_accumulation_steps - 1  # no rank's is None
        if is_last:
            self.reduce_part()
        if self.step_plan.first + step == 0 and is_last:
            # A text was tokenized by these weights' own tokenizer, and nothing says how likely it was.
            tokenized = any(s.tokenized for batch in self.planned[0].micro_batches for s in batch.sequences)
            shares = from_all_ranks((self._sums["sampled"], self._sums["tokens"], tokenized))
            sampled, tokens, tokenized = (sum(of_ranks) for of_ranks in zip(*shares, strict=True))
            if not tokenized:
                self.check_mismatch(sampled / tokens)
        return loss

    def inputs_of(self, number: int) -> dict[str, Any]:
        step, batch = self._queue[number]
        assert batch is not None
        start = self.starts[number] if self.starts else Start()
        if self.beta != 0.0 and start.reference is None:
            raise TrainingError("beta > 0 needs `reference` log-probabilities")
        inputs = materialise(batch, step.normalizer, self.use_sampling_logps, start)
        for name, of_sequences in self.scores.items():
            target = torch.zeros_like(inputs["advantages"])
            put_trained(batch, of_sequences, target)
            inputs[_place(name)] = target
        layout = inputs.pop("layout").to(self.args.device)
        inputs = self._prepare_input(inputs)
        self._batch = batch
        self._current = layout, step, inputs
        return inputs

    def score_inputs(self, model: Any) -> tuple[torch.Tensor, torch.Tensor]:
        layout, step, inputs = self._current
        with self.accelerator.autocast():
            self._hidden.clear()
            logps, entropies = score(model, self.accelerator.unwrap_model(model), layout, self._hidden.append)
        if self.settings.corrected:
            self._correct(inputs, logps.detach())
        self._current = layout, step, inputs | {"logprobs": logps, "entropies": entropies}
        self._measure(logps.detach(), entropies.detach(), inputs)
        return logps, entropies

    def high_entropy(self) -> torch.Tensor:
        informative: torch.Tensor = self._current[2]["informative"]
        return informative

    def last_word(self, loss: torch.Tensor) -> torch.Tensor:
        """Return the loss as the algorithm has it, less the entropy bonus: the mean over the step's tokens, so far as
        they are in this micro-batch."""
        layout, step, inputs = self._current
        tokens = self._tokens(layout, inputs)
        tokens.policy_loss = loss
        loss = self.algorithm.loss(tokens)
        trained = inputs["tool_mask"] > 0
        for name, values in tokens.measured.items():
            self._measured[name] = self._measured.get(name, 0.0) + float((values * trained).sum())
        if not self.bonus.weight:
            return loss
        count = self.informative.get(id(step), step.trained_tokens)
        total = (inputs["entropies"] * _rewarded(inputs)).sum()
        return loss - self.bonus.weight * total * self.accelerator.num_processes / count

    def _tokens(self, layout: Layout, inputs: dict[str, Any]) -> Tokens:
        assert self._batch is not None
        return Tokens(
            sequences=self._batch.sequences,
            logprobs=inputs["logprobs"],
            entropies=inputs["entropies"],
            hidden=self._hidden.pop(),
            spread=partial(spread, gather=layout.gather),
            part=self.part,
            advantages=inputs["advantages"],
            weights=inputs["tool_mask"],
            total=float(inputs["num_items_in_batch"]) / self.accelerator.num_processes,
            scores={name: inputs[_place(name)] for name in self.scores},
            step=self.step_plan.taken_before + self.done,
        )

    def _correct(self, inputs: dict[str, Any], logps: torch.Tensor) -> None:
        """Weigh the loss by the importance ratio; `logps` are of the weights the epoch begins with where none were
        stored."""
        log_ratio = inputs.pop("log_ratio", None)
        if log_ratio is None:
            log_ratio = inputs.get("old_per_token_logps", logps) - inputs["sampling_per_token_logps"]
        ratio, outside = bounded(log_ratio, self.settings)
        inputs["importance"] = ratio
        trained = inputs["tool_mask"] > 0
        self._sums["importance_ratio"] += float((ratio * trained).sum())
        self._sums["importance_bounded"] += float((outside * trained).sum())
        if self.loss_type == "vespo":
            inputs["importance_sampling_ratio"] = ratio
        else:  # TRL multiplies the token losses, which grow with the advantages alone
            inputs["advantages"] = inputs["advantages"] * ratio

    def _measure(self, logps: torch.Tensor, entropies: torch.Tensor, inputs: dict[str, Any]) -> None:
        if self.step_plan.rows is not None and self._batch is not None:
            self.step_plan.rows.add(self._batch, logps, entropies, inputs, self)
        weights = inputs["tool_mask"]
        trained = (weights > 0).float()
        self._weights.append(float(weights.sum()))
        difference = (logps - inputs["sampling_per_token_logps"]) * trained
        measured = {
            "tokens": trained,
            "entropy": entropies * trained,
            "mismatch": difference.abs(),
            "unlikely": -torch.expm1(logps) * trained,
            "sampled": -difference,
            # http://joschu.net/blog/kl-approx.html, k3: never negative, and of little variance
            "mismatch_kl": torch.expm1(difference.clamp(max=_MOST_NATS)) - difference,
            "ratio": torch.exp(difference.clamp(max=_MOST_NATS)) * trained,
            "informative_entropy": entropies * _rewarded(inputs),
        }
        if self.beta:
            to_reference = (inputs["ref_per_token_logps"] - logps) * trained
            measured["kl"] = torch.expm1(to_reference.clamp(max=_MOST_NATS)) - to_reference
        for name, values in measured.items():
            self._sums[name] += float(values.sum())

    def score_all(self, but: Step | None = None) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return log-probabilities and entropies by the weights as they are, a micro-batch each, without gradients; of
        the step `but` none."""
        self.step_plan.on_scoring()
        with self.accelerator.autocast():  # as in training, or what differs would count as a ratio
            batches = [None if step is but else batch for step, batch in self._queue]
            return score_queue(self.model, batches, self.args.device)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Report an optimizer step; called once a step (and once at the end, with what is ignored here)."""
        shares = from_all_ranks((self._sums | self._measured, self._weights))
        sums = {name: sum(share.get(name, 0.0) for share, _ in shares) for name in self._sums | self._measured}
        weights = [sum(of_ranks) for of_ranks in zip(*(share for _, share in shares), strict=True)]
        clipped = self.take_clip_ratios()
        clip_ratio = _mean(clipped, weights) if clipped else None
        measured = list(self._measured)
        self._sums, self._measured, self._weights = dict.fromkeys(_SUMS, 0.0), {}, []
        if "grad_norm" not in logs:
            return
        self.of_algorithm = measured
        done = self.done
        grad_norm = float(logs["grad_norm"])
        if not math.isfinite(grad_norm):
            raise TrainingError(f"step {done - 1}: the gradient's norm is {grad_norm}; lower `training.learning_rate`")
        step = self.planned[done - 1]
        tokens = max(sums["tokens"], 1.0)
        self.step_plan.on_step(
            self,
            {
                "step": done,
                "steps": len(self.planned),
                "learning_rate": self.step_plan.rate(done - 1, self.settings),
                "seconds": round(time.perf_counter() - self.step_began, 4),
                "loss": float(logs["loss"]),
                "grad_norm": grad_norm,
                "kl": sums["kl"] / tokens if self.beta else None,
                "entropy": sums["entropy"] / tokens,
                "entropy_coef": self.bonus.coef,
                "clip_ratio": clip_ratio,
                "ratio": sums["ratio"] / tokens,
                "mismatch": sums["mismatch"] / tokens,
                "mismatch_kl": sums["mismatch_kl"] / tokens,
                "unlikely": sums["unlikely"] / tokens,
                "importance_ratio": sums["importance_ratio"] / tokens if self.settings.corrected else None,
                "importance_bounded": sums["importance_bounded"] / tokens if self.settings.corrected else None,
                "tokens": step.tokens,
                "unique_tokens": step.unique_tokens,
                "trained_tokens": step.trained_tokens,
                **{name: sums[name] / tokens for name in self.of_algorithm},
            },
        )
        self.bonus.update(sums["informative_entropy"] / self.informative.get(id(step), step.trained_tokens))
        self.step_plan.on_done(self, done)


def _place(score: str) -> str:
    """Return the name of a score in TRL's inputs: the advantages lie where TRL's loss reads them."""
    return score if score == "advantages" else f"score {score}"


def score_queue(
    model: Any, batches: list[MicroBatch | None], device: torch.device
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Score micro-batches without dropout: log-probabilities, entropies, `(B, T)` each on the CPU (empty for None)."""
    was_training = model.training
    model.eval()
    nothing = torch.empty(0), torch.empty(0)
    scores = []
    with torch.no_grad():
        for batch in batches:
            of_batch = nothing if batch is None else score(model, model, batch.layout().to(device))
            scores.append((of_batch[0].cpu(), of_batch[1].cpu()))
    model.train(was_training)
    return scores


def _rewarded(inputs: dict[str, Any]) -> torch.Tensor:
    """Return, as float (B, T), the tokens whose entropy counts: all that are trained or those of high entropy."""
    informative = inputs.get("informative")
    return (inputs["tool_mask"] > 0 if informative is None else informative).float()


def _mean(values: list[float], weights: list[float]) -> float | None:
    """Return the weighted mean of the micro-batches' values; those that hold nothing are NaN with weight 0."""
    pairs = [(v, w) for v, w in zip(values, weights, strict=True) if w > 0 and math.isfinite(v)]
    total = sum(w for _, w in pairs)
    return sum(v * w for v, w in pairs) / total if total else None
