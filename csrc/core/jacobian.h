// The Jacobian of a deformation by finite differences, its determinant, and the adjoints of both.
//
// Difference rule, numpy.gradient's: central in the interior, one-sided at the border, zero on an axis of one voxel.
// It is written as scale * (u[i + above] - u[i - below]), where a neighbour that does not exist is the voxel itself.
//
// Its adjoint reads the same two neighbours of voxel i. Away from the border they are the voxels whose derivatives use
// i. At the border the missing neighbour's place is taken by i itself, whose one-sided difference uses i as well:
//
//   voxel read by the derivative at 0: {0, 1}, at 1: {0, 2}, at 2: {1, 3}, ...
//   so voxel 0 collects from 0 (in place of -1) and 1, voxel 1 from 0 and 2, voxel 2 from 1 and 3, ...
#pragma once

#include <cstdint>

#include "core/macros.h"

namespace deqreg::core {

template <class T>
struct Difference {
  std::int32_t below, above;       // distances to the two voxels that are read, 0 or 1
  T scale;                         // of their difference
  T adjoint_below, adjoint_above;  // weights with which the derivatives at those two voxels use this one
};

template <class T>
DEQREG_INLINE T difference_scale(std::int32_t voxel, std::int32_t size) {
  return voxel > 0 && voxel < size - 1 ? T(0.5) : T(1);
}

template <class T>
DEQREG_INLINE Difference<T> difference(std::int32_t voxel, std::int32_t size) {
  Difference<T> rule;
  rule.below = voxel > 0 ? 1 : 0;
  rule.above = voxel < size - 1 ? 1 : 0;
  rule.scale = difference_scale<T>(voxel, size);
  rule.adjoint_below = rule.below ? difference_scale<T>(voxel - 1, size) : -rule.scale;
  rule.adjoint_above = rule.above ? -difference_scale<T>(voxel + 1, size) : rule.scale;
  return rule;
}

/// Column `axis` of I + du/dx, where `u` points at the first component of the voxel.
template <int D, class T>
DEQREG_INLINE void jacobian_column(const T* u, std::int64_t component, std::int64_t stride, const Difference<T>& rule,
                                   int axis, T (&column)[D]) {
  for (int a = 0; a < D; ++a) {
    const T* value = u + a * component;
    column[a] = (a == axis ? T(1) : T(0)) + rule.scale * (value[rule.above * stride] - value[-rule.below * stride]);
  }
}

/// The derivative of the determinant by column `axis`: a combination of the other columns alone.
template <class T>
DEQREG_INLINE void cofactor_column(const T (&columns)[2][2], int axis, T (&out)[2]) {
  const T sign = axis == 0 ? T(1) : T(-1);
  out[0] = sign * columns[1 - axis][1];
  out[1] = -sign * columns[1 - axis][0];
}

template <class T>
DEQREG_INLINE void cofactor_column(const T (&columns)[3][3], int axis, T (&out)[3]) {
  const auto& p = columns[(axis + 1) % 3];
  const auto& q = columns[(axis + 2) % 3];
  out[0] = p[1] * q[2] - p[2] * q[1];
  out[1] = p[2] * q[0] - p[0] * q[2];
  out[2] = p[0] * q[1] - p[1] * q[0];
}

/// det(I + du/dx) at the voxel that `u` points at.
template <int D, class T>
DEQREG_INLINE T jacobian_determinant(const T* u, std::int64_t component, const std::int64_t (&stride)[D],
                                     const Difference<T> (&rules)[D]) {
  T columns[D][D], cofactors[D];
  for (int b = 0; b < D; ++b) jacobian_column<D>(u, component, stride[b], rules[b], b, columns[b]);
  cofactor_column(columns, 0, cofactors);
  T determinant = T(0);
  for (int a = 0; a < D; ++a) determinant += columns[0][a] * cofactors[a];
  return determinant;
}

/// Adds weight * (derivative of the determinant by column `axis`) at the voxel that `u` points at.
/// `rules` may be those of a neighbour along `axis`: that axis's own rule is not used.
template <int D, class T>
DEQREG_INLINE void add_cofactors(const T* u, std::int64_t component, const std::int64_t (&stride)[D],
                                 const Difference<T> (&rules)[D], int axis, T weight, T (&sum)[D]) {
  T columns[D][D], cofactors[D];
  for (int b = 0; b < D; ++b)
    if (b != axis) jacobian_column<D>(u, component, stride[b], rules[b], b, columns[b]);
  cofactor_column(columns, axis, cofactors);
  for (int a = 0; a < D; ++a) sum[a] += weight * cofactors[a];
}

/// The gradient of <grad, det(I + du/dx)> by the displacement of one voxel, at which `u` and `grad` point.
template <int D, class T>
DEQREG_INLINE void jacobian_determinant_gradient(const T* u, const T* grad, std::int64_t component,
                                                 const std::int64_t (&stride)[D], const Difference<T> (&rules)[D],
                                                 T (&sum)[D]) {
  for (int a = 0; a < D; ++a) sum[a] = T(0);
  for (int b = 0; b < D; ++b) {
    const std::int64_t below = -rules[b].below * stride[b], above = rules[b].above * stride[b];
    add_cofactors<D>(u + below, component, stride, rules, b, rules[b].adjoint_below * grad[below], sum);
    add_cofactors<D>(u + above, component, stride, rules, b, rules[b].adjoint_above * grad[above], sum);
  }
}

}  // namespace deqreg::core
