// __nv_bfloat16, as far as the kernels use it.
#pragma once

#include "half.h"

struct __nv_bfloat16 {
  std::uint16_t bits;
  __nv_bfloat16() = default;
  explicit __nv_bfloat16(float value) : bits(half::bfloat16_from_float(value)) {}
  operator float() const { return half::bfloat16_to_float(bits); }
};
