// Composition: the warp of the outer field, one cell a voxel for all its components, plus the inner field.
#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/sampling_tile.h"

namespace deqreg::cpu::DEQREG_ISA {
namespace {

/// What for_rows and select_types read.
struct Sampled {
  DType dtype;
  Grid image_grid, out_grid;
  Sampling sampling;
};

template <int D, class T, class Index>
void compose_rows(const Compose& op, const Sampled& sampled, const Executor& executor) {
  const std::int64_t length = op.inner_grid.size[D - 1], voxels = op.inner_grid.voxels();
  const std::int64_t outer_voxels = op.outer_grid.voxels();
  parallel_for(executor, op.batch * voxels / length, 1 + grain_voxels / length, [&](auto begin, auto end) {
    LinearTile<D, T, Index> tile;
    fill_strides(op.outer_grid, tile.stride);
    for_rows<D, T>(sampled, begin, end, [&](const auto& row, std::int64_t batch, std::int64_t offset, auto size) {
      for (std::int32_t j = 0; j < size; j += tile_voxels) {
        const std::int32_t count = size - j < tile_voxels ? size - j : tile_voxels;
        fill_tile<Padding::border>(row, j, count, tile);
        for (int a = 0; a < D; ++a) {
          const T* inner = row.displacement + a * voxels + j;
          T* out = static_cast<T*>(op.out) + (batch * D + a) * voxels + offset + j;
          pull(tile, count, static_cast<const T*>(op.outer) + (batch * D + a) * outer_voxels, out);
#pragma GCC ivdep
          for (std::int32_t k = 0; k < count; ++k) out[k] += inner[k];
        }
      }
    });
  });
}

}  // namespace

void launch(const Compose& op, const Executor& executor) {
  if (op.batch * op.inner_grid.voxels() == 0) return;
  const Sampling sampling{op.inner, nullptr, Interpolation::linear, Padding::border};
  const Sampled sampled{op.dtype, op.outer_grid, op.inner_grid, sampling};
  select_types(sampled, op.outer_grid.voxels(), [&](auto dims, auto scalar, auto index) {
    compose_rows<dims, decltype(scalar), decltype(index)>(op, sampled, executor);
  });
}

}  // namespace deqreg::cpu::DEQREG_ISA
