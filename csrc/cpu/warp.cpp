// Warp and its gradient by the sample position, a tile of output voxels at a time.
#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/sampling_tile.h"

namespace deqreg::cpu::DEQREG_ISA {
namespace {

/// out += values times the slope of the image along an axis.
template <int Axis, int D, class T, class Index>
void add_slope(const SlopeTile<D, T, Index>& tile, const Corners<D, T>& corners, std::int32_t count, const T* values,
               T* out) {
#pragma GCC ivdep
  for (std::int32_t j = 0; j < count; ++j) out[j] += values[j] * corners.template blend<Axis>(tile, j);
}

template <int D, class T, class Index, Padding padding, class Tile>
void warp_tiles(const Warp& op, const Executor& executor) {
  const std::int64_t voxels = op.out_grid.voxels(), image_voxels = op.image_grid.voxels();
  parallel_for(executor, op.batch * tiles_of(op), grain_tiles(op.channels), [&](auto begin, auto end) {
    Tile tile;
    Corners<D, T> corners;
    fill_strides(op.image_grid, tile.stride);
    for_tiles<D, T>(op, begin, end, [&](const auto& run, std::int64_t sample, std::int64_t offset) {
      fill_tile<padding>(run, tile);
      for (std::int64_t c = sample * op.channels; c < (sample + 1) * op.channels; ++c)
        pull(tile, run.count, static_cast<const T*>(op.image) + c * image_voxels, corners,
             static_cast<T*>(op.out) + c * voxels + offset);
    });
  });
}

template <int D, class T, class Index, Padding padding>
void gradient_tiles(const WarpGradient& op, const Executor& executor) {
  const std::int64_t voxels = op.out_grid.voxels(), image_voxels = op.image_grid.voxels();
  parallel_for(executor, op.batch * tiles_of(op), grain_tiles(op.channels), [&](auto begin, auto end) {
    SlopeTile<D, T, Index> tile;
    Corners<D, T> corners;
    fill_strides(op.image_grid, tile.stride);
    for_tiles<D, T>(op, begin, end, [&](const auto& run, std::int64_t sample, std::int64_t offset) {
      fill_tile<padding>(run, tile);
      T* const out = static_cast<T*>(op.out) + sample * D * voxels + offset;
      for (int a = 0; a < D; ++a)
        for (std::int32_t k = 0; k < run.count; ++k) out[a * voxels + k] = T(0);
      for (std::int64_t c = sample * op.channels; c < (sample + 1) * op.channels; ++c) {
        corners.fetch(tile, run.count, static_cast<const T*>(op.image) + c * image_voxels);
        const T* values = static_cast<const T*>(op.values) + c * voxels + offset;
        add_slope<0>(tile, corners, run.count, values, out);
        add_slope<1>(tile, corners, run.count, values, out + voxels);
        if constexpr (D == 3) add_slope<2>(tile, corners, run.count, values, out + 2 * voxels);
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
        warp_tiles<D, T, Index, padding, LinearTile<D, T, Index>>(op, executor);
      else
        warp_tiles<D, T, Index, padding, NearestTile<D, T, Index>>(op, executor);
    });
  });
}

void launch(const WarpGradient& op, const Executor& executor) {
  if (op.batch * op.out_grid.voxels() == 0) return;
  select_types(op, op.image_grid.voxels(), [&](auto dims, auto scalar, auto index) {
    using T = decltype(scalar);
    using Index = decltype(index);
    constexpr int D = dims;
    select_padding(op.sampling.padding, [&](auto padding) { gradient_tiles<D, T, Index, padding>(op, executor); });
  });
}

}  // namespace deqreg::cpu::DEQREG_ISA
