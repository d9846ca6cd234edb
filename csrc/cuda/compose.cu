// Composition: the warp of the outer field, one cell a voxel for all its components, plus the inner field.
#include "cuda/compose.h"
#include "cuda/sampling.h"

namespace deqreg::cuda {
namespace {

template <int D, class T, class Index>
__global__ void __launch_bounds__(block_threads)
    compose_kernel(const T* __restrict__ outer, T* __restrict__ out, Sampler<D, T, Index> sampler, Tiling<D> tiling,
                   T scale) {
  for_tiles<1>(tiling, [&](std::int64_t sample, const std::int32_t (&position)[D]) {
    if (!contains(tiling, position)) return;
    const Index offset = offset_of<Index>(tiling, position);
    const std::int64_t first = sample * D;
    T inner[D], mapped[D];
#pragma unroll
    for (int a = 0; a < D; ++a) {
      inner[a] = scale * sampler.displacement[(first + a) * sampler.out_voxels + offset];
      mapped[a] = T(position[a]) + inner[a];
    }
    LinearCell<D, T, Index> cell;
    find_cell(sampler, mapped, cell);
#pragma unroll
    for (int a = 0; a < D; ++a) {
      const T* from = outer + (first + a) * sampler.image_voxels;
      out[(first + a) * sampler.out_voxels + offset] =
          inner[a] + scale * core::blend<-1, D>(from, cell.offset, sampler.stride, cell.axes);
    }
  });
}

}  // namespace

void compose_scaled(const Compose& op, double scale, cudaStream_t stream) {
  const std::int64_t outer = op.outer_grid.voxels(), inner = op.inner_grid.voxels();
  if (op.batch * inner == 0) return;
  const Sampling sampling{op.inner, nullptr, Interpolation::linear, Padding::border};
  select_dims(op.inner_grid.dims, [&](auto dims) {
    select_field(op.dtype, [&](auto scalar) {
      select_index(outer > inner ? outer : inner, [&](auto index) {
        constexpr int D = decltype(dims)::value;
        using T = typename decltype(scalar)::type;
        using Index = typename decltype(index)::type;
        const Tiling<D> tiling(op.inner_grid, op.batch, 1);
        const Sampler<D, T, Index> sampler(sampling, op.outer_grid, op.inner_grid);
        run(stream, tiling.blocks(), block_threads, compose_kernel<D, T, Index>, static_cast<const T*>(op.outer),
            static_cast<T*>(op.out), sampler, tiling, static_cast<T>(scale));
      });
    });
  });
}

void launch(const Compose& op, cudaStream_t stream) { compose_scaled(op, 1.0, stream); }

}  // namespace deqreg::cuda
