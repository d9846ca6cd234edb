// Taps of a sampled Gaussian, and the boundary rule of the smoothing: half-sample symmetric (d c b a | a b c d | d c b
// a), which makes the operator symmetric and hence its own adjoint, and leaves a constant unchanged.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/macros.h"

namespace deqreg::core {

// Three standard deviations hold 99.7 % of the mass; the taps are normalised, so that the rest is not lost.
constexpr double gaussian_extent = 3.0;
constexpr std::int32_t gaussian_max_radius = 64;

template <class T>
struct GaussianTaps {
  std::int32_t radius;
  T weight[gaussian_max_radius + 1];  // by distance
};

/// Taps for `sigma` in voxels; radius 0, the identity, for sigma = 0.
template <class T>
inline GaussianTaps<T> gaussian_taps(double sigma) {
  GaussianTaps<T> taps{};
  const auto wanted = static_cast<std::int32_t>(std::ceil(gaussian_extent * sigma));
  taps.radius = wanted < gaussian_max_radius ? wanted : gaussian_max_radius;
  double sum = 0.0, raw[gaussian_max_radius + 1];
  for (std::int32_t k = 0; k <= taps.radius; ++k) {
    raw[k] = sigma > 0.0 ? std::exp(-0.5 * k * k / (sigma * sigma)) : 1.0;
    sum += k == 0 ? raw[k] : 2.0 * raw[k];
  }
  for (std::int32_t k = 0; k <= taps.radius; ++k) taps.weight[k] = static_cast<T>(raw[k] / sum);
  return taps;
}

/// The voxel that half-sample symmetric extension puts at `index`. Folding back and forth takes a step or none, where a
/// remainder always takes a 64-bit division, which a GPU does in software.
DEQREG_INLINE std::int64_t reflect(std::int64_t index, std::int64_t size) {
  while (index < 0 || index >= size) index = index < 0 ? -1 - index : 2 * size - 1 - index;
  return index;
}

}  // namespace deqreg::core
