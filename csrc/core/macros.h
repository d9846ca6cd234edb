// How a per-voxel function is declared so that the CPU and the CUDA kernels share it.
//
// On the CPU each kernel file is compiled once per instruction set. An inline function that the linker merged across
// those copies could carry AVX-512 code into the baseline, so everything here is forced inline and has no linkage.
#pragma once

#if defined(__CUDACC__)
#define DEQREG_INLINE __host__ __device__ __forceinline__
#else
#define DEQREG_INLINE inline __attribute__((always_inline))
#endif
