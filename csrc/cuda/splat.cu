// Splat: every output voxel adds its value to the corners of its cell with atomics.
//
// Neighbouring lanes mostly have neighbouring cells, and then the upper corners of one along the fastest axis are the
// lower corners of the next: lanes hand those over in registers, which halves the atomics.
#include "cuda/sampling.h"
#include "cuda/sums.h"

namespace deqreg::cuda {
namespace {

// Voxels a thread: two keep more loads in flight, and in double they no longer fit the registers.
template <class T>
constexpr int depth = std::is_same_v<T, double> ? 1 : 2;

/// How a lane shares cells with its neighbours; see the top of the file.
struct Handover {
  bool takes;  // the lane before hands over its upper corners
  bool gives;  // the lane after takes this one's
};

template <int D, class T, class Index>
__device__ __forceinline__ Handover find_handover(const Sampler<D, T, Index>& sampler,
                                                  const LinearCell<D, T, Index>& cell) {
  const Index before = __shfl_up_sync(0xffffffffu, cell.offset, 1);
  const bool takes = threadIdx.x % warp_lanes > 0 && before + sampler.stride[D - 1] == cell.offset;
  const bool next_takes = __shfl_down_sync(0xffffffffu, static_cast<int>(takes), 1) != 0;
  return {takes, threadIdx.x % warp_lanes < warp_lanes - 1 && next_takes};
}

template <class T, int D, class Index>
__device__ __forceinline__ Handover find_handover(const Sampler<D, T, Index>&, const NearestCell<T, Index>&) {
  return {false, false};
}

/// Adds `value` to the corners of a cell; the recursion over axes unrolls, and ends in a row of two along the fastest.
template <int A, int D, class T, class Index, class Plane>
__device__ __forceinline__ void push(const Sampler<D, T, Index>& sampler, const LinearCell<D, T, Index>& cell,
                                     Handover handover, T value, Index offset, const Plane& plane) {
  const T lower = cell.axes[A].lower * value, upper = cell.axes[A].upper * value;
  if constexpr (A < D - 1) {
    push<A + 1>(sampler, cell, handover, lower, offset, plane);
    push<A + 1>(sampler, cell, handover, upper, Index(offset + sampler.stride[A]), plane);
  } else {
    const T given = __shfl_up_sync(0xffffffffu, upper, 1);
    plane.add(offset, handover.takes ? lower + given : lower);
    if (!handover.gives) plane.add(offset + sampler.stride[A], upper);
  }
}

template <int A, int D, class T, class Index, class Plane>
__device__ __forceinline__ void push(const Sampler<D, T, Index>&, const NearestCell<T, Index>& cell, Handover, T value,
                                     Index offset, const Plane& plane) {
  if (cell.weight > T(0)) plane.add(offset, value);
}

template <class Cell, int D, class T, class Index, class Storage, class Sums>
__global__ void __launch_bounds__(block_threads)
    splat_kernel(const Storage* __restrict__ values, Sums sums, Sampler<D, T, Index> sampler, Tiling<D> tiling,
                 std::int64_t channels) {
  for_tiles<depth<T>>(tiling, [&](std::int64_t sample, const std::int32_t (&first)[D]) {
    Voxels<depth<T>, Index, Cell> voxels;
    find_voxels(tiling, sampler, sample, first, voxels);
    Handover handover[depth<T>];
#pragma unroll
    for (int k = 0; k < depth<T>; ++k) handover[k] = find_handover(sampler, voxels.cell[k]);
    const Storage* from = values + sample * channels * sampler.out_voxels;
    for (std::int64_t c = 0; c < channels; ++c) {
      T value[depth<T>];
#pragma unroll
      for (int k = 0; k < depth<T>; ++k) value[k] = voxels.inside[k] ? T(from[voxels.offset[k]]) : T(0);
      const auto plane = sums.plane(sample * channels + c, sampler.image_voxels);
#pragma unroll
      for (int k = 0; k < depth<T>; ++k)
        push<0>(sampler, voxels.cell[k], handover[k], value[k], voxels.cell[k].offset, plane);
      from += sampler.out_voxels;
    }
  });
}

template <int D, class Storage, class Index, class Sums>
void push_values(const Splat& op, const Sums& sums, cudaStream_t stream) {
  using T = CoordinateOf<Storage>;
  const Tiling<D> tiling(op.out_grid, op.batch, depth<T>);
  const Sampler<D, T, Index> sampler(op.sampling, op.image_grid, op.out_grid);
  const auto kernel = op.sampling.interpolation == Interpolation::linear
                          ? splat_kernel<LinearCell<D, T, Index>, D, T, Index, Storage, Sums>
                          : splat_kernel<NearestCell<T, Index>, D, T, Index, Storage, Sums>;
  run(stream, tiling.blocks(), block_threads, kernel, static_cast<const Storage*>(op.values), sums, sampler, tiling,
      op.channels);
}

std::int64_t elements_of(const Splat& op) { return op.batch * op.channels * op.image_grid.voxels(); }

template <int D, class Storage, class Index>
void splat_fixed(const Splat& op, cudaStream_t stream) {
  using Sums = FixedSums<CoordinateOf<Storage>>;
  const std::int64_t elements = elements_of(op), planes = op.batch * op.channels, voxels = op.out_grid.voxels();
  Integer* const sums = static_cast<Integer*>(op.workspace);
  Integer* const largest = sums + Sums::limbs * elements;
  cudaMemsetAsync(op.workspace, 0, workspace_bytes(op), stream);
  find_largest(stream, static_cast<const Storage*>(op.values), largest, voxels, planes);
  // all values may fall on one voxel
  const Sums fixed{sums, largest, elements, fixed_bits(voxels)};
  push_values<D, Storage, Index>(op, fixed, stream);
  run(stream, element_blocks(elements), block_threads, finish_kernel<Storage, Sums>, fixed,
      static_cast<Storage*>(op.image), elements, op.image_grid.voxels());
}

template <int D, class Storage, class Index>
void splat_float(const Splat& op, cudaStream_t stream) {
  using T = CoordinateOf<Storage>;
  constexpr bool direct = std::is_same_v<Storage, T>;
  const std::int64_t elements = elements_of(op);
  const FloatSums<T> sums{static_cast<T*>(direct ? op.image : op.workspace)};
  cudaMemsetAsync(sums.sums, 0, static_cast<std::size_t>(elements) * sizeof(T), stream);
  push_values<D, Storage, Index>(op, sums, stream);
  if constexpr (!direct)
    run(stream, element_blocks(elements), block_threads, finish_kernel<Storage, FloatSums<T>>, sums,
        static_cast<Storage*>(op.image), elements, op.image_grid.voxels());
}

}  // namespace

std::size_t workspace_bytes(const Splat& op) {
  const auto planes = static_cast<std::size_t>(op.batch * op.channels);
  return sum_bytes(op.dtype, elements_of(op), op.deterministic) + (op.deterministic ? planes * sizeof(Integer) : 0);
}

void launch(const Splat& op, cudaStream_t stream) {
  if (elements_of(op) == 0) return;
  const std::int64_t image = op.image_grid.voxels(), out = op.out_grid.voxels();
  select_dims(op.image_grid.dims, [&](auto dims) {
    select_storage(op.dtype, [&](auto storage) {
      using Storage = typename decltype(storage)::type;
      if (out == 0) {
        cudaMemsetAsync(op.image, 0, static_cast<std::size_t>(elements_of(op)) * sizeof(Storage), stream);
        return;
      }
      select_index(image > out ? image : out, [&](auto index) {
        constexpr int D = decltype(dims)::value;
        using Index = typename decltype(index)::type;
        op.deterministic ? splat_fixed<D, Storage, Index>(op, stream) : splat_float<D, Storage, Index>(op, stream);
      });
    });
  });
}

}  // namespace deqreg::cuda
