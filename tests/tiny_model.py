"""A two-layer Llama with a tokenizer of its own, made on the spot: real files that transformers, TRL and vLLM load.

Everything is drawn from `seed`, so two makers with one seed write the same weights and the same tokenizer.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_CORPUS = [
    "system\nYou answer questions with a calculator. Write calc(12*7) to use it.",
    "user\nTom has 12 apples and buys 7 times as many. How many apples does he have?",
    "assistant\ncalc(12*7)\nThe answer is 84.",
]


def make_tiny_llama(
    folder: Path | str,
    *,
    seed: int = 0,
    vocab_size: int = 300,
    layers: int = 2,
    hidden: int = 64,
    positions: int = 2048,
) -> Path:
    """Write a `save_pretrained` folder (config, fp32 safetensors, tokenizer, chat template) and return its path.

    Attention heads have 64 dimensions, which vLLM's CPU attention supports. `vocab_size` is at least 260: the 256
    bytes, the special tokens and a few merges; the model's vocabulary is exactly the tokenizer's.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = Path(folder)
    tokenizer = make_tiny_tokenizer(vocab_size)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=hidden,
                intermediate_size=2 * hidden,
                num_hidden_layers=layers,
                num_attention_heads=2,
                num_key_value_heads=1,
                head_dim=64,
                max_position_embeddings=positions,
                tie_word_embeddings=True,
                initializer_range=0.05,
                bos_token_id=tokenizer.convert_tokens_to_ids(END_OF_TEXT),
                eos_token_id=tokenizer.convert_tokens_to_ids(TURN_END),
                pad_token_id=tokenizer.convert_tokens_to_ids(END_OF_TEXT),
            )
        )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_tiny_adapter(model: Path, folder: Path, seed: int) -> Path:
    """Write a LoRA adapter of `model`, drawn from `seed` (its matrices are not 0), and return its folder."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(model), config).save_pretrained(folder)
    return folder


def make_tiny_tokenizer(vocab_size: int = 300) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with ChatML turns: any text round-trips, `<|im_end|>` ends a reply."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        _CORPUS * 4,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[END_OF_TEXT, TURN_START, TURN_END],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=END_OF_TEXT,
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        additional_special_tokens=[TURN_START],
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
