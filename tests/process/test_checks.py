"""The smoke checks against a fake server: each one passes on a good server and fails on one that is broken in just that way."""

import json
import ssl
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import smoke
from bundle import cli
from bundle.base.errors import ConfigurationError, NotReadyError, PrerequisiteError
from bundle.models import first
from bundle.service.deployment import Container, Deployment
from bundle.smoke import expectations
from bundle.smoke.client import Server, ServerError, first_key
from fake_openai import FAULTS, FakeOpenAI

KEY = "sk-canary-8d21"

# What each fault of the fake must make fail: all of it and nothing else.
BREAKS: dict[str, set[str]] = {
    "frozen-metrics": {"prefix cache", "metrics"},
    "empty-text": {"completion", "chat", "streaming", "max tokens", "stop", "concurrency", "logprobs", "no garbage"},
    "zero-tokens": {"no garbage"},
    "one-token": {"no garbage"},
    "ignores-max-tokens": {"max tokens", "concurrency"},
    "ignores-stop": {"stop"},
    "keeps-stop": {"stop"},
    "wrong-finish": {"streaming", "max tokens", "stop"},
    "random-text": {"stop", "determinism"},
    "nan-logprobs": {"logprobs"},
    "positive-logprobs": {"logprobs"},
    "no-role": {"streaming"},
    "no-done": {"streaming"},
    "no-stream-usage": {"streaming"},
    "usage-too-early": {"streaming"},
    "plain-stream": {"streaming"},
    "wrong-usage": {"completion", "max tokens", "concurrency"},
    "one-at-a-time": {"concurrency"},
    "crossed-answers": {"concurrency"},
    "no-prefix-cache": {"prefix cache"},
    "takes-too-long-prompts": {"too long prompt"},
    "silent-too-long": {"too long prompt"},
    "serves-any-model": {"unknown model"},
    "crashes-on-bad-json": {"malformed JSON"},
    "open-routes": {"other routes"},
    "open-path-tricks": {"other routes"},
    "no-key-needed": {"keys"},
    "any-key": {"keys"},
}


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counters of the fake never lag."""
    monkeypatch.setattr(expectations, "LOOK_AGAIN_S", 0.2)


@pytest.fixture
def fake() -> Iterator[FakeOpenAI]:
    server = FakeOpenAI(("127.0.0.1", 0), key=KEY)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join(timeout=10)


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    file = tmp_path / "keys"
    file.write_text(f"# team\n\n{KEY}\nsk-other\n")
    return file


def run(fake: FakeOpenAI, *, ours: bool = False, limit_s: float = 60) -> list[expectations.Result]:
    server = Server(url=fake.url, key=KEY, ours=ours, bind="127.0.0.1")
    server.connect(limit_s=limit_s)
    return expectations.run(server, report=lambda _: None)


def states(results: Sequence[expectations.Result], state: str) -> set[str]:
    return {result.name for result in results if result.state == state}


# --- the checks

def test_a_good_server_passes_every_check(fake: FakeOpenAI) -> None:
    results = run(fake, ours=True)
    assert {r.name: r.outcome for r in results if r.state != "pass"} == {}
    assert len(results) == len(expectations.EXPECTATIONS) >= 17
    assert all(r.detail and r.about for r in results)


@pytest.mark.parametrize("fault", BREAKS)
def test_a_server_broken_in_one_way_fails_the_check_for_it_and_no_other(fake: FakeOpenAI, fault: str) -> None:
    fake.faults = {fault}
    results = run(fake)
    assert states(results, "fail") == BREAKS[fault]
    assert all(r.expected and r.got for r in results if r.state == "fail")


def test_the_first_model_must_know_the_capital_of_france(fake: FakeOpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first, "NAME", "fake")
    results = run(fake)
    assert states(results, "fail") == {"chat"}
    assert "Paris as the capital of France" in next(r.outcome for r in results if r.state == "fail")


def test_every_check_can_fail_and_every_fault_is_tried() -> None:
    assert set().union(*BREAKS.values()) | {"models"} == {each.name for each in expectations.EXPECTATIONS}
    assert FAULTS.keys() - BREAKS.keys() == {"unhealthy", "no-models", "no-metrics", "prefix-cache-off", "slow", "trickles", "html"}


def test_a_server_without_models_fails_the_first_check(fake: FakeOpenAI) -> None:
    fake.faults = {"no-models"}
    assert "models" in states(run(fake), "fail")


def test_a_prefix_cache_that_is_switched_off_is_held_to_counting_nothing(fake: FakeOpenAI) -> None:
    fake.faults = {"prefix-cache-off"}
    (result,) = [r for r in run(fake, ours=True) if r.name == "prefix cache"]
    assert (result.state, "switched off" in result.detail) == ("pass", True)


def test_another_kind_of_server_is_spared_what_only_vllm_has(fake: FakeOpenAI) -> None:
    fake.faults = {"no-metrics"}
    results = run(fake)
    assert states(results, "n/a") == {"prefix cache", "other routes", "metrics"}
    assert states(results, "fail") == set()
    assert all(r.detail for r in results if r.state == "n/a")


def test_our_own_deployment_is_spared_nothing(fake: FakeOpenAI) -> None:
    fake.faults = {"no-metrics"}
    assert states(run(fake, ours=True), "fail") == {"prefix cache", "metrics"}


def test_a_port_open_to_the_network_without_a_key_fails(fake: FakeOpenAI) -> None:
    fake.key = ""
    for bind, state in (("127.0.0.1", "pass"), ("0.0.0.0", "fail"), ("192.168.1.5", "fail")):
        server = Server(url=fake.url, ours=True, bind=bind)
        server.connect()
        (result,) = [r for r in expectations.run(server, report=lambda _: None) if r.name == "keys"]
        assert result.state == state, bind


def test_an_answer_of_another_form_is_a_failure_not_a_crash(fake: FakeOpenAI) -> None:
    server = Server(url=fake.url, key=KEY)
    server.connect()
    fake.faults = {"html"}
    results = expectations.run(server, report=lambda _: None)
    assert states(results, "fail") == {each.name for each in expectations.EXPECTATIONS} - {"prefix cache", "metrics", "other routes"}
    assert states(results, "pass") == set()


def test_a_server_that_stops_answering_cannot_hold_the_run_up(fake: FakeOpenAI) -> None:
    for fault in ("slow", "trickles"):
        server = Server(url=fake.url, key=KEY, request_limit_s=0.2)
        fake.faults = set()
        server.connect(limit_s=2)
        fake.faults = {fault}
        results = expectations.run(server, report=lambda _: None)
        assert states(results, "pass") <= {"streaming"}  # the fake's streams do not trickle
        assert any("in time" in r.got or "did not end" in r.got for r in results)
        assert "the time limit of the whole run is over" in results[-1].got or results[-1].state == "n/a"


# --- where the server is

@pytest.mark.parametrize(("given", "url"), [
    ("http://localhost:8000", "http://localhost:8000"), ("http://localhost:8000/v1", "http://localhost:8000"),
    ("https://host/v1/", "https://host"), ("localhost:8000", "http://localhost:8000"), ("http://[::1]:1", "http://[::1]:1"),
])
def test_a_url_may_end_in_v1_and_lack_its_scheme(given: str, url: str) -> None:
    assert Server.at_url(given).url == url


@pytest.mark.parametrize("given", ["", "ftp://host", "http://", "http://host:port", "http://host:99999", "http://host:0", "http://host/api/other", "file:///etc/passwd"])
def test_what_is_no_base_url_is_refused(given: str) -> None:
    with pytest.raises(ConfigurationError, match="--url"):
        Server.at_url(given)


@dataclass(frozen=True, kw_only=True)
class Stub(Deployment):
    """A deployment whose containers the test names."""

    there: Mapping[str, Container] = field(default_factory=dict)

    def containers(self) -> dict[str, Container]:
        return dict(self.there)


def container(published: tuple[str, int] | None) -> Container:
    return Container(id="1", service="gateway", state="running", health="healthy", restarts=0, exit_code=0, out_of_memory=False, started="",
                     image="", memory_bytes=0, probe="", published=published)


def test_the_running_deployment_is_found_with_its_port_key_and_certificate(tmp_path: Path, key_file: Path) -> None:
    (tmp_path / "vllm.env").write_text(f"GATEWAY_API_KEYS_FILE={key_file}\nGATEWAY_TLS_CERT_FILE=/etc/tls.pem\n")
    server = Server.from_deployment(Stub(state=tmp_path, there={"gateway": container(("0.0.0.0", 4711))}))
    assert (server.url, server.key, server.ca_file, server.pinned, server.ours, server.bind) == (
        "https://127.0.0.1:4711", KEY, Path("/etc/tls.pem"), True, True, "0.0.0.0")
    (tmp_path / "vllm.env").write_text("GATEWAY_API_KEYS_FILE=\n")
    server = Server.from_deployment(Stub(state=tmp_path, there={"gateway": container(("::1", 4711))}))
    assert (server.url, server.key, server.ca_file) == ("http://[::1]:4711", "", None)


def test_a_deployment_that_is_not_up_says_make_up(tmp_path: Path) -> None:
    with pytest.raises(PrerequisiteError) as not_made:
        Server.from_deployment(Stub(state=tmp_path))
    (tmp_path / "vllm.env").touch()
    with pytest.raises(NotReadyError) as not_there:
        Server.from_deployment(Stub(state=tmp_path))
    with pytest.raises(NotReadyError):
        Server.from_deployment(Stub(state=tmp_path, there={"gateway": container(None)}))
    assert "make up" in not_made.value.fix
    assert "make up" in not_there.value.fix


def test_the_first_key_is_the_first_line_that_is_no_comment(key_file: Path) -> None:
    assert first_key(key_file) == KEY


@pytest.mark.parametrize("content", [b"", b"# none yet\n\n", b"k\x00ey\n", "schlüssel\n".encode(), b"\xff\xfe\n"])
def test_a_key_file_without_a_usable_key_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "keys"
    file.write_bytes(content)
    with pytest.raises(ConfigurationError, match="keys"):
        first_key(file)


def test_the_key_never_shows(fake: FakeOpenAI) -> None:
    server = Server(url=fake.url, key=KEY)
    server.connect()
    fake.faults = {"any-key", "html"}
    results = expectations.run(server, report=lambda _: None)
    assert KEY not in repr(server) + repr(results)


def test_a_deployments_own_certificate_is_trusted_and_no_other(tmp_path: Path) -> None:
    for name in ("own", "other"):
        subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}.test",
                        "-keyout", str(tmp_path / f"{name}.key"), "-out", str(tmp_path / f"{name}.crt")], check=True, capture_output=True)
    fake = FakeOpenAI(("127.0.0.1", 0))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "own.crt", tmp_path / "own.key")
    fake.socket = context.wrap_socket(fake.socket, server_side=True)
    thread = threading.Thread(target=fake.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    url = fake.url.replace("http:", "https:")
    own = Server(url=url, ca_file=tmp_path / "own.crt", pinned=True)
    own.connect()
    assert own.untouched("GET", "/v1/models") == 200
    for wrong in (Server(url=url), Server(url=url, ca_file=tmp_path / "other.crt", pinned=True), Server(url=url, ca_file=tmp_path / "own.crt")):
        with pytest.raises(NotReadyError, match="TLS"):
            wrong.connect()
        with pytest.raises(ServerError):
            wrong.untouched("GET", "/v1/models")
    fake.shutdown()
    fake.server_close()
    thread.join(timeout=10)


# --- the verb

def main(*argv: object) -> int:
    return cli.run(smoke.main, [str(a) for a in argv])


def test_smoke_exits_0_and_shows_a_row_per_check(fake: FakeOpenAI, key_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main("--url", fake.url, "--api-key-file", key_file) == 0
    rows = capsys.readouterr().out.splitlines()
    assert next(row for row in rows if " pass " in row).startswith("models")
    assert sum(" pass " in row for row in rows) == len(expectations.EXPECTATIONS)


def test_smoke_exits_5_and_says_expected_got_and_hint(fake: FakeOpenAI, key_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake.faults = {"zero-tokens"}
    assert main("--url", fake.url, "--api-key-file", key_file) == 5
    (row,) = [row for row in capsys.readouterr().out.splitlines() if row.startswith("no garbage")]
    assert "fail" in row
    assert "expected other tokens than token 0; got ['!!!!" in row
    assert "ENGINE_DTYPE" in row


def test_smoke_as_json_holds_every_check(fake: FakeOpenAI, key_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake.faults = {"no-done"}
    assert main("--url", fake.url, "--api-key-file", key_file, "--json") == 5
    answer = json.loads(capsys.readouterr().out)
    assert answer["model"] == "fake"
    assert [c["name"] for c in answer["checks"] if c["state"] == "fail"] == ["streaming"]
    assert {"name", "about", "state", "seconds", "detail", "expected", "got", "hint"} == set(answer["checks"][0])


@pytest.mark.parametrize(("arguments", "code", "said"), [
    (["--url", "nonsense://x"], 2, "not the base URL"),
    (["--url", ""], 2, "not the base URL"),
    (["--url", "http://127.0.0.1:1"], 4, "cannot be reached"),
    (["--url", "http://no-such-host.invalid"], 4, "cannot be reached"),
    (["--url", "{url}"], 2, "asks for a key"),
    (["--url", "{url}", "--api-key-file", "{wrong}"], 2, "refuses the key"),
    (["--url", "{url}", "--api-key-file", "/no/such/file"], 2, "No such file"),
    (["--url", "{url}", "--api-key-file", "{key}", "--model", "gpt-9"], 2, "it serves: fake"),
    (["--url", "https://127.0.0.1:1", "--ca-file", "/no/such.pem"], 2, "not a readable PEM"),
    (["--project", "never-made"], 3, "make up"),
])
def test_smoke_says_what_is_wrong_and_exits_with_its_code(fake: FakeOpenAI, key_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                                          arguments: list[str], code: int, said: str) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("sk-wrong\n")
    filled = [a.format(url=fake.url, key=key_file, wrong=wrong) for a in arguments]
    assert main(*filled) == code
    printed = capsys.readouterr()
    assert said in printed.err
    assert KEY not in printed.out + printed.err


@pytest.mark.parametrize("arguments", [["--limit", "0"], ["--limit", "soon"], ["--limit", "inf"], ["--url", "http://x", "--project", "y"],
                                       ["--ca-file", "x.pem"], ["--nonsense"], ["--json", "extra"]])
def test_smoke_refuses_options_that_make_no_sense(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(*arguments)
    assert ended.value.code == 2


def test_a_server_that_is_something_else_is_named_as_such(fake: FakeOpenAI, key_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake.faults = {"html"}
    assert main("--url", fake.url, "--api-key-file", key_file) == 4
    assert "OpenAI-compatible" in capsys.readouterr().err


def test_ctrl_c_exits_130(fake: FakeOpenAI, key_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pressed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(expectations, "run", pressed)
    assert main("--url", fake.url, "--api-key-file", key_file) == 130
