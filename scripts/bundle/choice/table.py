"""All profiles with their fit on one GPU: what `make profiles` shows."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bundle import ROOT
from bundle.choice.profile import PREFERRED, Choice, default_profile
from bundle.config import profiles, settings
from bundle.fit import assessment
from bundle.fit.assessment import Fit
from bundle.machine import devices
from bundle.machine.facts import Host
from bundle.models import first


@dataclass(frozen=True, kw_only=True)
class Row:
    """One profile, what it is for, its fit, and why its share of the GPU's memory cannot start ("" when it can)."""

    profile: str
    description: str
    fit: Fit
    refusal: str

    @property
    def starts(self) -> bool | None:
        """None where it cannot be computed: no model is known, or no GPU."""
        if self.fit.estimate:
            return self.fit.estimate.starts
        return False if self.refusal else None

    @property
    def summary(self) -> str:
        return self.refusal or self.fit.summary

    def as_json(self) -> dict[str, object]:
        return {"profile": self.profile, "description": self.description, "starts": self.starts, "said": self.summary, "fit": self.fit.as_json()}


def profile_table(gpu: str = "", env_files: Sequence[str | Path] = (), sets: Sequence[str] = (), *, root: Path = ROOT,
         host: Host | None = None) -> tuple[Choice, list[Row]]:
    """The profile for the GPU called `gpu` or this host's, and every profile with its fit there. Raises ConfigurationError for a wrong name."""
    device = devices.find(gpu, root=root) if gpu else None
    loaded = {name: first.placed(settings.load(name, env_files, sets, root=root)) for name in profiles.names(root)}
    choice = default_profile(lambda name, on: assessment.starts(loaded[name], on), device=device, named=loaded[PREFERRED[0]].gpus,
                             count=loaded[PREFERRED[0]].gpu_count, root=root, host=host)
    rows = []
    for name, one in loaded.items():
        found = assessment.assess(one, gpu if one.image_target == "cuda" else "", host=host)
        rows.append(Row(profile=name, description=profiles.description(name, root), fit=found,
                        refusal="" if found.estimate else assessment.share_refusal(one, found.device)))
    return choice, rows
