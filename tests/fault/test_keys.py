"""Keys come and go while others work."""

import http.client
import json
import re
import secrets
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

from bundle.base import files
from support.clients import Tally, ask
from support.deployed import KEY, Deployed
from support.faultlog import record


def status(served: Deployed, key: str) -> int:
    target = urlsplit(served.url)
    with closing(http.client.HTTPConnection(target.hostname or "", target.port, timeout=60)) as connection:
        connection.request("GET", "/v1/models", headers={"Authorization": f"Bearer {key}"})
        return connection.getresponse().status


def test_a_key_is_revoked_under_load_and_no_stream_notices(served: Deployed) -> None:
    target = urlsplit(served.url)
    before = {name: container.id for name, container in served.project.containers().items()}
    env = served.project.deployment.env_file.read_text()
    file = Path(re.search(r"^GATEWAY_API_KEYS_FILE=(.+)$", env, re.MULTILINE)[1])  # type: ignore[index]
    with served.asked_by(8) as tally:
        added = served.project.script("keys", "--add", "carol")
        assert added.returncode == 0, added.stderr
        carol = added.stdout.strip()
        assert ask(served.url, Tally(), key=carol) == "right"

        body = {"model": "selftest", "prompt": "1", "max_tokens": 400, "ignore_eos": True, "stream": True}
        with closing(http.client.HTTPConnection(target.hostname or "", target.port, timeout=120)) as stream:
            stream.request("POST", "/v1/completions", json.dumps(body), {"Authorization": f"Bearer {carol}", "Content-Type": "application/json"})
            reply = stream.getresponse()
            assert (reply.status, reply.readline()[:5]) == (200, b"data:")
            revoked = served.project.script("keys", "--revoke", "carol")
            assert revoked.returncode == 0, revoked.stderr
            assert "1 key revoked (carol)" in revoked.stderr
            assert status(served, carol) == 401
            assert reply.read().rstrip().endswith(b"data: [DONE]")

        # By hand, as an editor does it: a new file in the old one's place. `make up` finds it out.
        dave = f"sk-{secrets.token_hex(16)}"
        files.write_whole(file, f"{file.read_text()}{dave} dave\n")
        up = served.change("up")
        assert up.returncode == 0, up.stderr
        assert "1 key added (dave)" in up.stderr
        assert (status(served, dave), status(served, KEY), status(served, carol)) == (200, 200, 401)
    assert tally.outcomes.keys() == {"right"}, tally.notes
    assert {name: container.id for name, container in served.project.containers().items()} == before
    record("key revoked under load", "refused at once; its running stream and everybody else go on", tally)
