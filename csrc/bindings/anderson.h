// anderson_update, anderson_solve, anderson_mix: Anderson's step on a ring of past iterates, in place.
#pragma once

#include "bindings/checks.h"

namespace deqreg::bindings {

/// A tensor written in place: contiguous, of `dtype`, on the device of `beside`.
inline void check_in_place(const Tensor& tensor, ScalarType dtype, const Tensor& beside) {
  DEQREG_CHECK(tensor.is_contiguous());
  DEQREG_CHECK(tensor.scalar_type() == dtype);
  check_same_device(tensor, beside);
}

/// A ring [slots, N, ...] beside a state [N, ...].
inline void check_ring(const Tensor& ring, const Tensor& state) {
  check_in_place(ring, state.scalar_type(), state);
  DEQREG_CHECK(state.scalar_type() == coordinate_type(state));
  DEQREG_CHECK(ring.dim() == state.dim() + 1 && ring.dim() > 1);
  DEQREG_CHECK(ring.size(0) >= 2 && ring.size(0) <= core::anderson_max_slots);
  for (std::int64_t i = 0; i < state.dim(); ++i) DEQREG_CHECK(ring.size(i + 1) == state.size(i));
}

inline core::AndersonCounters* counters_of(const Tensor& counters, std::int64_t batch, const Tensor& beside) {
  check_in_place(counters, ScalarType::Long, beside);
  DEQREG_CHECK(counters.dim() == 2 && counters.size(0) == batch);
  DEQREG_CHECK(counters.size(1) * sizeof(std::int64_t) == sizeof(core::AndersonCounters));
  return static_cast<core::AndersonCounters*>(counters.mutable_data_ptr());
}

inline core::AndersonLevels* levels_of(const Tensor& levels, std::int64_t batch, const Tensor& beside) {
  check_in_place(levels, ScalarType::Double, beside);
  DEQREG_CHECK(levels.dim() == 2 && levels.size(0) == batch);
  DEQREG_CHECK(levels.size(1) * sizeof(double) == sizeof(core::AndersonLevels));
  return static_cast<core::AndersonLevels*>(levels.mutable_data_ptr());
}

inline std::int64_t elements_of(const Tensor& state) {
  std::int64_t elements = 1;
  for (std::int64_t i = 1; i < state.dim(); ++i) elements *= state.size(i);
  return elements;
}

template <class Backend>
void anderson_update(Tensor z, Tensor value, Tensor values, Tensor residuals, Tensor partials, Tensor counters,
                     std::int64_t offset) {
  z = torch::stable::contiguous(z);
  value = torch::stable::contiguous(value);
  DEQREG_CHECK(shape_of(value) == shape_of(z) && value.scalar_type() == z.scalar_type());
  check_same_device(value, z);
  check_ring(values, z);
  check_ring(residuals, z);
  check_in_place(partials, ScalarType::Double, z);
  const std::int64_t batch = z.size(0), elements = elements_of(z), slots = values.size(0);
  const std::int64_t chunks = (elements + core::anderson_chunk - 1) / core::anderson_chunk;
  DEQREG_CHECK(residuals.size(0) == slots);
  DEQREG_CHECK(partials.dim() == 3 && partials.size(0) == batch && partials.size(2) == slots + 1);
  DEQREG_CHECK(offset >= 0 && offset + chunks <= partials.size(1));
  Backend::launch(z, AndersonUpdate{dtype_of(z), batch, elements, static_cast<std::int32_t>(slots), partials.size(1),
                                    offset, z.const_data_ptr(), value.const_data_ptr(), values.mutable_data_ptr(),
                                    residuals.mutable_data_ptr(), static_cast<double*>(partials.mutable_data_ptr()),
                                    counters_of(counters, batch, z)});
}

template <class Backend>
void anderson_solve(Tensor partials, Tensor gram, Tensor counters, Tensor levels, Tensor history, Tensor weights,
                    std::int64_t memory, double damping, double regularisation, double tol, double growth,
                    double divergence, std::int64_t patience, double relative, double absolute) {
  for (const Tensor* tensor : {&partials, &gram, &history, &weights})
    check_in_place(*tensor, ScalarType::Double, partials);
  DEQREG_CHECK(partials.dim() == 3 && gram.dim() == 3 && history.dim() == 2 && weights.dim() == 2);
  const std::int64_t batch = gram.size(0), slots = gram.size(1);
  DEQREG_CHECK(slots >= 2 && slots <= core::anderson_max_slots && gram.size(2) == slots);
  DEQREG_CHECK(partials.size(0) == batch && partials.size(2) == slots + 1);
  DEQREG_CHECK(history.size(1) == batch);
  DEQREG_CHECK(weights.size(0) == batch && weights.size(1) == slots);
  AndersonSolve op{batch,
                   static_cast<std::int32_t>(slots),
                   partials.size(1),
                   history.size(0),
                   {memory, damping, regularisation, tol, growth, divergence, patience, relative, absolute},
                   static_cast<const double*>(partials.const_data_ptr()),
                   static_cast<double*>(gram.mutable_data_ptr()),
                   counters_of(counters, batch, gram),
                   levels_of(levels, batch, gram),
                   static_cast<double*>(history.mutable_data_ptr()),
                   static_cast<double*>(weights.mutable_data_ptr())};
  Backend::launch(gram, op);
}

template <class Backend>
void anderson_mix(Tensor values, Tensor residuals, Tensor weights, Tensor levels, Tensor counters, Tensor z) {
  check_in_place(z, z.scalar_type(), z);
  check_ring(values, z);
  check_ring(residuals, z);
  check_in_place(weights, ScalarType::Double, z);
  const std::int64_t batch = z.size(0), slots = values.size(0);
  DEQREG_CHECK(residuals.size(0) == slots);
  DEQREG_CHECK(weights.dim() == 2 && weights.size(0) == batch && weights.size(1) == slots);
  Backend::launch(
      z, AndersonMix{dtype_of(z), batch, elements_of(z), static_cast<std::int32_t>(slots), values.const_data_ptr(),
                     residuals.const_data_ptr(), static_cast<const double*>(weights.const_data_ptr()),
                     levels_of(levels, batch, z), counters_of(counters, batch, z), z.mutable_data_ptr()});
}

}  // namespace deqreg::bindings
