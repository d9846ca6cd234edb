// Stores past the caches, for outputs that no cache holds: a line that is stored in the usual way is first read from
// memory, only to be overwritten, and drives out what is still needed.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "cpu/vector.h"

namespace deqreg::cpu::DEQREG_ISA {

// What is smaller may be read again from the last-level cache, of which a few threads have about as much.
constexpr std::int64_t streamed_bytes = std::int64_t{32} << 20;

/// Whether `count` values that are written once, and not read by the operator itself, are stored past the caches.
template <class T>
constexpr bool worth_streaming(std::int64_t count) {
  return count * static_cast<std::int64_t>(sizeof(T)) >= streamed_bytes;
}

/// Whether `stream` may store vectors at `to`.
template <class V, class T>
DEQREG_INLINE bool is_aligned(const T* to) {
  return reinterpret_cast<std::uintptr_t>(to) % sizeof(V) == 0;
}

/// Stores a vector past the caches, `to` aligned to it; in the usual way where the processor knows no other.
template <class V, class T>
DEQREG_INLINE void stream(V value, T* to) {
#if defined(__AVX512F__)
  if constexpr (sizeof(V) == 64) return _mm512_stream_si512(reinterpret_cast<__m512i*>(to), (__m512i)value);
#endif
#if defined(__AVX__)
  if constexpr (sizeof(V) == 32) return _mm256_stream_si256(reinterpret_cast<__m256i*>(to), (__m256i)value);
#endif
#if defined(__SSE2__)
  if constexpr (sizeof(V) == 16) return _mm_stream_si128(reinterpret_cast<__m128i*>(to), (__m128i)value);
#endif
  *reinterpret_cast<V*>(to) = value;
}

/// Makes what a thread has streamed visible to others, as usual stores are.
DEQREG_INLINE void finish_streams() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

/// to[0 ... count) = from[0 ... count), whole vectors past the caches where `streams` and `to` is aligned.
template <class T>
DEQREG_INLINE void store_row(const T* from, std::int32_t count, bool streams, T* to) {
  constexpr int lanes = native_lanes<T>;
  using V = typename Vector<T, lanes>::Aligned;
  std::int32_t j = 0;
  if (streams && is_aligned<V>(to))
    for (; j + lanes <= count; j += lanes) {
      const V value = *reinterpret_cast<const typename Vector<T, lanes>::Loose*>(from + j);
      stream(value, to + j);
    }
  std::memcpy(to + j, from + j, (count - j) * sizeof(T));
}

}  // namespace deqreg::cpu::DEQREG_ISA
