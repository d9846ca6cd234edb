// __half, as far as the kernels use it.
#pragma once

#include "half.h"

struct __half {
  std::uint16_t bits;
  __half() = default;
  explicit __half(float value) : bits(half::float16_from_float(value)) {}
  operator float() const { return half::float16_to_float(bits); }
};
