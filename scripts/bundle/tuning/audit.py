"""Do the records of env/optimizations.yaml say what is true of a built image? The image's own files and parser answer.

A variable that some program reads stands as a word in that program's file. So the audit searches every file of the image, and of the driver's
library where one is at hand, for each name. Names that must be there, and one that cannot, show that the search itself works.
"""

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase

from bundle.base import console, shell
from bundle.base.errors import CheckFailedError, PrerequisiteError
from bundle.config import catalogue
from bundle.config.catalogue import Catalogue
from bundle.config.envfile import parse_text
from bundle.config.verdicts import Record
from bundle.machine import daemon
from bundle.tuning import search
from bundle.tuning.search import Search

DRIVER = "libcuda.so.*"
"""The driver's library; NVIDIA's packages hold a hollow one to link with, which ends in .so."""

CONTROLS = {
    "cuda": (("NVIDIA_TF32_OVERRIDE", "libcublas.so.*"), ("NVIDIA_TF32_OVERRIDE", "libcublasLt.so.*"),
             ("NVIDIA_TF32_OVERRIDE", "libcudnn_graph.so.*"),
             ("CUBLAS_LOGINFO_DBG", "libcublas.so.*"), ("NCCL_CUMEM_ENABLE", "libnccl.so.*"), ("PYTORCH_CUDA_ALLOC_CONF", "libc10_cuda.so"),
             ("VLLM_CACHE_ROOT", "vllm/envs.py")),
    "cpu": (("OMP_NUM_THREADS", "libgomp.so.1"), ("OMP_NUM_THREADS", "libtorch_cpu.so"), ("VLLM_CACHE_ROOT", "vllm/envs.py")),
}
"""Names, and the files of the image that are known to read them: where one is not found there, the search is broken."""

DRIVER_CONTROLS = (("CUDA_VISIBLE_DEVICES", DRIVER), ("CUDA_LAUNCH_BLOCKING", DRIVER))


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was checked. state: ok, fail, or open where nothing here could answer."""

    name: str
    value: str
    verdict: str
    state: str
    found: str


@dataclass(frozen=True, kw_only=True)
class Audit:
    """The answer about one image."""

    image: str
    engine: str
    target: str
    files: int
    bytes: int
    drivers: tuple[str, ...]
    controls: tuple[Finding, ...]
    findings: tuple[Finding, ...]
    out_of_scope: int
    """Records about other images or versions."""

    @property
    def failures(self) -> list[Finding]:
        return [finding for finding in (*self.controls, *self.findings) if finding.state == "fail"]


def run(image: str, libraries: Sequence[str], records: Sequence[Record], limit_s: float) -> Audit:
    """Search `image` and `libraries` (files of this host; none: the host's own driver) and judge the records that are about it.

    Raises PrerequisiteError without the image or a library, CheckFailedError when the search does not end in `limit_s` seconds.
    """
    known = image_catalogue(image)
    nobody = f"NOBODY_READS_{secrets.token_hex(6).upper()}"
    names = sorted({nobody, *(name for name, _ in (*CONTROLS[known.target], *DRIVER_CONTROLS)), *variables(records, known)})
    found = Search(files=0, bytes=0, hits={})
    if outside := libraries or search.driver_libraries():
        with console.step(f"search {', '.join(outside)}"):
            found = search.host(names, outside, limit_s)
    else:
        console.note("no driver library on this host: what only the driver reads stays open")
    with console.step(f"search every file of {image} for {len(names)} names"):
        found = search.merge(found, search.image(image, names, limit_s))
    return judge(image, known, found, records, nobody)


def image_catalogue(image: str) -> Catalogue:
    """What the image's own parser accepts, as its build wrote it down. Raises PrerequisiteError without the image or that file."""
    with daemon.reachable():
        there = daemon.client().images.list(name=image)
    if not there:
        raise PrerequisiteError(f"{image}: no such image here", fix="make build PROFILE=throughput, or choose one with --image")
    done = shell.run(search.container(image, "sh", "-c", "cat /opt/bundle/catalogue/*.json"), timeout_s=120, env=daemon.client_environment(),
                     failure=None)
    if done.returncode != 0:
        raise PrerequisiteError(f"{image}: no flag catalogue in it: {done.stderr.strip()}", fix="choose an engine image of the bundle with --image")
    return catalogue.parse(done.stdout, f"{image}:/opt/bundle/catalogue")


def in_scope(records: Sequence[Record], known: Catalogue) -> list[Record]:
    """The records that are about this image."""
    return [record for record in records if known.target in record.targets and known.version in record.scope["engines"]]


def variables(records: Sequence[Record], known: Catalogue) -> set[str]:
    """The environment variables among them."""
    return {record.name for record in in_scope(records, known) if not record.name.startswith("--")}


def judge(image: str, known: Catalogue, seen: Search, records: Sequence[Record], nobody: str) -> Audit:
    """Compare what was found with what the records say; `nobody` is a name that no file may hold."""
    about = in_scope(records, known)
    return Audit(image=image, engine=known.version, target=known.target, files=seen.files, bytes=seen.bytes, drivers=seen.drivers,
                 controls=tuple(_controls(known.target, seen, nobody)),
                 findings=tuple(_flag(record, known) if record.name.startswith("--") else _variable(record, known, seen) for record in about),
                 out_of_scope=len(records) - len(about))


def show(audit: Audit, *, as_json: bool = False) -> None:
    """The controls and the findings as tables on stdout."""
    if as_json:
        console.emit_json({**asdict(audit), "agrees": not audit.failures})
        return
    console.result(f"# {audit.image}: vLLM {audit.engine}, {audit.files} files, {audit.bytes / 1e9:.1f} GB; "
                   f"driver: {', '.join(audit.drivers) or 'no library at hand'}")
    console.table(("CONTROL", "EXPECTED", "STATE", "FOUND"), [(line.name, line.value, line.state, line.found) for line in audit.controls])
    console.result()
    console.table(("NAME", "VALUE", "VERDICT", "STATE", "FOUND"),
                  [(line.name, line.value, line.verdict, line.state, line.found) for line in audit.findings])
    still_open = sum(line.state == "open" for line in audit.findings)
    console.result(f"\n{len(audit.findings)} records checked, {len(audit.failures)} disagree, {still_open} open, "
                   f"{audit.out_of_scope} about other images")


def require(audit: Audit) -> None:
    """Raise CheckFailedError where a control or a record failed, or no record is about this image."""
    if not audit.findings:
        raise CheckFailedError(f"no record is about the {audit.target} image with vLLM {audit.engine}",
                               fix="look at each record of env/optimizations.yaml again, and add the version to the scope of those that hold")
    if broken := [control.name for control in audit.controls if control.state == "fail"]:
        raise CheckFailedError(f"the search itself is not to be trusted: {', '.join(broken)}", fix="the table says what was expected where")
    if wrong := audit.failures:
        raise CheckFailedError(f"{len(wrong)} records of env/optimizations.yaml disagree with {audit.image}: "
                               + ", ".join(f"{finding.name} {finding.value}" for finding in wrong),
                               fix="the table says what was found; correct the records")


def _controls(target: str, seen: Search, nobody: str) -> Iterator[Finding]:
    for name, pattern in (*CONTROLS[target], *(DRIVER_CONTROLS if seen.drivers else ())):
        found = seen.where(name, pattern)
        yield Finding(name=name, value=f"in {pattern}", verdict="control", state="ok" if found else "fail", found=_files(found))
    found = seen.where(nobody)
    yield Finding(name=nobody, value="nowhere", verdict="control", state="fail" if found else "ok", found=_files(found))


def _variable(record: Record, known: Catalogue, seen: Search) -> Finding:
    everywhere = seen.where(record.name)
    files = _files(everywhere, record.readers)
    if record.verdict == "removed":
        # Leftovers mention old names; what counts is whether vLLM still asks for them.
        state = "fail" if record.name in known.environment else "ok"
        return _finding(record, state, "among" if state == "fail" else "not among", "vLLM's variables;", files)
    if record.verdict == "inert":
        return _finding(record, "fail" if everywhere else "ok", files, "" if seen.drivers else "(driver not looked at)")
    unread = [pattern for pattern in record.readers if not seen.where(record.name, pattern)]
    if record.name.startswith("VLLM_") and record.name not in known.environment:
        unread.append("vLLM's variables")
    if not seen.drivers and DRIVER in unread:
        unread.remove(DRIVER)
        if not unread:
            return _finding(record, "open", "the driver reads it, and no driver is at hand;", files)
    return _finding(record, "fail" if unread else "ok", f"not in {', '.join(unread)};" if unread else "", files)


def _flag(record: Record, known: Catalogue) -> Finding:
    flag = known.find(record.key) or known.negated(record.key)
    if (record.verdict == "removed") != (flag is None):
        return _finding(record, "fail", f"the parser knows it as {flag.name}" if flag else "the parser does not know it")
    fault = flag.fault(record.value) if flag else ""
    if fault := fault or _successor_fault(record, known):
        return _finding(record, "fail", fault)
    return _finding(record, "ok", "the parser takes it" if flag else "the parser does not know it")


def _successor_fault(record: Record, known: Catalogue) -> str:
    """What is wrong in this image with the line that the record recommends; "" when nothing is."""
    for entry in parse_text(record.use(record.value), "successor")[0]:
        if entry.key.startswith(catalogue.PREFIX):
            flag = known.find(entry.key)
            if fault := flag.fault(entry.value) if flag else "the parser does not know it":
                return f"its successor {entry.key}={entry.value}: {fault}"
    return ""


def _finding(record: Record, state: str, *found: str) -> Finding:
    return Finding(name=record.name, value=record.value, verdict=record.verdict, state=state, found=" ".join(text for text in found if text))


def _files(paths: Sequence[str], readers: Sequence[str] = ()) -> str:
    """The first few, those of `readers` and libraries before files that only mention a name."""
    def rank(path: str) -> tuple[bool, bool, str]:
        return not any(fnmatchcase(path, f"*/{pattern}") for pattern in readers), ".so" not in path, path

    short = [path.rpartition("/site-packages/")[2] for path in sorted(paths, key=rank)]
    return ", ".join(short[:4]) + (f" and {len(short) - 4} more" if len(short) > 4 else "") or "in no file"
