// The widest vectors of the instruction set a file is compiled for.
#pragma once

#include <cstddef>

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

}  // namespace deqreg::cpu::DEQREG_ISA
