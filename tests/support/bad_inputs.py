"""Bad inputs and the exact answer to each: shared by the unit tests and by whoever wants to see them as a table.

Each is: name, profile, the lines of an env file that is laid over the profile, and the problems (line, key, severity, message).
"""

from typing import NamedTuple


class Bad(NamedTuple):
    name: str
    profile: str
    text: str
    problems: tuple[tuple[int, str, str, str], ...]


def _error(name: str, profile: str, text: str, message: str) -> Bad:
    return Bad(name, profile, text, ((1, text.partition("=")[0], "error", message),))


def _warning(name: str, profile: str, text: str, message: str) -> Bad:
    return Bad(name, profile, text, ((1, text.partition("=")[0], "warning", message),))


_SECRET = "a secret does not belong in an env file, whose values show in `docker inspect` and in handoffs."

BAD = (
    # engine flags
    _error("unknown flag", "throughput", "ENGINE_MAX_NUM_SEQ=4",
           "vLLM 0.33.0 has no such flag. Did you mean ENGINE_MAX_NUM_SEQS?"),
    _error("unknown flag, nothing near", "throughput", "ENGINE_WARP_DRIVE=9",
           "vLLM 0.33.0 has no such flag."),
    _error("unknown flag without a value", "throughput", "ENGINE_MAX_NUM_SEQ=",
           "vLLM 0.33.0 has no such flag. Did you mean ENGINE_MAX_NUM_SEQS?"),
    _error("not a whole number", "throughput", "ENGINE_MAX_NUM_SEQS=many",
           "'many' is not a whole number or auto."),
    _error("fraction where a whole number is due", "throughput", "ENGINE_MAX_NUM_SEQS=1.5",
           "'1.5' is not a whole number or auto."),
    _error("auto in capitals", "throughput", "ENGINE_QUANTIZATION=Auto",
           "'Auto' is not a value. Write ENGINE_QUANTIZATION=auto."),
    _error("no tokens in a request", "throughput", "HOST_REQUEST_TOKENS=0",
           "0 is outside 1 to 16777216."),
    _error("not a number", "throughput", "ENGINE_GPU_MEMORY_UTILIZATION=90%",
           "'90%' is not a number or auto."),
    _error("unit that is none", "throughput", "ENGINE_MAX_MODEL_LEN=16KB",
           "'16KB' is not a whole number (8192, or 8K = 8192, 8k = 8000) or auto, -1."),
    _error("above the range", "throughput", "ENGINE_GPU_MEMORY_UTILIZATION=1.4",
           "1.4 is outside the engine's range (> 0 and ≤ 1)."),
    _error("below the range", "throughput", "ENGINE_MAX_NUM_SEQS=0",
           "0 is outside the engine's range (≥ 1)."),
    _error("not among the choices", "throughput", "ENGINE_DTYPE=bfloat61",
           "'bfloat61' is not one of its values. Did you mean bfloat16? It takes: auto, bfloat16, float, float16, float32, half."),
    _error("choice of another case", "throughput", "ENGINE_PERFORMANCE_MODE=Throughput",
           "'Throughput' is not one of its values. Did you mean throughput? It takes: balanced, interactivity, throughput."),
    _error("quantization that vLLM does not have", "throughput", "ENGINE_QUANTIZATION=fp8_per_tenser",
           "'fp8_per_tenser' is not one of its values. Did you mean fp8_per_tensor? It takes: auto_awq, auto_gptq, awq, awq_marlin, "
           "compressed-tensors, deepseek_v4_fp8, experts_int8, fbgemm_fp8, fp8, fp8_per_block, fp8_per_channel, fp8_per_tensor, fp_quant, "
           "gpt_oss_mxfp4, gptq, gptq_marlin, humming, inc, int8_per_channel_weight_only, modelopt, modelopt_fp4, modelopt_mixed, "
           "modelopt_mxfp8, moe_wna16, mxfp4, mxfp8, nvfp4_per_token, online, quark, torchao."),
    _error("boolean in other words", "cpu", "ENGINE_ENFORCE_EAGER=yes",
           "'yes' is not a boolean. Write true or false: ENGINE_ENFORCE_EAGER=true"),
    _error("boolean in capitals", "cpu", "ENGINE_ENFORCE_EAGER=False",
           "'False' is not a boolean. Write true or false: ENGINE_ENFORCE_EAGER=false"),
    _error("not a boolean at all", "cpu", "ENGINE_ENFORCE_EAGER=maybe",
           "'maybe' is not a boolean. Write true or false."),
    _error("switch that has no off-form", "cpu", "ENGINE_DISABLE_LOG_STATS=false",
           "--disable-log-stats has no form that turns it off. Delete the line: it is off when it is not set."),
    _error("off-form of a switch", "throughput", "ENGINE_NO_ENABLE_PREFIX_CACHING=true",
           "this is how --enable-prefix-caching is turned off. Use ENGINE_ENABLE_PREFIX_CACHING=false."),
    _error("text flag used as a switch", "throughput", "ENGINE_REVISION=true",
           "--revision takes a text, and 'true' is how a switch is set."),
    _error("value that looks like a flag", "throughput", "ENGINE_REVISION=--headless",
           "'--headless' starts with a dash: the engine would read it as a flag."),
    _error("model that looks like a flag", "cpu", "ENGINE_MODEL=--help",
           "'--help' starts with a dash: the engine would read it as a flag."),
    _error("broken JSON", "throughput", 'ENGINE_SPECULATIVE_CONFIG={"method": "ngram"',
           "not valid JSON: Expecting ',' delimiter at character 19 of '{\"method\": \"ngram\"'."),
    _error("overrides that are no object", "throughput", "ENGINE_HF_OVERRIDES=[1]",
           """'[1]' is not one JSON object: {"name": value, …}."""),
    _error("overrides that are no JSON", "throughput", "ENGINE_HF_OVERRIDES=max_position_embeddings=4096",
           "not valid JSON: Expecting value at character 1 of 'max_position_embeddings=4096'."),
    _error("a draft in a list", "throughput", 'ENGINE_SPECULATIVE_CONFIG=["ngram"]',
           """'["ngram"]' is not one JSON object: {"name": value, …}."""),
    _error("wrong item in a list", "throughput", "ENGINE_CUDAGRAPH_CAPTURE_SIZES=1 2 four",
           "'four' is not a whole number."),
    _error("list of objects with an open one", "throughput", 'ENGINE_LORA_MODULES={"name": "a", "path": "/a"} {"name": "b"',
           """'{"name": "a", "path": "/a"} {"name": "b"' is not a list: Expecting ',' delimiter: line 1 column 41 (char 40). """
           "Write its elements with blanks between them: A B, or {…} {…}."),
    _error("list as a JSON list", "throughput", 'ENGINE_LORA_MODULES=[{"name": "a", "path": "/a"}]',
           """'[{"name": "a", "path": "/a"}]' is not a list: it is a JSON list. Write its elements with blanks between them: A B, or {…} {…}."""),
    _error("numbers as a JSON list", "throughput", "ENGINE_CUDAGRAPH_CAPTURE_SIZES=[1, 2, 4]",
           "'[1, 2, 4]' is not a list: it is a JSON list. Write its elements with blanks between them: A B, or {…} {…}."),
    _error("list of words and objects", "throughput", 'ENGINE_LORA_MODULES=a=/a {"name": "b", "path": "/b"}',
           """'a=/a {"name": "b", "path": "/b"}' is not a list: words and JSON objects do not mix. """
           "Write its elements with blanks between them: A B, or {…} {…}."),
    _error("list of objects with commas between", "throughput", 'ENGINE_LORA_MODULES={"name": "a", "path": "/a"},{"name": "b", "path": "/b"}',
           """'{"name": "a", "path": "/a"},{"name": "b", "path": "/b"}' is not a list: no blank after the object that ends at character 27. """
           "Write its elements with blanks between them: A B, or {…} {…}."),
    _error("adapters and no switch for them", "throughput", 'ENGINE_LORA_MODULES={"name": "a", "path": "/model/a"}',
           "no adapter is served without ENGINE_ENABLE_LORA=true. Add that line, or delete this one."),
    _error("list with an open quote", "throughput", "ENGINE_SERVED_MODEL_NAME=a 'b",
           "\"a 'b\" is not a list: No closing quotation. Write its elements with blanks between them: A B, or {…} {…}."),
    # removed flags
    _error("removed: --swap-space", "throughput", "ENGINE_SWAP_SPACE=8",
           "vLLM 0.33.0 has no --swap-space (removed in 0.18.0). Use ENGINE_KV_OFFLOADING_SIZE=8."),
    _error("removed: --max-seq-len-to-capture", "throughput", "ENGINE_MAX_SEQ_LEN_TO_CAPTURE=32768",
           "vLLM 0.33.0 has no --max-seq-len-to-capture (removed in 0.11.0). Use ENGINE_MAX_CUDAGRAPH_CAPTURE_SIZE=512."),
    _error("removed: --num-scheduler-steps", "throughput", "ENGINE_NUM_SCHEDULER_STEPS=8",
           "vLLM 0.33.0 has no --num-scheduler-steps (removed in 0.10.1). Use ENGINE_ASYNC_SCHEDULING=true."),
    _error("removed: --speculative-model", "throughput", "ENGINE_SPECULATIVE_MODEL=org/draft",
           'vLLM 0.33.0 has no --speculative-model (removed by vllm#15466, 2025-04). Use ENGINE_SPECULATIVE_CONFIG={"method": '
           '"draft_model", "model": "org/draft", "num_speculative_tokens": 4}.'),
    _error("removed: --quantized-kv-cache", "throughput", "ENGINE_QUANTIZED_KV_CACHE=true",
           "vLLM 0.33.0 has no --quantized-kv-cache (no release is known to have had it). Use ENGINE_KV_CACHE_DTYPE=fp8."),
    _error("removed: --preemption-mode", "throughput", "ENGINE_PREEMPTION_MODE=swap",
           "vLLM 0.33.0 has no --preemption-mode (removed with the V0 engine). Use ENGINE_WATERMARK=0.01."),
    _error("removed without a successor", "throughput", "ENGINE_USE_V2_BLOCK_MANAGER=true",
           "vLLM 0.33.0 has no --use-v2-block-manager (without effect since vllm#8704, 2024-10, then removed). Delete the line: "
           "nothing replaces it and nothing is needed."),
    # the engine's environment
    _error("unknown VLLM_ variable", "cpu", "VLLM_CPU_KVCACHE_SPAC=4",
           "vLLM 0.32.0 knows no such variable (it would only warn). Did you mean VLLM_CPU_KVCACHE_SPACE?"),
    _error("flag with vLLM's own prefix", "cpu", "VLLM_MAX_NUM_SEQS=4",
           "vLLM has no such variable; VLLM_ is its own prefix. Use ENGINE_MAX_NUM_SEQS=4."),
    _error("variable that is gone", "throughput", "VLLM_ATTENTION_BACKEND=FLASHINFER",
           "vLLM 0.33.0 does not read VLLM_ATTENTION_BACKEND (deprecated by vllm#26315, then removed). Use "
           "ENGINE_ATTENTION_BACKEND=FLASHINFER."),
    _error("variable out of its range", "throughput", "CUDA_DEVICE_MAX_CONNECTIONS=64",
           "'64' is not a number from 1 to 32."),
    _error("variable of the wrong form", "throughput", "CUBLAS_WORKSPACE_CONFIG=4096:8",
           "'4096:8' is not a workspace :KiB:COUNT, such as :4096:8."),
    # the bundle's own keys
    _error("unknown key of the bundle", "cpu", "GATEWAY_PROT=80",
           "no such setting of the bundle. Did you mean GATEWAY_PORT?"),
    _error("no prefix", "cpu", "MAX_NUM_SEQS=4",
           "engine flags start with ENGINE_. Use ENGINE_MAX_NUM_SEQS=…"),
    _error("unknown key", "cpu", "FROBNICATE=1",
           "unknown. Engine flags start with ENGINE_, settings of the bundle with HOST_, GATEWAY_, IMAGE_ or MODEL_."),
    _error("port that is none", "cpu", "GATEWAY_PORT=70000",
           "70000 is outside 0 to 65535."),
    _error("port in words", "cpu", "GATEWAY_PORT=http",
           "'http' is not a whole number."),
    _error("address that is none", "cpu", "GATEWAY_BIND=localhost",
           "'localhost' is not an IP address. 127.0.0.1 serves this host only, 0.0.0.0 every network."),
    _error("open to all without a key", "cpu", "GATEWAY_BIND=0.0.0.0",
           "0.0.0.0 lets other hosts in, and no key is asked for. Set GATEWAY_API_KEYS_FILE to a file with one key per line, or "
           "use GATEWAY_BIND=127.0.0.1."),
    _error("size without a unit", "cpu", "HOST_ENGINE_MEMORY=8",
           "'8' is not a number and a unit (b, k, m, g): 8g."),
    _error("choice of the bundle", "cpu", "HOST_SETUP=nevr",
           "'nevr' is not one of its values. Did you mean never? It takes: auto, never."),
    _error("project name that Compose refuses", "cpu", "HOST_PROJECT=My Project",
           "'My Project' is not a project name: lower-case letters, digits, - and _."),
    _error("needed value taken away", "cpu", "HOST_SHM_SIZE=",
           "needs a value; env/base.env holds the default."),
    _error("image for no hardware", "cpu", "IMAGE_TARGET=rocm",
           "'rocm' is not one of its values. It takes: cpu, cuda."),
    _error("key that the bundle writes", "cpu", "HOST_PROFILE=cpu",
           "written by the bundle itself; delete the line."),
    # secrets
    _error("API key in an env file", "cpu", "ENGINE_API_KEY=sk-123",
           _SECRET + " The gateway asks for keys: write one per line into a file and set GATEWAY_API_KEYS_FILE to it."),
    _error("hub token in an env file", "cpu", "HF_TOKEN=hf_123",
           _SECRET + " Download the model on the host and set MODEL_DIR, or set HF_TOKEN_PATH to a file that the engine can read."),
    _error("any other secret", "cpu", "LMCACHE_SECRET=x",
           _SECRET),
    # what the bundle decides
    _error("engine on another port", "cpu", "ENGINE_PORT=9000",
           "must be 8000, where the gateway reaches the engine. GATEWAY_BIND and GATEWAY_PORT say where it is published."),
    _error("engine on no address", "cpu", "ENGINE_HOST=",
           "must be 0.0.0.0, where the gateway reaches the engine. GATEWAY_BIND and GATEWAY_PORT say where it is published."),
    _error("engine with TLS", "cpu", "ENGINE_SSL_KEYFILE=/k.pem",
           "TLS ends at the gateway, which reaches the engine without it. Set GATEWAY_TLS_CERT_FILE to a PEM file with "
           "certificate and key."),
    _error("second configuration file", "cpu", "ENGINE_CONFIG=/c.yaml",
           "a second file would hide its values from every check. Write each of its lines as ENGINE_<NAME>=<value>."),
    _error("a share that is measured, without a GPU", "cpu", "ENGINE_GPU_MEMORY_UTILIZATION=auto",
           "auto measures a GPU, and the CPU engine uses none. Delete the line."),
    # contradictions
    _error("killed while it drains", "cpu", "HOST_STOP_GRACE_S=33",
           "33 s is not more than ENGINE_SHUTDOWN_TIMEOUT=30 and the 3 s before it in which the gateway is told: Docker would kill the engine "
           "while it finishes its requests. Use HOST_STOP_GRACE_S=45."),
    _error("fewer tokens than requests", "seed", "ENGINE_MAX_NUM_BATCHED_TOKENS=128",
           "a step of 128 tokens cannot hold a token of each of ENGINE_MAX_NUM_SEQS=512 requests. Use "
           "ENGINE_MAX_NUM_BATCHED_TOKENS=512 or more."),
    _error("prompt longer than a step", "throughput", "ENGINE_ENABLE_CHUNKED_PREFILL=false",
           "without chunked prefill a whole prompt must fit one step, and ENGINE_MAX_NUM_BATCHED_TOKENS=8192 is less than "
           "ENGINE_MAX_MODEL_LEN=16384. Delete the line, or raise that."),
    _error("more GPUs than there are", "throughput", "ENGINE_TENSOR_PARALLEL_SIZE=2",
           "splits the model over 2 GPUs, and the engine gets HOST_GPU_COUNT=1. Use HOST_GPU_COUNT=2."),
    _error("fewer GPUs named than taken", "throughput", "HOST_GPUS=0,1",
           "names 2, and HOST_REPLICAS=1 engines with HOST_GPU_COUNT=1 take 1. Name as many, or leave it empty for the first ones."),
    _error("more replicas than compose.yaml has", "cpu", "HOST_REPLICAS=9", "9 is outside 1 to 8."),
    _error("data parallel on one GPU", "throughput", "ENGINE_DATA_PARALLEL_SIZE=2",
           "splits the model over 2 GPUs, and the engine gets HOST_GPU_COUNT=1. Use HOST_GPU_COUNT=2."),
    _error("more copies here than there are", "throughput", "ENGINE_DATA_PARALLEL_SIZE_LOCAL=2",
           "is more than ENGINE_DATA_PARALLEL_SIZE=1, all the copies that there are. Delete the line."),
    _error("a GPU that the container numbers otherwise", "throughput", "CUDA_VISIBLE_DEVICES=1",
           "the engine's container holds 1 GPU, numbered from 0, and 1 is none of them. Delete the line; HOST_GPUS=1 chooses among the host's."),
    _error("tool choice without a parser", "throughput", "ENGINE_ENABLE_AUTO_TOOL_CHOICE=true",
           "the engine refuses it without a parser of the model's tool calls. Add ENGINE_TOOL_CALL_PARSER= with the model's "
           "(hermes, llama3_json, qwen3_coder, …), or delete the line."),
    _error("a tool parser that is none", "throughput", "ENGINE_TOOL_CALL_PARSER=qwen3coder",
           "vLLM 0.33.0 has no parser 'qwen3coder', and ENGINE_TOOL_PARSER_PLUGIN names no file that brings it. Did you mean qwen3_coder?"),
    _error("a part of a GiB for the CPU's cache", "cpu", "VLLM_CPU_KVCACHE_SPACE=0.25",
           "'0.25' is not a whole number, and the engine ends at anything else. Use VLLM_CPU_KVCACHE_SPACE=1."),
    _error("a part of a second where whole ones are taken", "throughput", "VLLM_ENGINE_READY_TIMEOUT_S=1800.5",
           "'1800.5' is not a whole number, and the engine ends at anything else. Use VLLM_ENGINE_READY_TIMEOUT_S=1801."),
    _error("a word where the engine reads 0 or 1", "throughput", "VLLM_USE_DEEP_GEMM=true",
           "'true' is not a whole number, and the engine ends at anything else."),
    _error("a word where the engine reads a number", "throughput", "VLLM_LOG_STATS_INTERVAL=often",
           "'often' is not a number, and the engine ends at anything else."),
    _error("a value that the engine's variable does not have", "throughput", "VLLM_WORKER_MULTIPROC_METHOD=spwan",
           "'spwan' is not one of its values. Did you mean spawn? It takes: spawn, fork."),
    _error("no GPU in sight", "throughput", "CUDA_VISIBLE_DEVICES=-1",
           "'-1' hides every GPU from the engine, or the ones from the first such word on. Delete the line; HOST_GPUS chooses among the host's."),
    _error("fewer GPUs in sight than the model is split over", "throughput",
           "CUDA_VISIBLE_DEVICES=0\nHOST_GPU_COUNT=2\nENGINE_TENSOR_PARALLEL_SIZE=2",
           "shows the engine 1 of its GPUs, and it splits the model over 2. Delete the line."),
    _error("GPUs chosen where Docker chooses them", "throughput", "NVIDIA_VISIBLE_DEVICES=1",
           "Docker sets it from HOST_GPUS. Delete the line; HOST_GPUS chooses among the host's GPUs."),
    _error("a reasoning parser that is none", "throughput", "ENGINE_REASONING_PARSER=deepseek-r1",
           "vLLM 0.33.0 has no parser 'deepseek-r1', and ENGINE_REASONING_PARSER_PLUGIN names no file that brings it. Did you mean deepseek_r1?"),
    _warning("nearly a variable that something reads", "throughput", "CUDA_DEVICE_MAX_CONNECTION=32",
             "nothing is known to read this variable. Did you mean CUDA_DEVICE_MAX_CONNECTIONS?"),
    _error("all GPUs for one and a choice of them", "throughput", "HOST_ACCELERATOR=cuda-cdi\nHOST_GPUS=1",
           "gives an engine all GPUs, and HOST_GPUS or HOST_REPLICAS divide them. Leave one of the two out."),
    _error("GPUs with blanks", "throughput", "HOST_GPUS='0, 1'", "'0, 1' is not a list of GPUs, by index or UUID: 0,1."),
    _error("what is derived", "cpu", "HOST_GPUS_2=3", "written by the bundle itself; delete the line."),
    _error("shared memory above the limit", "cpu", "HOST_SHM_SIZE=8g",
           "shared memory counts within HOST_ENGINE_MEMORY=8g. Make it less."),
    _error("hub name without a network", "cpu", "ENGINE_MODEL=Qwen/Qwen3-0.6B",
           "Qwen/Qwen3-0.6B is a hub name, and the engine has no network. Set MODEL_DIR to a directory that holds the model, or "
           "HOST_ENGINE_OFFLINE=false to let the engine download it."),
    _error("driver that may not compile", "throughput", "CUDA_DISABLE_PTX_JIT=1",
           "FlashAttention 2 has no code for an RTX 5090 (sm_120) but PTX, and could not be loaded. Delete the line."),
    _error("one flag by two names", "throughput", "ENGINE_DEVICE_MEMORY_UTILIZATION=0.9",
           "sets --gpu-memory-utilization, which ENGINE_GPU_MEMORY_UTILIZATION sets too. Delete one of the two lines."),
    _error("image of the other kind", "cpu", "IMAGE_ENGINE=me/engine:cuda-1",
           "me/engine:cuda-1 is the name of a cuda image, and IMAGE_TARGET=cpu. Change both lines, or neither."),
    Bad("expandable segments with offloading", "throughput", "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True\nENGINE_KV_OFFLOADING_SIZE=8", (
        (1, "PYTORCH_CUDA_ALLOC_CONF", "error",
         "vLLM does not start with expandable_segments:True and ENGINE_KV_OFFLOADING_SIZE together. Delete one of the two lines."),
    )),
    Bad("allocator set by both names", "throughput", "PYTORCH_CUDA_ALLOC_CONF=max_split_size_mb:64\nPYTORCH_ALLOC_CONF=max_split_size_mb:64", (
        (2, "PYTORCH_ALLOC_CONF", "error",
         "PYTORCH_CUDA_ALLOC_CONF is set too, and PyTorch's parts do not agree which one wins. Delete one of the two lines."),
    )),
    Bad("graph sizes that contradict", "throughput", "ENGINE_MAX_CUDAGRAPH_CAPTURE_SIZE=64\nENGINE_CUDAGRAPH_CAPTURE_SIZES=1 2 4", (
        (1, "ENGINE_MAX_CUDAGRAPH_CAPTURE_SIZE", "error",
         "64 is not the largest of ENGINE_CUDAGRAPH_CAPTURE_SIZES=1 2 4, and vLLM refuses the pair. Delete one of the two lines."),
    )),
    Bad("request metrics without metrics", "cpu", "ENGINE_DISABLE_LOG_STATS=true\nENGINE_ENABLE_PER_REQUEST_METRICS=true", (
        (1, "ENGINE_DISABLE_LOG_STATS", "warning",
         "turns off the metrics that the health check and `make status` read. Delete the line."),
        (2, "ENGINE_ENABLE_PER_REQUEST_METRICS", "error",
         "needs the metrics that ENGINE_DISABLE_LOG_STATS turns off. Delete that line."),
    )),
    # warnings: legal, but likely not what is wanted
    _warning("the seed's 0.99", "throughput", "ENGINE_GPU_MEMORY_UTILIZATION=0.99",
             "0.99 × 31.36 GiB = 31.05 GiB is more than the 30.86 GiB that are free on an RTX 5090 at start: vLLM would not start"
             " there. At most 0.98 without a desktop; use auto, or try 0.93."),
    _warning("allocator that harms", "throughput", "PYTORCH_CUDA_ALLOC_CONF=backend:cudaMallocAsync",
             "cudaMallocAsync breaks vLLM's memory pools (profiling, CUDA graphs, sleep mode). Delete the line; if memory "
             "fragments, use PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True."),
    _warning("deprecated flag", "throughput", "ENGINE_DISABLE_CASCADE_ATTN=true",
             "vLLM 0.33.0: --disable-cascade-attn is deprecated and has no effect since cascade attention has been removed. "
             "It will be removed in v0.33.0."),
    _warning("no compile cache", "throughput", "CUDA_CACHE_DISABLE=1",
             "every start would compile FlashAttention 2 for an RTX 5090 again, for minutes. Delete the line."),
    _warning("compatibility on a GeForce", "throughput", "VLLM_ENABLE_CUDA_COMPATIBILITY=1",
             "a GeForce knows no forward compatibility (CUDA error 803). Delete the line."),
    _warning("development routes", "cpu", "VLLM_SERVER_DEV_MODE=1",
             "opens routes that reset and suspend the engine; only the gateway's list of paths guards them."),
    _warning("more cache than memory", "cpu", "VLLM_CPU_KVCACHE_SPACE=6",
             "6 GiB of KV cache and about 3 GiB for the engine are more than HOST_ENGINE_MEMORY=8g: the kernel would kill it. "
             "Lower the one, or raise the other."),
    Bad("share that is not used", "throughput", "ENGINE_KV_CACHE_MEMORY_BYTES=4G", (
        (-1, "ENGINE_GPU_MEMORY_UTILIZATION", "warning",
         "not used: ENGINE_KV_CACHE_MEMORY_BYTES sizes the cache. Delete one of the two lines."),
    )),
    Bad("model directory that is not served", "cpu", "MODEL_DIR=/srv/m\nENGINE_MODEL=/opt/bundle/selftest-model", (
        (2, "ENGINE_MODEL", "warning",
         "/opt/bundle/selftest-model is served, and MODEL_DIR=/srv/m is not. Delete one of the two lines."),
    )),
)
