"""Log-probabilities of a `Layout`, with hidden states only where a token is trained.

The backbone runs over the layout; a hook keeps the hidden states that predict a trained token; TRL's fused LM head
scores those alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch

from lightning_core.config import PolicySettings
from lightning_core.training.attention import NAME, Forest
from lightning_core.training.dataset import Sequence
from lightning_core.training.errors import TrainingError
from lightning_core.training.packing import Layout, forest_layout, padded_layout
from lightning_core.training.trl_bridge import add_head, fused_scores

# Of the largest hidden state: float32's rounding stays far below (2e-4 was seen), a mask that is ignored far above (0.8).
_PROBE_TOLERANCE = 1e-2
_DROPOUTS = ("attention_dropout", "attn_pdrop", "attention_probs_dropout_prob", "attn_dropout")  # as configs name it
_ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}


def causal_model(model: Any) -> Any:
    """Return the transformers model under a peft adapter, or the model itself."""
    return model.get_base_model() if hasattr(model, "peft_config") and hasattr(model, "get_base_model") else model


def score(
    model: Any, unwrapped: Any, layout: Layout, on_hidden: Callable[[torch.Tensor], None] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the log-probability and entropy of each trained token, both `(B, T)` and 0 elsewhere.

    `model` is what is called (possibly wrapped for several processes), `unwrapped` what lies in it. It has TRL's fused
    LM head; where that was not asked for entropies they are zeros. `on_hidden` is given the hidden states that predict
    the tokens, `(N, width)`.
    """
    with _only(causal_model(unwrapped).base_model, layout.positions, on_hidden):
        scores, entropies = fused_scores(model, _inputs(layout), layout.targets)
    logps = spread(scores, layout.gather)
    return logps, torch.zeros_like(logps) if entropies is None else spread(entropies, layout.gather)


def scores_by(model: Any, layout: Layout, policy: PolicySettings) -> torch.Tensor:
    """Return the log-probabilities `(B, T)` that another model with the same tokenizer gives the tokens, without
    gradients.

    Raises TrainingError where it cannot take them as they are packed.
    """
    if "forward" not in causal_model(model).__dict__:
        add_head(model, policy)
    reason = None if layout.depth is None else why_not_packed(model, int(layout.position_ids.max()) + 1)
    if reason is not None:
        raise TrainingError(f"{reason}; set `training.packing: none`")
    with torch.no_grad():
        return score(model, model, layout)[0]


@contextlib.contextmanager
def _only(
    backbone: torch.nn.Module, positions: torch.Tensor, on_hidden: Callable[[torch.Tensor], None] | None
) -> Iterator[None]:
    """Make the backbone return the hidden states of `positions` alone, as one row: `(1, N, hidden)`, within the
    block."""

    def keep(module: torch.nn.Module, args: Any, output: Any) -> Any:
        hidden = output.last_hidden_state.flatten(0, 1).index_select(0, positions)
        if on_hidden is not None:
            on_hidden(hidden)
        output.last_hidden_state = hidden.unsqueeze(0)
        return output

    handle = backbone.register_forward_hook(keep)
    try:
        yield
    finally:
        handle.remove()


def spread(scores: torch.Tensor, gather: torch.Tensor) -> torch.Tensor:
    """Put scores `(N,)` at their places `(B, T)`."""
    flat = torch.nn.functional.pad(scores.flatten(), (0, 1))  # the appended zero is what untrained tokens read
    return flat.index_select(0, gather.flatten()).view(gather.shape)


def why_not_packed(model: Any, longest: int) -> str | None:
    """Return why this model cannot take forests, or None where it can; then it attends by them from here on, and the
    probe is not run again.

    Runs two sequences that branch through the backbone, packed and (by the model's own, eager attention) padded, and
    compares the hidden states: an architecture that brings its own attention, or ignores explicit positions (state
    spaces, linear attention, some sliding windows), shows there. In float32 whatever the model will be trained in: the
    question is the architecture, and bf16's rounding in trained weights is as large as what a wrong mask does.
    `longest` is the longest sequence in tokens, for windows the probe is too short to see.
    """
    base = causal_model(model)
    config = base.config.get_text_config()
    window = getattr(config, "sliding_window", None) or getattr(config, "attention_chunk_size", None)
    if window is not None and getattr(config, "use_sliding_window", True) and longest > window:
        return f"sequences of up to {longest} tokens do not fit the sliding attention window of {window}"
    other = set(getattr(config, "layer_types", None) or ()) - _ATTENTION
    if other:
        return (
            f"{type(base).__name__} has layers that mix neighbours whatever the mask says: {', '.join(sorted(other))}"
        )
    dropout = max(float(getattr(config, name, 0) or 0) for name in _DROPOUTS)
    if dropout:  # the probe is in evaluation
        return (
            f"{type(base).__name__} has an attention dropout of {dropout:g}, which the attention of tries does not know"
        )
    if base.config._attn_implementation == NAME:  # it was asked before; the model stays from epoch to epoch
        return None
    device = next(base.parameters()).device
    sequences = _probe_sequences(int(config.vocab_size))
    before, was_training = base.config._attn_implementation, base.training
    base.eval()
    reason = None
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False), _float32_weights(base.base_model):
            base.set_attn_implementation("eager")
            padded = _hidden(base.base_model, padded_layout(sequences).to(device))
            base.set_attn_implementation(NAME)
            packed = _hidden(base.base_model, forest_layout([sequences]).to(device))
        difference = float((packed - padded).abs().max() / padded.abs().max().clamp(min=1e-6))
        if not difference < _PROBE_TOLERANCE:
            reason = f"{type(base).__name__} does not follow the attention mask (hidden states off by {difference:.2g})"
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
        first_line = str(error).splitlines()[0] if str(error) else repr(error)
        reason = f"{type(base).__name__} does not follow the attention mask: {first_line}"
    finally:
        base.train(was_training)
    if reason is not None:
        base.set_attn_implementation(before)
    return reason


@contextlib.contextmanager
def _float32_weights(model: torch.nn.Module) -> Iterator[None]:
    """Give each module float32 weights while it computes, and no longer, as long as the block runs: that takes the
    memory of one module more. From bf16 and back no bit changes."""
    handles = []

    def widen(module: torch.nn.Module, _: Any) -> None:
        module._apply(torch.Tensor.float, recurse=False)

    def narrow(kind: torch.dtype, module: torch.nn.Module, *_: Any) -> None:
        module._apply(lambda weight: weight.to(kind), recurse=False)

    for module in model.modules():
        kinds = {weight.dtype for weight in module.parameters(recurse=False)}
        if len(kinds) == 1 and torch.float32 not in kinds:
            handles.append(module.register_forward_pre_hook(widen))
            handles.append(module.register_forward_hook(partial(narrow, kinds.pop()), always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _probe_sequences(vocabulary: int) -> list[Sequence]:
    shared = np.arange(1, 7) % vocabulary
    sequences = []
    for number in range(2):
        ids = np.concatenate([shared, (np.arange(3) * 7 + 8 + number) % vocabulary]).astype(np.int32)
        trained = np.arange(len(ids)) >= len(shared)
        zeros = np.zeros(len(ids), np.float32)
        sequences.append(Sequence(f"{number}", "probe", "", "probe", ids, len(shared), trained, zeros, zeros))
    return sequences


def _hidden(backbone: torch.nn.Module, layout: Layout) -> torch.Tensor:
    """Return the hidden states that predict the trained tokens, `(B, T, hidden)`."""
    out = backbone(**_inputs(layout), use_cache=False)
    picked = out.last_hidden_state.flatten(0, 1).index_select(0, layout.positions).float()
    return picked.index_select(0, layout.gather.flatten()).view(*layout.gather.shape, -1)


def _inputs(layout: Layout) -> dict[str, Any]:
    inputs = {"input_ids": layout.input_ids, "position_ids": layout.position_ids}
    if layout.depth is None or layout.end is None:
        return inputs | {"attention_mask": layout.attention_mask}
    device = layout.input_ids.device
    # A mask of four dimensions is handed on as it is; without one, transformers would build a square one for nothing.
    nothing = torch.zeros(1, 1, 1, 1, device=device)
    return inputs | {"attention_mask": nothing, "forest": Forest(layout.depth, layout.end, device)}
