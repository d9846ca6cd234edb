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

template <class T>
struct ResizeTap {
  std::int32_t lower, upper;  // neighbours, the same one at the border
  T weight;                   // of the upper neighbour
};

/// Where voxel `i` of the target's axis samples the source's.
template <class T>
DEQREG_INLINE ResizeTap<T> resize_tap(std::int32_t i, std::int32_t source, std::int32_t target) {
  const T x = (T(i) + T(0.5)) * (T(source) / T(target)) - T(0.5);
  const T inside = x > T(0) ? x : T(0);
  std::int32_t lower = static_cast<std::int32_t>(inside);
  lower = lower < source ? lower : source - 1;  // rounding on a long axis
  const std::int32_t upper = lower + 1 < source ? lower + 1 : lower;
  return {lower, upper, inside - T(lower)};
}

/// The weight of source voxel `j` in a tap.
template <class T>
DEQREG_INLINE T resize_weight(const ResizeTap<T>& tap, std::int32_t j) {
  return (tap.lower == j ? T(1) - tap.weight : T(0)) + (tap.upper == j ? tap.weight : T(0));
}

/// Target voxels [first, end) outside of which none samples source voxel `j`; some inside may not either.
struct ResizeReach {
  std::int32_t first, end;
};

/// Voxel i reaches j where |x(i) - j| < 1, or beyond the outermost centre; one more at both ends covers rounding.
DEQREG_INLINE ResizeReach resize_reach(std::int32_t j, std::int32_t source, std::int32_t target) {
  const double step = double(target) / double(source);
  std::int32_t first = j == 0 ? 0 : static_cast<std::int32_t>((double(j) - 0.5) * step - 0.5) - 1;
  std::int32_t end = j == source - 1 ? target : static_cast<std::int32_t>((double(j) + 1.5) * step - 0.5) + 2;
  first = first > 0 ? first : 0;
  end = end < target ? end : target;
  return {first, end};
}

}  // namespace deqreg::core
