"""From an engine's log to what an operator needs: which phase a start is in, what went wrong, what to do next."""

import re

# The last line of a log that matches any says what the engine is doing now. Seen in the logs of vLLM 0.26.0 and 0.33.0 (CUDA) and
# 0.32.0 (CPU); tests/unit/data holds such logs.
_PHASES = (
    (r"Application startup complete", "first answer"),
    (r"init engine \(profile.* took", "starting the API"),
    (r"Graph capturing finished|CPU KV cache size", "warming up"),
    (r"GPU KV cache size|Capturing CUDA graphs", "capturing graphs"),
    (r"torch\.compile (?:took|and initial profiling)|Initial profiling/warmup run took|Profiling CUDA graph memory", "profiling memory"),
    (r"Model loading took|Using cache directory|Dynamo bytecode transform|Compiling a graph|Directly load", "compiling"),
    (r"Starting to load model|Loading model from scratch|Loading safetensors|Loading weights", "loading weights"),
    # The API server has read the whole configuration when it prints the first of these; the engine's process, when it lives, the second.
    (r"\(APIServer.*Final IR op priority|Initializing a V1 LLM engine", "starting the engine process"),
    (r"non-default args", "configuring"),
)

FIRST_PHASE = "starting Python"
"""Before the first line that tells."""

# (pattern in the log, what to do). Read top down: the specific before the general.
_REMEDIES = (
    (r"Free memory on device .* less than desired", "another process holds GPU memory, or ENGINE_GPU_MEMORY_UTILIZATION is more than is free: "
     "`nvidia-smi` shows who; lower the value (0.90 leaves room for a desktop)"),
    (r"No available memory for the cache blocks|larger than the available KV cache memory|KV cache is needed, which is larger",
     "the model leaves too little room for its KV cache: lower ENGINE_MAX_MODEL_LEN, or set ENGINE_KV_CACHE_DTYPE=fp8 or "
     "ENGINE_QUANTIZATION=fp8_per_tensor (on the CPU: raise VLLM_CPU_KVCACHE_SPACE and HOST_ENGINE_MEMORY)"),
    (r"CUDA out of memory|torch\.OutOfMemoryError",
     "GPU memory ran out: lower ENGINE_MAX_NUM_SEQS, ENGINE_MAX_NUM_BATCHED_TOKENS or ENGINE_GPU_MEMORY_UTILIZATION"),
    (r"Cannot allocate memory|MemoryError", "host memory ran out: raise HOST_ENGINE_MEMORY"),
    (r"No space left on device",
     "a disk is full: `docker system df` and `df -h`; the engine writes to its cache volume and to /tmp (1 GB)"),
    (r"Permission denied", "the engine runs as uid 2000: model files need to be readable by others (chmod -R o+rX MODEL_DIR)"),
    (r"max_model_len .* is greater than the derived|User-specified max_model_len",
     "lower ENGINE_MAX_MODEL_LEN to what the model supports; the log line names it"),
    (r"NVIDIA driver on your system is too old|cudaErrorInsufficientDriver|CUDA driver version is insufficient",
     "CUDA 13 needs NVIDIA driver 580 or newer"),
    (r"no kernel image is available", "this GPU's architecture is not in the image: `make doctor` shows its compute capability"),
    (r"Failed to infer device type|No CUDA GPUs are available|libcuda\.so",
     "the container sees no GPU: `make doctor` checks the NVIDIA container runtime"),
    (r"unrecognized arguments|invalid choice|error: argument", "`make check` names the env line"),
    (r"huggingface\.co|LocalEntryNotFoundError|HF_HUB_OFFLINE|offline mode",
     "the engine has no network: mount the model with MODEL_DIR, or for a hub name set HOST_ENGINE_OFFLINE=false"),
)

# The entrypoint ends the log with what it found to be the cause.
_ENDED = re.compile(r"^entrypoint: (?:the engine .*; its last error: )?(.+)$", re.MULTILINE)


def phase(log: str) -> str:
    """The phase of a start that `log` (a container's output since that start) has reached."""
    return next((name for line in reversed(log.splitlines()) if (name := phase_of(line))), FIRST_PHASE)


def phase_of(line: str) -> str:
    """The phase that begins, or goes on, with this line of a log; "" where the line does not tell."""
    return next((name for pattern, name in _PHASES if re.search(pattern, line)), "")


def last_error(log: str) -> str:
    """The engine's own error, as the entrypoint passed it on; the log's last line where it could not (killed together with the engine)."""
    said = _ENDED.findall(log)
    return said[-1] if said else next((line for line in reversed(log.splitlines()) if line.strip()), "it printed nothing")


def remedy(log: str) -> str:
    """What to do next, by the first known cause in the log; a general pointer when none is known."""
    for pattern, advice in _REMEDIES:
        if re.search(pattern, log):
            return advice
    return "`make logs` shows the whole log; `make check` the settings; `make doctor` the host"
