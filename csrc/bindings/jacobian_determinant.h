// jacobian_determinant and its gradient by the displacement.
#pragma once

#include "bindings/checks.h"

namespace deqreg::bindings {

/// [N, *S] for a displacement [N, D, *S].
inline std::vector<std::int64_t> determinant_shape(const Tensor& displacement) {
  std::vector<std::int64_t> shape = shape_of(displacement);
  shape.erase(shape.begin() + 1);
  return shape;
}

template <class Backend>
Tensor jacobian_determinant(Tensor displacement) {
  displacement = torch::stable::contiguous(displacement);
  const Grid grid = grid_of(displacement);
  DEQREG_CHECK(displacement.size(1) == grid.dims);
  DEQREG_CHECK(displacement.scalar_type() == coordinate_type(displacement));
  Tensor out = torch::stable::new_empty(displacement, determinant_shape(displacement));
  Backend::launch(displacement, JacobianDeterminant{dtype_of(displacement), displacement.size(0), grid,
                                                    displacement.const_data_ptr(), out.mutable_data_ptr()});
  return out;
}

template <class Backend>
Tensor jacobian_determinant_gradient(Tensor displacement, Tensor grad) {
  displacement = torch::stable::contiguous(displacement);
  grad = torch::stable::contiguous(grad);
  const Grid grid = grid_of(displacement);
  DEQREG_CHECK(displacement.size(1) == grid.dims);
  DEQREG_CHECK(displacement.scalar_type() == coordinate_type(displacement));
  DEQREG_CHECK(grad.scalar_type() == displacement.scalar_type());
  DEQREG_CHECK(shape_of(grad) == determinant_shape(displacement));
  check_same_device(displacement, grad);
  Tensor out = torch::stable::new_empty(displacement, shape_of(displacement));
  Backend::launch(displacement, JacobianDeterminantGradient{dtype_of(displacement), displacement.size(0), grid,
                                                            displacement.const_data_ptr(), grad.const_data_ptr(),
                                                            out.mutable_data_ptr()});
  return out;
}

}  // namespace deqreg::bindings
