"""Methods more for vLLM's worker (`--worker-extension-cls`): a reload that reaches a tied output layer, and a look at
what was loaded.

vLLM 0.32 on the CPU packs weights for its matrix kernels after loading. Where the output layer is tied to the
embedding, `reload_weights` packs the embedding anew but not the output layer, which goes on with the former weights:
answers change, so it looks right, and every logprob is off. tests/integration/test_vllm.py compares with transformers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

_ROWS = 256  # of the embedding, which is the largest tensor of a small model


class ReloadExtension:
    """Mixed into vLLM's worker class; `self` is the worker."""

    def lightning_reload(self: Any, weights_path: str) -> None:
        """Call `reload_weights` with a folder, then pack every tied output layer again."""
        from vllm.config import set_current_vllm_config
        from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
        from vllm.platforms import current_platform

        self.reload_weights(weights_path=weights_path)
        if not current_platform.is_cpu():
            return  # nothing is packed there: the tied layer shares the embedding's memory
        with set_current_vllm_config(self.vllm_config):
            for module in self.model_runner.get_model().modules():
                if isinstance(module, ParallelLMHead):
                    module.quant_method.process_weights_after_loading(module)

    def lightning_compare(self: Any, weights_path: str) -> list[Any]:
        """Return [number of tensors in memory that are as in the folder's files, the first that is not or None].

        It looks only at what kernels take unpacked and unfused: vectors (norms, biases), and rows of the embedding.
        """
        import torch
        from safetensors import safe_open

        served = {
            name: parameter.data
            for name, parameter in self.model_runner.get_model().named_parameters()
            if parameter.dim() == 1 or (name.endswith("embed_tokens.weight") and self.rank == 0)
        }
        equal = 0
        for file in sorted(Path(weights_path).glob("*.safetensors")):
            with safe_open(str(file), "pt") as stored:
                for name in sorted(set(stored.keys()) & served.keys()):
                    mine, theirs = served[name], stored.get_slice(name)
                    rows = min(len(mine), theirs.get_shape()[0], _ROWS) if mine.dim() == 2 else len(mine)
                    if mine.shape[1:] != torch.Size(theirs.get_shape()[1:]) or theirs.get_shape()[0] < rows:
                        continue  # this worker holds a part of it
                    if not torch.equal(mine[:rows].cpu(), theirs[:rows].to(mine.dtype)):
                        return [equal, name]
                    equal += 1
        return [equal, None]
