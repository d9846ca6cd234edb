// Warp and its gradient by the sample position.
#include "cuda/sampling.h"

namespace deqreg::cuda {
namespace {

constexpr int depth = 2;  // voxels a thread

template <int D, class T, class Index, class Storage>
__device__ __forceinline__ T pull(const Storage* image, const Sampler<D, T, Index>& sampler,
                                  const LinearCell<D, T, Index>& cell) {
  return core::blend<-1, D>(image, cell.offset, sampler.stride, cell.axes);
}

template <int D, class T, class Index, class Storage>
__device__ __forceinline__ T pull(const Storage* image, const Sampler<D, T, Index>&,
                                  const NearestCell<T, Index>& cell) {
  return cell.weight > T(0) ? T(image[cell.offset]) : T(0);
}

template <class Cell, int D, class T, class Index, class Storage>
__global__ void __launch_bounds__(block_threads)
    warp_kernel(const Storage* __restrict__ image, Storage* __restrict__ out, Sampler<D, T, Index> sampler,
                Tiling<D> tiling, std::int64_t channels) {
  for_tiles<depth>(tiling, [&](std::int64_t sample, const std::int32_t (&first)[D]) {
    Voxels<depth, Index, Cell> voxels;
    find_voxels(tiling, sampler, sample, first, voxels);
    const Storage* from = image + sample * channels * sampler.image_voxels;
    Storage* to = out + sample * channels * sampler.out_voxels;
#pragma unroll 2
    for (std::int64_t c = 0; c < channels; ++c) {
      T value[depth];
#pragma unroll
      for (int k = 0; k < depth; ++k) value[k] = pull(from, sampler, voxels.cell[k]);
#pragma unroll
      for (int k = 0; k < depth; ++k)
        if (voxels.inside[k]) to[voxels.offset[k]] = Storage(value[k]);
      from += sampler.image_voxels;
      to += sampler.out_voxels;
    }
  });
}

template <int D, class T, class Index, class Storage>
__global__ void __launch_bounds__(block_threads)
    gradient_kernel(const Storage* __restrict__ image, const Storage* __restrict__ values, T* __restrict__ out,
                    Sampler<D, T, Index> sampler, Tiling<D> tiling, std::int64_t channels) {
  for_tiles<1>(tiling, [&](std::int64_t sample, const std::int32_t (&first)[D]) {
    Voxels<1, Index, LinearCell<D, T, Index>> voxels;
    find_voxels(tiling, sampler, sample, first, voxels);
    const LinearCell<D, T, Index>& cell = voxels.cell[0];
    const Index offset = voxels.offset[0];
    const Storage* from = image + sample * channels * sampler.image_voxels;
    const Storage* by = values + sample * channels * sampler.out_voxels;
    T sum[D] = {};
#pragma unroll 2
    for (std::int64_t c = 0; c < channels; ++c) {
      const T value = T(by[offset]);
      sum[0] += value * core::blend<0, D>(from, cell.offset, sampler.stride, cell.axes);
      sum[1] += value * core::blend<1, D>(from, cell.offset, sampler.stride, cell.axes);
      if constexpr (D == 3) sum[2] += value * core::blend<2, D>(from, cell.offset, sampler.stride, cell.axes);
      from += sampler.image_voxels;
      by += sampler.out_voxels;
    }
    if (!voxels.inside[0]) return;
#pragma unroll
    for (int a = 0; a < D; ++a) out[(sample * D + a) * sampler.out_voxels + offset] = sum[a];
  });
}

/// Calls body(integral_constant<int, D>, Type<Storage>, Type<Index>) for what the operation holds.
template <class Op, class Body>
void select(const Op& op, const Body& body) {
  const std::int64_t image = op.image_grid.voxels(), out = op.out_grid.voxels();
  select_dims(op.image_grid.dims, [&](auto dims) {
    select_storage(op.dtype, [&](auto storage) {
      select_index(image > out ? image : out, [&](auto index) { body(dims, storage, index); });
    });
  });
}

}  // namespace

void launch(const Warp& op, cudaStream_t stream) {
  if (op.batch * op.channels * op.out_grid.voxels() == 0) return;
  select(op, [&](auto dims, auto storage, auto index) {
    constexpr int D = decltype(dims)::value;
    using Storage = typename decltype(storage)::type;
    using Index = typename decltype(index)::type;
    using T = CoordinateOf<Storage>;
    const Tiling<D> tiling(op.out_grid, op.batch, depth);
    const Sampler<D, T, Index> sampler(op.sampling, op.image_grid, op.out_grid);
    const auto kernel = op.sampling.interpolation == Interpolation::linear
                            ? warp_kernel<LinearCell<D, T, Index>, D, T, Index, Storage>
                            : warp_kernel<NearestCell<T, Index>, D, T, Index, Storage>;
    run(stream, tiling.blocks(), block_threads, kernel, static_cast<const Storage*>(op.image),
        static_cast<Storage*>(op.out), sampler, tiling, op.channels);
  });
}

void launch(const WarpGradient& op, cudaStream_t stream) {
  if (op.batch * op.out_grid.voxels() == 0) return;
  select(op, [&](auto dims, auto storage, auto index) {
    constexpr int D = decltype(dims)::value;
    using Storage = typename decltype(storage)::type;
    using Index = typename decltype(index)::type;
    using T = CoordinateOf<Storage>;
    const Tiling<D> tiling(op.out_grid, op.batch, 1);
    const Sampler<D, T, Index> sampler(op.sampling, op.image_grid, op.out_grid);
    run(stream, tiling.blocks(), block_threads, gradient_kernel<D, T, Index, Storage>,
        static_cast<const Storage*>(op.image), static_cast<const Storage*>(op.values), static_cast<T*>(op.out), sampler,
        tiling, op.channels);
  });
}

}  // namespace deqreg::cuda
