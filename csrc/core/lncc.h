// Local normalised cross-correlation of one window, and what it passes to the gradients.
//
// With population moments over the n voxels of window i, e the additive variance, and s the part of it that the images
// share, cov meaning covariance + s,
//   f_i = cov^2 / ((var_fixed + e) (var_warped + e)),
//   df_i / dwarped_j = a_i fixed_j - b_i warped_j - c_i  for every j in the window, where
//   a = 2 cov / ((var_fixed + e) (var_warped + e)) / n,
//   b = a cov / (var_warped + e),
//   c = a mean_fixed - b mean_warped,
// so that the gradient at j is fixed_j Box(a)_j - warped_j Box(b)_j - Box(c)_j. The gradient by the fixed image is the
// same with the images exchanged. Intensities may be counted from any origin, one an image: near the intensities
// themselves it keeps c small where a mean is large beside its deviation.
//
// A variance is the difference of a mean square and a squared mean. Where it is no more than their rounding the window
// is flat: the variance counts as zero, and so does the covariance, which is rounding too and would be divided by e.
#pragma once

#include <limits>

#include "core/macros.h"

namespace deqreg::core {

/// Means over one window, intensities counted from the origin.
template <class T>
struct LnccMoments {
  T inverse_count;
  T fixed, warped;  // means
  T fixed_variance, warped_variance, covariance;
};

template <class T>
struct LnccTerm {
  T value;
  T a;
  T b_warped, c_warped;  // of the gradient by the warped image
  T b_fixed, c_fixed;    // of the gradient by the fixed image
};

/// A variance without what may be rounding; not-a-number stays.
template <class T>
DEQREG_INLINE T beyond_rounding(T variance, T mean) {
  constexpr T rounding = T(16) * std::numeric_limits<T>::epsilon();  // of sums of some hundred squares
  return variance <= rounding * mean * mean ? T(0) : variance;
}

template <class T>
DEQREG_INLINE LnccTerm<T> lncc_term(const LnccMoments<T>& m, T epsilon, T shared) {
  const T fixed_variance = beyond_rounding(m.fixed_variance, m.fixed);
  const T warped_variance = beyond_rounding(m.warped_variance, m.warped);
  const T fixed = fixed_variance + epsilon, warped = warped_variance + epsilon;
  const T inverse = T(1) / (fixed * warped);
  const T covariance = (fixed_variance == T(0) || warped_variance == T(0) ? T(0) : m.covariance) + shared;
  const T slope = covariance * inverse;
  const T square = covariance * slope;
  LnccTerm<T> term;
  term.value = square > T(1) ? T(1) : square;  // rounding of the variances must not carry it above
  term.a = T(2) * slope * m.inverse_count;
  term.b_warped = term.a * slope * fixed;
  term.c_warped = term.a * m.fixed - term.b_warped * m.warped;
  term.b_fixed = term.a * slope * warped;
  term.c_fixed = term.a * m.warped - term.b_fixed * m.fixed;
  return term;
}

}  // namespace deqreg::core
