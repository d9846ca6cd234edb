// Every operator's signature. Interpolation and padding are the enumerations of core/sampling.h as integers.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(deqreg, m) {
  m.def(
      "anderson_update(Tensor z, Tensor value, Tensor(a!) values, Tensor(b!) residuals, Tensor(c!) partials, "
      "Tensor counters, int offset) -> ()");
  m.def(
      "anderson_solve(Tensor partials, Tensor(a!) gram, Tensor(b!) counters, Tensor(c!) levels, Tensor(d!) history, "
      "Tensor(e!) weights, int memory, float damping, float regularisation, float tol, float growth, "
      "float divergence, int patience, float relative, float absolute) -> ()");
  m.def(
      "anderson_mix(Tensor values, Tensor residuals, Tensor weights, Tensor levels, Tensor counters, Tensor(a!) z) -> "
      "()");
  m.def("compose(Tensor outer, Tensor inner) -> Tensor");
  m.def("correlation(Tensor fixed, Tensor moving, Tensor? displacement, int radius) -> Tensor");
  m.def(
      "correlation_gradient(Tensor fixed, Tensor moving, Tensor? displacement, Tensor grad, int radius, "
      "bool need_fixed, bool need_moving, bool need_displacement, bool deterministic) -> "
      "(Tensor grad_fixed, Tensor grad_moving, Tensor grad_displacement)");
  m.def(
      "correlation_projection(Tensor fixed, Tensor moving, Tensor? displacement, Tensor weight, Tensor? bias, "
      "int radius) -> Tensor");
  m.def(
      "correlation_projection_gradient(Tensor fixed, Tensor moving, Tensor? displacement, Tensor weight, Tensor grad, "
      "int radius, bool need_fixed, bool need_moving, bool need_displacement, bool need_projection, "
      "bool deterministic) -> (Tensor grad_fixed, Tensor grad_moving, Tensor grad_displacement, "
      "Tensor grad_projection)");
  m.def("exponential(Tensor velocity, int steps) -> Tensor");
  m.def("gaussian(Tensor image, float[] sigma) -> Tensor");
  m.def("jacobian_determinant(Tensor displacement) -> Tensor");
  m.def("jacobian_determinant_gradient(Tensor displacement, Tensor grad) -> Tensor");
  m.def("lncc(Tensor fixed, Tensor warped, Tensor? mask, int window, float epsilon, float shared) -> Tensor");
  m.def(
      "lncc_gradient(Tensor fixed, Tensor warped, Tensor? mask, int window, float epsilon, float shared, bool "
      "need_fixed, "
      "bool need_warped) -> (Tensor value, Tensor grad_fixed, Tensor grad_warped)");
  m.def("resize(Tensor image, SymInt[] shape) -> Tensor");
  m.def("resize_adjoint(Tensor grad, SymInt[] shape) -> Tensor");
  m.def(
      "splat(Tensor values, Tensor displacement, SymInt[] shape, Tensor? affine, int interpolation, int padding, "
      "bool deterministic) -> Tensor");
  m.def("warp(Tensor image, Tensor displacement, Tensor? affine, int interpolation, int padding) -> Tensor");
  m.def("warp_gradient(Tensor image, Tensor displacement, Tensor values, Tensor? affine, int padding) -> Tensor");
  m.def(
      "warp_gradients(Tensor image, Tensor displacement, Tensor values, Tensor? affine, int padding) -> (Tensor "
      "by_image, Tensor by_position)");
}
