// Splat: each thread owns a slab of image planes and adds, in the order of the output voxels, what falls into it. No
// two threads write one voxel, and the order of additions does not depend on how the planes were shared out: the result
// is the same bits at any number of threads. Tiles of output voxels that miss a slab are passed over by their bounds.
#include <memory>

#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/sampling_tile.h"

namespace deqreg::cpu::DEQREG_ISA {
namespace {

template <class Index>
struct Bounds {
  Index lowest, highest;  // offsets of the first voxel of the cells that a tile touches
};

template <class Index>
struct Slab {
  Index begin, end;  // offsets within one channel
  Index plane;       // voxels of one image plane
};

template <int D, class T, class Index, Padding padding, class Tile>
void find_bounds(const Splat& op, const Executor& executor, Bounds<Index>* bounds) {
  parallel_for(executor, op.batch * tiles_of(op), grain_tiles(1), [&](auto begin, auto end) {
    Tile tile;
    fill_strides(op.image_grid, tile.stride);
    Bounds<Index>* next = bounds + begin;
    for_tiles<D, T>(op, begin, end, [&](const auto& run, std::int64_t, std::int64_t) {
      fill_tile<padding>(run, tile);
      Bounds<Index> found{static_cast<Index>(op.image_grid.voxels()), 0};
      for (std::int32_t j = 0; j < run.count; ++j) {
        found.lowest = tile.offset[j] < found.lowest ? tile.offset[j] : found.lowest;
        found.highest = tile.offset[j] > found.highest ? tile.offset[j] : found.highest;
      }
      *next++ = found;
    });
  });
}

/// Adds one value to the 2^(D - 1) corners of a cell that lie in one plane.
template <int D, class T, class Index>
DEQREG_INLINE void add_corners(const LinearTile<D, T, Index>& tile, std::int32_t j, T value, T* plane) {
  if constexpr (D == 2) {
    plane[0] += tile.lower[1][j] * value;
    plane[tile.stride[1]] += tile.upper[1][j] * value;
  } else {
    T* const rows[] = {plane, plane + tile.stride[1]};
    const T weights[] = {tile.lower[1][j] * value, tile.upper[1][j] * value};
    for (int r = 0; r < 2; ++r) {
      rows[r][0] += tile.lower[2][j] * weights[r];
      rows[r][tile.stride[2]] += tile.upper[2][j] * weights[r];
    }
  }
}

template <int D, class T, class Index>
void push(const LinearTile<D, T, Index>& tile, std::int32_t count, const T* values, Slab<Index> slab, T* image) {
  for (std::int32_t j = 0; j < count; ++j) {
    const Index lower = tile.offset[j], upper = lower + tile.stride[0];
    if (lower >= slab.begin && lower < slab.end) add_corners(tile, j, tile.lower[0][j] * values[j], image + lower);
    if (upper >= slab.begin && upper < slab.end) add_corners(tile, j, tile.upper[0][j] * values[j], image + upper);
  }
}

template <int D, class T, class Index>
void push(const NearestTile<D, T, Index>& tile, std::int32_t count, const T* values, Slab<Index> slab, T* image) {
  for (std::int32_t j = 0; j < count; ++j) {
    const Index offset = tile.offset[j];
    if (offset >= slab.begin && offset < slab.end) image[offset] += tile.weight[j] > T(0) ? values[j] : T(0);
  }
}

template <int D, class T, class Index, Padding padding, class Tile>
void splat_planes(const Splat& op, const Executor& executor) {
  const std::int64_t voxels = op.out_grid.voxels(), tiles = op.batch * tiles_of(op);
  const std::int64_t image_voxels = op.image_grid.voxels(), plane = image_voxels / op.image_grid.size[0];
  const std::unique_ptr<Bounds<Index>[]> bounds(new Bounds<Index>[tiles]);
  find_bounds<D, T, Index, padding, Tile>(op, executor, bounds.get());
  parallel_for(executor, op.image_grid.size[0], 1 + grain_voxels / plane, [&](auto begin, auto end) {
    const Slab<Index> slab{static_cast<Index>(begin * plane), static_cast<Index>(end * plane),
                           static_cast<Index>(plane)};
    T* const images = static_cast<T*>(op.image);
    for (std::int64_t p = 0; p < op.batch * op.channels; ++p)
      for (Index i = slab.begin; i < slab.end; ++i) images[p * image_voxels + i] = T(0);
    Tile tile;
    fill_strides(op.image_grid, tile.stride);
    for (std::int64_t t = 0; t < tiles; ++t) {
      // a cell reaches one plane above its first voxel
      if (bounds[t].highest + slab.plane < slab.begin || bounds[t].lowest >= slab.end) continue;
      for_tiles<D, T>(op, t, t + 1, [&](const auto& run, std::int64_t sample, std::int64_t offset) {
        fill_tile<padding>(run, tile);
        for (std::int64_t c = sample * op.channels; c < (sample + 1) * op.channels; ++c)
          push(tile, run.count, static_cast<const T*>(op.values) + c * voxels + offset, slab,
               images + c * image_voxels);
      });
    }
  });
}

}  // namespace

void launch(const Splat& op, const Executor& executor) {
  select_types(op, op.image_grid.voxels(), [&](auto dims, auto scalar, auto index) {
    using T = decltype(scalar);
    using Index = decltype(index);
    constexpr int D = dims;
    select_padding(op.sampling.padding, [&](auto padding) {
      if (op.sampling.interpolation == Interpolation::linear)
        splat_planes<D, T, Index, padding, LinearTile<D, T, Index>>(op, executor);
      else
        splat_planes<D, T, Index, padding, NearestTile<D, T, Index>>(op, executor);
    });
  });
}

}  // namespace deqreg::cpu::DEQREG_ISA
