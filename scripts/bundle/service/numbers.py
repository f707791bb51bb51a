"""A number for each `auto` that only the host resolves, before anything starts: from the fit, or the one that runs already."""

from bundle.base import console
from bundle.config import envfile
from bundle.config.settings import Settings
from bundle.fit import assessment
from bundle.fit.assessment import SEQUENCES_KEY
from bundle.service.deployment import ENGINE, Deployment

_DECIDES = ("HOST_REQUEST_TOKENS", "HOST_GPUS", "HOST_GPU_COUNT", "IMAGE_ENGINE", "MODEL_DIR")
"""What the number comes from, beside the engine's own settings."""


def settled(deployment: Deployment, settings: Settings, service: str = ENGINE) -> Settings:
    """`settings`, of the model whose first engine is `service`, as they can be started here, with a line said for each `auto`.

    The estimate moves a little with each start that corrects it. So a number that runs already stays while nothing changes that it comes from: no
    engine is replaced because of a better estimate alone.
    """
    fit = assessment.assess(settings)
    now = assessment.decided(settings, fit)
    running = deployment.values(service)
    runs = running.get(SEQUENCES_KEY)
    if now.value(SEQUENCES_KEY) != settings.value(SEQUENCES_KEY) and runs and _same(deployment.engine_text(service), running, now):
        now = now.overridden({SEQUENCES_KEY: runs}, f"auto ({settings.entries[SEQUENCES_KEY].origin}): as it runs")
    for key in (assessment.QUANTIZATION_KEY, SEQUENCES_KEY):
        if now.value(key) != settings.value(key):
            console.note(f"{key}: {now.value(key) or 'not set'}: {now.entries[key].origin}")
    return now


def _same(text: str, running: dict[str, str], wanted: Settings) -> bool:
    """Whether the engine that runs, with `text` as its settings, has those of `wanted` in all but that number."""
    theirs, ours = ({entry.key: entry.value for entry in envfile.parse_text(each, "")[0] if entry.key != SEQUENCES_KEY}
                    for each in (text, wanted.flatten_engine()))
    return theirs == ours and all(running.get(key, "") == _value(wanted, key) for key in _DECIDES)


def _value(settings: Settings, key: str) -> str:
    path = settings.path(key) if key == "MODEL_DIR" else None
    return str(path) if path else settings.value(key)
