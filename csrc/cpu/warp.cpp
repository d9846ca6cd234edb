// Warp, a box of output voxels at a time, and its gradient by the sample position, a tile at a time.
#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/sampling_box.h"
#include "cpu/sampling_tile.h"

namespace deqreg::cpu::DEQREG_ISA {
namespace {

template <int D, class T, class Index, Padding padding>
void warp_tiles(const Warp& op, const Executor& executor) {
  const std::int64_t voxels = op.out_grid.voxels(), image_voxels = op.image_grid.voxels();
  using Tile = NearestTile<D, T, Index>;
  for_blocks<Tile>(op, executor, [&](Tile* tiles, std::int64_t begin, std::int64_t end) {
    for_channels<padding, D, T>(op, begin, end, tiles, [&](const Tile& tile, auto count, auto c, auto offset) {
      pull(tile, count, static_cast<const T*>(op.image) + c * image_voxels,
           static_cast<T*>(op.out) + c * voxels + offset);
    });
  });
}

template <int D, class T, Padding padding>
void warp_boxes(const Warp& op, const Executor& executor) {
  const std::int64_t voxels = op.out_grid.voxels(), image_voxels = op.image_grid.voxels();
  for_boxes<padding, D, T>(
      op, executor,
      [&](const BoxRow<T>& row, std::int32_t count, std::int64_t c, std::int64_t offset) {
        T* const out = static_cast<T*>(op.out) + c * voxels + offset;
        for (std::int32_t j = 0; j < count; j += native_lanes<T>) store_first(row.blend(j), count - j, out + j);
      },
      [&](const SampledRun<D, T>& run, std::int64_t c, std::int64_t offset) {
        LinearTile<D, T, std::int64_t> tile;
        Corners<D, T> corners;
        fill_strides(op.image_grid, tile.stride);
        fill_tile<padding>(run, tile);
        pull(tile, run.count, static_cast<const T*>(op.image) + c * image_voxels, corners,
             static_cast<T*>(op.out) + c * voxels + offset);
      });
}

/// out += values times the slope of the image along an axis.
template <int Axis, int D, class T, class Index>
void add_slope(const SlopeTile<D, T, Index>& tile, const Corners<D, T>& corners, std::int32_t count, const T* values,
               T* out) {
#pragma GCC ivdep
  for (std::int32_t j = 0; j < count; ++j) out[j] += values[j] * corners.template blend<Axis>(tile, j);
}

template <int D, class T, class Index, Padding padding>
void gradient_tiles(const WarpGradient& op, const Executor& executor) {
  using Tile = SlopeTile<D, T, Index>;
  const std::int64_t voxels = op.out_grid.voxels(), image_voxels = op.image_grid.voxels();
  for_blocks<Tile>(op, executor, [&](Tile* tiles, std::int64_t begin, std::int64_t end) {
    const std::int64_t sample = begin / tiles_of(op), first = begin % tiles_of(op) * tile_voxels;
    const std::int64_t rest = voxels - first, size = (end - begin) * tile_voxels;
    T* const out = static_cast<T*>(op.out) + sample * D * voxels;
    for (int a = 0; a < D; ++a)
      for (std::int64_t k = 0; k < (rest < size ? rest : size); ++k) out[a * voxels + first + k] = T(0);
    Corners<D, T> corners;
    for_channels<padding, D, T>(op, begin, end, tiles, [&](const Tile& tile, auto count, auto c, auto offset) {
      corners.fetch(tile, count, static_cast<const T*>(op.image) + c * image_voxels);
      const T* values = static_cast<const T*>(op.values) + c * voxels + offset;
      add_slope<0>(tile, corners, count, values, out + offset);
      add_slope<1>(tile, corners, count, values, out + voxels + offset);
      if constexpr (D == 3) add_slope<2>(tile, corners, count, values, out + 2 * voxels + offset);
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
        warp_boxes<D, T, padding>(op, executor);
      else
        warp_tiles<D, T, Index, padding>(op, executor);
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
