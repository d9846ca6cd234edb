// Warp and its gradient by the sample position, a row of output voxels at a time.
#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/sampling_tile.h"

namespace deqreg::cpu::DEQREG_ISA {
namespace {

/// out += values times the slope of the image along an axis.
template <int Axis, int D, class T, class Index>
void add_slope(const LinearTile<D, T, Index>& tile, const Corners<D, T>& corners, std::int32_t count, const T* values,
               T* out) {
#pragma GCC ivdep
  for (std::int32_t j = 0; j < count; ++j) out[j] += values[j] * blend_fetched<Axis>(tile, corners, j);
}

template <int D, class T, class Index, Padding padding, class Tile>
void warp_rows(const Warp& op, const Executor& executor) {
  const std::int64_t length = op.out_grid.size[D - 1], voxels = op.out_grid.voxels();
  const std::int64_t image_voxels = op.image_grid.voxels();
  parallel_for(executor, op.batch * voxels / length, 1 + grain_voxels / length, [&](auto begin, auto end) {
    Tile tile;
    fill_strides(op.image_grid, tile.stride);
    for_rows<D, T>(op, begin, end, [&](const auto& row, std::int64_t batch, std::int64_t offset, std::int32_t size) {
      for (std::int32_t j = 0; j < size; j += tile_voxels) {
        const std::int32_t count = size - j < tile_voxels ? size - j : tile_voxels;
        fill_tile<padding>(row, j, count, tile);
        for (std::int64_t c = 0; c < op.channels; ++c) {
          const std::int64_t plane = batch * op.channels + c;
          pull(tile, count, static_cast<const T*>(op.image) + plane * image_voxels,
               static_cast<T*>(op.out) + plane * voxels + offset + j);
        }
      }
    });
  });
}

template <int D, class T, class Index, Padding padding>
void gradient_rows(const WarpGradient& op, const Executor& executor) {
  const std::int64_t length = op.out_grid.size[D - 1], voxels = op.out_grid.voxels();
  const std::int64_t image_voxels = op.image_grid.voxels();
  parallel_for(executor, op.batch * voxels / length, 1 + grain_voxels / length, [&](auto begin, auto end) {
    LinearTile<D, T, Index> tile;
    Corners<D, T> corners;
    fill_strides(op.image_grid, tile.stride);
    for_rows<D, T>(op, begin, end, [&](const auto& row, std::int64_t batch, std::int64_t offset, std::int32_t size) {
      for (std::int32_t j = 0; j < size; j += tile_voxels) {
        const std::int32_t count = size - j < tile_voxels ? size - j : tile_voxels;
        fill_tile<padding>(row, j, count, tile);
        T* out = static_cast<T*>(op.out) + batch * D * voxels + offset + j;
        for (int a = 0; a < D; ++a)
          for (std::int32_t k = 0; k < count; ++k) out[a * voxels + k] = T(0);
        for (std::int64_t c = 0; c < op.channels; ++c) {
          const std::int64_t plane = batch * op.channels + c;
          const T* image = static_cast<const T*>(op.image) + plane * image_voxels;
          const T* values = static_cast<const T*>(op.values) + plane * voxels + offset + j;
          fetch(tile, count, image, corners);
          add_slope<0>(tile, corners, count, values, out);
          add_slope<1>(tile, corners, count, values, out + voxels);
          if constexpr (D == 3) add_slope<2>(tile, corners, count, values, out + 2 * voxels);
        }
      }
    });
  });
}

}  // namespace

void launch(const Warp& op, const Executor& executor) {
  if (op.batch * op.channels * op.out_grid.voxels() == 0) return;
  select_types(op, op.image_grid.voxels(), [&](auto dims, auto scalar, auto index) {
    using T = decltype(scalar);
    using Index = decltype(index);
    constexpr int D = dims;
    select_padding(op.sampling.padding, [&](auto padding) {
      if (op.sampling.interpolation == Interpolation::linear)
        warp_rows<D, T, Index, padding, LinearTile<D, T, Index>>(op, executor);
      else
        warp_rows<D, T, Index, padding, NearestTile<D, T, Index>>(op, executor);
    });
  });
}

void launch(const WarpGradient& op, const Executor& executor) {
  if (op.batch * op.out_grid.voxels() == 0) return;
  select_types(op, op.image_grid.voxels(), [&](auto dims, auto scalar, auto index) {
    using T = decltype(scalar);
    using Index = decltype(index);
    constexpr int D = dims;
    select_padding(op.sampling.padding, [&](auto padding) { gradient_rows<D, T, Index, padding>(op, executor); });
  });
}

}  // namespace deqreg::cpu::DEQREG_ISA
