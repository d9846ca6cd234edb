// Huge pages for large fresh memory.
#pragma once

#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace deqreg::bindings {

// Below this the pages that are faulted in one by one cost less than the kernel's clearing of a huge one can.
constexpr std::int64_t huge_page_threshold = std::int64_t{4} << 20;

/// Asks that memory which nobody has touched yet be backed by huge pages: a fresh output is otherwise faulted in 4 KiB
/// at a time, which takes as long as writing it. Advice only, nothing is written; of no effect where the system has
/// none.
inline void advise_huge_pages(std::uintptr_t begin, std::int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  if (bytes < huge_page_threshold) return;
  const std::uintptr_t page = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
  const std::uintptr_t first = begin / page * page, end = begin + static_cast<std::uintptr_t>(bytes);
  madvise(reinterpret_cast<void*>(first), (end - first + page - 1) / page * page, MADV_HUGEPAGE);
#else
  static_cast<void>(begin);
  static_cast<void>(bytes);
#endif
}

}  // namespace deqreg::bindings
