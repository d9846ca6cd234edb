// The determinant of the Jacobian and its gradient, a row of voxels at a time. The voxels of a row share the difference
// rules of every axis but their own, and all but the outermost share that one too: those vectorise.
#include <type_traits>

#include "core/jacobian.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"

namespace deqreg::cpu::DEQREG_ISA {
namespace {

constexpr std::int64_t grain_voxels = 16384;

template <int D, class T>
struct DifferencedRow {
  std::int64_t component, stride[D];
  core::Difference<T> rules[D];  // the last axis's belongs to a voxel, not to the row
};

/// Calls visit(j, rules) for the voxels [0, length) of a row. Voxels whose neighbours along the row are interior, too,
/// come with rules known at compile time, in a loop of their own.
template <int D, class T, class Visit>
inline void for_voxels(const DifferencedRow<D, T>& row, std::int32_t length, const Visit& visit) {
  const auto at_border = [&](std::int32_t j) {
    core::Difference<T> rules[D];
    for (int a = 0; a < D - 1; ++a) rules[a] = row.rules[a];
    rules[D - 1] = core::difference<T>(j, length);
    visit(j, rules);
  };
  const std::int32_t begin = length < 4 ? length : 2, end = length < 4 ? length : length - 2;
  for (std::int32_t j = 0; j < begin; ++j) at_border(j);
  core::Difference<T> rules[D];
  for (int a = 0; a < D - 1; ++a) rules[a] = row.rules[a];
  rules[D - 1] = {1, 1, T(0.5), T(0.5), T(-0.5)};
#pragma GCC ivdep
  for (std::int32_t j = begin; j < end; ++j) visit(j, rules);
  for (std::int32_t j = end; j < length; ++j) at_border(j);
}

/// Calls body(row, batch, offset) for every row of the grid, on all threads; offset in voxels of one sample.
template <int D, class T, class Op, class Body>
inline void for_differenced_rows(const Op& op, const Executor& executor, const Body& body) {
  const std::int64_t length = op.grid.size[D - 1], voxels = op.grid.voxels();
  if (op.batch * voxels == 0) return;
  const std::int64_t rows = voxels / length;
  parallel_for(executor, op.batch * rows, 1 + grain_voxels / length, [&](auto begin, auto end) {
    for (std::int64_t r = begin; r < end; ++r) {
      DifferencedRow<D, T> row;
      row.component = voxels;
      std::int64_t rest = r % rows, step = length;
      row.stride[D - 1] = 1;
      for (int a = D - 2; a >= 0; --a) {
        const auto size = static_cast<std::int32_t>(op.grid.size[a]);
        row.rules[a] = core::difference<T>(static_cast<std::int32_t>(rest % size), size);
        row.stride[a] = step;
        rest /= size;
        step *= size;
      }
      body(row, r / rows, r % rows * length);
    }
  });
}

template <int D, class T>
void determinant_rows(const JacobianDeterminant& op, const Executor& executor) {
  const auto length = static_cast<std::int32_t>(op.grid.size[D - 1]);
  for_differenced_rows<D, T>(op, executor, [&](const auto& row, std::int64_t batch, std::int64_t offset) {
    const T* u = static_cast<const T*>(op.displacement) + batch * D * row.component + offset;
    T* out = static_cast<T*>(op.out) + batch * row.component + offset;
    for_voxels(row, length, [=, &row](std::int32_t j, const auto& rules) {
      out[j] = core::jacobian_determinant<D>(u + j, row.component, row.stride, rules);
    });
  });
}

template <int D, class T>
void gradient_rows(const JacobianDeterminantGradient& op, const Executor& executor) {
  const auto length = static_cast<std::int32_t>(op.grid.size[D - 1]);
  for_differenced_rows<D, T>(op, executor, [&](const auto& row, std::int64_t batch, std::int64_t offset) {
    const T* u = static_cast<const T*>(op.displacement) + batch * D * row.component + offset;
    const T* grad = static_cast<const T*>(op.grad) + batch * row.component + offset;
    T* out = static_cast<T*>(op.out) + batch * D * row.component + offset;
    for_voxels(row, length, [=, &row](std::int32_t j, const auto& rules) {
      T sum[D];
      core::jacobian_determinant_gradient<D>(u + j, grad + j, row.component, row.stride, rules, sum);
      for (int a = 0; a < D; ++a) out[a * row.component + j] = sum[a];
    });
  });
}

/// Calls body with (integral_constant<int, D>, T{}) for what the operation holds.
template <class Op, class Body>
void select_dims_and_dtype(const Op& op, const Body& body) {
  const auto with_scalar = [&](auto dims) { op.dtype == DType::float64 ? body(dims, double{}) : body(dims, float{}); };
  op.grid.dims == 3 ? with_scalar(std::integral_constant<int, 3>{}) : with_scalar(std::integral_constant<int, 2>{});
}

}  // namespace

void launch(const JacobianDeterminant& op, const Executor& executor) {
  select_dims_and_dtype(op, [&](auto dims, auto scalar) { determinant_rows<dims, decltype(scalar)>(op, executor); });
}

void launch(const JacobianDeterminantGradient& op, const Executor& executor) {
  select_dims_and_dtype(op, [&](auto dims, auto scalar) { gradient_rows<dims, decltype(scalar)>(op, executor); });
}

}  // namespace deqreg::cpu::DEQREG_ISA
