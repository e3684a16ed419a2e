"""DeepSpeed's ZeRO: what it keeps in parts, as one process has it, and back again.

Every rank has to call these, as those of gather.py. Imports DeepSpeed only where a model was prepared by it.
"""

from __future__ import annotations

from typing import Any

import torch


def holds(parameter: Any) -> bool:
    """Return whether ZeRO keeps the parameter in parts (stage 3), or what the optimizer moves in its place (1, 2)."""
    return hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping")


def whole(parameter: Any) -> torch.Tensor:
    """Return the parameter in float32 where it is trained (whatever it is computed in), in the first rank's memory."""
    from deepspeed.runtime.zero import GatheredParameters
    from deepspeed.utils import safe_get_full_fp32_param

    if parameter.requires_grad:
        return _first_ranks(safe_get_full_fp32_param(parameter))
    with GatheredParameters([parameter]):  # of the others, only stage 3 keeps any
        return _first_ranks(parameter.detach().clone())


def put(parameter: Any, tensor: torch.Tensor) -> None:
    """Replace a trained parameter, as it is computed with and as the optimizer has it."""
    from deepspeed.runtime.zero import GatheredParameters
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

    if not hasattr(parameter, "ds_id"):
        safe_set_full_fp32_param(parameter, tensor)
        parameter.data.copy_(tensor)
        return
    safe_set_local_fp32_param(parameter, _part(parameter, tensor))
    with GatheredParameters([parameter], modifier_rank=0):
        parameter.data.copy_(tensor)


def optimizer_state(zero: Any, groups: list[list[Any]]) -> dict[str, Any]:
    """Return the state of the optimizer in torch's form. `zero`: DeepSpeed's; `groups`: the parameters as AdamW was
    given them."""
    from deepspeed.utils import safe_get_full_optimizer_state

    _link(zero)
    entries = [entry for flat in _flat(zero) if (entry := zero.optimizer.state.get(flat))]
    moments = entries[0] if entries else {}  # their names, and what is no tensor of a parameter's size: the step
    state: dict[int, dict[str, torch.Tensor]] = {}
    described = []
    for group, settings in zip(groups, zero.optimizer.param_groups, strict=True):
        numbers = range(len(state), len(state) + len(group))
        described.append({k: v for k, v in settings.items() if k != "params"} | {"params": list(numbers)})
        for index, parameter in zip(numbers, group, strict=True):
            state[index] = {
                name: _first_ranks(safe_get_full_optimizer_state(parameter, name)) if like.dim() else like.cpu().clone()
                for name, like in moments.items()
            }
    return {"state": state if moments else {}, "param_groups": described}


def put_optimizer_state(zero: Any, groups: list[list[Any]], state: dict[str, Any]) -> None:
    from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

    if not state["state"]:
        return
    example = next(iter(state["state"].values()))
    for flat in _flat(zero):
        zero.optimizer.state[flat] = {
            name: torch.zeros_like(flat) if v.dim() else v.to(flat.device).clone() for name, v in example.items()
        }
    _link(zero)
    keys = [key for group in state["param_groups"] for key in group["params"]]
    for key, parameter in zip(keys, [p for group in groups for p in group], strict=True):
        for name, value in state["state"].get(key, {}).items():
            if not value.dim():
                continue
            if hasattr(parameter, "ds_id"):
                safe_set_local_optimizer_state(parameter, _part(parameter, value), name)
            else:
                safe_set_full_optimizer_state(parameter, value, name)


def _link(zero: Any) -> None:
    """Let parameters know where their moments are, in stages 1 and 2. DeepSpeed does it once, after the first group's
    first step, when the other groups have none yet."""
    if hasattr(zero, "_lazy_init_hp_params_optimizer_state") and zero.optimizer.state:
        zero._hp_optimizer_states_linked = False
        zero._lazy_init_hp_params_optimizer_state()


def _flat(zero: Any) -> list[torch.Tensor]:
    """Return this rank's part of each group, which is what AdamW really moves."""
    parts = getattr(zero, "fp32_partitioned_groups_flat", None)
    return list(zero.single_partition_of_fp32_groups if parts is None else parts)


def _part(parameter: Any, tensor: torch.Tensor) -> torch.Tensor:
    """Return this rank's part of a whole tensor: equal parts, the last one filled up with zeros."""
    size = parameter.ds_tensor.numel()
    begin = size * torch.distributed.get_rank()
    part = tensor.flatten()[begin : begin + size].float()
    return torch.nn.functional.pad(part, (0, size - len(part)))


def _first_ranks(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.cpu() if torch.distributed.get_rank() == 0 else tensor.new_empty(0, device="cpu")
