// correlation and its gradients.
#pragma once

#include "bindings/checks.h"

namespace deqreg::bindings {

/// Guards what both directions read; returns the displacement made contiguous.
inline std::optional<Tensor> bind_features(const Tensor& fixed, const Tensor& moving,
                                           const std::optional<Tensor>& displacement, std::int64_t radius) {
  const Grid grid = grid_of(fixed);
  DEQREG_CHECK(shape_of(moving) == shape_of(fixed) && moving.scalar_type() == fixed.scalar_type());
  DEQREG_CHECK(radius >= 0 && radius <= 4);
  check_same_device(fixed, moving);
  if (!displacement.has_value()) return std::nullopt;
  DEQREG_CHECK(shape_of(*displacement) == shape_with(fixed.size(0), grid.dims, grid));
  DEQREG_CHECK(displacement->scalar_type() == coordinate_type(fixed));
  check_same_device(fixed, *displacement);
  return torch::stable::contiguous(*displacement);
}

inline std::vector<std::int64_t> correlation_shape(const Tensor& fixed, std::int64_t radius) {
  const Grid grid = grid_of(fixed);
  std::int64_t shifts = 1;
  for (int a = 0; a < grid.dims; ++a) shifts *= 2 * radius + 1;
  return shape_with(fixed.size(0), shifts, grid);
}

template <class Backend>
Tensor correlation(Tensor fixed, Tensor moving, std::optional<Tensor> displacement, std::int64_t radius) {
  displacement = bind_features(fixed, moving, displacement, radius);
  fixed = torch::stable::contiguous(fixed);
  moving = torch::stable::contiguous(moving);
  Tensor out = torch::stable::new_empty(fixed, correlation_shape(fixed, radius));
  Backend::launch(fixed, Correlation{dtype_of(fixed), fixed.size(0), fixed.size(1), static_cast<std::int32_t>(radius),
                                     grid_of(fixed), fixed.const_data_ptr(), moving.const_data_ptr(),
                                     displacement ? displacement->const_data_ptr() : nullptr, out.mutable_data_ptr()});
  return out;
}

/// Gradients that are not asked for come back empty, of shape [0].
template <class Backend>
std::tuple<Tensor, Tensor, Tensor> correlation_gradient(Tensor fixed, Tensor moving, std::optional<Tensor> displacement,
                                                        Tensor grad, std::int64_t radius, bool need_fixed,
                                                        bool need_moving, bool need_displacement, bool deterministic) {
  displacement = bind_features(fixed, moving, displacement, radius);
  fixed = torch::stable::contiguous(fixed);
  moving = torch::stable::contiguous(moving);
  grad = torch::stable::contiguous(grad);
  DEQREG_CHECK(shape_of(grad) == correlation_shape(fixed, radius) && grad.scalar_type() == fixed.scalar_type());
  DEQREG_CHECK(!need_displacement || displacement.has_value());
  check_same_device(fixed, grad);
  const Grid grid = grid_of(fixed);
  const std::vector<std::int64_t> none{0};
  Tensor grad_fixed = torch::stable::new_empty(fixed, need_fixed ? shape_of(fixed) : none);
  Tensor grad_moving = torch::stable::new_empty(fixed, need_moving ? shape_of(fixed) : none);
  Tensor grad_displacement = torch::stable::new_empty(
      fixed, need_displacement ? shape_with(fixed.size(0), grid.dims, grid) : none, coordinate_type(fixed));
  const auto output = [](Tensor& tensor, bool needed) { return needed ? tensor.mutable_data_ptr() : nullptr; };
  CorrelationGradient op{dtype_of(fixed),
                         fixed.size(0),
                         fixed.size(1),
                         static_cast<std::int32_t>(radius),
                         grid,
                         fixed.const_data_ptr(),
                         moving.const_data_ptr(),
                         displacement ? displacement->const_data_ptr() : nullptr,
                         grad.const_data_ptr(),
                         output(grad_fixed, need_fixed),
                         output(grad_moving, need_moving),
                         output(grad_displacement, need_displacement),
                         deterministic,
                         nullptr};
  Tensor workspace = torch::stable::new_empty(fixed, {Backend::workspace_bytes(op)}, ScalarType::Byte);
  op.workspace = workspace.mutable_data_ptr();
  Backend::launch(fixed, op);
  return {grad_fixed, grad_moving, grad_displacement};
}

}  // namespace deqreg::bindings
