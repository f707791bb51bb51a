"""Which model's name leads to which engines: told to the running gateway. The list on the host stays what counts; a gateway that starts reads it."""

from bundle.service import admin
from bundle.service.deployment import GATEWAY, Deployment

MODELS_MAP = "/run/secrets/gateway_models"


def apply(deployment: Deployment) -> None:
    """Tell the running gateway of the models that the deployment has now, where it knows of others. Raises BundleError where it does not take it."""
    gateway, wanted = deployment.containers().get(GATEWAY), deployment.routes()
    if gateway and gateway.state == "running" and admin.show_map(deployment, MODELS_MAP) != wanted:
        admin.replace_map(deployment, MODELS_MAP, wanted)
