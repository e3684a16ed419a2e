"""Whole tensors of a model and its optimizer, however they are split over processes (FSDP2, DeepSpeed), and back again.

Every rank has to call these: gathering is done by all of them together. What comes of it lies in the first rank's memory,
tensor by tensor, not in that of the devices; the others get empty tensors.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import _CHECKPOINT_PREFIX, CheckpointWrapper
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, distribute_tensor

from lightning_core.training import zero


def state_dict(model: Any) -> dict[str, torch.Tensor] | None:
    """Return the model's whole tensors, of an adapter's model the adapter's, where it is split; else None, to save it
    as it is."""
    if not any(isinstance(p, DTensor) or zero.holds(p) for p in model.parameters()):
        return None
    if hasattr(model, "peft_config"):
        return trained_tensors(model)
    # Gathered, tied tensors would no longer be known as one, and be written twice.
    once = {name for name, _ in model.named_parameters()}
    twice = {name for name, _ in model.named_parameters(remove_duplicate=False)} - once
    return {name: _whole(tensor) for name, tensor in model.state_dict(keep_vars=True).items() if name not in twice}


def trained_tensors(model: Any) -> dict[str, torch.Tensor]:
    """Return what is trained, by name; tied tensors once."""
    return {_own_name(name): _whole(p) for name, p in model.named_parameters() if p.requires_grad}


def put_trained_tensors(model: Any, tensors: dict[str, torch.Tensor]) -> None:
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # a forward pass alone leaves the outermost tensors gathered, in place of the parts
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            tensor = tensors[_own_name(name)]
            if zero.holds(parameter):
                zero.put(parameter, tensor)
            else:
                parameter.copy_(_split_like(tensor, parameter))


def unwrap_checkpointed(model: Any) -> None:
    """Take out what FSDP's `activation_checkpointing` put between the layers: peft finds an adapter's by name."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, CheckpointWrapper):
                setattr(module, name, child._checkpoint_wrapped_module)


def _own_name(name: str) -> str:
    """Return the name without what FSDP's `activation_checkpointing` puts between."""
    return name.replace(_CHECKPOINT_PREFIX, "")


def reduce_in_float32(accelerator: Any) -> None:
    """Make FSDP2 with bf16 add up gradients in float32 and not round log-probabilities to bf16, as DDP does.

    Call this before the model is split.
    """
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is not None and isinstance(plugin.mixed_precision_policy, MixedPrecisionPolicy):
        plugin.mixed_precision_policy = replace(
            plugin.mixed_precision_policy, reduce_dtype=torch.float32, output_dtype=None
        )


def optimizer_state(trainer: Any) -> dict[str, Any]:
    """Return the state of the trainer's optimizer, as torch's `state_dict` has it."""
    if _by_zero(trainer):
        return zero.optimizer_state(trainer.optimizer.optimizer, trainer.optimized)
    state = trainer.optimizer.state_dict()
    whole = {
        key: {name: _whole(v) if torch.is_tensor(v) else v for name, v in entries.items()}
        for key, entries in state["state"].items()
    }
    return {**state, "state": whole}


def put_optimizer_state(trainer: Any, state: dict[str, Any]) -> None:
    """Load the moments; each group's settings (a learning rate, say) stay those of today."""
    optimizer = trainer.optimizer
    if _by_zero(trainer):
        zero.put_optimizer_state(optimizer.optimizer, trainer.optimized, state)
        return
    now = optimizer.state_dict()["param_groups"]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    keys = [key for group in state["param_groups"] for key in group["params"]]
    split = {
        key: {
            name: _split_like(v, p) if torch.is_tensor(v) and v.dim() else v for name, v in state["state"][key].items()
        }
        for key, p in zip(keys, parameters, strict=True)
        if key in state["state"]
    }
    optimizer.load_state_dict({"state": split, "param_groups": now})


def _by_zero(trainer: Any) -> bool:
    return any(zero.holds(p) for p in trainer.accelerator.unwrap_model(trainer.model).parameters())


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    if zero.holds(tensor):
        return zero.whole(tensor)
    tensor = tensor.detach()
    if not isinstance(tensor, DTensor):
        return tensor
    whole = tensor.full_tensor()
    return whole.cpu() if torch.distributed.get_rank() == 0 else whole.new_empty(0, device="cpu")


def _split_like(tensor: torch.Tensor, example: torch.Tensor) -> torch.Tensor:
    if isinstance(example, DTensor):
        return distribute_tensor(tensor.to(example.device), example.device_mesh, example.placements)
    return tensor
