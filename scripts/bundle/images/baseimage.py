"""The image that all others are built on: the operator's, a public one, or one made here from distribution packages."""

import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from bundle.base import console, shell
from bundle.base.errors import PrerequisiteError
from bundle.config.settings import Settings
from bundle.machine import apt, daemon

PUBLIC = "debian:bookworm-slim"
OWN = "vllm-bundle/base:bookworm"
SUITE = "bookworm"
PACKAGES = "ca-certificates,python3"

# Manuals and translations: 50 MB that nobody reads in a container. Licences stay.
_LEFT_OUT = """path-exclude /usr/share/man/*
path-exclude /usr/share/info/*
path-exclude /usr/share/locale/*
path-exclude /usr/share/doc/*
path-include /usr/share/doc/*/copyright
"""
_EMPTIED = ("usr/share/man", "usr/share/info", "usr/share/locale", "var/cache/apt", "var/lib/apt/lists", "var/log")


def ensure(settings: Settings) -> str:
    """The name of a base image that is on this host: BASE_IMAGE (pulled if need be), else one that is there, pulled or made.

    Raises PrerequisiteError when BASE_IMAGE cannot be had, or none can be pulled and none be made here.
    """
    chosen = settings.value("BASE_IMAGE")
    if chosen and chosen != OWN:
        if not present(chosen) and (failure := _pull(chosen)):
            raise PrerequisiteError(f"{settings.origin['BASE_IMAGE']}: BASE_IMAGE={chosen} is not on this host and cannot be pulled: {failure}",
                                    fix="correct the name, `docker load` it, or leave BASE_IMAGE empty: one is then made from distribution packages")
        return chosen
    for name in (OWN,) if chosen else (OWN, PUBLIC):
        if present(name):
            return name
    failure = "" if chosen else _pull(PUBLIC)
    if not chosen and not failure:
        return PUBLIC
    _bootstrap(settings.value("HOST_SETUP") == "never", Path("/"), f"{PUBLIC} cannot be pulled ({failure})" if failure else f"there is no {OWN}")
    return OWN


def present(name: str) -> bool:
    """Whether the daemon has an image of that name."""
    with daemon.reachable():
        return bool(daemon.client().images.list(name=name))


def _pull(name: str) -> str:
    """Pull an image; why it cannot be pulled, "" when it was."""
    console.note(f"· base image: pull {name}")
    done = shell.run(["docker", "pull", "--quiet", name], timeout_s=900, env=daemon.client_environment(), failure=None)
    return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no reason given"])[-1]


def _bootstrap(set_up_forbidden: bool, root: Path, reason: str) -> None:
    """Make OWN with debootstrap, from the mirror that this machine's apt uses."""
    fields = apt.os_release((root / "etc/os-release").read_text(errors="replace")) if (root / "etc/os-release").is_file() else {}
    codename = fields.get("VERSION_CODENAME", "")
    mirror = apt.mirror(root, like=(codename, "stable", "oldstable")) if fields.get("ID") == "debian" else None
    if mirror is None:
        raise PrerequisiteError(f"{reason}, and this host ({fields.get('PRETTY_NAME', 'not a Debian')}) has no Debian mirror to make one from",
                                fix="`docker load` a Debian-like image and name it: BASE_IMAGE=...")
    if os.geteuid() != 0:
        raise PrerequisiteError(f"{reason}, and making a base image from packages takes root",
                                fix="sudo make build, or BASE_IMAGE=<an image that is there>")
    _provide_debootstrap(set_up_forbidden, reason)
    console.note(f"{reason}: making {OWN} from this host's Debian mirror")
    with TemporaryDirectory(prefix="base-image-") as folder:
        system = Path(folder) / "root"
        with console.step(f"base image: debootstrap {SUITE}"):
            try:
                shell.run(["debootstrap", "--variant=minbase", f"--include={PACKAGES}", SUITE, str(system), mirror], timeout_s=1800,
                          failure=PrerequisiteError,
                          fix="is the mirror reachable? debootstrap makes devices and mounts: a container needs --privileged for it")
            except PrerequisiteError as error:
                if "mounted with noexec or nodev" in error.message:  # then no device works there or no program runs, whatever the mirror
                    raise PrerequisiteError(f"no system can be installed below {Path(folder).parent}: it is mounted noexec or nodev",
                                            fix="name a folder on another file system: make build TMPDIR=/var/tmp") from error
                raise
        # Security updates come with the images' own package steps; here only apt learns where from.
        if security := apt.source_for(root, f"{SUITE}-security", like=(f"{codename}-security",)):
            (system / f"etc/apt/sources.list.d/security.{security[0]}").write_text(security[1])
        (system / "etc/dpkg/dpkg.cfg.d/vllm-bundle").write_text(_LEFT_OUT)
        for name in _EMPTIED:
            for entry in (system / name).iterdir() if (system / name).is_dir() else ():
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        archive = Path(folder) / "base.tar"
        with console.step(f"base image: import as {OWN}"):
            shell.run(["tar", "--one-file-system", "-C", str(system), "-cf", str(archive), "."], timeout_s=600)
            shell.run(["docker", "import", "--change", 'CMD ["bash"]', str(archive), OWN], timeout_s=600, env=daemon.client_environment())


def _provide_debootstrap(set_up_forbidden: bool, reason: str) -> None:
    if shutil.which("debootstrap"):
        return
    install = apt.install("debootstrap")
    if set_up_forbidden:
        raise PrerequisiteError(f"{reason}, debootstrap is not installed, and HOST_SETUP=never forbids to install it", fix=" ".join(install))
    environ = {**os.environ, **apt.ENVIRONMENT}
    with console.step("package of the distribution: debootstrap"):
        shell.run(apt.UPDATE, timeout_s=600, env=environ, failure=None)
        shell.run(install, timeout_s=600, env=environ, failure=PrerequisiteError, fix="is the mirror reachable?")
