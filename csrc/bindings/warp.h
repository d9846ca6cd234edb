// warp, its gradient by the sample position, and that with the one by the image.
#pragma once

#include <tuple>

#include "bindings/checks.h"

namespace deqreg::bindings {

template <class Backend>
Tensor warp(Tensor image, Tensor displacement, std::optional<Tensor> affine, std::int64_t interpolation,
            std::int64_t padding) {
  image = torch::stable::contiguous(image);
  const BoundSampling bound = bind_sampling(image, displacement, affine, interpolation, padding);
  const Grid image_grid = grid_of(image), out_grid = grid_of(displacement);
  DEQREG_CHECK(image_grid.voxels() > 0);
  Tensor out = torch::stable::new_empty(image, shape_with(image.size(0), image.size(1), out_grid));
  Backend::launch(image, Warp{dtype_of(image), image.size(0), image.size(1), image_grid, out_grid, bound.sampling,
                              image.const_data_ptr(), out.mutable_data_ptr()});
  return out;
}

inline void check_values(const Tensor& image, const Tensor& values, const Grid& image_grid, const Grid& out_grid) {
  DEQREG_CHECK(image_grid.voxels() > 0);
  DEQREG_CHECK(values.scalar_type() == image.scalar_type());
  DEQREG_CHECK(shape_of(values) == shape_with(image.size(0), image.size(1), out_grid));
  check_same_device(image, values);
}

template <class Backend>
Tensor warp_gradient(Tensor image, Tensor displacement, Tensor values, std::optional<Tensor> affine,
                     std::int64_t padding) {
  image = torch::stable::contiguous(image);
  values = torch::stable::contiguous(values);
  const BoundSampling bound = bind_sampling(image, displacement, affine, 0, padding);
  const Grid image_grid = grid_of(image), out_grid = grid_of(displacement);
  check_values(image, values, image_grid, out_grid);
  Tensor out = torch::stable::new_empty(image, shape_of(displacement), coordinate_type(image));
  Backend::launch(image,
                  WarpGradient{dtype_of(image), image.size(0), image.size(1), image_grid, out_grid, bound.sampling,
                               image.const_data_ptr(), values.const_data_ptr(), out.mutable_data_ptr()});
  return out;
}

template <class Backend>
std::tuple<Tensor, Tensor> warp_gradients(Tensor image, Tensor displacement, Tensor values,
                                          std::optional<Tensor> affine, std::int64_t padding) {
  image = torch::stable::contiguous(image);
  values = torch::stable::contiguous(values);
  const BoundSampling bound = bind_sampling(image, displacement, affine, 0, padding);
  const Grid image_grid = grid_of(image), out_grid = grid_of(displacement);
  check_values(image, values, image_grid, out_grid);
  Tensor by_image = torch::stable::new_empty(image, shape_of(image));
  Tensor by_position = torch::stable::new_empty(image, shape_of(displacement), coordinate_type(image));
  if (out_grid.voxels() == 0) return {torch::stable::zero_(by_image), by_position};
  const DType dtype = dtype_of(image);
  const Splat splat{dtype,    image.size(0),  image.size(1),           image_grid,
                    out_grid, bound.sampling, values.const_data_ptr(), by_image.mutable_data_ptr(),
                    true,     nullptr};
  const WarpGradient gradient{dtype,
                              image.size(0),
                              image.size(1),
                              image_grid,
                              out_grid,
                              bound.sampling,
                              image.const_data_ptr(),
                              values.const_data_ptr(),
                              by_position.mutable_data_ptr()};
  Backend::launch(image, WarpGradients{splat, gradient});
  return {by_image, by_position};
}

}  // namespace deqreg::bindings
