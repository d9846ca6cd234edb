// Where the voxels of a tile sample their image: the CUDA side's step from a position to an interpolation cell.
#pragma once

#include "core/sampling.h"
#include "cuda/launch.h"

namespace deqreg::cuda {

/// A sampling map over the whole batch, by value to a kernel.
template <int D, class T, class Index>
struct Sampler {
  const T* displacement;  // [N, D, *out]
  const T* affine;        // [N, D, D + 1] or null
  std::int64_t out_voxels, image_voxels;
  std::int32_t image_size[D];
  Index stride[D];  // of the image; 0 along an axis of one voxel, which has no upper neighbour
  Padding padding;

  Sampler(const Sampling& sampling, const Grid& image_grid, const Grid& out_grid)
      : displacement(static_cast<const T*>(sampling.displacement)),
        affine(static_cast<const T*>(sampling.affine)),
        out_voxels(out_grid.voxels()),
        image_voxels(image_grid.voxels()),
        padding(sampling.padding) {
    Index step = 1;
    for (int a = D - 1; a >= 0; --a) {
      image_size[a] = static_cast<std::int32_t>(image_grid.size[a]);
      stride[a] = image_size[a] > 1 ? step : 0;
      step *= static_cast<Index>(image_size[a]);
    }
  }
};

/// What one output voxel reads: the offset of its cell within a channel, and the weights along each axis.
template <int D, class T, class Index>
struct LinearCell {
  Index offset;
  core::LinearAxis<T> axes[D];
};

template <class T, class Index>
struct NearestCell {
  Index offset;
  T weight;
};

/// y = A (x + u(x)) + t for the voxel `offset` at `position`; see core::apply_affine.
template <int D, class T, class Index>
__device__ __forceinline__ void sample_position(const Sampler<D, T, Index>& sampler, std::int64_t sample, Index offset,
                                                const std::int32_t (&position)[D], T (&mapped)[D]) {
  T point[D];
#pragma unroll
  for (int a = 0; a < D; ++a)
    point[a] = T(position[a]) + sampler.displacement[(sample * D + a) * sampler.out_voxels + offset];
  core::apply_affine<D, T>(sampler.affine == nullptr ? nullptr : sampler.affine + sample * D * (D + 1), point, mapped);
}

/// The choice of padding is the same for a whole launch: a branch costs nothing, a kernel for each doubles their
/// number.
template <int D, class T, class Index>
__device__ __forceinline__ void find_cell(const Sampler<D, T, Index>& sampler, const T (&mapped)[D],
                                          LinearCell<D, T, Index>& cell) {
  cell.offset = 0;
#pragma unroll
  for (int a = 0; a < D; ++a) {
    cell.axes[a] = sampler.padding == Padding::border
                       ? core::linear_axis<Padding::border>(mapped[a], sampler.image_size[a])
                       : core::linear_axis<Padding::zeros>(mapped[a], sampler.image_size[a]);
    cell.offset += static_cast<Index>(cell.axes[a].base) * sampler.stride[a];
  }
}

template <int D, class T, class Index>
__device__ __forceinline__ void find_cell(const Sampler<D, T, Index>& sampler, const T (&mapped)[D],
                                          NearestCell<T, Index>& cell) {
  cell.offset = 0;
  cell.weight = T(1);
#pragma unroll
  for (int a = 0; a < D; ++a) {
    const auto axis = sampler.padding == Padding::border
                          ? core::nearest_axis<Padding::border>(mapped[a], sampler.image_size[a])
                          : core::nearest_axis<Padding::zeros>(mapped[a], sampler.image_size[a]);
    cell.offset += static_cast<Index>(axis.index) * sampler.stride[a];
    cell.weight *= axis.weight;
  }
}

/// A thread's voxels in a tile. Beyond the grid the offset is that of the sample's first voxel, which may be read.
template <int Depth, class Index, class Cell>
struct Voxels {
  bool inside[Depth];
  Index offset[Depth];
  Cell cell[Depth];
};

template <int Depth, int D, class T, class Index, class Cell>
__device__ __forceinline__ void find_voxels(const Tiling<D>& tiling, const Sampler<D, T, Index>& sampler,
                                            std::int64_t sample, const std::int32_t (&first)[D],
                                            Voxels<Depth, Index, Cell>& voxels) {
  T mapped[Depth][D];
#pragma unroll
  for (int k = 0; k < Depth; ++k) {
    std::int32_t position[D];
    for (int a = 0; a < D; ++a) position[a] = first[a];
    position[0] += k * Tiling<D>::tile_step;
    voxels.inside[k] = contains(tiling, position);
    voxels.offset[k] = voxels.inside[k] ? offset_of<Index>(tiling, position) : Index(0);
    sample_position(sampler, sample, voxels.offset[k], position, mapped[k]);
  }
#pragma unroll
  for (int k = 0; k < Depth; ++k) find_cell(sampler, mapped[k], voxels.cell[k]);
}

}  // namespace deqreg::cuda
