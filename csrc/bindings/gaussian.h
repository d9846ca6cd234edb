// gaussian: separable smoothing.
#pragma once

#include "bindings/checks.h"
#include "core/gaussian.h"

namespace deqreg::bindings {

template <class Backend>
Tensor gaussian(Tensor image, std::vector<double> sigma) {
  image = torch::stable::contiguous(image);
  const Grid grid = grid_of(image);
  DEQREG_CHECK(sigma.size() == static_cast<std::size_t>(grid.dims));
  Tensor out = torch::stable::empty_like(image);
  Gaussian op{dtype_of(image), image.size(0),          image.size(1),          grid,
              {0.0, 0.0, 0.0}, image.const_data_ptr(), out.mutable_data_ptr(), nullptr};
  for (int a = 0; a < grid.dims; ++a) {
    DEQREG_CHECK(sigma[a] >= 0 && core::gaussian_extent * sigma[a] <= core::gaussian_max_radius);
    op.sigma[a] = sigma[a];
  }
  std::optional<Tensor> workspace;
  if (image.is_cuda()) op.workspace = workspace.emplace(torch::stable::empty_like(image)).mutable_data_ptr();
  Backend::launch(image, op);
  return out;
}

}  // namespace deqreg::bindings
