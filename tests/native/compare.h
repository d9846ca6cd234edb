// How two results of one case are told apart.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstring>

#include "cases.h"

namespace native {

/// Failures so far, as an exit code.
struct Report {
  int cases = 0, failures = 0;

  void expect(bool good, const std::string& name, const char* what) {
    ++cases;
    if (good) return;
    ++failures;
    std::fprintf(stderr, "FAILED %s: %s\n", name.c_str(), what);
  }

  int finish() const {
    std::printf("%d checks, %d failed\n", cases, failures);
    return failures == 0 ? 0 : 1;
  }
};

inline bool same_bits(const Values& a, const Values& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(double)) == 0;
}

inline bool same_bits(const Outputs& a, const Outputs& b) {
  bool same = a.size() == b.size();
  for (std::size_t i = 0; same && i < a.size(); ++i) same = same_bits(a[i], b[i]);
  return same;
}

/// Half a unit in the last place of a value of size one.
inline double rounding(DType dtype) {
  switch (dtype) {
    case DType::float64: return std::ldexp(1.0, -53);
    case DType::float32: return std::ldexp(1.0, -24);
    case DType::float16: return std::ldexp(1.0, -11);
    case DType::bfloat16: return std::ldexp(1.0, -8);
  }
  return 0.0;
}

/// Every element within `tolerance` of the largest; anything that is not a number is a difference.
inline bool close(const Values& a, const Values& b, double tolerance) {
  if (a.size() != b.size()) return false;
  double largest = 0.0, difference = 0.0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    largest = std::fmax(largest, std::fabs(b[i]));
    const double d = std::fabs(a[i] - b[i]);
    if (!(d <= difference)) difference = d;
    if (!(d <= d)) return false;
  }
  if (difference <= tolerance * largest) return true;
  std::fprintf(stderr, "  largest difference %.3g of %.3g, tolerance %.3g\n", difference, largest, tolerance * largest);
  return false;
}

inline bool close(const Outputs& a, const Outputs& b, double tolerance) {
  bool all = a.size() == b.size();
  for (std::size_t i = 0; all && i < a.size(); ++i) all = close(a[i], b[i], tolerance);
  return all;
}

/// What two orders of the same additions may differ by. Coordinates reach 300, so a contracted product moves a weight
/// by up to 300 roundings; sums have some hundred terms.
inline double order_tolerance(DType dtype) { return 1000.0 * rounding(coordinates_of(dtype)); }

}  // namespace native
