"""Make the self-test model: a random-weight Qwen3 of a few megabytes with its own tokenizer and chat template.

Usage: python selftest_model.py DIRECTORY

Runs inside the engine image at build time. The text that the model writes is noise; everything around it (loading, attention,
sampling, streaming, templates, metrics) is the engine's real path. The same seed gives the same files, so an answer at
temperature 0 is the same in every image that was built from the same lock.
"""

import json
import math
import pydoc_data.topics
import sys
from pathlib import Path
from typing import Any

import tokenizers  # type: ignore[import-not-found]  # only in the image
import torch  # type: ignore[import-not-found]  # only in the image
from safetensors.torch import save_file  # type: ignore[import-not-found]  # only in the image

SEED = 20260
VOCABULARY = 2048
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
PAD, _, END = range(3)

# Qwen3-8B's head size and grouped heads, so that the same attention kernels are chosen; everything else is as small as kernels allow.
HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_SIZE, INTERMEDIATE = 256, 2, 4, 2, 128, 512
# As long as any profile may ask for: a limit below a profile's --max-model-len would stop the engine.
POSITIONS = 131072

CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": None,
    "eos_token_id": END,
    "head_dim": HEAD_SIZE,
    "hidden_act": "silu",
    "hidden_size": HIDDEN,
    "initializer_range": 0.02,
    "intermediate_size": INTERMEDIATE,
    "max_position_embeddings": POSITIONS,
    "max_window_layers": LAYERS,
    "model_type": "qwen3",
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "num_key_value_heads": KV_HEADS,
    "pad_token_id": PAD,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": VOCABULARY,
}

CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


def tokenizer() -> Any:
    """A byte-level BPE, trained on the text of Python's own manual: any string goes in, and most tokens are readable pieces of words."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=list(SPECIAL), show_progress=False,
                                             initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()))
    made.train_from_iterator((text for _, text in sorted(pydoc_data.topics.topics.items())), trainer)
    if made.get_vocab_size() != VOCABULARY:
        raise SystemExit(f"self-test model: the tokenizer has {made.get_vocab_size()} tokens, wanted {VOCABULARY}")
    return made


def weights(silent: list[int]) -> dict[str, Any]:
    """Random tensors under the names that Qwen3ForCausalLM loads; the tokens in `silent` (ids) are never the likeliest."""
    random = torch.Generator().manual_seed(SEED)

    def matrix(rows: int, columns: int) -> Any:
        # Variance 1/columns keeps activations near 1 through the layers: answers then depend on the whole prompt, not on its last token alone.
        return (torch.randn(rows, columns, generator=random) / math.sqrt(columns)).to(torch.bfloat16)

    def ones(size: int) -> Any:
        return torch.ones(size, dtype=torch.bfloat16)

    tensors = {"model.embed_tokens.weight": matrix(VOCABULARY, HIDDEN), "model.norm.weight": ones(HIDDEN),
               "lm_head.weight": 4 * matrix(VOCABULARY, HIDDEN)}
    tensors["lm_head.weight"][silent] = 0
    for number in range(LAYERS):
        layer = f"model.layers.{number}"
        tensors |= {
            f"{layer}.input_layernorm.weight": ones(HIDDEN),
            f"{layer}.post_attention_layernorm.weight": ones(HIDDEN),
            f"{layer}.self_attn.q_norm.weight": ones(HEAD_SIZE),
            f"{layer}.self_attn.k_norm.weight": ones(HEAD_SIZE),
            f"{layer}.self_attn.q_proj.weight": matrix(HEADS * HEAD_SIZE, HIDDEN),
            f"{layer}.self_attn.k_proj.weight": matrix(KV_HEADS * HEAD_SIZE, HIDDEN),
            f"{layer}.self_attn.v_proj.weight": matrix(KV_HEADS * HEAD_SIZE, HIDDEN),
            f"{layer}.self_attn.o_proj.weight": matrix(HIDDEN, HEADS * HEAD_SIZE),
            f"{layer}.mlp.gate_proj.weight": matrix(INTERMEDIATE, HIDDEN),
            f"{layer}.mlp.up_proj.weight": matrix(INTERMEDIATE, HIDDEN),
            f"{layer}.mlp.down_proj.weight": matrix(HIDDEN, INTERMEDIATE),
        }
    return tensors


def main(directory: Path) -> None:
    directory.mkdir(parents=True)
    words = tokenizer()
    words.save(str(directory / "tokenizer.json"))
    # Never written by themselves: special tokens (an answer runs to max_tokens) and pieces of characters (they show as replacement signs).
    silent = [id_ for id_ in range(VOCABULARY) if id_ < len(SPECIAL) or not words.decode([id_]).isascii()]
    save_file(weights(silent), directory / "model.safetensors", metadata={"format": "pt"})
    for name, value in {
        "config.json": CONFIG,
        "generation_config.json": {"bos_token_id": None, "eos_token_id": END, "pad_token_id": PAD},
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": SPECIAL[END], "pad_token": SPECIAL[PAD],
                                  "model_max_length": POSITIONS, "clean_up_tokenization_spaces": False, "chat_template": CHAT_TEMPLATE},
    }.items():
        (directory / name).write_text(json.dumps(value, indent=2) + "\n")
    for file in directory.iterdir():
        file.chmod(0o644)  # safetensors writes files that only their owner can read, and the engine does not run as root
    size = sum(file.stat().st_size for file in directory.iterdir())
    print(f"self-test model: {size / 1e6:.1f} MB in {directory}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
