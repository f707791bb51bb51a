"""fit against the engine itself, over the architectures that people serve: KV bytes, kinds of layers, state, longest context, blocks.

One container of the CPU engine's image is asked once, without weights, GPU or network; reports/families.md has both answers side by side.
"""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from bundle import ROOT
from bundle.base.errors import PrerequisiteError
from bundle.config import settings
from bundle.fit import drafts, estimation, modelshape
from bundle.fit.drafts import Draft
from bundle.fit.estimation import Estimate
from bundle.fit.request import Request
from bundle.images import build
from bundle.machine.devices import GIB
from support import families, image, modelfolder

CONFIGS = families.configs()
PROBES = ROOT / "tests/support"
LONGEST = 16_384  # as the probe's

# What the CPU engine cannot say, and what its source says instead: bytes of a token, and of a sequence's state.
REMOTE = "the class of its config comes with the checkpoint"
READ_FROM_SOURCE = {
    "internlm2-7b": (REMOTE, 32 * 2 * 8 * 128 * 2, 0),  # model_executor/models/internlm2.py
    "baichuan2-7b": (REMOTE, 32 * 2 * 32 * 128 * 2, 0),  # baichuan.py
    "mimo-7b": (REMOTE, 36 * 2 * 8 * 128 * 2, 0),  # mimo.py, which is Qwen2's
    "kimi-linear-48b": ("needs CUTLASS", 7 * 576 * 2, 20 * (3 * 4096 * 3 * 2 + 32 * 128 * 128 * 4)),  # mamba_utils.py, kda_state_shape
    "gemma-3n-e4b": ("its vision tower needs timm", 20 * 2 * 2 * 256 * 2, 0),  # gemma3n.py: as its text model alone, which is asked
}
# ModelConfig answers (heads, size, latent or not, length), but the model's class cannot be built without a GPU, a tokenizer or memory.
ONLY_CONFIG = ("deepseek-v3", "deepseek-ocr", "chatglm3-6b", "bloom-7b", "apertus-8b")
REFUSED = {"deepseek-v3.2": "index_topk"}
SPECS = {"FullAttentionSpec": "full", "MLAAttentionSpec": "full", "SlidingWindowSpec": "window", "ChunkedLocalAttentionSpec": "chunk",
         "MambaSpec": "state"}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Mapping[str, Any]]:
    """What the engine says of each config, by name."""
    chosen = settings.load("cpu")
    build.ensure(chosen)
    folder = tmp_path_factory.mktemp("configs")
    folder.chmod(0o755)
    guessing = {name: {**families.with_draft(name), "_speculative": asked, "_draft": draft} for name, (_, draft, asked) in families.DRAFTS.items()}
    (folder / "configs.json").write_text(json.dumps({**CONFIGS, **guessing}))
    said = image.answer(chosen.image_engine, "python", "/probe/kvspec_probe.py", "/configs/configs.json",
                        mounts=[(PROBES, "/probe"), (folder, "/configs")], timeout_s=1200)
    found = {answer["model"]: answer for answer in map(json.loads, said.splitlines())}
    written(found, tmp_path_factory.mktemp("ours"))
    return found


def ours(name: str, folder: Path, answer: Mapping[str, Any]) -> Estimate:
    """The estimate of a config with 20 GiB of KV cache, as the probe asks the engine."""
    model = modelshape.read(modelfolder.folder(folder, CONFIGS[name], {"model.embed_tokens.weight": ("BF16", (64, 64))}))
    return estimation.estimate(model, Request(
        target="cpu", kv_memory=20 * GIB, max_model_len=min(LONGEST, model.longest), async_scheduling=False,
        max_num_batched_tokens=answer.get("in_flight", 2048)), None)


def layers(estimate: Estimate) -> dict[str, int]:
    counted: Counter[str] = Counter()
    for kept in estimate.model.attention.kept:
        counted["chunk" if kept.chunked else "window" if kept.window else "full"] += kept.layers
    if states := estimate.model.attention.states:
        counted["state"] += states.layers
    return dict(counted)


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in REFUSED])
def test_fit_says_what_the_engine_says(name: str, answers: Mapping[str, Mapping[str, Any]], tmp_path: Path) -> None:
    answer = answers[name]
    found = ours(name, tmp_path, answer)
    if name in READ_FROM_SOURCE:
        assert "error" in answer or "unbuilt" in answer, "the engine can be asked now: take it out of READ_FROM_SOURCE"
        assert (found.kv_bytes_per_token, found.state_bytes) == READ_FROM_SOURCE[name][1:]
        return
    assert "error" not in answer, answer
    assert found.model.longest == answer["length"]
    if name in ONLY_CONFIG:
        assert "unbuilt" in answer, "the engine can be asked now: take it out of ONLY_CONFIG"
        assert (answer["mla"], answer["hybrid"]) == (not found.model.attention.value_dim, False)
        assert found.kv_bytes_per_token == answer["depth"] * (1 if answer["mla"] else 2) * answer["kv_heads"] * answer["head_size"] * 2
        return
    assert "unbuilt" not in answer, answer["unbuilt"]
    assert (found.kv_bytes_per_token, found.state_bytes) == (answer["token_bytes"], answer["state_bytes"])
    assert layers(found) == dict(Counter({SPECS[spec]: number for spec, number in answer["layers"].items()}))
    assert sorted({kept.window for kept in found.model.attention.kept if kept.window}) == answer["windows"]
    if "blocks" not in answer:
        assert (answer["attention"], found.sequence_bytes) == ("encoder_only", 0)
        return
    if found.model.attention.states and found.model.attention.kept:
        assert found.block_tokens == answer["block"]
    block = found.sequence_bytes - answer["sequence_bytes"]  # ours holds the null block too
    assert 20 * GIB // block == answer["blocks"]
    assert found.kv_tokens == int(answer["blocks"] / (answer["sequence_bytes"] // block) * found.max_model_len)


@pytest.mark.parametrize("name", families.DRAFTS)
def test_a_draft_keeps_what_the_engine_keeps_of_it(name: str, answers: Mapping[str, Mapping[str, Any]], tmp_path: Path) -> None:
    answer = answers[name]
    assert "error" not in answer, answer
    assert "unbuilt" not in answer, answer["unbuilt"]
    found = with_draft(name, tmp_path, answer)
    assert (found.kv_bytes_per_token, found.state_bytes) == (answer["token_bytes"], answer["state_bytes"])
    assert layers(found) == dict(Counter({SPECS[spec]: number for spec, number in answer["layers"].items()}))
    block = found.sequence_bytes - answer["sequence_bytes"]
    assert 20 * GIB // block == answer["blocks"]
    assert found.kv_tokens == int(answer["blocks"] / (answer["sequence_bytes"] // block) * found.max_model_len)


def with_draft(name: str, folder: Path, answer: Mapping[str, Any]) -> Estimate:
    """As `ours`, of a model and who guesses for it."""
    _, config, asked = families.DRAFTS[name]
    tensors = {"model.embed_tokens.weight": ("BF16", (64, 64)), "mtp.fc.weight": ("BF16", (64, 64))}
    target = modelfolder.folder(folder / "target", families.with_draft(name), tensors)
    place = modelfolder.folder(folder / "draft", config, {"fc.weight": ("BF16", (64, 64))}) if config else None
    draft = Draft(method=asked["method"], model="/model/draft" if place else "", folder=place, guesses=asked["num_speculative_tokens"])
    model = drafts.beside(modelshape.read(target), draft, target, quantization="", float_bytes=2)
    return estimation.estimate(model, Request(
        target="cpu", kv_memory=20 * GIB, max_model_len=min(LONGEST, model.longest), async_scheduling=False, draft=draft,
        max_num_batched_tokens=answer.get("in_flight", 2048)), None)


@pytest.mark.parametrize("name", REFUSED)
def test_what_fit_cannot_count_it_refuses_by_its_key(name: str, tmp_path: Path) -> None:
    with pytest.raises(PrerequisiteError, match=REFUSED[name]):
        ours(name, tmp_path, {})


def test_at_least_forty_architectures_answered(answers: Mapping[str, Mapping[str, Any]]) -> None:
    assert len({answer["architecture"] for answer in answers.values() if "token_bytes" in answer}) >= 40


def test_what_a_config_leaves_out_is_what_the_cuda_engine_puts_in() -> None:
    chosen = settings.load("throughput")
    build.ensure(chosen)
    said = image.answer(chosen.image_engine, "python", "/probe/modeltypes_probe.py", mounts=[(PROBES, "/probe")], timeout_s=600)
    recorded = (ROOT / "scripts/bundle/fit/modeltypes.json").read_text()
    assert said == recorded, "python tests/support/modeltypes_probe.py in the image writes scripts/bundle/fit/modeltypes.json"


def written(answers: Mapping[str, Mapping[str, Any]], folder: Path) -> None:
    """reports/families.md: both answers, side by side."""
    rows = ["| config | architecture | KV bytes of a token | engine | state bytes of a sequence | engine | layers | longest context | engine |",
            "|---|---|---|---|---|---|---|---|---|"]
    for name, answer in sorted(answers.items()):
        try:
            found = with_draft(name, folder / name, answer) if name in families.DRAFTS else ours(name, folder / name, answer)
            kinds = ", ".join(f"{number} {kind}" for kind, number in layers(found).items()) or "none"
            mine = (f"{found.kv_bytes_per_token:,}", f"{found.state_bytes:,}", kinds, f"{found.model.longest:,}")
        except PrerequisiteError as error:
            mine = (f"refused: {error.message.partition('(')[2].rstrip(')')}", "", "", "")
        asked = "token_bytes" in answer
        why = READ_FROM_SOURCE.get(name, ("its class cannot be built without a GPU, a tokenizer or memory",))[0]
        token, state = (f"{answer['token_bytes']:,}", f"{answer['state_bytes']:,}") if asked else (f"not asked: {why}", "–")
        length = f"{answer['length']:,}" if "length" in answer else "–"
        cells = (name, answer.get("architecture", "–"), mine[0], token, mine[1], state, mine[2], mine[3], length)
        rows.append(f"| {' | '.join(cells)} |")
    (ROOT / "reports/families.md").write_text("\n".join(rows) + "\n")
