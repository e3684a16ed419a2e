"""Shapes of models, as their config.json has them: random weights of that shape compute as fast as trained ones."""

from __future__ import annotations

from typing import Any

Shape = dict[str, Any]


def _shape(
    vocabulary: int, hidden: int, between: int, layers: int, heads: int, keys: int, width: int | None = None
) -> Shape:
    shape: Shape = {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": between,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": keys,
        "tie_word_embeddings": True,
    }
    return shape | ({"head_dim": width} if width else {})


SHAPES = {
    "135M": _shape(49152, 576, 1536, 30, 9, 3),  # SmolLM2
    "0.5B": _shape(151936, 896, 4864, 24, 14, 2),  # Qwen2.5, Coder too
    "0.6B": _shape(151936, 1024, 3072, 28, 16, 8, 128),  # Qwen3
    "1.5B": _shape(151936, 1536, 8960, 28, 12, 2),  # Qwen2.5, Coder too
    "1.7B": _shape(151936, 2048, 6144, 28, 16, 8, 128),  # Qwen3
    "3B": _shape(151936, 2048, 11008, 36, 16, 2),  # Qwen2.5, Coder too
    "Llama-3.2-3B": _shape(128256, 3072, 8192, 28, 24, 8, 128),
    "4B": _shape(151936, 2560, 9728, 36, 32, 8, 128),  # Qwen3
    "7B": _shape(152064, 3584, 18944, 28, 28, 4) | {"tie_word_embeddings": False},  # Qwen2.5, Coder too
    "8B": _shape(151936, 4096, 12288, 36, 32, 8, 128) | {"tie_word_embeddings": False},  # Qwen3
}
