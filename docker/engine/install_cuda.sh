#!/bin/bash
# Fill /opt/venv with the CUDA engine, remove what nothing needs, and make a CUDA toolkit out of the wheels' compiler.
set -euo pipefail

/build/install.sh /build/cuda.lock
site=/opt/venv/lib/python${PYTHON_VERSION}/site-packages
"/usr/bin/python${PYTHON_VERSION}" /build/prune_cuda.py "$site"

# FlashInfer compiles kernels when the engine starts. The wheels hold nvcc, headers and libraries, but no lib64, no libcudart.so
# without a version to link against, and no libcuda.so: that one belongs to the driver, which the host adds to a running container.
cd "$site/nvidia/cu13"
ln -s lib lib64
ln -s "$(basename lib/libcudart.so.*)" lib/libcudart.so
# A stand-in for the driver to link against: every function of cuda.h, each answering CUDA_ERROR_NO_DEVICE. Its soname is the real
# one's, so that what was linked against it loads the driver. It lies in stubs/, where the loader does not look.
mkdir lib/stubs
echo '#include <cuda.h>' | gcc -E -P -Iinclude -xc - | grep -oE '\bcu[A-Z][A-Za-z0-9_]* *\(' | tr -d ' (' | sort -u |
    sed 's/.*/int &(void) { return 100; }/' | gcc -shared -fPIC -Wl,-soname,libcuda.so.1 -o lib/stubs/libcuda.so -xc -
