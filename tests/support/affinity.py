"""What keeping a conversation at its engine is worth: the same kind of conversations over two real CPU engines, by several ways to balance.

    PYTHONPATH=scripts:tests .venv/bin/python tests/support/affinity.py > reports/published/DATE-affinity/affinity.json

Each way is a gateway of its own with one line of docker/gateway/haproxy.cfg changed, in front of the same two engines with the self-test model. The
conversations share six system prompts, each turn sends all that was said before, and eight clients go on at once. What vLLM counts
(vllm:prefix_cache_hits_total of vllm:prefix_cache_queries_total, in tokens) says how much of the prompts was not computed again. `one engine` is the
most that there is to have.
"""

import json
import random
import re
import secrets
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bundle import ROOT
from support.gateway import CONFIG, HARDENED, docker
from support.project import Project, wait_until

CONVERSATIONS, TURNS, CLIENTS, ROUNDS, SYSTEMS, ANSWER = 24, 5, 8, 3, 6, 24
WORDS = [word for word in re.findall(r"[a-z]{3,}", (ROOT / "README.md").read_text().lower()) if len(word) < 12]
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
STICK = "    stick on var(txn.head),concat(,txn.more),sha1 if { var(txn.head) -m found }\n"
WAYS: dict[str, Callable[[str], str]] = {
    "leastconn and the conversation's head (docker/gateway)": lambda text: text,
    "leastconn": lambda text: text.replace(STICK, ""),
    "roundrobin": lambda text: text.replace(STICK, "").replace("balance leastconn", "balance roundrobin"),
    "one engine": lambda text: text.replace("    server engine-2 engine-2:8000\n", ""),
}


@contextmanager
def gateway(project: Project, folder: Path, config: str) -> Iterator[str]:
    """The address of a gateway of that configuration, in front of the project's engines."""
    name = f"{project.name}-way-{secrets.token_hex(3)}"
    file = folder / name
    file.write_text(config)
    file.chmod(0o644)
    docker("create", "--name", name, "--network", f"{project.name}_front", "--publish", "127.0.0.1:0:8005", *HARDENED,
           "--volume", f"{file}:{CONFIG}:ro", project.containers()["gateway"].image)
    try:
        docker("network", "connect", f"{project.name}_back", name)
        docker("start", name)
        url = f"http://127.0.0.1:{docker('port', name, '8005/tcp').strip().rpartition(':')[2]}"
        wait_until(lambda: docker("exec", name, "python3", "-c", UP).split().count("UP") >= ("engine-2 engine-2" in config) + 1, deadline_s=60,
                   what="the gateway sees the engines")
        yield url
    finally:
        docker("rm", "--force", name)


UP = """
import csv, socket
s = socket.socket(socket.AF_UNIX)
s.connect("/run/haproxy/admin.sock")
s.sendall(b"show stat -1 4 -1\\n")
print(*(row["status"] for row in csv.DictReader(s.makefile().read().lstrip("# ").splitlines())))
"""


def counters(project: Project) -> dict[str, tuple[float, float]]:
    """Hits and queries in tokens, by engine."""
    found = {}
    for service, container in project.containers().items():
        if container.is_engine:
            text = docker("exec", container.id, "/opt/venv/bin/python", "-S", "-c",
                          "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8000/metrics').read().decode())")
            hits, queries = (sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(f"vllm:prefix_cache_{name}_total{{"))
                             for name in ("hits", "queries"))
            found[service] = (hits, queries)
    return found


def converse(url: str, rng: random.Random, system: str) -> None:
    """One conversation from beginning to end."""
    messages = [{"role": "system", "content": system}]
    for _ in range(TURNS):
        messages.append({"role": "user", "content": " ".join(rng.choices(WORDS, k=rng.randint(20, 60)))})
        body = {"model": "selftest", "messages": messages, "max_tokens": ANSWER, "ignore_eos": True, "temperature": 0}
        asked = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
        with DIRECT.open(asked, timeout=300) as answer:
            messages.append({"role": "assistant", "content": json.load(answer)["choices"][0]["message"]["content"] or "-"})


def measured(project: Project, url: str, seed: str) -> Mapping[str, object]:
    rng = random.Random(seed)
    systems = [" ".join(rng.choices(WORDS, k=60)) for _ in range(SYSTEMS)]
    talks = [(random.Random(rng.random()), systems[number % SYSTEMS]) for number in range(CONVERSATIONS)]
    before = counters(project)
    with ThreadPoolExecutor(max_workers=CLIENTS) as pool:
        for done in [pool.submit(converse, url, *talk) for talk in talks]:
            done.result()
    by = {service: (hits - before[service][0], queries - before[service][1]) for service, (hits, queries) in counters(project).items()}
    queries = sum(query for _, query in by.values())
    return {"hit_share": round(sum(hit for hit, _ in by.values()) / queries, 4), "prompt_tokens": queries,
            "share_of_prompt_tokens": {service: round(query / queries, 3) for service, (_, query) in sorted(by.items())}}


def main() -> int:
    project = Project(name="test-affinity")
    text = (ROOT / "docker" / "gateway" / "haproxy.cfg").read_text()
    assert STICK in text
    found: dict[str, list[Mapping[str, object]]] = {name: [] for name in WAYS}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        Path(folder).chmod(0o755)
        stack.callback(project.remove)
        up = project.up("--set", "HOST_REPLICAS=2", "--set", "HOST_READY_TIMEOUT_S=1200", "--set", "HOST_ENGINE_MEMORY=5g", timeout_s=2500)
        assert up.returncode == 0, up.stderr
        urls = {name: stack.enter_context(gateway(project, Path(folder), change(text))) for name, change in WAYS.items()}
        for number in range(ROUNDS):
            for name in list(WAYS)[number % len(WAYS):] + list(WAYS)[:number % len(WAYS)]:
                # Other words each time: nothing of an earlier run is in a cache.
                found[name].append(measured(project, urls[name], f"{number} {name}"))
                sys.stderr.write(f"{name} {found[name][-1]}\n")
    sys.stdout.write(json.dumps({"engine": "vLLM 0.32.0 on the CPU, self-test model, 2 replicas", "conversations": CONVERSATIONS, "turns": TURNS,
                                 "clients": CLIENTS, "system_prompts": SYSTEMS, "rounds": ROUNDS, "ways": found}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
