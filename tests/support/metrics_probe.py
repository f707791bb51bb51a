"""Inside an engine's image: the metrics that this version has before its first request, with their labels, as one line of JSON. No GPU, no model."""

import json
import sys
from unittest.mock import MagicMock

from prometheus_client import REGISTRY
from vllm.v1.metrics.loggers import PrometheusStatLogger  # type: ignore[import-not-found]  # in the image


def main() -> int:
    # Of a configuration it reads names and switches alone; what is not said here is off.
    config = MagicMock()
    config.model_config.served_model_name, config.model_config.max_model_len, config.model_config.is_diffusion = "model", 2048, False
    config.speculative_config = config.kv_transfer_config = config.ec_transfer_config = config.lora_config = None
    config.observability_config.show_hidden_metrics = config.observability_config.kv_cache_metrics = False
    config.observability_config.enable_mfu_metrics = False
    config.observability_config.custom_histogram_buckets = None
    PrometheusStatLogger(config, [0])
    found: dict[str, list[str]] = {}
    for family in REGISTRY.collect():
        for sample in family.samples:
            if sample.name.startswith("vllm:"):
                found[sample.name] = sorted({*found.get(sample.name, []), *sample.labels})
    print(json.dumps(found))  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
