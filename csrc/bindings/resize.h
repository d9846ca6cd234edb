// resize and its adjoint.
#pragma once

#include "bindings/checks.h"

namespace deqreg::bindings {

/// An empty tensor with the batch and channels of `like` on another grid.
inline Tensor empty_on_grid(const Tensor& like, std::vector<std::int64_t> shape) {
  DEQREG_CHECK(shape.size() == static_cast<std::size_t>(like.dim() - 2));
  shape.insert(shape.begin(), {like.size(0), like.size(1)});
  return torch::stable::new_empty(like, shape);
}

template <class Backend>
Tensor resize(Tensor image, std::vector<std::int64_t> shape) {
  image = torch::stable::contiguous(image);
  const Grid source = grid_of(image);
  Tensor out = empty_on_grid(image, shape);
  DEQREG_CHECK(source.voxels() > 0 || out.numel() == 0);
  Backend::launch(image, Resize{dtype_of(image), image.size(0), image.size(1), source, grid_of(out),
                                image.const_data_ptr(), out.mutable_data_ptr()});
  return out;
}

template <class Backend>
Tensor resize_adjoint(Tensor grad, std::vector<std::int64_t> shape) {
  grad = torch::stable::contiguous(grad);
  const Grid target = grid_of(grad);
  Tensor out = empty_on_grid(grad, shape);
  DEQREG_CHECK(target.voxels() > 0 || out.numel() == 0);
  Backend::launch(grad, ResizeAdjoint{dtype_of(grad), grad.size(0), grad.size(1), grid_of(out), target,
                                      grad.const_data_ptr(), out.mutable_data_ptr()});
  return out;
}

}  // namespace deqreg::bindings
