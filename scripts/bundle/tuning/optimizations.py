"""Look up and show the records of env/optimizations.yaml."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from bundle.base import console
from bundle.base.errors import ConfigurationError
from bundle.base.text import near
from bundle.config import catalogue
from bundle.config.verdicts import Record


def find(name: str, records: Sequence[Record]) -> list[Record]:
    """The records of one setting, however it is written: CUDA_…, --flag, --no-flag or ENGINE_….

    Raises ConfigurationError with the nearest name when there is none.
    """
    keys = {name, catalogue.env_key(name.partition("=")[0]), name.partition("=")[0].upper()}
    if found := [record for record in records if record.key in keys]:
        return found
    known = catalogue.load("cuda")
    flag = next((flag for key in sorted(keys) if (flag := known.find(key) or known.negated(key))), None)
    if flag and (found := [record for record in records if record.key == flag.key]):
        return found
    if flag:
        raise ConfigurationError(f"{name}: vLLM {known.version} has it, and there is no record of it. vLLM says: {flag.help}",
                                 fix="`make optimizations` shows what there are records of")
    spellings = {spelling for record in records for spelling in (record.name, record.key)}
    raise ConfigurationError(f"{name}: no record of it.{near(name, spellings) or near(catalogue.env_key(name), spellings)}",
                             fix="`make optimizations` shows what there are records of")


def show_list(records: Sequence[Record], *, as_json: bool = False) -> None:
    """One line for each record on stdout."""
    if as_json:
        console.emit_json([_json(record) for record in records])
        return
    console.table(("VERDICT", "NAME", "VALUE", "WHY", "INSTEAD"),
                  [(record.verdict, record.name, record.value, record.reason, record.use(record.value)) for record in records])


def show(records: Sequence[Record], *, as_json: bool = False) -> None:
    """All that is known of one setting on stdout."""
    if as_json:
        console.emit_json([_json(record) for record in records])
        return
    for record in records:
        _show(record)


def _show(record: Record) -> None:
    scope = record.scope
    console.result(f"{record.name}={record.value}: {record.verdict}")
    for label, text in (("why", record.reason), ("gone", record.gone), ("instead", record.use(record.value)), ("values", record.match),
                        ("takes", record.expects), ("read by", f"{record.read_by}{_listed(record.readers)}"), ("evidence", record.evidence),
                        ("risk", record.risk), ("measured", record.measured),
                        ("holds for", f"{', '.join(scope['targets'])} image, vLLM {', '.join(scope['engines'])}; GPUs: {', '.join(scope['gpus'])}"),
                        ("seed", record.seed), ("see", record.reference)):
        if text:
            console.result(f"  {label:9}  {text}")


def _json(record: Record) -> dict[str, Any]:
    return {"key": record.key, **asdict(record)}


def _listed(readers: Sequence[str]) -> str:
    return f" ({', '.join(readers)})" if readers else ""
