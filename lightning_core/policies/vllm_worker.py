"""A method more for vLLM's worker (`--worker-extension-cls`): reload that reaches a tied output layer.

vLLM 0.32 on the CPU packs weights for its matrix kernels after loading. Where the output layer is tied to the
embedding, `reload_weights` packs the embedding anew but not the output layer, which goes on with the former weights:
answers change, so it looks right, and every logprob is off. tests/integration/test_vllm.py compares with transformers.
"""

from __future__ import annotations

from typing import Any


class ReloadExtension:
    """Mixed into vLLM's worker class; `self` is the worker."""

    def lightning_reload(self: Any, weights_path: str) -> None:
        """`reload_weights` from a folder, then pack every tied output layer again."""
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
