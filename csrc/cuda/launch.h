// What every CUDA kernel needs: the choice of types, the cut of a grid into tiles, and the launch itself.
//
// A launch never looks at its result: the caller asks cudaGetLastError, which the runtime sets.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "kernels.h"

namespace deqreg::cuda {

constexpr int block_threads = 256;
constexpr int warp_lanes = 32;
constexpr int block_warps = block_threads / warp_lanes;
constexpr std::int64_t max_blocks_x = (std::int64_t{1} << 31) - 1, max_blocks_yz = 65535;  // of a launch

/// The type of coordinates and sums beside values stored as `Storage`.
template <class Storage>
using CoordinateOf = std::conditional_t<std::is_same_v<Storage, double>, double, float>;

/// A type as a value, to hand to a generic lambda.
template <class T>
struct Type {
  using type = T;
};

/// Calls body(Type<Storage>) for the stored type.
template <class Body>
void select_storage(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::float32: return body(Type<float>{});
    case DType::float64: return body(Type<double>{});
    case DType::float16: return body(Type<__half>{});
    case DType::bfloat16: return body(Type<__nv_bfloat16>{});
  }
}

/// Calls body(Type<T>) for operations on fields, which are float32 or float64.
template <class Body>
void select_field(DType dtype, const Body& body) {
  dtype == DType::float64 ? body(Type<double>{}) : body(Type<float>{});
}

/// Calls body(integral_constant<int, D>).
template <class Body>
void select_dims(int dims, const Body& body) {
  dims == 3 ? body(std::integral_constant<int, 3>{}) : body(std::integral_constant<int, 2>{});
}

/// Calls body(Type<Index>): 32-bit offsets, half the registers and instructions, where `voxels` of one channel fit.
template <class Body>
void select_index(std::int64_t voxels, const Body& body) {
  voxels < (std::int64_t{1} << 31) ? body(Type<std::int32_t>{}) : body(Type<std::int64_t>{});
}

inline std::int64_t at_most(std::int64_t value, std::int64_t limit) { return value < limit ? value : limit; }

inline std::int64_t divide_up(std::int64_t value, std::int64_t by) { return (value + by - 1) / by; }

/// The dynamic shared memory of a block, see run_shared.
template <class T>
__device__ __forceinline__ T* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char dynamic_shared_bytes[];
  return reinterpret_cast<T*>(dynamic_shared_bytes);
}

/// Runs a kernel with `shared_bytes` of dynamic shared memory. Nothing waits for it.
template <class... Parameters, class... Arguments>
void run_shared(cudaStream_t stream, dim3 blocks, dim3 threads, std::size_t shared_bytes, void (*kernel)(Parameters...),
                Arguments... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = blocks;
  config.blockDim = threads;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  cudaLaunchKernelEx(&config, kernel, arguments...);
}

/// Runs a kernel. Nothing waits for it.
template <class... Parameters, class... Arguments>
void run(cudaStream_t stream, dim3 blocks, dim3 threads, void (*kernel)(Parameters...), Arguments... arguments) {
  run_shared(stream, blocks, threads, 0, kernel, arguments...);
}

/// Blocks for `count` elements in a grid-stride loop, see for_elements.
inline dim3 element_blocks(std::int64_t count) {
  return dim3(static_cast<unsigned>(at_most(divide_up(count, block_threads), max_blocks_x)));
}

/// Calls body(i) for every i in [0, count), neighbouring threads on neighbouring elements.
template <class Body>
__device__ __forceinline__ void for_elements(std::int64_t count, const Body& body) {
  const std::int64_t step = std::int64_t{gridDim.x} * block_threads;
  for (std::int64_t i = std::int64_t{blockIdx.x} * block_threads + threadIdx.x; i < count; i += step) body(i);
}

/// A grid cut into tiles, one a block: 32 voxels along the fastest axis, a warp to a row, and a few rows and planes, so
/// that what neighbouring voxels read together is read by one block and comes out of its first-level cache. A thread
/// has `depth` voxels, `tile_step` apart along the first axis, to keep several loads in flight.
template <int D>
struct Tiling {
  static constexpr std::int32_t rows = D == 3 ? 4 : block_warps;  // warps side by side along axis D - 2
  static constexpr std::int32_t tile_step = block_warps / (D == 3 ? rows : 1);

  std::int32_t size[D];    // voxels
  std::uint32_t tiles[D];  // along each axis; their product fits 32 bits for anything that fits a device
  std::int64_t batch;

  Tiling(const Grid& grid, std::int64_t samples, std::int32_t depth) : batch(samples) {
    for (int a = 0; a < D; ++a) {
      const std::int32_t extent = a == D - 1 ? warp_lanes : a == 0 ? tile_step * depth : rows;
      size[a] = static_cast<std::int32_t>(grid.size[a]);
      tiles[a] = static_cast<std::uint32_t>(divide_up(grid.size[a], extent));
    }
  }

  __host__ __device__ std::uint32_t per_sample() const {
    std::uint32_t product = 1;
    for (int a = 0; a < D; ++a) product *= tiles[a];
    return product;
  }

  dim3 blocks() const {
    return dim3(static_cast<unsigned>(at_most(per_sample(), max_blocks_x)),
                static_cast<unsigned>(at_most(batch, max_blocks_yz)));
  }
};

/// Calls body(sample, position) with the first voxel of this thread in every tile of its block; the voxel may lie
/// beyond the grid.
template <int Depth, int D, class Body>
__device__ __forceinline__ void for_tiles(const Tiling<D>& tiling, const Body& body) {
  const std::int32_t lane = threadIdx.x % warp_lanes, warp = threadIdx.x / warp_lanes;
  for (std::int64_t sample = blockIdx.y; sample < tiling.batch; sample += gridDim.y) {
    for (std::uint32_t tile = blockIdx.x; tile < tiling.per_sample(); tile += gridDim.x) {
      std::int32_t position[D];
      const std::uint32_t row = tile / tiling.tiles[D - 1];
      position[D - 1] = static_cast<std::int32_t>(tile - row * tiling.tiles[D - 1]) * warp_lanes + lane;
      if constexpr (D == 3) {
        const std::uint32_t plane = row / tiling.tiles[1];
        position[1] =
            static_cast<std::int32_t>(row - plane * tiling.tiles[1]) * Tiling<D>::rows + warp % Tiling<D>::rows;
        position[0] = static_cast<std::int32_t>(plane) * Tiling<D>::tile_step * Depth + warp / Tiling<D>::rows;
      } else {
        position[0] = static_cast<std::int32_t>(row) * Tiling<D>::tile_step * Depth + warp;
      }
      body(sample, position);
    }
  }
}

/// Whether a position lies in the grid.
template <int D>
__device__ __forceinline__ bool contains(const Tiling<D>& tiling, const std::int32_t (&position)[D]) {
  bool inside = true;
  for (int a = 0; a < D; ++a) inside = inside && position[a] < tiling.size[a];
  return inside;
}

/// The offset of a position within a sample's channel.
template <class Index, int D>
__device__ __forceinline__ Index offset_of(const Tiling<D>& tiling, const std::int32_t (&position)[D]) {
  Index offset = position[0];
  for (int a = 1; a < D; ++a) offset = offset * tiling.size[a] + position[a];
  return offset;
}

}  // namespace deqreg::cuda
