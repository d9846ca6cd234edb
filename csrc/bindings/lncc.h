// lncc: the value alone, or with the gradients that are asked for.
#pragma once

#include <tuple>

#include "bindings/checks.h"

namespace deqreg::bindings {

/// The operation on contiguous tensors, without its outputs.
inline Lncc bind_lncc(const Tensor& fixed, const Tensor& warped, const std::optional<Tensor>& mask, std::int64_t window,
                      double epsilon, double shared) {
  DEQREG_CHECK(fixed.scalar_type() == warped.scalar_type() && shape_of(fixed) == shape_of(warped));
  DEQREG_CHECK(fixed.size(1) == 1);
  DEQREG_CHECK(window > 0 && window % 2 == 1 && window < (std::int64_t{1} << 31));
  check_same_device(fixed, warped);
  if (mask.has_value()) {
    DEQREG_CHECK(mask->scalar_type() == ScalarType::Bool && shape_of(*mask) == shape_of(fixed));
    check_same_device(fixed, *mask);
  }
  Lncc op{};
  op.dtype = dtype_of(fixed);
  op.batch = fixed.size(0);
  op.window = static_cast<std::int32_t>(window);
  op.epsilon = epsilon;
  op.shared = shared;
  op.grid = grid_of(fixed);
  op.fixed = fixed.const_data_ptr();
  op.warped = warped.const_data_ptr();
  op.mask = mask ? static_cast<const std::uint8_t*>(mask->const_data_ptr()) : nullptr;
  DEQREG_CHECK(op.grid.voxels() > 0);
  return op;
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor> lncc_gradient(Tensor fixed, Tensor warped, std::optional<Tensor> mask,
                                                 std::int64_t window, double epsilon, double shared, bool need_fixed,
                                                 bool need_warped) {
  fixed = torch::stable::contiguous(fixed);
  warped = torch::stable::contiguous(warped);
  if (mask) mask = torch::stable::contiguous(*mask);
  Lncc op = bind_lncc(fixed, warped, mask, window, epsilon, shared);
  const auto gradient = [&](bool need) {
    return torch::stable::new_empty(fixed, need ? shape_of(fixed) : std::vector<std::int64_t>{0},
                                    coordinate_type(fixed));
  };
  Tensor value = torch::stable::new_empty(fixed, {op.batch}, coordinate_type(fixed));
  Tensor grad_fixed = gradient(need_fixed), grad_warped = gradient(need_warped);
  op.value = value.mutable_data_ptr();
  op.grad_fixed = need_fixed ? grad_fixed.mutable_data_ptr() : nullptr;
  op.grad_warped = need_warped ? grad_warped.mutable_data_ptr() : nullptr;
  Tensor workspace = torch::stable::new_empty(fixed, {Backend::workspace_bytes(op)}, ScalarType::Byte);
  op.workspace = workspace.mutable_data_ptr();
  Backend::launch(fixed, op);
  return {value, grad_fixed, grad_warped};
}

template <class Backend>
Tensor lncc(Tensor fixed, Tensor warped, std::optional<Tensor> mask, std::int64_t window, double epsilon,
            double shared) {
  return std::get<0>(lncc_gradient<Backend>(fixed, warped, mask, window, epsilon, shared, false, false));
}

}  // namespace deqreg::bindings
