// One sample's share of an Anderson step that is not elementwise: judge the newest residual, keep the books, and find
// the mixing weights. A few hundred operations in double, on whatever device the state lives.
//
// This is not textbook Anderson in these points:
//   - the ring's order is per sample, and the slot of the best iterate is passed over for as long as it is the best, so
//     that the best iterate costs no memory and no copy;
//   - the Gram matrix is scaled to a unit diagonal before it is regularised: residuals of one history differ by orders
//     of magnitude, and a shift fit for the oldest would drown the newest;
//   - a residual whose pivot vanishes in the Cholesky factorisation is left out, oldest first, so that equal or
//   dependent
//     residuals are no special case and give no NaN;
//   - where the residual grows, the history is dropped for a Picard step from the present iterate. Going back to the
//   best
//     one instead looks safer and is a trap: where the map leaves a near-stationary point, every way out passes through
//     larger residuals. Only a residual that is not finite sends a sample back.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/macros.h"

namespace deqreg::core {

constexpr std::int32_t anderson_max_slots = 16;

// Elements summed into one partial of the Gram row: fixed, so that sums do not depend on the number of threads; a share
// of work large enough for a thread or a block.
constexpr std::int64_t anderson_chunk = 8192;

// Steps back to the best iterate after residuals that are not finite; the last is 1/32 of a Picard step.
constexpr std::int64_t anderson_max_retreats = 5;

// Of a unit diagonal; equal residuals leave a few units in the last place, 2e-16 each
constexpr double anderson_least_pivot = 1e-15;

// A residual has fallen when its square is below this share of the reference: rounding makes smaller falls for ever.
constexpr double anderson_fall = 0.999;

enum class AndersonStatus : std::int64_t { running = 0, converged = 1, stagnated = 2, diverged = 3, nonfinite = 4 };

struct AndersonRule {
  std::int64_t memory;
  double damping, regularisation, tol, growth, divergence;
  std::int64_t patience;
  double relative, absolute;  // the residual is |g| / (relative |f| + absolute)
};

/// One row of `counters`, int64.
struct AndersonCounters {
  std::int64_t slot;      // where the next iterate goes
  std::int64_t best;      // slot of the smallest residual, or -1
  std::int64_t valid;     // bit j: slot j belongs to the present history
  std::int64_t mixed;     // the next iterate mixes several past ones
  std::int64_t retreats;  // since the best iterate
  std::int64_t stale;     // steps since the reference fell
  std::int64_t steps;
  std::int64_t status;
};

/// One row of `levels`, float64.
struct AndersonLevels {
  double reference;  // smallest squared residual since the residual last grew, within anderson_fall
  double step;       // length of the next step, 1 for Picard's
};

/// Whether a sample takes part in a step. Counters come from a tensor that anybody may have written to: slots out of
/// range would be written through, so such a sample is passed over.
DEQREG_INLINE bool takes_part(const AndersonCounters& counters, std::int32_t slots) {
  return counters.status == static_cast<std::int64_t>(AndersonStatus::running) && counters.slot >= 0 &&
         counters.slot < slots && counters.best < slots && counters.steps >= 0;
}

/// One sample's state. `history` has `max_steps` entries, `batch` apart.
struct AndersonSample {
  double* gram;  // [slots, slots]
  AndersonCounters* counters;
  AndersonLevels* levels;
  double* history;
  double* weights;  // [slots]
  std::int64_t batch, max_steps;
};

/// Room for the factorisation of one sample.
struct AndersonWork {
  double factor[anderson_max_slots][anderson_max_slots];
  double scale[anderson_max_slots], inverse_pivot[anderson_max_slots], solution[anderson_max_slots];
  std::int32_t order[anderson_max_slots];
};

DEQREG_INLINE bool is_finite(double value) { return value - value == 0.0; }

/// The slots of the history, newest first.
DEQREG_INLINE std::int32_t order_history(std::int64_t valid, std::int32_t newest, std::int32_t slots,
                                         std::int32_t* order) {
  std::int32_t count = 0;
  for (std::int32_t back = 0; back < slots; ++back) {
    const std::int32_t slot = (newest - back + slots) % slots;
    if (valid >> slot & 1) order[count++] = slot;
  }
  return count;
}

/// Minimises w^T (G + regularisation diag(G)) w under sum w = 1, over the `count` slots in work.order.
DEQREG_INLINE void solve_weights(const double* gram, std::int32_t slots, std::int32_t count, double regularisation,
                                 AndersonWork& work, double* weights) {
  const std::int32_t newest = work.order[0];
  const double unit = sqrt(gram[newest * slots + newest]);
  for (std::int32_t i = 0; i < count; ++i) {
    const std::int32_t row = work.order[i];
    work.scale[i] = unit / sqrt(gram[row * slots + row]);
    for (std::int32_t j = 0; j <= i; ++j) {
      const double norms = (unit / work.scale[i]) * (unit / work.scale[j]);
      double sum = i == j ? 1.0 + regularisation : gram[row * slots + work.order[j]] / norms;
      for (std::int32_t k = 0; k < j; ++k) sum -= work.factor[i][k] * work.factor[j][k];
      if (i == j)
        work.inverse_pivot[i] = sum > anderson_least_pivot ? 1.0 / sqrt(sum) : 0.0;
      else
        work.factor[i][j] = sum * work.inverse_pivot[j];
    }
    double right = work.scale[i];
    for (std::int32_t k = 0; k < i; ++k) right -= work.factor[i][k] * work.solution[k];
    work.solution[i] = right * work.inverse_pivot[i];
  }
  double total = 0.0;
  for (std::int32_t i = count - 1; i >= 0; --i) {
    double sum = work.solution[i];
    for (std::int32_t k = i + 1; k < count; ++k) sum -= work.factor[k][i] * work.solution[k];
    work.solution[i] = sum * work.inverse_pivot[i];
    total += work.scale[i] * work.solution[i];
  }
  const bool usable = is_finite(total) && total > 0.0;
  for (std::int32_t i = 0; i < count; ++i)
    weights[work.order[i]] = usable ? work.scale[i] * work.solution[i] / total : (i == 0 ? 1.0 : 0.0);
}

/// Enters the newest residual's products, `row` of `slots` + 1, the last being |f|^2, and decides the next step.
DEQREG_INLINE void advance_anderson(const AndersonRule& rule, std::int32_t slots, const double* row,
                                    const AndersonSample& sample, AndersonWork& work) {
  AndersonCounters now = *sample.counters;
  AndersonLevels levels = *sample.levels;
  if (!takes_part(now, slots)) return;
  const auto slot = static_cast<std::int32_t>(now.slot);
  const auto bit = [](std::int64_t of) { return std::int64_t{1} << of; };
  const auto stop = [&](AndersonStatus why) { now.status = static_cast<std::int64_t>(why); };

  now.valid |= bit(slot);
  for (std::int32_t j = 0; j < slots; ++j)
    if (now.valid >> j & 1) sample.gram[slot * slots + j] = sample.gram[j * slots + slot] = row[j];
  const double squared = row[slot];
  const double residual = sqrt(squared) / (rule.relative * sqrt(row[slots]) + rule.absolute);
  const bool finite = is_finite(squared) && is_finite(row[slots]);
  if (now.steps < sample.max_steps) sample.history[now.steps * sample.batch] = residual;
  ++now.steps;

  const bool has_best = now.best >= 0;
  double least = has_best ? sample.gram[now.best * (slots + 1)] : 0.0;
  if (finite && (!has_best || squared < least)) {
    now.best = slot;
    now.retreats = 0;
    least = squared;
  }
  ++now.stale;
  if (finite && (!has_best || squared < anderson_fall * levels.reference)) {
    levels.reference = squared;
    now.stale = 0;
  }

  levels.step = rule.damping;
  for (std::int32_t j = 0; j < slots; ++j) sample.weights[j] = 0.0;
  if (finite && residual <= rule.tol) {
    stop(AndersonStatus::converged);
    now.best = slot;
  } else if (!finite) {
    if (now.best < 0 || ++now.retreats > anderson_max_retreats) {
      stop(AndersonStatus::nonfinite);
    } else {
      now.valid = bit(now.best);
      levels.reference = least;
      for (std::int64_t k = 0; k < now.retreats; ++k) levels.step *= 0.5;
      sample.weights[now.best] = 1.0;
    }
  } else if (squared > rule.divergence * rule.divergence * least) {
    stop(AndersonStatus::diverged);
  } else {
    const bool grew = squared > rule.growth * rule.growth * levels.reference;
    if (grew) {
      levels.reference = squared;
      now.stale = 0;
    }
    // a Picard step that grew is no reason for another: mixing it with the one before is what may still help
    if ((grew && now.mixed) || rule.memory == 1) now.valid = bit(slot);
    if (now.stale >= rule.patience) stop(AndersonStatus::stagnated);
    const std::int32_t count = order_history(now.valid, slot, slots, work.order);
    solve_weights(sample.gram, slots, count, rule.regularisation, work, sample.weights);
  }

  now.mixed = (now.valid & (now.valid - 1)) != 0;
  now.slot = (slot + 1) % slots;
  if (now.slot == now.best) now.slot = (now.slot + 1) % slots;
  now.valid &= ~bit(now.slot);
  *sample.counters = now;
  *sample.levels = levels;
}

}  // namespace deqreg::core
