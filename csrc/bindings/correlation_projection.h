// correlation_projection and its gradients.
#pragma once

#include "bindings/correlation.h"

namespace deqreg::bindings {

inline void check_projection(const Tensor& fixed, const Tensor& weight, std::int64_t radius) {
  DEQREG_CHECK(weight.dim() == 2 && weight.size(1) == correlation_shape(fixed, radius)[1]);
  DEQREG_CHECK(weight.scalar_type() == fixed.scalar_type());
  check_same_device(fixed, weight);
}

template <class Backend>
Tensor correlation_projection(Tensor fixed, Tensor moving, std::optional<Tensor> displacement, Tensor weight,
                              std::optional<Tensor> bias, std::int64_t radius) {
  displacement = bind_features(fixed, moving, displacement, radius);
  check_projection(fixed, weight, radius);
  fixed = torch::stable::contiguous(fixed);
  moving = torch::stable::contiguous(moving);
  weight = torch::stable::contiguous(weight);
  if (bias.has_value()) {
    DEQREG_CHECK(bias->dim() == 1 && bias->size(0) == weight.size(0) && bias->scalar_type() == fixed.scalar_type());
    check_same_device(fixed, *bias);
    bias = torch::stable::contiguous(*bias);
  }
  const Grid grid = grid_of(fixed);
  Tensor out = torch::stable::new_empty(fixed, shape_with(fixed.size(0), weight.size(0), grid));
  Backend::launch(fixed, CorrelationProjection{
                             dtype_of(fixed), fixed.size(0), fixed.size(1), weight.size(0),
                             static_cast<std::int32_t>(radius), grid, fixed.const_data_ptr(), moving.const_data_ptr(),
                             displacement ? displacement->const_data_ptr() : nullptr, weight.const_data_ptr(),
                             bias ? bias->const_data_ptr() : nullptr, out.mutable_data_ptr()});
  return out;
}

/// Gradients that are not asked for come back empty, of shape [0]. The last is [O, shifts + 1]: of the weight, and of
/// the bias in its last column.
template <class Backend>
std::tuple<Tensor, Tensor, Tensor, Tensor> correlation_projection_gradient(
    Tensor fixed, Tensor moving, std::optional<Tensor> displacement, Tensor weight, Tensor grad, std::int64_t radius,
    bool need_fixed, bool need_moving, bool need_displacement, bool need_projection, bool) {
  displacement = bind_features(fixed, moving, displacement, radius);
  check_projection(fixed, weight, radius);
  fixed = torch::stable::contiguous(fixed);
  moving = torch::stable::contiguous(moving);
  weight = torch::stable::contiguous(weight);
  grad = torch::stable::contiguous(grad);
  const Grid grid = grid_of(fixed);
  DEQREG_CHECK(shape_of(grad) == shape_with(fixed.size(0), weight.size(0), grid));
  DEQREG_CHECK(grad.scalar_type() == fixed.scalar_type());
  DEQREG_CHECK(!need_displacement || displacement.has_value());
  check_same_device(fixed, grad);
  const std::vector<std::int64_t> none{0};
  Tensor grad_fixed = torch::stable::new_empty(fixed, need_fixed ? shape_of(fixed) : none);
  Tensor grad_moving = torch::stable::new_empty(fixed, need_moving ? shape_of(fixed) : none);
  Tensor grad_displacement = torch::stable::new_empty(
      fixed, need_displacement ? shape_with(fixed.size(0), grid.dims, grid) : none, coordinate_type(fixed));
  const std::vector<std::int64_t> projection{weight.size(0), weight.size(1) + 1};
  Tensor grad_projection = torch::stable::new_empty(fixed, need_projection ? projection : none);
  const auto output = [](Tensor& tensor, bool needed) { return needed ? tensor.mutable_data_ptr() : nullptr; };
  Backend::launch(fixed, CorrelationProjectionGradient{
                             dtype_of(fixed), fixed.size(0), fixed.size(1), weight.size(0),
                             static_cast<std::int32_t>(radius), grid, fixed.const_data_ptr(), moving.const_data_ptr(),
                             displacement ? displacement->const_data_ptr() : nullptr, weight.const_data_ptr(),
                             grad.const_data_ptr(), output(grad_fixed, need_fixed), output(grad_moving, need_moving),
                             output(grad_displacement, need_displacement), output(grad_projection, need_projection)});
  return {grad_fixed, grad_moving, grad_displacement, grad_projection};
}

}  // namespace deqreg::bindings
