// compose: the displacement of one map after another.
#pragma once

#include "bindings/checks.h"

namespace deqreg::bindings {

template <class Backend>
Tensor compose(Tensor outer, Tensor inner) {
  outer = torch::stable::contiguous(outer);
  inner = torch::stable::contiguous(inner);
  const Grid outer_grid = grid_of(outer), inner_grid = grid_of(inner);
  DEQREG_CHECK(outer.size(0) == inner.size(0) && outer.size(1) == outer_grid.dims);
  DEQREG_CHECK(inner.size(1) == outer_grid.dims && inner_grid.dims == outer_grid.dims);
  DEQREG_CHECK(outer.scalar_type() == inner.scalar_type() && outer.scalar_type() == coordinate_type(outer));
  DEQREG_CHECK(outer_grid.voxels() > 0);
  check_same_device(outer, inner);
  Tensor out = torch::stable::empty_like(inner);
  Backend::launch(outer, Compose{dtype_of(outer), outer.size(0), outer_grid, inner_grid, outer.const_data_ptr(),
                                 inner.const_data_ptr(), out.mutable_data_ptr()});
  return out;
}

}  // namespace deqreg::bindings
