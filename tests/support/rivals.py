"""What other gateways cost beside the bundle's: the same requests through each of them to the same server, in turns (gatewaycost.py).

    PYTHONPATH=scripts:tests .venv/bin/python tests/support/rivals.py LITELLM VLLM_ROUTER > reports/published/DATE-gateway/rivals.json

The arguments are the commands of two virtual environments (`pip install 'litellm[proxy]'`, `pip install vllm-router`); nginx is the distribution's.
Each runs as its documentation says for this job, with one worker process per core where it has workers. The bundle's and LiteLLM check the key,
the other two do not.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from support.gateway import KEY, Site, docker, operational
from support.gatewaycost import measure
from support.project import wait_until

NGINX = """
worker_processes auto; daemon off; pid {folder}/nginx.pid; error_log stderr crit;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 100000; client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
  uwsgi_temp_path {folder}; scgi_temp_path {folder};
  upstream engine {{ server {engine}; keepalive 128; keepalive_requests 100000; }}
  server {{ listen 127.0.0.1:{port};
    location / {{ proxy_pass http://engine; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; }} }}
}}
"""
LITELLM = {"model_list": [{"model_name": "fake", "litellm_params": {"model": "text-completion-openai/fake", "api_base": "http://{engine}/v1",
                                                                   "api_key": "none"}}]}


def free() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def listens(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def address(container: str, port: int) -> tuple[str, int]:
    # Its own address: the published port has a proxy of Docker's in front.
    return docker("inspect", "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", container).strip(), port


def main(litellm: str, router: str) -> None:
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        site = Site(folder=folder)
        stack.callback(site.close)
        site.start_engine()
        door = site.open(keys=f"{KEY} alice\n")
        wait_until(lambda: operational(door), deadline_s=30, what="the gateway sees its engine")
        engine = "{}:{}".format(*address(site.upstream, 8000))
        doors = {"bare": address(site.upstream, 8000), "gateway": address(door.name, 8005)}
        ports = {name: free() for name in ("nginx", "litellm", "vllm-router")}
        (folder / "nginx.conf").write_text(NGINX.format(folder=folder, engine=engine, port=ports["nginx"]))
        (folder / "litellm.yaml").write_text(json.dumps(LITELLM).replace("{engine}", engine))
        cores = str(os.cpu_count())
        commands = {"nginx": ["nginx", "-c", str(folder / "nginx.conf")],
                    "litellm": [litellm, "--config", str(folder / "litellm.yaml"), "--host", "127.0.0.1", "--port", str(ports["litellm"]),
                                "--num_workers", cores],
                    "vllm-router": [router, "--host", "127.0.0.1", "--port", str(ports["vllm-router"]), "--worker-urls", f"http://{engine}",
                                    "--policy", "round_robin"]}
        environment = {key: value for key, value in os.environ.items() if "proxy" not in key.lower()} | {
            "LITELLM_MASTER_KEY": KEY, "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true", "LITELLM_LOCAL_MODEL_COST_MAP": "true"}
        for name, command in commands.items():
            log = stack.enter_context((folder / f"{name}.log").open("wb"))
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True)
            stack.callback(process.wait)
            stack.callback(process.terminate)
            try:
                wait_until(lambda port=ports[name]: listens(port), deadline_s=180, what=f"{name} listens")  # type: ignore[misc]
            except AssertionError:
                sys.stderr.write((folder / f"{name}.log").read_text())
                raise
            doors[name] = ("127.0.0.1", ports[name])
        json.dump(measure(doors), sys.stdout, indent=1)


if __name__ == "__main__":
    main(*sys.argv[1:3])
