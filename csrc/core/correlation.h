// Where the window of a correlation lies along one axis.
//
// A window of 2 radius + 1 shifts around the position x needs the voxels floor(x) - radius ... floor(x) + radius + 1,
// its corners. All shifts of a voxel have the same fraction, so that its corners share one weight an axis:
//
//   value(delta) = (1 - upper) corner(delta) + upper corner(delta + 1),   delta = 0 ... 2 radius
//
// Border rule: features are extended by their outermost voxels, so a corner outside the image is the nearest one
// inside. At a grid point the derivative is the one-sided difference to the right; outside the image it is zero.
#pragma once

#include <cstdint>

#include "core/macros.h"
#include "core/sampling.h"

namespace deqreg::core {

template <class T>
struct WindowAxis {
  std::int32_t first;  // corner, may lie outside the image
  T upper;             // weight of the upper one of two corners
};

/// The window around `x` on an axis of `size` voxels.
template <class T>
DEQREG_INLINE WindowAxis<T> window_axis(T x, std::int32_t size, std::int32_t radius) {
  // further out every corner is the outermost voxel already
  const T near = clamp(x, T(-radius - 2), T(size + radius));
  std::int32_t floor = static_cast<std::int32_t>(near);
  floor -= near < T(floor) ? 1 : 0;
  return {floor - radius, near - T(floor)};
}

/// The voxel that stands for index `i`, which may lie outside the image.
DEQREG_INLINE std::int32_t nearest_inside(std::int32_t i, std::int32_t size) {
  i = i > 0 ? i : 0;
  return i < size ? i : size - 1;
}

}  // namespace deqreg::core
