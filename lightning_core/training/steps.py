"""The optimizer steps of an epoch. A killed training resumes after the last finished step."""

from __future__ import annotations

import logging
import tempfile
import time
from pathlib import Path
from time import monotonic
from typing import Any

from lightning_core.algorithms import Algorithm
from lightning_core.config import TrainingSettings
from lightning_core.training.checkpoint import Checkpoints, Found
from lightning_core.training.dataset import Sequence
from lightning_core.training.errors import TrainingDataError, TrainingError
from lightning_core.training.hardware import is_split
from lightning_core.training.job import Job, Progress, derive_seed, use_torchao
from lightning_core.training.micro_batches import Step
from lightning_core.training.new_version import PART, leave
from lightning_core.training.resident import Made
from lightning_core.training.schedule import EntropyBonus, learning_rate
from lightning_core.training.state import load_part, load_state, parameters_of
from lightning_core.training.token_rows import TokenRows, forget_rows
from lightning_core.training.weights import lora_config

logger = logging.getLogger(__name__)

_SHARE = 0.05  # of the time, at most, goes into checkpoints after the first


class StepPlan:
    """How a trainer takes the steps of an epoch, and whom it reports to: here nobody."""

    seed = 0  # of dropout, together with the step's number
    first = 0  # steps that a killed try took
    taken_before = 0  # optimizer steps of the run before this epoch
    optimizer_state: dict[str, Any] | None = None  # that the epoch before left
    part: dict[str, Any] | None = None  # tensors of the algorithm's part, that the epoch before left
    found: Found | None = None  # the killed try's checkpoint; put into place after `begin`
    rows: TokenRows | None = None  # gets what is known of each trained token

    def rate(self, step: int, settings: TrainingSettings) -> float:
        """Return the learning rate of a step of the epoch."""
        return settings.learning_rate

    def begin(self, trainer: Any) -> None:
        """Prepare for the first step; called before it, when model and optimizer are what they will be."""

    def on_scoring(self) -> None:
        """Handle the start of scoring; called before passes that only score."""

    def on_step(self, trainer: Any, metrics: dict[str, Any]) -> None:
        """Handle the metrics of each step."""

    def on_done(self, trainer: Any, done: int) -> None:
        """Handle the end of a step; called then, with how many steps of the epoch are done."""


class JobSteps(StepPlan):
    """The `count` optimizer steps of a job. `taken`: the metrics of each step, those before `first` too.

    `made`: what the job before left in this process, where this one goes on from it.
    """

    def __init__(self, job: Job, progress: Progress, count: int, made: Made | None = None) -> None:
        self.job, self.progress, self.count, self.made = job, progress, count, made
        self.seed = derive_seed(job.seed, job.epoch)
        if job.policy_settings.training.optimizer == "adamw_8bit":
            use_torchao()
        self.checkpoints = Checkpoints(job, parts=count)
        self.found = self.checkpoints.newest()
        self.taken: list[dict[str, Any]] = []
        if self.found is not None:
            self.first, self.taken = self.found.done, self.found.taken
            logger.info("%s: going on after step %d of %d", job.state, self.first, count)
            progress.write({"resumed_at": self.first, "steps": count})
        forget_rows(job.state, after=self.first)
        # An example has neither ratio nor clipping.
        self.rows = None if job.policy_settings.imitates else TokenRows(job.state, job.policy)
        self.reference: list[Any] | None = None  # the KL's log-probabilities, where a model of its own gives them
        self.weighed: dict[str, float] = {}  # metrics of the algorithm's SQL

    def train(self, model: Any, tokenizer: Any, planned: list[Step]) -> Any:
        """Take the steps; return the trainer that took them."""
        from lightning_core.training.trainer import SequenceTrainer

        lora = self.job.policy_settings.lora
        self.progress.phase("preparing")
        state, self.noted = self._state()
        self.taken_before = self.noted["step"]
        # A checkpoint brings its own; memory holds one of them.
        self.optimizer_state = None if self.found else state
        with tempfile.TemporaryDirectory(prefix="lightning-training-") as scratch:
            trainer = SequenceTrainer(
                model,
                tokenizer,
                planned,
                self.job.policy_settings,
                scratch=Path(scratch),
                step_plan=self,
                peft_config=lora_config(lora) if lora and self.job.weights is None else None,
            )
            if trainer.accelerator.num_processes > 1:
                logger.info(
                    "rank %d of %d processes", trainer.accelerator.process_index, trainer.accelerator.num_processes
                )
            self.parameters = parameters_of(trainer.model, self.job.state, self.noted)
            trainer.entropy = self.noted.get("entropy", [])
            trainer.train()
        return trainer

    def _state(self) -> tuple[dict[str, Any] | None, dict[str, Any]]:
        if self.made is not None:
            return self.made.optimizer, self.made.noted
        made_in = self.job.made_in
        optimizer = self.job.policy_settings.training.optimizer
        kept = None if made_in is None else load_state(self.job.state, made_in, self.job.version, optimizer)
        if made_in is not None and kept is None:
            why = f"{self.job.state}: the optimizer state that epoch {made_in} left with these weights is not kept any more "
            why += "(or is another optimizer's): AdamW starts afresh"
            logger.warning(why)
            self.progress.write({"warning": why})
        if kept is not None and made_in is not None:
            self.part = load_part(self.job.state, made_in)
        return kept or (None, {"step": 0})

    def leave(self, trainer: Any, metrics: dict[str, Any], rows: list[Sequence]) -> dict[str, Any]:
        """Write what `new_version.leave` does. The last checkpoint stays until the version is published."""
        optimizer = self.job.policy_settings.training.optimizer
        state = {"step": self.noted["step"] + self.count, "parameters": self.parameters, "optimizer": optimizer}
        # Where this epoch has no use for it, a later one may.
        state["entropy"] = trainer.entropy or self.noted.get("entropy", [])
        return leave(self.job, self.progress, trainer, metrics, taken=self.taken, state=state, rows=rows)

    def rate(self, step: int, settings: TrainingSettings) -> float:
        return rate(self.job, step, taken=self.noted["step"] + step)

    def begin(self, trainer: Any) -> None:
        from lightning_core.training.correction import look
        from lightning_core.training.token_scores import weigh

        adapter = self.job.policy_settings.lora is not None
        trainer.starts, trainer.informative = look(trainer, self.reference, adapter)
        trainer.scores, self.weighed = weigh(trainer, self.job)
        self.progress.phase("training")
        self.kept, self.took = monotonic(), 0.0

    def on_scoring(self) -> None:
        self.progress.phase("reference")

    def on_step(self, trainer: Any, metrics: dict[str, Any]) -> None:
        self.taken.append(metrics)
        self.progress.write(metrics)

    def on_done(self, trainer: Any, done: int) -> None:
        from lightning_core.training.correction import from_all_ranks

        if self.rows is not None:
            self.rows.write(done)
        seconds = self.job.policy_settings.training.checkpoint_seconds
        if seconds is None or done == self.count:
            return
        # The first rank's clock decides: what is split over ranks is gathered by all of them.
        began = monotonic()
        due = max(seconds, self.took / _SHARE) if seconds else 0.0
        if from_all_ranks(began - self.kept >= due)[0]:
            self.checkpoints.save(trainer, done, self.taken)
            self.kept = monotonic()
            self.took = self.kept - began


class Stepping:
    """Mixin of transformers' Trainer that takes the steps of `step_plan`."""

    step_plan: StepPlan
    settings: TrainingSettings
    bonus: EntropyBonus
    optimized: list[list[Any]]  # parameters, in the groups the optimizer was made with
    part: Any = None  # what the algorithm trains beside the policy
    part_scale = 1.0  # of its learning rate to the policy's
    # Of transformers' Trainer:
    accelerator: Any
    args: Any
    model: Any
    optimizer: Any
    state: Any

    @property
    def done(self) -> int:
        """Return how many optimizer steps of the epoch are done, with those a killed try took."""
        return self.step_plan.first + int(self.state.global_step)

    @property
    def entropy(self) -> list[float]:
        """Return what the next step depends on beside weights and moments: the state of an adaptive entropy bonus."""
        return [self.bonus.coef, self.bonus.last] if self.settings.of_trl("use_adaptive_entropy") else []

    @entropy.setter
    def entropy(self, was: list[float]) -> None:
        if was and self.settings.of_trl("use_adaptive_entropy"):
            self.bonus.coef, self.bonus.last = was

    def create_accelerator_and_postprocess(self) -> None:
        from lightning_core.training.gather import reduce_in_float32

        super().create_accelerator_and_postprocess()  # type: ignore[misc]
        reduce_in_float32(self.accelerator)

    @staticmethod
    def get_optimizer_cls_and_kwargs(args: Any, model: Any = None) -> tuple[Any, dict[str, Any]]:
        """Return transformers' choice, but torchao's AdamW, which transformers did not see when it was imported
        (`import_trainer`)."""
        from transformers import Trainer

        if args.optim != "adamw_torch_8bit":
            return Trainer.get_optimizer_cls_and_kwargs(args, model)
        from torchao.optim import AdamW8bit

        betas = (args.adam_beta1, args.adam_beta2)
        return AdamW8bit, {"lr": args.learning_rate, "betas": betas, "eps": args.adam_epsilon}

    def make_part(self, algorithm: Algorithm) -> None:
        """Make what the algorithm trains beside the policy, or take the one of the job before, as a module of the
        model: the optimizer and checkpoints find it there. Raises TrainingError where the weights are split over
        processes."""
        import torch

        self.part = getattr(self.model, PART, None)
        if self.part is None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.step_plan.seed)
                self.part = algorithm.part(self.model)
            if self.part is None:
                return
            if is_split():
                raise TrainingError(
                    f"`algorithm: {algorithm.policy.algorithm}` trains a part beside the policy, which was not tried with "
                    "weights that are split over processes; use an accelerate file without FSDP and DeepSpeed"
                )
            if self.step_plan.part is not None:
                self.part.load_state_dict(self.step_plan.part)
            self.model.add_module(PART, self.part.to(self.args.device))
        # It is called beside the model, where DDP looks for no gradients: `reduce_part` averages them.
        ignored = [f"{PART}.{name}" for name, _ in self.part.named_parameters()]
        torch.nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self.model, ignored)
        rate = algorithm.part_learning_rate
        self.part_scale = 1.0 if rate is None else rate / self.settings.learning_rate

    def reduce_part(self) -> None:
        """Replace the part's gradients by their mean over the ranks at the end of a step. Every rank calls this."""
        import torch

        if self.part is None or self.accelerator.num_processes == 1:
            return
        for parameter in self.part.parameters():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            torch.distributed.all_reduce(parameter.grad)
            parameter.grad /= self.accelerator.num_processes

    def create_optimizer(self, *args: Any) -> Any:
        optimizer = super().create_optimizer(*args)  # type: ignore[misc]
        if self.part is not None and "scale" not in optimizer.param_groups[-1]:
            own = {id(p) for p in self.part.parameters()}
            for group in optimizer.param_groups:
                group["params"] = [p for p in group["params"] if id(p) not in own]
            optimizer.add_param_group({"params": list(self.part.parameters()), "weight_decay": 0.0})
            optimizer.param_groups[-1]["scale"] = self.part_scale
        # DeepSpeed puts flat tensors in their place, and drops a group without any.
        self.optimized = [list(group["params"]) for group in optimizer.param_groups if group["params"]]
        return optimizer

    def begin_step(self, step: int) -> None:
        """Prepare step `step` of the epoch, before its first pass."""
        import torch

        plan = self.step_plan
        if step == plan.first:
            plan.begin(self)
            self._resume()
        # Dropout depends on the step alone, so an epoch that is resumed draws what it would have drawn.
        torch.manual_seed((plan.seed + 1_000_003 * step + 7919 * self.accelerator.process_index) % 2**63)
        if self.optimizer is not None:
            for group in self.optimizer.param_groups:
                rate = plan.rate(step, self.settings) * group.get("scale", 1.0)
                if torch.is_tensor(group["lr"]):  # torchao's, which is compiled with it
                    group["lr"].fill_(rate)
                else:
                    group["lr"] = rate
        self.step_began = time.perf_counter()

    def check_mismatch(self, less_likely: float) -> None:
        """Check the mismatch before the epoch's first optimizer step, when the weights are still those that sampled, or
        close to them."""
        limit = self.settings.max_mismatch
        if limit is not None and less_likely > limit:
            raise TrainingDataError(
                f"the trained tokens are {less_likely:.1f} nats less likely to these weights than their logprobs say: another "
                "model, or another tokenizer, sampled them. Take the weights they came from (`training.max_mismatch` is "
                f"{limit:g})"
            )

    def _resume(self) -> None:
        from lightning_core.training.gather import put_optimizer_state, put_trained_tensors

        state, found = self.step_plan.optimizer_state, self.step_plan.found
        if found is not None:
            weights, state = found.tensors()
            put_trained_tensors(self.accelerator.unwrap_model(self.model), weights)
            self.entropy = found.entropy
        if state is not None:
            put_optimizer_state(self, state)
        self.step_plan.optimizer_state = self.step_plan.found = None


def rate(job: Job, step: int, taken: int) -> float:
    """Return the learning rate of a step of the job's epoch, `taken` optimizer steps into the run.

    What is left of the schedule depends on the place in the run alone, so an epoch that is tried again has the same
    rates.
    """
    policy = job.policy_settings
    of_epoch = policy.training.steps_per_epoch * policy.passes
    return learning_rate(policy.training, job.epoch * of_epoch + step, job.epochs * of_epoch, taken)


def check_schedule(job: Job) -> None:
    """Raise TrainingError where the job's epoch lies past the end of the learning rate's schedule."""
    if rate(job, 0, taken=0) == 0:
        raise TrainingError(
            f"`lr_schedule: {job.policy_settings.training.lr_schedule}` has fallen to 0 at the end of `epochs` {job.epochs}, "
            f"and this is epoch {job.epoch} (from 0): nothing would be learned; raise `epochs`, or take `constant`"
        )
