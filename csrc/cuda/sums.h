// Sums that many threads add to with atomics, and their deterministic twin.
//
// Floating-point atomics round in an order that changes from run to run. The deterministic path adds integers, which is
// associative: values are scaled by a power of two, one a channel, so that the largest possible sum fits 63 bits.
// A float keeps at least 62 - log2(addends) bits below the largest magnitude that an addend of its channel can have; a
// double takes two such integers.
#pragma once

#include "cuda/launch.h"

namespace deqreg::cuda {

using Integer = unsigned long long;  // what 64-bit integer atomics take; sums are two's complement

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
  const Integer* largest;  // [N, C], the bits of an addend's largest magnitude as a double
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

/// The bits of an addend below the sign, so that as many as `addends` of them do not overflow a sum.
inline int fixed_bits(std::int64_t addends) {
  int bits = 62;
  while (addends >> (62 - bits) != 0) --bits;
  return bits;
}

/// Bytes of the sums of `elements` elements in an image of `dtype`, besides those that the image itself can hold.
inline std::size_t sum_bytes(DType dtype, std::int64_t elements, bool deterministic) {
  const auto count = static_cast<std::size_t>(elements);
  if (deterministic) return (dtype == DType::float64 ? 2 : 1) * count * sizeof(Integer);
  return dtype == DType::float16 || dtype == DType::bfloat16 ? count * sizeof(float) : 0;
}

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

/// Runs largest_kernel. The maxima start from zero.
template <class Storage>
void find_largest(cudaStream_t stream, const Storage* values, Integer* largest, std::int64_t voxels,
                  std::int64_t planes) {
  dim3 blocks = element_blocks(voxels);
  blocks.x = static_cast<unsigned>(at_most(blocks.x, 1024));  // a few elements a thread: fewer atomics
  blocks.y = static_cast<unsigned>(at_most(planes, max_blocks_yz));
  run(stream, blocks, block_threads, largest_kernel<Storage>, values, largest, voxels, planes);
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

}  // namespace deqreg::cuda
