// Interpolation along one axis: which two neighbouring voxels a coordinate touches, and with which weights.
//
// Boundary rule. Linear interpolation uses voxels `base` and `base + 1`, with base in [0, size - 2] always, so that the
// upper neighbour lies at a constant stride and no corner needs a test:
//   border   the coordinate is clamped to [0, size - 1]; its derivative is zero where the clamp acts;
//   zeros    the image is surrounded by zeros, and a weight is the hat function max(0, 1 - |x - voxel|), which is zero
//            for the corner that falls outside.
// At a grid point the derivative is the one-sided difference to the right, at the last voxel the one to the left.
// An axis of one voxel has base 0, and the caller gives it stride 0.
// A coordinate that is not a number is clamped like one below zero: the result is wrong, the access is not.
#pragma once

#include <cstdint>

#include "core/macros.h"

namespace deqreg::core {

enum class Padding : std::int32_t { border = 0, zeros = 1 };
enum class Interpolation : std::int32_t { linear = 0, nearest = 1 };

template <class T>
struct LinearAxis {
  std::int32_t base;           // lower voxel
  T lower, upper;              // weights of voxels base and base + 1
  T slope_lower, slope_upper;  // their derivatives by the coordinate
};

template <class T>
DEQREG_INLINE T clamp(T value, T low, T high) {
  value = value > low ? value : low;  // false for NaN, which thus becomes low
  return value < high ? value : high;
}

template <class T>
DEQREG_INLINE T hat(T distance) {
  const T value = T(1) - (distance < T(0) ? -distance : distance);
  return value > T(0) ? value : T(0);
}

/// Linear interpolation at `x` on an axis of `size` voxels. Branch-free, so that a row of voxels vectorises.
template <Padding padding, class T>
DEQREG_INLINE LinearAxis<T> linear_axis(T x, std::int32_t size) {
  LinearAxis<T> axis;
  const std::int32_t last_base = size > 1 ? size - 2 : 0;
  if constexpr (padding == Padding::border) {
    const T inside = clamp(x, T(0), T(size - 1));
    const std::int32_t floor = static_cast<std::int32_t>(inside);
    axis.base = floor < last_base ? floor : last_base;
    axis.upper = inside - T(axis.base);
    axis.lower = T(1) - axis.upper;
    axis.slope_upper = x == inside ? T(1) : T(0);
    axis.slope_lower = -axis.slope_upper;
  } else {
    const T near = clamp(x, T(-2), T(size + 1));
    const std::int32_t floor = static_cast<std::int32_t>(near + T(2)) - 2;  // truncation is floor for non-negatives
    axis.base = floor > 0 ? floor : 0;
    axis.base = axis.base < last_base ? axis.base : last_base;
    const T offset = near - T(axis.base);
    const T has_upper = size > 1 ? T(1) : T(0);
    axis.lower = hat(offset);
    axis.upper = has_upper * hat(offset - T(1));
    // the hat rises on [-1, 0) and falls on [0, 1)
    axis.slope_lower =
        (offset >= T(-1) && offset < T(0) ? T(1) : T(0)) - (offset >= T(0) && offset < T(1) ? T(1) : T(0));
    axis.slope_upper =
        has_upper * ((offset >= T(0) && offset < T(1) ? T(1) : T(0)) - (offset >= T(1) && offset < T(2) ? T(1) : T(0)));
  }
  return axis;
}

template <class T>
struct NearestAxis {
  std::int32_t index;  // nearest voxel, floor(x + 1/2), clamped to the axis
  T weight;            // 0 where zeros padding applies, else 1
};

template <Padding padding, class T>
DEQREG_INLINE NearestAxis<T> nearest_axis(T x, std::int32_t size) {
  const T near = clamp(x, T(-2), T(size + 1));
  const std::int32_t rounded = static_cast<std::int32_t>(near + T(2.5)) - 2;
  NearestAxis<T> axis;
  axis.index = rounded > 0 ? rounded : 0;
  axis.index = axis.index < size - 1 ? axis.index : size - 1;
  axis.weight = padding == Padding::border || axis.index == rounded ? T(1) : T(0);
  return axis;
}

/// The value at the 2^D corners of a cell, blended axis by axis. `Slope` is the axis along which to take the derivative
/// instead, or -1 for the value. Recursion over axes unrolls: A is the axis at hand.
template <int Slope, int D, int A = 0, class T, class Storage, class Index>
DEQREG_INLINE T blend(const Storage* image, Index offset, const Index (&stride)[D], const LinearAxis<T> (&axes)[D]) {
  if constexpr (A == D) {
    return T(image[offset]);
  } else {
    const T lower = A == Slope ? axes[A].slope_lower : axes[A].lower;
    const T upper = A == Slope ? axes[A].slope_upper : axes[A].upper;
    return lower * blend<Slope, D, A + 1>(image, offset, stride, axes) +
           upper * blend<Slope, D, A + 1>(image, offset + stride[A], stride, axes);
  }
}

/// The affine part of a sampling map, `A (x + u) + t`, rows in array order; identity where `rows` is null.
template <int D, class T>
DEQREG_INLINE void apply_affine(const T* rows, const T (&point)[D], T (&mapped)[D]) {
  if (rows == nullptr) {
    for (int a = 0; a < D; ++a) mapped[a] = point[a];
    return;
  }
  for (int a = 0; a < D; ++a) {
    T sum = rows[a * (D + 1) + D];
    for (int b = 0; b < D; ++b) sum += rows[a * (D + 1) + b] * point[b];
    mapped[a] = sum;
  }
}

}  // namespace deqreg::core
