"""What the gateway must never let through: every other route that vLLM 0.32 and 0.33 have, by their sources, and ways to spell around a list.

Most of these answer without the engine's own --api-key. The list that lets through is docker/gateway/routes.lst.
"""

_POST = (
    # a completion by another name, any number of them at once, or the engine's internals
    "/invocations", "/ping", "/generative_scoring", "/v1/chat/completions/batch", "/v1/chat/completions/render", "/v1/completions/render",
    "/v1/messages/render", "/v1/responses/render", "/v1/chat/completions/derender", "/v1/completions/derender", "/inference/v1/generate",
    "/v1/systemone", "/v1/decisions", "/cohere/v2/chat", "/cohere/v2/chat/render", "/v1/responses/resp_1/cancel",
    # these change the server
    "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/scale_elastic_ep", "/is_scaling_elastic_ep", "/pause", "/resume", "/abort_requests",
    "/inference/v1/abort_requests", "/init_weight_transfer_engine", "/shutdown_weight_transfer_engine", "/start_weight_update",
    "/start_draft_weight_update", "/update_weights", "/finish_weight_update", "/update_weight_version", "/weight_checker",
    "/reset_prefix_cache", "/reset_mm_cache", "/reset_encoder_cache", "/collective_rpc", "/sleep", "/wake_up", "/release_kv_cache_memory",
    "/start_profile", "/stop_profile", "/fault_tolerance/apply",
)
_GET = (
    "/", "/ping", "/load", "/kv_event_sources", "/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json", "/static/swagger-ui.css",
    "/tokenizer_info", "/is_paused", "/weight_info", "/get_world_size", "/server_info", "/is_sleeping", "/fault_tolerance/status", "/ready",
    "/readyz", "/v1/realtime", "/v1/responses/resp_1",
)

ROUTES = tuple(("POST", path) for path in _POST) + tuple(("GET", path) for path in _GET)

SPELLINGS = (
    "//v1/models", "/v1//models", "/v1/models/", "/v1/models/.", "/v1/./models", "/./v1/models", "/v1/../v1/models", "/v1/models/../../docs",
    "/v1/models/..%2f..%2fdocs", "/v1/models%2f..%2f..%2fdocs", "/v1/models/%2e%2e/%2e%2e/docs", "/%2e%2e/v1/models", "/..;/v1/models",
    "/v1/..;/docs", "/v1/%6dodels", "/%76%31/models", "/V1/models", "/v1/Models", "/v1/models%00", "/v1/models%20", "/v1/models;a=b",
    "/v1/models%3f", "/v1/models%23", "/v1/models#", "/v1/models\\..\\..\\docs", "\\v1\\models", "/v1/models%5c..%5c..%5cdocs",
    "/health/../docs", "/health%2f..%2fdocs", "*", "?/v1/models", "http://engine:8000/docs", "http://engine:8000//v1/models", "/metrics/",
    "/metrics%0d%0aX:y", "/metrics/..;/metrics",
)
"""Targets that are no listed route, although somebody who decodes or tidies them first would say so. By GET."""
