// The CUDA kernels, on a GPU or emulated.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstdlib>

#include "backend.h"

namespace native {

inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}

class Cuda {
 public:
  Cuda() = default;
  Cuda(const Cuda&) = delete;
  Cuda& operator=(const Cuda&) = delete;
  ~Cuda() {
    for (void* pointer : kept_) cudaFree(pointer);
  }

  DType stored(DType dtype) const { return dtype; }

  void* input(const Values& values, DType dtype) { return raw(encode(values, dtype)); }

  template <class T>
  T* raw(const std::vector<T>& values) {
    void* pointer = allocate(values.size() * sizeof(T));
    check(cudaMemcpy(pointer, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice), "copy to the device");
    return static_cast<T*>(pointer);
  }

  template <class T>
  std::vector<T> read_raw(const T* pointer, std::size_t count) const {
    std::vector<T> values(count);
    check(cudaMemcpy(values.data(), pointer, count * sizeof(T), cudaMemcpyDeviceToHost), "copy from the device");
    return values;
  }

  void* output(std::size_t count, DType dtype) { return allocate(count * size_of(dtype)); }

  template <class Op>
  void* workspace(const Op& op) {
    return allocate(deqreg::cuda::workspace_bytes(op));
  }

  template <class Op>
  void launch(const Op& op) {
    deqreg::cuda::launch(op, nullptr);
    check(cudaGetLastError(), "launch");
    check(cudaDeviceSynchronize(), "run");
  }

  Values read(const void* pointer, std::size_t count, DType dtype) const {
    return decode(read_raw(static_cast<const unsigned char*>(pointer), count * size_of(dtype)), dtype);
  }

 private:
  /// Filled with not-a-number, so that an element which nothing writes shows.
  void* allocate(std::size_t bytes) {
    void* pointer = nullptr;
    if (bytes == 0) return pointer;
    check(cudaMalloc(&pointer, bytes), "allocate");
    check(cudaMemset(pointer, 0xff, bytes), "fill");
    kept_.push_back(pointer);
    return pointer;
  }

  std::vector<void*> kept_;
};

}  // namespace native
