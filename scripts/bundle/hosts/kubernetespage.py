"""KUBERNETES.md: the commands that bring the manifests of one deployment to a cluster."""

import shlex
from collections.abc import Mapping

from bundle.config.settings import Settings
from bundle.hosts.kubernetes import API_KEYS, GPU, SECRET_KEYS, TLS, Object


def provided(settings: Settings) -> list[str]:
    """What the cluster has to have, because it is not in the manifests; each as a line."""
    needs = [f"The images {settings.image_engine} and {settings.image_gateway}, from a registry that its nodes reach."]
    if settings.image_target == "cuda":
        needs.append(f"Nodes with {settings.value('HOST_GPU_COUNT')} NVIDIA GPU(s) for each engine, driver 580 or newer, and NVIDIA's device plugin "
                     f"({GPU}).")
    needs.append("A network plugin that enforces NetworkPolicy: else every pod reaches the engines without a key.")
    needs.append("A default storage class" + (", for ReadWriteMany: several engines share the volumes." if settings.replicas > 1 else "."))
    return needs


def text(settings: Settings, objects: Mapping[str, list[Object]]) -> str:
    """All of KUBERNETES.md."""
    names = settings.project
    port = next(one for one in objects["gateway.yaml"] if one["kind"] == "Service")["spec"]["ports"][0]["port"]
    ask = "curl --insecure https" if settings.tls_cert_file else "curl http"
    return f"""# Profile {settings.profile} on Kubernetes, namespace {names}

Written by `make k8s`. **Checked against Kubernetes' schemas (1.30 to 1.37) and built by kustomize; never run on a cluster.** Everything below is
typed in this folder. deployment.env is the deployment that these files come from.

## What the cluster must have

{"".join(f"- {need}" + chr(10) for need in provided(settings))}
## The images

```sh
{_images(settings)}```

## The namespace and its secrets

```sh
kubectl apply --filename=namespace.yaml
{_secrets(settings)}```
{_model(settings)}
## Start it, and ask it

```sh
kubectl apply --kustomize .
kubectl -n {names} rollout status deployment/engine
kubectl -n {names} port-forward service/gateway 8005:{port} &
{ask}://127.0.0.1:8005/v1/models --header "Authorization: Bearer $KEY"
```

## Change it, go back

```sh
make k8s PROFILE={settings.profile} OUT=…               # in the bundle, then here:
kubectl diff --kustomize . ; kubectl apply --kustomize .
kubectl -n {names} rollout undo deployment/engine  # the ConfigMap of the older version is still there
```

An engine that goes tells the gateway first and finishes what it has. With HOST_REPLICAS=1 nothing is answered until the new one is ready.
A change of a Secret reaches the gateway with `kubectl -n {names} rollout restart deployment/gateway`.
"""


def _images(settings: Settings) -> str:
    """How the images get to a registry, and the manifests their names there."""
    images = {"IMAGE_ENGINE": settings.image_engine, "IMAGE_GATEWAY": settings.image_gateway}
    moved = {key: image for key, image in images.items() if not _has_registry(image)}
    lines = [f"docker tag {image} REGISTRY/{image} && docker push REGISTRY/{image}" if key in moved else f"docker push {image}"
             for key, image in images.items()]
    if moved:
        named = " ".join(f"{key}=REGISTRY/{image}" for key, image in moved.items())
        lines.append(f"make k8s PROFILE={settings.profile} OUT=… SET='{named}'    # in the bundle: the manifests name them then")
    return "".join(f"{line}\n" for line in lines)


def _secrets(settings: Settings) -> str:
    files = {API_KEYS: settings.api_keys_file, TLS: settings.tls_cert_file}
    return "".join(f"kubectl -n {settings.project} create secret generic {name} --from-file={SECRET_KEYS[name]}={shlex.quote(str(file))}\n"
                   for name, file in files.items() if file)


def _model(settings: Settings) -> str:
    """How the folders of this host get into their volumes; "" where there are none."""
    folders = {"model": settings.model_dir, "adapters": settings.path("MODEL_ADAPTERS_DIR")}
    copies = "".join(f"tar -C {shlex.quote(str(folder))} -c . | kubectl -n {settings.project} exec -i model-loader -- tar -C /{claim} -x\n"
                     for claim, folder in folders.items() if folder)
    return f"""
## The model, once

```sh
kubectl apply --filename=storage.yaml --filename=model-loader.yaml
kubectl -n {settings.project} wait --for=condition=Ready pod/model-loader --timeout=10m
{copies}kubectl -n {settings.project} delete pod/model-loader
```
""" if copies else ""


def _has_registry(image: str) -> bool:
    """Whether the name of an image begins with a registry's, by Docker's rule."""
    first, slash, _ = image.partition("/")
    return bool(slash) and ("." in first or ":" in first or first == "localhost")
