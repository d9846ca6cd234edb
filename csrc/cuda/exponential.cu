// Scaling and squaring between two buffers: the first composition scales, the last one writes the result.
#include "cuda/compose.h"

namespace deqreg::cuda {

void launch(const Exponential& op, cudaStream_t stream) {
  const std::size_t bytes = static_cast<std::size_t>(op.batch * op.grid.dims * op.grid.voxels()) *
                            (op.dtype == DType::float64 ? sizeof(double) : sizeof(float));
  if (bytes == 0) return;
  if (op.steps == 0) {
    cudaMemcpyAsync(op.out, op.velocity, bytes, cudaMemcpyDeviceToDevice, stream);
    return;
  }
  const void* current = op.velocity;
  double scale = 1.0 / static_cast<double>(std::int64_t{1} << op.steps);
  for (std::int32_t step = 0; step < op.steps; ++step) {
    void* const next = (op.steps - step) % 2 == 1 ? op.out : op.workspace;
    compose_scaled({op.dtype, op.batch, op.grid, op.grid, current, current, next}, scale, stream);
    current = next;
    scale = 1.0;
  }
}

}  // namespace deqreg::cuda
