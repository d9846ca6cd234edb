// Linear interpolation between grids and its adjoint, a voxel of the result a thread. Neighbouring threads read
// neighbouring voxels of the finer grid, and what they share comes out of the cache; nothing is summed by atomics.
#include "core/resize.h"
#include "cuda/launch.h"

namespace deqreg::cuda {
namespace {

// Left to itself the compiler gives the adjoint 32 registers on sm_90, and spills.
constexpr int resident_blocks = 4;

/// Both grids, by value to a kernel.
template <int D, class T>
struct Axes {
  core::ResizeAxis<T> axis[D];
  std::int64_t source_voxels, target_voxels;

  Axes(const Grid& source, const Grid& target) : source_voxels(source.voxels()), target_voxels(target.voxels()) {
    for (int a = 0; a < D; ++a) axis[a] = core::ResizeAxis<T>(source.size[a], target.size[a]);
  }
};

template <int D, class Storage>
__global__ void __launch_bounds__(block_threads)
    resize_kernel(const Storage* __restrict__ image, Storage* __restrict__ out,
                  const __grid_constant__ Axes<D, CoordinateOf<Storage>> axes,
                  const __grid_constant__ Tiling<D> tiling) {
  using T = CoordinateOf<Storage>;
  for_tiles<1>(tiling, [&](std::int64_t channel, const std::int32_t (&position)[D]) {
    if (!contains(tiling, position)) return;
    core::ResizeTap<T> taps[D];
#pragma unroll
    for (int a = 0; a < D; ++a) taps[a] = core::resize_tap(axes.axis[a], position[a]);
    const Storage* const from = image + channel * axes.source_voxels;
    T sum = T(0);
#pragma unroll
    for (int corner = 0; corner < 1 << D; ++corner) {
      std::int64_t offset = 0;
      T weight = T(1);
#pragma unroll
      for (int a = 0; a < D; ++a) {
        const bool upper = (corner >> a & 1) != 0;
        offset = offset * axes.axis[a].source + (upper ? taps[a].upper : taps[a].lower);
        weight *= upper ? taps[a].weight : T(1) - taps[a].weight;
      }
      sum += weight * T(from[offset]);
    }
    out[channel * axes.target_voxels + offset_of<std::int64_t>(tiling, position)] = Storage(sum);
  });
}

template <int D, class Storage>
__global__ void __launch_bounds__(block_threads, resident_blocks)
    adjoint_kernel(const Storage* __restrict__ grad, Storage* __restrict__ out,
                   const __grid_constant__ Axes<D, CoordinateOf<Storage>> axes,
                   const __grid_constant__ Tiling<D> tiling) {
  using T = CoordinateOf<Storage>;
  for_tiles<1>(tiling, [&](std::int64_t channel, const std::int32_t (&position)[D]) {
    if (!contains(tiling, position)) return;
    const Storage* const from = grad + channel * axes.target_voxels;
    const auto weight_at = [&](int a, std::int32_t i) {
      return core::resize_weight(core::resize_tap(axes.axis[a], i), position[a]);
    };
    core::ResizeReach reach[D];
#pragma unroll
    for (int a = 0; a < D; ++a) reach[a] = core::resize_reach(axes.axis[a], position[a]);
    T sum = T(0);
    const auto add_row = [&](std::int64_t row, T weight) {
      T line = T(0);
      for (std::int32_t x = reach[D - 1].first; x < reach[D - 1].end; ++x)
        line += weight_at(D - 1, x) * T(from[row * axes.axis[D - 1].target + x]);
      sum += weight * line;
    };
    for (std::int32_t y = reach[D - 2].first; y < reach[D - 2].end; ++y) {
      const T by_row = weight_at(D - 2, y);
      if (by_row == T(0)) continue;
      if constexpr (D == 2) {
        add_row(y, by_row);
      } else {
        for (std::int32_t z = reach[0].first; z < reach[0].end; ++z) {
          const T by_plane = weight_at(0, z);
          if (by_plane != T(0)) add_row(std::int64_t{z} * axes.axis[1].target + y, by_plane * by_row);
        }
      }
    }
    out[channel * axes.source_voxels + offset_of<std::int64_t>(tiling, position)] = Storage(sum);
  });
}

}  // namespace

void launch(const Resize& op, cudaStream_t stream) {
  if (op.batch * op.channels * op.target_grid.voxels() == 0) return;
  select_dims(op.target_grid.dims, [&](auto dims) {
    constexpr int D = decltype(dims)::value;
    select_storage(op.dtype, [&](auto storage) {
      using Storage = typename decltype(storage)::type;
      const Tiling<D> tiling(op.target_grid, op.batch * op.channels, 1);
      run(stream, tiling.blocks(), block_threads, resize_kernel<D, Storage>, static_cast<const Storage*>(op.source),
          static_cast<Storage*>(op.target), Axes<D, CoordinateOf<Storage>>(op.source_grid, op.target_grid), tiling);
    });
  });
}

void launch(const ResizeAdjoint& op, cudaStream_t stream) {
  if (op.batch * op.channels * op.source_grid.voxels() == 0) return;
  select_dims(op.source_grid.dims, [&](auto dims) {
    constexpr int D = decltype(dims)::value;
    select_storage(op.dtype, [&](auto storage) {
      using Storage = typename decltype(storage)::type;
      const Tiling<D> tiling(op.source_grid, op.batch * op.channels, 1);
      run(stream, tiling.blocks(), block_threads, adjoint_kernel<D, Storage>, static_cast<const Storage*>(op.target),
          static_cast<Storage*>(op.source), Axes<D, CoordinateOf<Storage>>(op.source_grid, op.target_grid), tiling);
    });
  });
}

}  // namespace deqreg::cuda
