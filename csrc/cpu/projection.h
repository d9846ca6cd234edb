// Products of a small matrix with the values of a run of voxels.
#pragma once

#include "cpu/correlation_box.h"

namespace deqreg::cpu::DEQREG_ISA {

/// out[o][j] = start[o] + sum_k weight[o][k] values[k][j] for a few neighbouring o. Not inlined: the registers are all
/// for the sums.
template <int outputs, class T>
__attribute__((noinline)) void project_few(const T* weight, std::int64_t inputs, const T* start, const T* values,
                                           T* out) {
  constexpr int wide = vector_bytes / sizeof(T), parts = run_voxels / wide;
  using V = Vector<T, wide>;
  typename V::Aligned sum[outputs][parts];
  for (int o = 0; o < outputs; ++o)
    for (int p = 0; p < parts; ++p) sum[o][p] = typename V::Aligned{} + (start == nullptr ? T(0) : start[o]);
  for (std::int64_t k = 0; k < inputs; ++k)
    for (int p = 0; p < parts; ++p) {
      const typename V::Aligned value = *reinterpret_cast<const typename V::Loose*>(values + k * run_voxels + p * wide);
      for (int o = 0; o < outputs; ++o) sum[o][p] += weight[o * inputs + k] * value;
    }
  for (int o = 0; o < outputs; ++o)
    for (int p = 0; p < parts; ++p) *reinterpret_cast<typename V::Loose*>(out + o * run_voxels + p * wide) = sum[o][p];
}

/// visit(o, out) with out[j] = start[o] + sum_k weight[o][k] values[k][j] for every o; `start` may be null.
template <class T, class Visit>
inline void project(const T* weight, const T* start, std::int64_t inputs, std::int64_t outputs, const T* values,
                    const Visit& visit) {
  alignas(64) T out[4 * run_voxels];
  for_groups(static_cast<std::int32_t>(outputs), [&](auto few, std::int32_t first) {
    project_few<few>(weight + first * inputs, inputs, start == nullptr ? nullptr : start + first, values, out);
    for (int o = 0; o < few; ++o) visit(first + o, out + o * run_voxels);
  });
}

}  // namespace deqreg::cpu::DEQREG_ISA
