// Scaling and squaring between two buffers: the first composition scales, the last one writes the result.
#include <cstring>

#include "cpu/compose.h"
#include "cpu/isa.h"

namespace deqreg::cpu::DEQREG_ISA {

void launch(const Exponential& op, const Executor& executor) {
  const std::size_t bytes = static_cast<std::size_t>(op.batch * op.grid.dims * op.grid.voxels()) *
                            (op.dtype == DType::float64 ? sizeof(double) : sizeof(float));
  if (op.steps == 0 && bytes > 0) std::memcpy(op.out, op.velocity, bytes);
  const void* current = op.velocity;
  double scale = 1.0 / static_cast<double>(std::int64_t{1} << op.steps);
  for (std::int32_t step = 0; step < op.steps; ++step) {
    void* const next = (op.steps - step) % 2 == 1 ? op.out : op.workspace;
    compose_scaled({op.dtype, op.batch, op.grid, op.grid, current, current, next}, scale, executor);
    current = next;
    scale = 1.0;
  }
}

}  // namespace deqreg::cpu::DEQREG_ISA
