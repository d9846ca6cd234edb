// Linear interpolation between two grids over the same extent, faces on faces.
//
// Voxel i of n lies at (i + 1/2) / n of the extent, so voxel i of the target samples the source at
//   x = (i + 1/2) source / target - 1/2,
// between its neighbours floor(x) and floor(x) + 1. Border rule: beyond the outermost centres the outermost voxel goes
// on. Going to fewer voxels nothing is averaged: smooth first.
#pragma once

#include <cstdint>

#include "core/macros.h"

namespace deqreg::core {

/// One axis of both grids, with the divisions done once.
template <class T>
struct ResizeAxis {
  std::int32_t source = 1, target = 1;  // voxels
  T source_step = T(1);                 // source voxels between neighbouring target voxels
  T target_step = T(1);                 // the inverse

  ResizeAxis() = default;
  ResizeAxis(std::int64_t source_size, std::int64_t target_size)
      : source(static_cast<std::int32_t>(source_size)),
        target(static_cast<std::int32_t>(target_size)),
        source_step(T(source) / T(target)),
        target_step(T(target) / T(source)) {}
};

template <class T>
struct ResizeTap {
  std::int32_t lower, upper;  // neighbours, the same one at the border
  T weight;                   // of the upper neighbour
};

/// Where voxel `i` of the target samples the source.
template <class T>
DEQREG_INLINE ResizeTap<T> resize_tap(const ResizeAxis<T>& axis, std::int32_t i) {
  const T x = (T(i) + T(0.5)) * axis.source_step - T(0.5);
  const T inside = x > T(0) ? x : T(0);
  std::int32_t lower = static_cast<std::int32_t>(inside);
  lower = lower < axis.source ? lower : axis.source - 1;  // rounding on a long axis
  const std::int32_t upper = lower + 1 < axis.source ? lower + 1 : lower;
  return {lower, upper, inside - T(lower)};
}

/// The weight of source voxel `j` in a tap.
template <class T>
DEQREG_INLINE T resize_weight(const ResizeTap<T>& tap, std::int32_t j) {
  return (tap.lower == j ? T(1) - tap.weight : T(0)) + (tap.upper == j ? tap.weight : T(0));
}

/// Target voxels [first, end) outside of which none samples a source voxel; some inside may not either.
struct ResizeReach {
  std::int32_t first, end;
};

/// Voxel i samples j where |x(i) - j| < 1, or beyond the outermost centre; two more at both ends cover rounding.
template <class T>
DEQREG_INLINE ResizeReach resize_reach(const ResizeAxis<T>& axis, std::int32_t j) {
  std::int32_t first = j == 0 ? 0 : static_cast<std::int32_t>((T(j) - T(0.5)) * axis.target_step - T(0.5)) - 2;
  std::int32_t end =
      j == axis.source - 1 ? axis.target : static_cast<std::int32_t>((T(j) + T(1.5)) * axis.target_step - T(0.5)) + 3;
  first = first > 0 ? first : 0;
  end = end < axis.target ? end : axis.target;
  return {first, end};
}

}  // namespace deqreg::core
