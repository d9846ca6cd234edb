// Device code as plain C++: the words of the language extension, a thread's coordinates, launches, and intrinsics.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>

#include "cuda_runtime_api.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __shared__ thread_local  // one block runs at a time, on one thread of the host

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes;
  cudaStream_t stream;
  void* attrs;
  unsigned numAttrs;
};

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

namespace emulation {

/// Runs every block from the last to the first, and the threads of each as well: results must not depend on it.
extern bool reversed;

/// `kernel` tells launches apart, `body` is what a thread runs.
cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel, const std::function<void()>& body);
cudaError_t allow_shared_memory(const void* kernel, int bytes);
void synchronize_block();
void synchronize_warp(unsigned mask);
/// The 64 bits that lane `source` of this warp brings.
std::uint64_t exchange(unsigned mask, std::uint64_t bits, unsigned source);
unsigned lane();

template <class T>
T shuffle(unsigned mask, T value, unsigned source) {
  static_assert(sizeof(T) <= sizeof(std::uint64_t));
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = exchange(mask, bits, source);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace emulation

namespace deqreg::cuda {
extern thread_local unsigned char dynamic_shared_bytes[];
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  return emulation::launch(*config, reinterpret_cast<const void*>(kernel),
                           [&] { kernel(static_cast<Parameters>(arguments)...); });
}

template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute, int bytes) {
  return emulation::allow_shared_memory(reinterpret_cast<const void*>(kernel), bytes);
}

inline void __syncthreads() { emulation::synchronize_block(); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { emulation::synchronize_warp(mask); }

template <class T>
T __shfl_sync(unsigned mask, T value, int source) {
  return emulation::shuffle(mask, value, static_cast<unsigned>(source) % 32);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes) {
  return emulation::shuffle(mask, value, emulation::lane() ^ static_cast<unsigned>(lanes));
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned by) {
  const unsigned lane = emulation::lane();
  return emulation::shuffle(mask, value, lane >= by ? lane - by : lane);
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned by) {
  const unsigned lane = emulation::lane();
  return emulation::shuffle(mask, value, lane + by < 32 ? lane + by : lane);
}

template <class T>
T atomicAdd(T* address, T value) {
  const T before = *address;
  *address = static_cast<T>(before + value);
  return before;
}

template <class T>
T atomicMax(T* address, T value) {
  const T before = *address;
  *address = value > before ? value : before;
  return before;
}

template <class T>
T atomicMin(T* address, T value) {
  const T before = *address;
  *address = value < before ? value : before;
  return before;
}

inline long long __double2ll_rn(double value) { return std::llrint(value); }

inline double __longlong_as_double(long long bits) {
  double value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline long long __double_as_longlong(double value) {
  long long bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}
