"""How an estimate is shown: a small table and the arithmetic for people, the same numbers as JSON for machines."""

from collections.abc import Sequence
from typing import Any

from bundle.base import console
from bundle.fit.estimation import Difference, Estimate, gib_text
from bundle.fit.remedies import Change


def as_json(found: Estimate, changes: Sequence[Change] = (), differences: Sequence[Difference] = ()) -> dict[str, Any]:
    """Everything for machines; sizes in bytes."""
    device = found.device
    return {
        "parameters": found.parameters, "weights_bytes": found.weights_bytes, "kv_bytes_per_token": found.kv_bytes_per_token,
        "state_bytes": found.state_bytes, "kv_tokens": found.kv_tokens, "sequences_at_full_length": found.sequences_at_full_length,
        "starts": found.starts, "arithmetic": list(found.arithmetic), "problems": list(found.problems), "notes": list(found.notes),
        "architecture": found.model.architecture, "weights_from": found.model.source, "weights_gpu_bytes": found.weights_gpu_bytes,
        "overhead_bytes": found.overhead_bytes, "overhead": dict(found.overhead), "kv_bytes": found.kv_bytes,
        "max_model_len": found.max_model_len, "sequence_bytes": found.sequence_bytes, "block_tokens": found.block_tokens,
        "gpu_memory_utilization": found.utilization,
        "gpu": {"name": device.name, "total_bytes": device.total, "free_bytes": device.free, "source": device.source} if device else None,
        "changes": [{"env": list(change.lines), "kv_tokens": change.estimate.kv_tokens, "max_model_len": change.estimate.max_model_len,
                     "sequences_at_full_length": change.estimate.sequences_at_full_length} for change in changes],
        "compared": [{"what": one.what, "unit": one.unit, "estimated": one.estimated, "measured": one.measured,
                      "error_percent": round(one.error_percent, 2)} for one in differences],
    }


def show(found: Estimate, changes: Sequence[Change] = (), differences: Sequence[Difference] = ()) -> None:
    """The table, the arithmetic and the verdict on stdout."""
    each = " on each GPU" if found.request.tensor_parallel > 1 else ""
    device = found.device
    console.result(f"{found.model.architecture} on {device.name if device else 'the CPU engine'}\n")
    console.table(("", "estimate", ""), [
        ("parameters", f"{found.parameters:,}", ""),
        ("weights", gib_text(found.weights_gpu_bytes), f"from {found.model.source}{each}"),
        *([("overhead", gib_text(found.overhead_bytes), "measured" if "measured" in found.overhead else "an estimate")] if device else []),
        *_kept(found, each),
        ("starts", "yes" if found.starts else "no", f"at utilization {found.utilization:g}" if found.utilization is not None else ""),
    ])
    console.result()
    sources = [f"memory of {device.name}: {device.source}"] if device else []
    for line in (*found.arithmetic, *(f"note: {note}" for note in (*sources, *found.notes))):
        console.result(line)
    if found.problems:
        console.result()
        for problem in found.problems:
            console.result(f"does not start: {problem}")
        console.result("\nno change of one value or of a few lets it start: a smaller model, or a larger GPU" if not changes else
                       "\nit starts with" + (" any one of these:" if len(changes) > 1 else ":"))
    for change in changes:
        after = change.estimate
        console.result(f"\n# {after.kv_tokens:,} tokens of KV cache, {after.sequences_at_full_length:.2f} sequences of {after.max_model_len:,}")
        for line in change.lines:
            console.result(line)
    if differences:
        console.result("\n# the estimate beside the engine's log")
        console.table(("", "estimated", "engine", "error"), [
            (one.what, _value(one.estimated, one.unit), _value(one.measured, one.unit), f"{one.error_percent:+.2f} %") for one in differences])


def _kept(found: Estimate, each: str) -> list[tuple[str, str, str]]:
    if not found.sequence_bytes:
        return [("KV cache", "none", "an encoder keeps nothing")]
    return [
        ("KV per token", f"{found.kv_bytes_per_token:,} bytes", each.strip()),
        *([("state", f"{gib_text(found.state_bytes)}", f"of each sequence{each}")] if found.state_bytes else []),
        ("KV cache", gib_text(found.kv_bytes), f"{found.kv_tokens:,} tokens"),
        ("full sequences", f"{found.sequences_at_full_length:.2f}", f"of {found.max_model_len:,} tokens at once")]


def _value(number: float, unit: str) -> str:
    return f"{number:,.0f} {unit}" if unit == "tokens" else f"{number:.2f} {unit}"
