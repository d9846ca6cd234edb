// exponential: scaling and squaring of a stationary velocity.
#pragma once

#include "bindings/checks.h"

namespace deqreg::bindings {

template <class Backend>
Tensor exponential(Tensor velocity, std::int64_t steps) {
  velocity = torch::stable::contiguous(velocity);
  const Grid grid = grid_of(velocity);
  DEQREG_CHECK(velocity.size(1) == grid.dims && velocity.scalar_type() == coordinate_type(velocity));
  DEQREG_CHECK(steps >= 0 && steps < 63);
  Tensor out = torch::stable::empty_like(velocity), workspace = torch::stable::empty_like(velocity);
  Backend::launch(velocity,
                  Exponential{dtype_of(velocity), velocity.size(0), static_cast<std::int32_t>(steps), grid,
                              velocity.const_data_ptr(), out.mutable_data_ptr(), workspace.mutable_data_ptr()});
  return out;
}

}  // namespace deqreg::bindings
