"""README.md of a stack: the exact commands, and what is otherwise than on one host."""

from collections.abc import Mapping, Sequence
from typing import Any

from bundle.config.settings import Settings
from bundle.swarm.stack import DROPPED, GATEWAY_LABEL, GPU

_DEPLOY = "docker stack deploy --detach=true --resolve-image never"


def commands(settings: Settings, made: Mapping[str, Any]) -> list[str]:
    """From nodes that have joined a Swarm to one that serves; on a manager, in the folder of the stack, whose hosts are NODE."""
    name = settings.project
    images = " ".join(dict.fromkeys(each["image"] for each in made["services"].values()))
    return [f"docker save {images} | ssh NODE docker load",
            f"docker node update --label-add {GATEWAY_LABEL}=true NODE",
            f"{_DEPLOY} -c check.yaml {name}-check",
            f"docker stack ps {name}-check && docker service logs {name}-check_node && docker stack rm {name}-check",
            f"{_DEPLOY} -c stack.yaml {name}"]


def text(models: Sequence[Settings], made: Mapping[str, Any], lines: Sequence[str]) -> str:
    """All of README.md."""
    first = models[0]
    name, port = first.project, first.gateway_port
    images, label, check, checked, deploy = lines
    scheme = "https" if first.tls_cert_file else "http"
    folders = [f"`{mount['source']}`" for service, each in made["services"].items() if service != "gateway"
               for mount in each["volumes"] if mount["type"] == "bind"]
    model = (f"Every node has {' and '.join(dict.fromkeys(folders))}, with the same content, readable by uid 2000: copied, or a shared file system "
             "mounted there. Swarm starts no engine where the folder is missing." if folders else "No folder: the model is in the image.")
    services = " ".join(f"{name}_{service}" for service in made["services"] if service != "gateway")
    engine = f"{name}_engine"
    secrets = "\n".join(f"| `{each['name']}` | `{each['file']}` |" for each in made["secrets"].values())
    dropped = "\n".join(f"| `{key}` | {instead} |" for key, instead in DROPPED.items())
    gpu = _gpu(first) if any(each.image_target == "cuda" for each in models) else ""
    return f"""# {name} on several hosts, with Docker Swarm

Profile {', '.join(each.profile for each in models)}. Made by `make swarm`; nothing in here is changed by hand. The commands are typed in this
folder, on a manager that has the secret files named below.

## What each node needs

- Docker 20.10 or newer, of the same Swarm: `docker swarm init --advertise-addr ADDRESS` on one, `docker swarm join …` on the others. Three
  managers outlive the loss of one; one manager or two do not (what runs goes on, but nothing is changed or replaced).
- TCP 2377 and 7946, UDP 7946 and 4789 open between nodes, and to nobody else: what goes between gateway and engines is not encrypted.
- `"no-new-privileges": true` in `/etc/docker/daemon.json`, and no swap.
- {model}
{gpu}
## From nothing to an answer

```sh
{images}     # for each node, or a registry's names in IMAGE_ENGINE and IMAGE_GATEWAY
{label}       # for each node that clients may ask
{check}
{checked}     # each node says ok, or what it lacks
{deploy}
```

Then, from the bundle: `make status STACK={name}`, and `make smoke URL={scheme}://ADDRESS:{port} KEY_FILE={first.api_keys_file}`.

## Change it

```sh
docker service scale {engine}=3                       # more engines, or fewer
docker service update --image NEW --detach {engine}   # one engine after another: drained, then replaced. A broken one goes back by itself
docker service rollback {engine}                      # to what ran before
docker node update --availability drain NODE             # empty a host before work on it
docker node update --label-add {GATEWAY_LABEL}=true OTHER    # a gateway there too
docker node update --label-rm {GATEWAY_LABEL} NODE           # one less, when its clients have moved
docker stack rm {name}
```

Another setting: change the env file, `make swarm` into this folder, and deploy again: services that it changes are replaced one task after another.
New keys replace the gateway, which has no second one at its port: a gateway on two nodes leaves no gap to clients that know both.

Services with engines: {services}. A gateway knows up to 32 tasks of each.

## Secrets

Their names carry what tells one content from another. The files are read at `docker stack deploy`, by its client.

| name in Swarm | file |
|---|---|
{secrets}

## What Swarm does not do

| on one host | here |
|---|---|
{dropped}
| port on one address | open on every address of the gateway's nodes: keys are asked for, and a firewall closes what is too much |
| `make up`, `roll`, `rollback`, `restart`, `keys`, `logs`, `top` | the commands above; `docker service logs --since 10m {engine}` |
| monitoring | none; `/metrics` of a gateway with a metrics-only key shows one engine at a time |
"""


def _gpu(settings: Settings) -> str:
    count = settings.value("HOST_GPU_COUNT")
    return f"""- NVIDIA driver 580 or newer and the NVIDIA container toolkit. Each node lists its GPUs, and a task gets {count} of them (not run on a
  GPU; that tasks are placed by the list and told which ids they have was). In `/etc/docker/daemon.json`, with the ids that `nvidia-smi -L` shows:

  ```json
  {{"default-runtime": "nvidia", "runtimes": {{"nvidia": {{"path": "nvidia-container-runtime"}}}},
   "node-generic-resources": ["{GPU}=GPU-…", "{GPU}=GPU-…"]}}
  ```

  and in `/etc/nvidia-container-runtime/config.toml`, so that the runtime heeds what Swarm hands out: `swarm-resource = "DOCKER_RESOURCE_{GPU}"`
"""
