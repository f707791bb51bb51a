#!/bin/bash
# All proofs of the CUDA image, as the engine's own user and without a GPU; the first that fails ends the build.
#
#   cuda.sh > PROTOCOL
set -euo pipefail
here=$(dirname "$0")
site=$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
scratch=$(mktemp --directory)
trap 'rm -rf "$scratch"' EXIT
# vLLM's modules are linked against the driver, which is not here.
ln -s "$CUDA_HOME/lib/stubs/libcuda.so" "$scratch/libcuda.so.1"

prove() {
    echo "--- $1" | tee /dev/stderr
    shift
    "$@" 2> "$scratch/said" | tee /dev/stderr || { cat "$scratch/said" >&2; return 5; }
}

prove 'no package overwrote files of another' python "$here/packages.py"
prove 'the modules carry code for an RTX 5090' python "$here/sm120.py" "$site"
prove 'what a profile may need can be imported' env LD_LIBRARY_PATH="$scratch" python "$here/imports.py"
prove 'the command line answers' sh -c "python '$here/serve_help.py' | grep --count -- '^  --'"
prove 'the compilers of the run time work' env LD_LIBRARY_PATH="$scratch" python "$here/compilers.py"
prove 'FlashInfer compiles' env FLASHINFER_WORKSPACE_BASE="$scratch" python "$here/flashinfer_compile.py"
