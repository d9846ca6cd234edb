// Splat: every output voxel adds its value to the corners of its cell with atomics.
//
// Neighbouring lanes mostly have neighbouring cells, and then the upper corners of one along the fastest axis are the
// lower corners of the next: lanes hand those over in registers, which halves the atomics.
//
// Floating-point atomics round in an order that changes from run to run. The deterministic path adds integers, which is
// associative: values are scaled by a power of two, one a channel, so that the largest possible sum fits 63 bits.
// A float keeps at least 62 - log2(voxels) bits below the channel's largest magnitude, more than its own 24 for every
// volume that fits a device; a double takes two such integers.
#include "cuda/sampling.h"

namespace deqreg::cuda {
namespace {

using Integer = unsigned long long;  // what 64-bit integer atomics take; sums are two's complement

// Voxels a thread: two keep more loads in flight, and in double they no longer fit the registers.
template <class T>
constexpr int depth = std::is_same_v<T, double> ? 1 : 2;

/// Floating-point sums of one channel.
template <class T>
struct FloatPlane {
  T* sums;

  __device__ __forceinline__ void add(std::int64_t offset, T value) const {
    if (value != T(0)) atomicAdd(sums + offset, value);
  }
};

template <class T>
struct FloatSums {
  T* sums;  // [N, C, *image]

  __device__ __forceinline__ FloatPlane<T> plane(std::int64_t index, std::int64_t voxels) const {
    return {sums + index * voxels};
  }
};

__device__ __forceinline__ double power_of_two(int exponent) {
  return __longlong_as_double(static_cast<long long>(exponent + 1023) << 52);
}

/// The exponent of a channel's unit: values times 2^exponent are below 2^bits. `largest` holds a double's bits.
__device__ __forceinline__ int unit_exponent(Integer largest, int bits) {
  const int above = static_cast<int>(largest >> 52) - 1022;  // largest < 2^above
  return bits - above < 1000 ? bits - above : 1000;
}

/// Integer sums of one channel; a double's remainder below one unit goes to a second integer.
template <class T>
struct FixedPlane {
  Integer *sums, *remainders;
  double scale, remainder_scale;

  __device__ __forceinline__ void add(std::int64_t offset, T value) const {
    if (value == T(0)) return;
    const double scaled = static_cast<double>(value) * scale;
    const long long whole = __double2ll_rn(scaled);
    atomicAdd(sums + offset, static_cast<Integer>(whole));
    if constexpr (std::is_same_v<T, double>) {
      const double rest = scaled - static_cast<double>(whole);
      if (rest != 0.0) atomicAdd(remainders + offset, static_cast<Integer>(__double2ll_rn(rest * remainder_scale)));
    }
  }
};

template <class T>
struct FixedSums {
  static constexpr int limbs = std::is_same_v<T, double> ? 2 : 1;

  Integer* sums;           // [limbs, N, C, *image]
  const Integer* largest;  // [N, C], the bits of the largest magnitude as a double
  std::int64_t elements;   // N C voxels of an image
  int bits;

  __device__ __forceinline__ FixedPlane<T> plane(std::int64_t index, std::int64_t voxels) const {
    Integer* const first = sums + index * voxels;
    return {first, first + (limbs - 1) * elements, power_of_two(unit_exponent(largest[index], bits)),
            power_of_two(bits)};
  }

  __device__ __forceinline__ T value(std::int64_t i, std::int64_t voxels) const {
    const Integer magnitude = largest[i / voxels];
    if (magnitude >> 52 == 0x7ff) return T(__longlong_as_double(0x7ff8000000000000));  // infinite, or not a number
    double sum = static_cast<double>(static_cast<long long>(sums[i]));
    if constexpr (limbs == 2)
      sum += static_cast<double>(static_cast<long long>(sums[i + elements])) * power_of_two(-bits);
    return T(sum * power_of_two(-unit_exponent(magnitude, bits)));
  }
};

/// largest[plane] = max |values|, over planes of `voxels`. A magnitude's bits order as integers, NaN above all.
template <class Storage>
__global__ void __launch_bounds__(block_threads)
    largest_kernel(const Storage* __restrict__ values, Integer* largest, std::int64_t voxels, std::int64_t planes) {
  for (std::int64_t p = blockIdx.y; p < planes; p += gridDim.y) {
    Integer found = 0;
    for_elements(voxels, [&](std::int64_t i) {
      const auto value = static_cast<double>(static_cast<CoordinateOf<Storage>>(values[p * voxels + i]));
      const auto magnitude = static_cast<Integer>(__double_as_longlong(fabs(value)));
      found = magnitude > found ? magnitude : found;
    });
    for (int lanes = warp_lanes / 2; lanes > 0; lanes /= 2) {
      const Integer other = __shfl_xor_sync(0xffffffffu, found, lanes);
      found = other > found ? other : found;
    }
    if (threadIdx.x % warp_lanes == 0 && found != 0) atomicMax(largest + p, found);
  }
}

template <class T>
__device__ __forceinline__ T sum_at(const FloatSums<T>& sums, std::int64_t i, std::int64_t) {
  return sums.sums[i];
}

template <class T>
__device__ __forceinline__ T sum_at(const FixedSums<T>& sums, std::int64_t i, std::int64_t voxels) {
  return sums.value(i, voxels);
}

/// image = sums, in the image's type.
template <class Storage, class Sums>
__global__ void __launch_bounds__(block_threads)
    finish_kernel(Sums sums, Storage* __restrict__ image, std::int64_t elements, std::int64_t voxels) {
  for_elements(elements, [&](std::int64_t i) { image[i] = Storage(sum_at(sums, i, voxels)); });
}

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

/// Sums may be as long as the output grid is large, each below the largest magnitude: they need log2 of it above.
int fixed_bits(const Splat& op) {
  int bits = 62;
  while (op.out_grid.voxels() >> (62 - bits) != 0) --bits;
  return bits;
}

template <int D, class Storage, class Index>
void splat_fixed(const Splat& op, cudaStream_t stream) {
  using Sums = FixedSums<CoordinateOf<Storage>>;
  const std::int64_t elements = elements_of(op), planes = op.batch * op.channels, voxels = op.out_grid.voxels();
  Integer* const sums = static_cast<Integer*>(op.workspace);
  Integer* const largest = sums + Sums::limbs * elements;
  cudaMemsetAsync(op.workspace, 0, workspace_bytes(op), stream);
  dim3 blocks = element_blocks(voxels);
  blocks.x = static_cast<unsigned>(at_most(blocks.x, 1024));  // a few elements a thread: fewer atomics
  blocks.y = static_cast<unsigned>(at_most(planes, max_blocks_yz));
  run(stream, blocks, block_threads, largest_kernel<Storage>, static_cast<const Storage*>(op.values), largest, voxels,
      planes);
  const Sums fixed{sums, largest, elements, fixed_bits(op)};
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
  const auto elements = static_cast<std::size_t>(elements_of(op));
  const auto planes = static_cast<std::size_t>(op.batch * op.channels);
  if (op.deterministic) return ((op.dtype == DType::float64 ? 2 : 1) * elements + planes) * sizeof(Integer);
  return op.dtype == DType::float16 || op.dtype == DType::bfloat16 ? elements * sizeof(float) : 0;
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
