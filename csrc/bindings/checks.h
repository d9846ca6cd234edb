// Between torch's tensors and the kernels' structs. What is checked here guards memory; contracts are checked, in the
// user's words, in deqreg/ops.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>
#include <vector>

#include "kernels.h"

namespace deqreg::bindings {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

#define DEQREG_CHECK(condition) STD_TORCH_CHECK(condition, "deqreg: expected " #condition)

/// Kernels for the CPU compute as they store: float32 or float64.
inline DType dtype_of(const Tensor& tensor) {
  DEQREG_CHECK(tensor.is_cuda() || tensor.scalar_type() == ScalarType::Float ||
               tensor.scalar_type() == ScalarType::Double);
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return DType::float32;
    case ScalarType::Double: return DType::float64;
    case ScalarType::Half: return DType::float16;
    case ScalarType::BFloat16: return DType::bfloat16;
    default: STD_TORCH_CHECK(false, "deqreg: expected a floating-point tensor");
  }
}

/// The type of coordinates and sums beside values of `tensor`'s type.
inline ScalarType coordinate_type(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline std::vector<std::int64_t> shape_of(const Tensor& tensor) {
  return {tensor.sizes().begin(), tensor.sizes().end()};
}

/// The spatial extent of [N, C, *S].
inline Grid grid_of(const Tensor& tensor) {
  DEQREG_CHECK(tensor.dim() == 4 || tensor.dim() == 5);
  Grid grid{static_cast<std::int32_t>(tensor.dim() - 2), {1, 1, 1}};
  for (int a = 0; a < grid.dims; ++a) {
    grid.size[a] = tensor.size(a + 2);
    DEQREG_CHECK(grid.size[a] < (std::int64_t{1} << 31));
  }
  return grid;
}

inline std::vector<std::int64_t> shape_with(std::int64_t batch, std::int64_t channels, const Grid& grid) {
  std::vector<std::int64_t> shape{batch, channels};
  shape.insert(shape.end(), grid.size, grid.size + grid.dims);
  return shape;
}

inline bool same_grid(const Grid& a, const Grid& b) {
  if (a.dims != b.dims) return false;
  for (int i = 0; i < a.dims; ++i)
    if (a.size[i] != b.size[i]) return false;
  return true;
}

/// Tensors must share a device, or a kernel would read one's pointer on the other.
inline void check_same_device(const Tensor& a, const Tensor& b) {
  DEQREG_CHECK(a.is_cuda() == b.is_cuda() && a.get_device() == b.get_device());
}

/// A kernel's Sampling, and the contiguous tensors that keep its pointers alive.
struct BoundSampling {
  Tensor displacement;
  std::optional<Tensor> affine;
  Sampling sampling;
};

inline BoundSampling bind_sampling(const Tensor& image, const Tensor& displacement, const std::optional<Tensor>& affine,
                                   std::int64_t interpolation, std::int64_t padding) {
  const Grid grid = grid_of(displacement);
  DEQREG_CHECK(displacement.size(0) == image.size(0) && displacement.size(1) == grid.dims);
  DEQREG_CHECK(displacement.scalar_type() == coordinate_type(image));
  DEQREG_CHECK(image.dim() == displacement.dim());
  DEQREG_CHECK(interpolation == 0 || interpolation == 1);
  DEQREG_CHECK(padding == 0 || padding == 1);
  check_same_device(image, displacement);
  BoundSampling bound{torch::stable::contiguous(displacement), std::nullopt, {}};
  if (affine.has_value()) {
    DEQREG_CHECK(affine->dim() == 3 && affine->size(0) == image.size(0));
    DEQREG_CHECK(affine->size(1) == grid.dims && affine->size(2) == grid.dims + 1);
    DEQREG_CHECK(affine->scalar_type() == coordinate_type(image));
    check_same_device(image, *affine);
    bound.affine = torch::stable::contiguous(*affine);
  }
  bound.sampling = {bound.displacement.const_data_ptr(), bound.affine ? bound.affine->const_data_ptr() : nullptr,
                    static_cast<Interpolation>(interpolation), static_cast<Padding>(padding)};
  return bound;
}

}  // namespace deqreg::bindings
