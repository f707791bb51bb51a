"""HANDOFF.md: how to run a handoff with Docker alone."""

from collections.abc import Sequence
from pathlib import Path

from bundle.config.settings import Settings
from bundle.fit.assessment import Fit
from bundle.handoff.imageset import Shipped
from bundle.service import address

_COMPOSE = "docker compose --env-file handoff.env"
_EVERY_HOST = ("127.0.0.1", "0.0.0.0", "::1", "::")  # noqa: S104


def provided(settings: Settings, images: Sequence[Shipped]) -> list[str]:
    """What the receiving host has to have, because it is not in the handoff; each as a Markdown line."""
    needs = ["Linux on x86-64 with Docker Engine 20.10 and Compose 2.20, or newer."]
    if settings.image_target == "cuda":
        needs.append(f"`HOST_GPU_COUNT={settings.value('HOST_GPU_COUNT')}`: NVIDIA GPUs, with driver 580 or newer and the NVIDIA container toolkit. "
                     "Where Docker gives them through CDI alone (`docker info` shows no nvidia runtime): `HOST_ACCELERATOR=cuda-cdi`, which "
                     "`make receive` finds out by itself.")
    if settings.model_dir:
        needs.append(f"`MODEL_DIR={settings.model_dir}`: the folder of the model, readable by uid 2000. It is not in this handoff.")
    elif settings.value("ENGINE_MODEL").startswith("/"):
        needs.append(f"No model: `{settings.value('ENGINE_MODEL')}` is in the image.")
    else:
        needs.append(f"A network: the engine downloads `{settings.value('ENGINE_MODEL')}` itself (`HOST_ENGINE_OFFLINE` must be false).")
    if settings.api_keys_file:
        needs.append(f"`GATEWAY_API_KEYS_FILE={settings.api_keys_file}`: API keys, for uid 2001 to read. Secret: not in this handoff.")
    if settings.tls_cert_file:
        needs.append(f"`GATEWAY_TLS_CERT_FILE={settings.tls_cert_file}`: PEM certificate and key, readable by uid 2001. Secret: not in this handoff.")
    if settings.gateway_bind not in _EVERY_HOST:
        needs.append(f"`GATEWAY_BIND={settings.gateway_bind}` as one of its addresses.")
    if absent := [f"`{image.name}`" for image in images if not image.archive]:
        needs.append(f"The images {' and '.join(absent)}, with the ids of images.json. They are not in this handoff.")
    return needs


def text(settings: Settings, images: Sequence[Shipped], fit: Fit) -> str:
    """All of HANDOFF.md."""
    ask = address.from_settings(settings).curl
    which_port = "" if settings.gateway_port else f"{_COMPOSE} port gateway 8005      # shows the PORT that Docker has chosen\n"
    load = "".join(f"docker load --input {image.archive}\n" for image in images if image.archive)
    needs = "".join(f"- {need}\n" for need in provided(settings, images))
    rows = "".join(f"| `{image.name}` | `{image.id}` | {', '.join(image.digests) or 'built here, in no registry'} | {image.bytes / 1e9:.2f} | "
                   f"{image.archive or 'no'} |\n" for image in images)
    fits = "fit.json has the estimate." if fit.estimate else f"No estimate (fit.json is null): {fit.unknown}."
    return f"""# Handoff: profile {settings.profile}, project {settings.project}

One deployment of vLLM behind its gateway, as one env file. It runs with Docker alone; everything below is typed in this folder.

## What the host must provide

{needs}
Another path, port or address: change its line in handoff.env, after the checksums have been verified.

## Verify, load, start

```sh
sha256sum --check --quiet SHA256SUMS
{load}{_COMPOSE} up --detach --wait
```

The first start may take minutes. Shell variables of the same names win over handoff.env: start from a shell that has none.
The checksums notice damage. Whoever can change a file can change them too: where that matters, compare
`sha256sum SHA256SUMS` with what the sender has seen.

## Ask it

```sh
{which_port}{ask}
```

## Watch it, stop it

```sh
{_COMPOSE} ps
{_COMPOSE} logs --follow engine
{_COMPOSE} down                 # --volumes removes the cache of compiled kernels too
```

## With the bundle's scripts

`make receive FILE=<this folder>` verifies, loads, checks the host and starts; `SET="MODEL_DIR=… GATEWAY_PORT=…"` says what is different there.

## What is in here

| file | |
|---|---|
| handoff.env | every setting, and above each where its value came from |
| compose.yaml, docker/engine/ | the services |
| images.json | image names with ids and digests |
| check.txt, check.json | the engine's command line, environment, and what is to know about the settings |
| fit.json | will the model fit its GPU? {fits} |
| SHA256SUMS | of every file |

| image | id | digest | GB | archive |
|---|---|---|---|---|
{rows}"""


def folder_of(archive: Path) -> str:
    """The one folder in a handoff archive: its name without `.tar.gz`."""
    return archive.name.removesuffix(".tar.gz")
