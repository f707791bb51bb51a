"""How an engine's container gets its GPU, where no setting says so: as this host's Docker can give one."""

from bundle.base import console
from bundle.config.settings import Settings
from bundle.doctor.gpu import CDI, by_cdi_alone
from bundle.machine.facts import Host

KEY = "HOST_ACCELERATOR"


def settled(settings: Settings, host: Host | None = None) -> Settings:
    """`settings` for a start on this host: where its Docker gives GPUs only to who asks for them through CDI, it is asked so, and that is said.

    A value of HOST_ACCELERATOR stays, as does a deployment that divides the GPUs, which cuda-cdi does not: `doctor.gpu` says what to do then.
    """
    if settings.image_target != "cuda" or settings.value(KEY) or settings.replicas > 1 or settings.gpus:
        return settings
    host = host or Host()
    if not (file := by_cdi_alone(host.docker(), host)):
        return settings
    why = f"Docker here has no NVIDIA runtime, and gives GPUs by {file} to who asks for CDI devices alone"
    console.note(f"{KEY}: {CDI}: {why}")
    return settings.overridden({KEY: CDI}, f"chosen: {why}")
