// Chooses the instruction set at run time and forwards every launch to it.
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

#include "kernels.h"

namespace deqreg::cpu {

#define DEQREG_DECLARE(Op) void launch(const Op& op, const Executor& executor);
namespace baseline {
DEQREG_CPU_OPERATIONS(DEQREG_DECLARE)
}
#if defined(DEQREG_X86)
namespace avx2 {
DEQREG_CPU_OPERATIONS(DEQREG_DECLARE)
}
namespace avx512 {
DEQREG_CPU_OPERATIONS(DEQREG_DECLARE)
}
#endif
#undef DEQREG_DECLARE

namespace {

Isa best_supported() {
  for (Isa isa : {Isa::avx512, Isa::avx2})
    if (isa_supported(isa)) return isa;
  return Isa::baseline;
}

/// DEQREG_ISA=baseline|avx2|avx512 in the environment lowers the choice; anything unsupported is ignored.
Isa initial_choice() {
  const char* wanted = std::getenv("DEQREG_ISA");
  const char* const names[] = {"baseline", "avx2", "avx512"};
  for (int i = 0; wanted != nullptr && i < 3; ++i)
    if (std::strcmp(wanted, names[i]) == 0 && isa_supported(static_cast<Isa>(i))) return static_cast<Isa>(i);
  return best_supported();
}

std::atomic<Isa>& choice() {
  static std::atomic<Isa> selected{initial_choice()};
  return selected;
}

}  // namespace

bool isa_compiled(Isa isa) {
#if defined(DEQREG_X86)
  return isa >= Isa::baseline && isa <= Isa::avx512;
#else
  return isa == Isa::baseline;
#endif
}

bool isa_supported(Isa isa) {
  if (!isa_compiled(isa)) return false;
#if defined(DEQREG_X86)
  // the sets are x86-64-v3 and x86-64-v4; these are the features that the compiler may use there
  const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  if (isa == Isa::avx2) return v3;
  if (isa == Isa::avx512)
    return v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl");
#endif
  return isa == Isa::baseline;
}

Isa isa_selected() { return choice().load(std::memory_order_relaxed); }

bool isa_select(Isa isa) {
  if (!isa_supported(isa)) return false;
  choice().store(isa, std::memory_order_relaxed);
  return true;
}

#if defined(DEQREG_X86)
#define DEQREG_DEFINE(Op)                                    \
  void launch(const Op& op, const Executor& executor) {      \
    switch (isa_selected()) {                                \
      case Isa::avx512: return avx512::launch(op, executor); \
      case Isa::avx2: return avx2::launch(op, executor);     \
      default: return baseline::launch(op, executor);        \
    }                                                        \
  }
#else
#define DEQREG_DEFINE(Op) \
  void launch(const Op& op, const Executor& executor) { baseline::launch(op, executor); }
#endif
DEQREG_CPU_OPERATIONS(DEQREG_DEFINE)
#undef DEQREG_DEFINE

}  // namespace deqreg::cpu
