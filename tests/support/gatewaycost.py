"""What the gateway costs: the same requests to it and to the engine behind it, in turns, on this host.

    PYTHONPATH=scripts:tests .venv/bin/python tests/support/gatewaycost.py [bare=PORT NAME=PORT ...] > reports/published/DATE-gateway/gateway.json

Without arguments: the gateway's container before the fake's. With them: any proxies that are there, each before the server `bare`, in turns.

The engine is the tests' fake (tests/fake_openai.py), which computes nothing: what differs is the gateway's. One client alone shows what it adds
to the first token; 64 clients at once, each token 50 ms after the last, whether it holds any up.
"""

import json
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from support.gateway import KEY, Site, docker, operational, request

ALONE, CLIENTS, TOKENS, PAUSE_S, ROUNDS, WAVES = 1000, 64, 20, 0.05, 4, 4
Address = tuple[str, int]


def stream(connection: socket.socket, *, pause_s: float, tokens: int) -> tuple[float, float, int]:
    """One streamed completion on a kept connection: seconds to its first event and to its end, and how many events came."""
    body = {"model": "fake", "prompt": "hello", "max_tokens": tokens, "stream": True, "fake": {"pause_s": pause_s}}
    asked = request("POST", "/v1/completions", key=KEY, json_body=body, headers={"Connection": "keep-alive"})
    began, first, events, tail = time.perf_counter(), 0.0, 0, b""
    connection.sendall(asked)
    while not tail.endswith(b"\r\n0\r\n\r\n"):
        piece = connection.recv(65536)
        assert piece, "the connection was closed"
        if b"data: {" in piece and not first:
            first = time.perf_counter() - began
        events += piece.count(b"data: {")
        tail = (tail + piece)[-16:]
    assert events >= tokens, f"{events} of {tokens} events"  # some proxies add one of their own
    return first, time.perf_counter() - began, events


def alone(doors: Mapping[str, Address]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {name: [] for name in doors}
    with ExitStack() as stack:
        connections = [(name, stack.enter_context(socket.create_connection(address))) for name, address in doors.items()]
        for _, connection in connections:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for _ in range(50):
                stream(connection, pause_s=0, tokens=1)
        for number in range(ALONE):
            for name, connection in connections[:: 1 if number % 2 else -1]:
                found[name].append(stream(connection, pause_s=0, tokens=1)[0] * 1000)
    return found


def together(address: Address) -> tuple[float, list[float], list[float]]:
    """Tokens per second over all clients, their times to the first token and to the end of a stream in ms."""
    def client(_: int) -> list[tuple[float, float, int]]:
        with socket.create_connection(address) as connection:
            return [stream(connection, pause_s=PAUSE_S, tokens=TOKENS) for _ in range(WAVES)]
    began = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as pool:
        done = [one for each in pool.map(client, range(CLIENTS)) for one in each]
    return sum(events for *_, events in done) / (time.perf_counter() - began), [one[0] * 1000 for one in done], [one[1] * 1000 for one in done]


def summary(values: Sequence[float]) -> dict[str, float]:
    cuts = statistics.quantiles(values, n=100)
    return {"p50_ms": round(cuts[49], 3), "p99_ms": round(cuts[98], 3), "n": len(values)}


def measure(doors: Mapping[str, Address]) -> dict[str, Any]:
    """All of it, the doors in turns; one of them is named `bare`."""
    single = alone(doors)
    rates: dict[str, list[float]] = {name: [] for name in doors}
    firsts: dict[str, list[float]] = {name: [] for name in doors}
    ends: dict[str, list[float]] = {name: [] for name in doors}
    for number in range(ROUNDS):
        for name, where in list(doors.items())[:: 1 if number % 2 else -1]:
            rate, first, end = together(where)
            rates[name].append(round(rate, 1))
            firsts[name] += first
            ends[name] += end
    proxies = [name for name in doors if name != "bare"]
    return {
        "cpus": os.cpu_count(), "load": [round(value, 1) for value in os.getloadavg()],
        "one_client_ttft": {name: summary(values) for name, values in single.items()},
        "added_ttft_p50_ms": {name: round(statistics.median(single[name]) - statistics.median(single["bare"]), 3) for name in proxies},
        f"clients_{CLIENTS}": {"tokens_per_s": rates, "ttft": {name: summary(values) for name, values in firsts.items()},
                               "end_of_stream": {name: summary(values) for name, values in ends.items()},
                               "of_bare": {name: round(statistics.median(rates[name]) / statistics.median(rates["bare"]), 4) for name in proxies}},
    }


def in_containers(site: Site) -> dict[str, Any]:
    """The gateway's container before the fake's, each asked by its own address: the published port has a proxy of Docker's in front."""
    from support.project import wait_until  # needs Docker's library

    site.start_engine()
    door = site.open(keys=f"{KEY} alice\n")
    wait_until(lambda: operational(door), deadline_s=30, what="the gateway sees its engine")

    def address(name: str, port: int) -> Address:
        return docker("inspect", "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", name).strip(), port
    return measure({"bare": address(site.upstream, 8000), "gateway": address(door.name, 8005)})


if __name__ == "__main__":
    if len(sys.argv) > 1:
        found = measure({name: ("127.0.0.1", int(port)) for name, _, port in (word.partition("=") for word in sys.argv[1:])})
    else:
        with tempfile.TemporaryDirectory() as folder:
            here = Site(folder=Path(folder))
            try:
                found = in_containers(here)
            finally:
                here.close()
    json.dump(found, sys.stdout, indent=1)
