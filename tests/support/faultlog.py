"""What the fault tier found, as reports/faults.json: one record for each fault."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from bundle import ROOT
from support.clients import Tally
from support.load import Load

FILE = ROOT / "reports" / "faults.json"


@dataclass(frozen=True, kw_only=True)
class Fault:
    """`sent` requests and what became of them (support/clients.py); `recovery_s` seconds from the fault to the next whole answer, None where
    nothing had to recover."""

    fault: str
    promise: str
    sent: int
    right: int
    wrong: int
    failed_in_form: int
    lost: int
    recovery_s: float | None


def record(fault: str, promise: str, tally: Tally | Load | None = None, recovery_s: float | None = None, *, file: Path = FILE) -> Fault:
    """Keep one record in `file`, in place of an earlier one of the same fault. A Load's requests are right or refused: its test sees to it."""
    tally = tally or Tally()
    right, refused = (tally.seen["right"], tally.seen["refused"]) if isinstance(tally, Load) else \
        (tally.outcomes["right"], tally.outcomes["failed in form"])
    lost = 0 if isinstance(tally, Load) else tally.outcomes["lost"]
    found = Fault(fault=fault, promise=promise, sent=tally.sent, right=right, wrong=tally.sent - right - refused - lost, failed_in_form=refused,
                  lost=lost, recovery_s=None if recovery_s is None else round(recovery_s, 1))
    try:
        kept = [one for one in json.loads(file.read_text(encoding="utf-8")) if one["fault"] != fault]
    except (OSError, ValueError):
        kept = []
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps([*kept, asdict(found)], indent=1) + "\n", encoding="utf-8")
    return found
