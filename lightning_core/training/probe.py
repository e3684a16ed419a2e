"""What the trained weights make of a few tokens they were trained on, for the server to be compared with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning_core.policies.probe import PROBE_LENGTH


def take_probe(model: Any, ids: Sequence[int]) -> dict[str, Any] | None:
    """Token ids and their logprobs as `Probe` has them; None where this process does not hold all weights.

    Computed without autocast and dropout, in what the weights are, on the first ids of a sequence (two at least).
    """
    import torch

    token_ids = [int(i) for i in ids[:PROBE_LENGTH]]
    if len(token_ids) < 2 or any(hasattr(p, "full_tensor") or hasattr(p, "ds_id") for p in model.parameters()):
        return None
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), torch.autocast(model.device.type, enabled=False):
            inputs = torch.tensor([token_ids], device=model.device)
            logits = model(input_ids=inputs, attention_mask=torch.ones_like(inputs), use_cache=False).logits[0, :-1]
            logprobs = torch.log_softmax(logits.float(), -1).gather(-1, inputs[0, 1:, None])[:, 0].tolist()
    finally:
        model.train(was_training)
    kind = str(next(model.parameters()).dtype).removeprefix("torch.")
    return {"token_ids": token_ids, "logprobs": [round(value, 6) for value in logprobs], "dtype": kind}
