// The widest vectors of the instruction set a file is compiled for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "core/macros.h"

namespace deqreg::cpu::DEQREG_ISA {

#if defined(__AVX512F__)
constexpr std::size_t vector_bytes = 64;
#elif defined(__AVX__)
constexpr std::size_t vector_bytes = 32;
#else
constexpr std::size_t vector_bytes = 16;
#endif

/// `lanes` values side by side; `Loose` is the same at any address.
template <class T, int lanes>
struct Vector {
  typedef T Aligned __attribute__((vector_size(lanes * sizeof(T))));
  typedef T Loose __attribute__((vector_size(lanes * sizeof(T)), aligned(sizeof(T)), may_alias));
};

template <class T>
constexpr int native_lanes = static_cast<int>(vector_bytes / sizeof(T));

/// Values of the two vectors a and b: `index` counts those of a first.
template <class T, int... index, class V>
DEQREG_INLINE V shuffle(V a, V b) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, index...);
#else
  using Integer = std::conditional_t<sizeof(T) == 4, int, long long>;
  typedef Integer Mask __attribute__((vector_size(sizeof(V))));
  return __builtin_shuffle(a, b, Mask{index...});
#endif
}

/// Groups of `unit` values of a and b in turn, from the lower or the upper half of each.
template <class T, int unit, bool upper, class V, int... i>
DEQREG_INLINE V interleave(V a, V b, std::integer_sequence<int, i...>) {
  constexpr int lanes = sizeof...(i);
  return shuffle<T, (i / unit % 2 * lanes + (upper ? lanes / 2 : 0) + i / unit / 2 * unit + i % unit)...>(a, b);
}

/// The even or the odd groups of `unit` values of a and b.
template <class T, int unit, int odd, class V, int... i>
DEQREG_INLINE V every_other(V a, V b, std::integer_sequence<int, i...>) {
  return shuffle<T, ((2 * (i / unit) + odd) * unit + i % unit)...>(a, b);
}

/// The last value of a, and all of b but its last.
template <class T, class V, int... i>
DEQREG_INLINE V shift_in(V a, V b, std::integer_sequence<int, i...>) {
  return shuffle<T, (static_cast<int>(sizeof...(i)) - 1 + i)...>(a, b);
}

/// [4][lanes] to [lanes][4], four lanes at least.
template <class T, class V>
DEQREG_INLINE void interleave_four(V a, V b, V c, V d, T* to) {
  constexpr int lanes = sizeof(V) / sizeof(T);
  const std::make_integer_sequence<int, lanes> all;
  const V low[2] = {interleave<T, 1, false>(a, b, all), interleave<T, 1, false>(c, d, all)};
  const V high[2] = {interleave<T, 1, true>(a, b, all), interleave<T, 1, true>(c, d, all)};
  auto* const out = reinterpret_cast<typename Vector<T, lanes>::Loose*>(to);
  out[0] = interleave<T, 2, false>(low[0], low[1], all);
  out[1] = interleave<T, 2, true>(low[0], low[1], all);
  out[2] = interleave<T, 2, false>(high[0], high[1], all);
  out[3] = interleave<T, 2, true>(high[0], high[1], all);
}

/// [lanes][4] to [4][lanes].
template <class T, class V>
DEQREG_INLINE void deinterleave_four(const T* from, V (&out)[4]) {
  constexpr int lanes = sizeof(V) / sizeof(T);
  const std::make_integer_sequence<int, lanes> all;
  const auto* const in = reinterpret_cast<const typename Vector<T, lanes>::Loose*>(from);
  const V first = in[0], second = in[1], third = in[2], fourth = in[3];
  const V even[2] = {every_other<T, 1, 0>(first, second, all), every_other<T, 1, 0>(third, fourth, all)};
  const V odd[2] = {every_other<T, 1, 1>(first, second, all), every_other<T, 1, 1>(third, fourth, all)};
  out[0] = every_other<T, 1, 0>(even[0], even[1], all);
  out[1] = every_other<T, 1, 0>(odd[0], odd[1], all);
  out[2] = every_other<T, 1, 1>(even[0], even[1], all);
  out[3] = every_other<T, 1, 1>(odd[0], odd[1], all);
}

/// A square of [lanes][lanes] values turned over, its rows `from_row` and `to_row` apart.
template <class T>
DEQREG_INLINE void transpose(const T* from, std::int64_t from_row, T* to, std::int64_t to_row) {
  constexpr int lanes = native_lanes<T>;
  using Loose = typename Vector<T, lanes>::Loose;
  const std::make_integer_sequence<int, lanes> all;
  typename Vector<T, lanes>::Aligned rows[lanes], turned[lanes];
#pragma GCC unroll 16
  for (int i = 0; i < lanes; ++i) rows[i] = *reinterpret_cast<const Loose*>(from + i * from_row);
#pragma GCC unroll 16
  for (int step = 1; step < lanes; step *= 2) {
#pragma GCC unroll 16
    for (int i = 0; i < lanes / 2; ++i) {
      turned[2 * i] = interleave<T, 1, false>(rows[i], rows[i + lanes / 2], all);
      turned[2 * i + 1] = interleave<T, 1, true>(rows[i], rows[i + lanes / 2], all);
    }
#pragma GCC unroll 16
    for (int i = 0; i < lanes; ++i) rows[i] = turned[i];
  }
#pragma GCC unroll 16
  for (int i = 0; i < lanes; ++i) *reinterpret_cast<Loose*>(to + i * to_row) = rows[i];
}

/// The sum of each of `lanes` vectors, side by side. What is in `rows` is lost.
template <class T>
DEQREG_INLINE auto sum_each(typename Vector<T, native_lanes<T>>::Aligned* rows) {
  const std::make_integer_sequence<int, native_lanes<T>> all;
#pragma GCC unroll 16
  for (int half = native_lanes<T> / 2; half > 0; half /= 2)
#pragma GCC unroll 16
    for (int i = 0; i < half; ++i)
      rows[i] =
          interleave<T, 1, false>(rows[i], rows[i + half], all) + interleave<T, 1, true>(rows[i], rows[i + half], all);
  return rows[0];
}

}  // namespace deqreg::cpu::DEQREG_ISA
