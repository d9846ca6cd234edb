// Composition: the warp of the outer field, one cell a voxel for all its components, plus the inner field.
#include "cpu/compose.h"

#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/sampling_tile.h"

namespace deqreg::cpu::DEQREG_ISA {
namespace {

/// What for_tiles and select_types read.
struct Sampled {
  DType dtype;
  Grid image_grid, out_grid;
  Sampling sampling;
};

template <int D, class T, class Index>
void compose_tiles(const Compose& op, const Sampled& sampled, T scale, const Executor& executor) {
  const std::int64_t voxels = op.inner_grid.voxels(), outer_voxels = op.outer_grid.voxels();
  const auto compose = [&](std::int64_t begin, std::int64_t end) {
    LinearTile<D, T, Index> tile;
    Corners<D, T> corners;
    fill_strides(op.outer_grid, tile.stride);
    const auto visit = [&](const auto& run, std::int64_t sample, std::int64_t offset) {
      fill_tile<Padding::border>(run, tile);
      for (std::int64_t a = 0; a < D; ++a) {
        corners.fetch(tile, run.count, static_cast<const T*>(op.outer) + (sample * D + a) * outer_voxels);
        const T* const inner = run.displacement + a * voxels;
        T* const out = static_cast<T*>(op.out) + (sample * D + a) * voxels + offset;
#pragma GCC ivdep
        for (std::int32_t j = 0; j < run.count; ++j) out[j] = scale * (inner[j] + corners.template blend<-1>(tile, j));
      }
    };
    for_tiles<D, T>(sampled, begin, end, visit, scale);
  };
  parallel_for(executor, op.batch * tiles_of(sampled), grain_tiles(D), compose);
}

}  // namespace

void compose_scaled(const Compose& op, double scale, const Executor& executor) {
  if (op.batch * op.inner_grid.voxels() == 0) return;
  const Sampling sampling{op.inner, nullptr, Interpolation::linear, Padding::border};
  const Sampled sampled{op.dtype, op.outer_grid, op.inner_grid, sampling};
  select_types(sampled, op.outer_grid.voxels(), [&](auto dims, auto scalar, auto index) {
    using T = decltype(scalar);
    compose_tiles<dims, T, decltype(index)>(op, sampled, T(scale), executor);
  });
}

void launch(const Compose& op, const Executor& executor) { compose_scaled(op, 1.0, executor); }

}  // namespace deqreg::cpu::DEQREG_ISA
