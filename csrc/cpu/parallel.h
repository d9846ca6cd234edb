// Spreads a loop over the executor's threads.
#pragma once

#include "cpu/streaming.h"
#include "kernels.h"

namespace deqreg::cpu::DEQREG_ISA {

/// Calls body(begin, end) on disjoint ranges that cover [0, count), at least `grain` long where there are so many.
template <class Body>
inline void parallel_for(const Executor& executor, std::int64_t count, std::int64_t grain, const Body& body) {
  if (count <= 0) return;
  const auto call = [](std::int64_t begin, std::int64_t end, void* context) {
    (*static_cast<const Body*>(context))(begin, end);
    finish_streams();
  };
  void* const context = const_cast<Body*>(&body);
  if (executor.threads == 1 || count <= grain) return call(0, count, context);
  executor.parallel_for(count, grain, call, context);
}

}  // namespace deqreg::cpu::DEQREG_ISA
