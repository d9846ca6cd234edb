// What an image's slopes leave in the gradient by the positions, a row of a box or a run at a time.
#pragma once

#include <cstdint>

#include "cpu/sampling_box.h"
#include "cpu/sampling_tile.h"
#include "cpu/streaming.h"

namespace deqreg::cpu::DEQREG_ISA {

/// Adds values times the slope of the image along an axis to `out`, which the first channel sets.
template <int Axis, int D, class T, class Index>
void add_slope(const SlopeTile<D, T, Index>& tile, const Corners<D, T>& corners, std::int32_t count, bool first,
               const T* values, T* out) {
#pragma GCC ivdep
  for (std::int32_t j = 0; j < count; ++j)
    out[j] = (first ? T(0) : out[j]) + values[j] * corners.template blend<Axis>(tile, j);
}

template <class T, class V>
DEQREG_INLINE void store_slope(V sum, bool first, std::int32_t count, T* out) {
  if (!first) sum += load_first<T>(out, count);
  store_first(sum, count, out);
}

/// Where a WarpGradient's values are and its sums go. A channel is counted over the batch, an offset in voxels.
template <int D, class T>
struct Slopes {
  const WarpGradient& op;
  const std::int64_t voxels;
  // rows of a box are short and far apart: those of the values, and of the output that is stored to, come late without
  // being asked for, a seventh and a sixth of the time
  const std::int64_t rows_ahead;
  const bool streams;  // where no second channel adds to what the first one sets

  explicit Slopes(const WarpGradient& op)
      : op(op),
        voxels(op.out_grid.voxels()),
        rows_ahead(4 * op.out_grid.size[D - 1]),
        streams(op.channels == 1 && worth_streaming<T>(op.batch * D * voxels) && voxels % native_lanes<T> == 0) {}

  const T* values_at(std::int64_t c, std::int64_t offset) const {
    return static_cast<const T*>(op.values) + c * voxels + offset;
  }
  T* out_at(std::int64_t c, std::int64_t offset) const {
    return static_cast<T*>(op.out) + c / op.channels * D * voxels + offset;
  }
  bool is_first(std::int64_t c) const { return c % op.channels == 0; }  // of its sample

  /// Of `count` voxels of a row.
  DEQREG_INLINE void store(const SlopeRow<T>& row, std::int32_t count, std::int64_t c, std::int64_t offset) const {
    constexpr int lanes = native_lanes<T>;
    const T* const values = values_at(c, offset);
    T* const out = out_at(c, offset);
    const bool first = is_first(c), past_caches = streams && is_aligned<typename SlopeRow<T>::V>(out);
    for (std::int32_t j = 0; j < count; j += lanes) {
      __builtin_prefetch(values + rows_ahead + j, 0, 2);
      typename SlopeRow<T>::V along[3];
      row.slope(j, along);
      const auto value = load_first<T>(values + j, count - j);
      for (int a = 0; a < D; ++a) {
        T* const to = out + a * voxels + j;
        if (past_caches && count - j >= lanes) {
          stream(value * along[3 - D + a], to);
        } else {
          __builtin_prefetch(to + rows_ahead, 1);
          store_slope<T>(value * along[3 - D + a], first, count - j, to);
        }
      }
    }
  }

  /// Of a run whose cells lie apart.
  template <Padding padding>
  void store_scattered(const SampledRun<D, T>& run, std::int64_t c, std::int64_t offset) const {
    SlopeTile<D, T, std::int64_t> tile;
    Corners<D, T> corners;
    fill_strides(op.image_grid, tile.stride);
    fill_tile<padding>(run, tile);
    corners.fetch(tile, run.count, static_cast<const T*>(op.image) + c * op.image_grid.voxels());
    const T* const values = values_at(c, offset);
    T* const out = out_at(c, offset);
    const bool first = is_first(c);
    add_slope<0>(tile, corners, run.count, first, values, out);
    add_slope<1>(tile, corners, run.count, first, values, out + voxels);
    if constexpr (D == 3) add_slope<2>(tile, corners, run.count, first, values, out + 2 * voxels);
  }
};

}  // namespace deqreg::cpu::DEQREG_ISA
