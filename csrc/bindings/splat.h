// splat: the adjoint of warp in its image.
#pragma once

#include "bindings/checks.h"

namespace deqreg::bindings {

template <class Backend>
Tensor splat(Tensor values, Tensor displacement, std::vector<std::int64_t> shape, std::optional<Tensor> affine,
             std::int64_t interpolation, std::int64_t padding, bool deterministic) {
  values = torch::stable::contiguous(values);
  const BoundSampling bound = bind_sampling(values, displacement, affine, interpolation, padding);
  const Grid out_grid = grid_of(values);
  DEQREG_CHECK(same_grid(out_grid, grid_of(displacement)));
  DEQREG_CHECK(shape.size() == static_cast<std::size_t>(out_grid.dims));
  shape.insert(shape.begin(), {values.size(0), values.size(1)});
  Tensor image = torch::stable::new_empty(values, shape);
  const Grid image_grid = grid_of(image);
  DEQREG_CHECK(image_grid.voxels() > 0);
  if (out_grid.voxels() == 0) return torch::stable::zero_(image);
  Splat op{dtype_of(values), values.size(0),          values.size(1),           image_grid,    out_grid,
           bound.sampling,   values.const_data_ptr(), image.mutable_data_ptr(), deterministic, nullptr};
  Tensor workspace = torch::stable::new_empty(values, {Backend::workspace_bytes(op)}, ScalarType::Byte);
  op.workspace = workspace.mutable_data_ptr();
  Backend::launch(values, op);
  return image;
}

}  // namespace deqreg::bindings
