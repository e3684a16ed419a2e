"""One run of bench/learning.py's arm `stock`: TRL's own GRPOTrainer, its own sampling, on the calculator's first call.

    python -m bench.learning_trl --seed 0 --folder var/learning/stock-0

Same model, adapter (where there is one), tasks in the same order, rollouts, optimizer steps, learning rate and loss as in
bench/learning.yaml; 32 rollouts a step, sampled by the newest weights (TRL's default). Evaluates greedily before training and
after every epoch, into `evaluations.jsonl`. Goes on from its last whole epoch.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from bench.learning import SETTINGS
from bench.runs import ROOT, read_rows
from lightning_core.config import Settings, TrainingSettings
from lightning_core.epoch.epoch import Run
from lightning_core.epoch.plan import plan_training
from lightning_core.epoch.task_file import load_tasks
from lightning_core.policies.model import resolve_model
from lightning_core.settings_file import load_settings
from lightning_core.training.job import import_trainer
from lightning_core.training.schedule import DECAY
from lightning_core.training.weights import lora_config

CALCULATOR = ROOT / "examples/calculator"
_PASS = 16  # sequences that go through the model at once


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    options = parser.parse_args()
    sys.path.insert(0, str(CALCULATOR))
    settings = load_settings(SETTINGS, {"seed": options.seed})
    import_trainer()
    evaluations = options.folder / "evaluations.jsonl"
    done = read_rows(evaluations)
    for epoch in range(len(done) - 1, settings.epochs):
        folder = train_epoch(settings, options.folder, epoch) if epoch >= 0 else base(settings)
        share, tasks = evaluate(settings, folder)
        rollouts = (epoch + 1) * settings.rollout.tasks_per_epoch * settings.rollout.group_size
        with evaluations.open("a") as file:
            file.write(json.dumps({"epochs": epoch + 1, "rollouts": rollouts, "right": share, "tasks": tasks}) + "\n")


def scheduled(training: TrainingSettings, steps: int) -> dict[str, Any]:
    """Our learning rate's schedule by transformers' names."""
    if training.lr_schedule != "wsd":
        return {"lr_scheduler_type": training.lr_schedule}
    falling = round((steps - training.warmup_steps) * DECAY)
    how = {"num_decay_steps": falling, "decay_type": "linear"}
    return {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": how}


def base(settings: Settings) -> Path:
    return resolve_model(settings.policies[0].model, settings.models, print).path


def messages(question: str) -> list[dict[str, str]]:
    from agent import PROMPT

    return [*PROMPT, {"role": "user", "content": question}]


def reward(task: dict[str, Any], reply: str) -> float:
    """What the example's grader gives the first call, the second one taken for granted."""
    from calculator import evaluate as value_of
    from calculator import find_call
    from reward import grade

    call = find_call(reply)
    if call is None:
        return 0.0
    expression = call.removeprefix("calc(").removesuffix(")")
    try:
        result = value_of(expression)
    except ValueError:
        return 0.0
    return float(grade(task, {"reply": reply, "expression": expression, "answer": str(result)}, None))


def train_epoch(settings: Settings, folder: Path, epoch: int) -> Path:
    """Train one epoch from the checkpoint of the one before; returns the folder of its weights, which it leaves whole."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    class OneEpoch(TrainerCallback):
        """Ends the training after this epoch; the learning rate's schedule is over all of them."""

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop = state.global_step >= (epoch + 1) * steps

    policy, training = settings.policies[0], settings.policies[0].training
    output = folder / "checkpoints"
    steps = training.steps_per_epoch
    before = output / f"checkpoint-{epoch * steps}"
    tasks = load_tasks(settings.tasks.train, "tasks.train")
    planned = [plan_training(Run(settings), tasks, number) for number in range(settings.epochs)]
    ordered = list(
        {rollout.group_id: rollout.task.content for epoch_plan in planned for rollout in epoch_plan}.values()
    )
    group = settings.rollout.group_size
    rows = settings.rollout.tasks_per_epoch * group // steps  # of an optimizer step
    passes = max(rows // _PASS, 1)
    tokenizer = AutoTokenizer.from_pretrained(base(settings), padding_side="left")
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(
            before if epoch and policy.lora is None else base(settings), dtype="float32"
        ),
        peft_config=policy.lora and lora_config(policy.lora),
        reward_funcs=lambda completions, task, **_: [
            reward(json.loads(t), c[0]["content"]) for c, t in zip(completions, task, strict=True)
        ],
        args=GRPOConfig(
            output_dir=str(output),
            seed=settings.seed + epoch,
            max_steps=settings.epochs * steps,
            per_device_train_batch_size=rows // passes,
            gradient_accumulation_steps=passes,
            num_generations=group,
            max_completion_length=24,
            temperature=policy.sampling.temperature,
            loss_type=training.loss_type,
            beta=training.beta,
            learning_rate=training.learning_rate,
            **scheduled(training, settings.epochs * steps),
            warmup_steps=training.warmup_steps,
            **training.trl,
            shuffle_dataset=False,
            save_strategy="steps",
            save_steps=steps,
            save_total_limit=2,
            logging_steps=1,
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
        ),
        train_dataset=Dataset.from_list([{"prompt": messages(t["question"]), "task": json.dumps(t)} for t in ordered]),
        processing_class=tokenizer,
        callbacks=[OneEpoch()],
    )
    trainer.train(resume_from_checkpoint=str(before) if epoch else None)
    for old in output.glob("checkpoint-*"):
        if int(old.name.removeprefix("checkpoint-")) < epoch * steps:
            shutil.rmtree(old)
    return output / f"checkpoint-{(epoch + 1) * steps}"


def evaluate(settings: Settings, folder: Path) -> tuple[float, int]:
    """Share of the held-out tasks right, greedily, and how many there are."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert settings.tasks.evaluate is not None
    tasks = load_tasks(settings.tasks.evaluate, "tasks.evaluate")[: settings.evaluation.limit]
    tokenizer = AutoTokenizer.from_pretrained(base(settings), padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
    right = 0
    for start in range(0, len(tasks), _PASS):
        part = tasks[start : start + _PASS]
        batch = tokenizer.apply_chat_template(
            [messages(t.content["question"]) for t in part],
            add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True,
        )  # fmt: skip
        with torch.no_grad():
            replies = model.generate(
                **batch, do_sample=False, max_new_tokens=24, pad_token_id=tokenizer.pad_token_id, top_p=None
            )
        for task, reply in zip(part, replies[:, batch["input_ids"].shape[1] :], strict=True):
            text = tokenizer.decode(reply, skip_special_tokens=True)
            right += reward(task.content, text) >= settings.evaluation.success_reward
    return right / len(tasks), len(tasks)


if __name__ == "__main__":
    main()
