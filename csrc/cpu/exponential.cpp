// Scaling and squaring between two buffers, ordered so that the last composition writes the result.
#include "cpu/isa.h"
#include "cpu/parallel.h"

namespace deqreg::cpu::DEQREG_ISA {
namespace {

template <class T>
void scale(const Exponential& op, const Executor& executor, T* out) {
  const T factor = T(1) / static_cast<T>(std::int64_t{1} << op.steps);
  const T* velocity = static_cast<const T*>(op.velocity);
  parallel_for(executor, op.batch * op.grid.dims * op.grid.voxels(), 65536, [&](auto begin, auto end) {
    for (std::int64_t i = begin; i < end; ++i) out[i] = factor * velocity[i];
  });
}

}  // namespace

void launch(const Exponential& op, const Executor& executor) {
  void* current = op.steps % 2 == 0 ? op.out : op.workspace;
  void* next = op.steps % 2 == 0 ? op.workspace : op.out;
  op.dtype == DType::float64 ? scale(op, executor, static_cast<double*>(current))
                             : scale(op, executor, static_cast<float*>(current));
  for (std::int32_t step = 0; step < op.steps; ++step) {
    DEQREG_ISA::launch(Compose{op.dtype, op.batch, op.grid, op.grid, current, current, next}, executor);
    void* const swap = current;
    current = next;
    next = swap;
  }
}

}  // namespace deqreg::cpu::DEQREG_ISA
