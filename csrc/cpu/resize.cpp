// Linear interpolation between grids and its adjoint, a row of the result at a time: rows are blended across axes 0 and
// 1 as they lie in memory, and only the blended one is resized along the fastest axis.
#include "core/resize.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/vector.h"

namespace deqreg::cpu::DEQREG_ISA {
namespace {

constexpr std::int64_t grain_voxels = 16384;

/// A grid of three axes; a 2-D one is a single plane.
struct Extent {
  std::int32_t planes, rows, length;

  explicit Extent(const Grid& grid)
      : planes(grid.dims == 3 ? static_cast<std::int32_t>(grid.size[0]) : 1),
        rows(static_cast<std::int32_t>(grid.size[grid.dims - 2])),
        length(static_cast<std::int32_t>(grid.size[grid.dims - 1])) {}
  std::int64_t voxels() const { return std::int64_t{planes} * rows * length; }
};

/// What the voxels of a target axis sample, as arrays of their own: loops over them vectorise.
template <class T>
struct Taps {
  std::vector<std::int32_t> lower, upper;
  std::vector<T> weight;

  Taps(std::int32_t source, std::int32_t target) : lower(target), upper(target), weight(target) {
    const core::ResizeAxis<T> axis(source, target);
    for (std::int32_t i = 0; i < target; ++i) {
      const auto tap = core::resize_tap(axis, i);
      lower[i] = tap.lower;
      upper[i] = tap.upper;
      weight[i] = tap.weight;
    }
  }
};

/// Which target voxels sample each voxel of a source axis, and how much of it: the transpose of Taps, without zeros.
template <class T>
struct Samplers {
  std::vector<std::int32_t> begin, target;
  std::vector<T> weight;

  Samplers(std::int32_t source, std::int32_t targets) : begin(source + 1) {
    const core::ResizeAxis<T> axis(source, targets);
    for (std::int32_t j = 0; j < source; ++j) {
      begin[j] = static_cast<std::int32_t>(target.size());
      const auto reach = core::resize_reach(axis, j);
      for (std::int32_t i = reach.first; i < reach.end; ++i) {
        const T w = core::resize_weight(core::resize_tap(axis, i), j);
        if (w == T(0)) continue;
        target.push_back(i);
        weight.push_back(w);
      }
    }
    begin[source] = static_cast<std::int32_t>(target.size());
  }

  std::int32_t count(std::int32_t j) const { return begin[j + 1] - begin[j]; }

  std::int32_t most() const {
    std::int32_t most = 0;
    for (std::size_t j = 0; j + 1 < begin.size(); ++j) most = std::max(most, count(static_cast<std::int32_t>(j)));
    return most;
  }
};

/// Samplers with as many for each voxel, the k-th of all voxels side by side: those that are missing weigh nothing.
template <class T>
struct SamplerColumns {
  std::int32_t length, columns;
  std::vector<std::int32_t> target;
  std::vector<T> weight;

  explicit SamplerColumns(const Samplers<T>& samplers)
      : length(static_cast<std::int32_t>(samplers.begin.size()) - 1),
        columns(samplers.most()),
        target(std::size_t(columns) * length),
        weight(target.size()) {
    for (std::int32_t j = 0; j < length; ++j)
      for (std::int32_t k = 0; k < samplers.count(j); ++k) {
        target[std::size_t(k) * length + j] = samplers.target[samplers.begin[j] + k];
        weight[std::size_t(k) * length + j] = samplers.weight[samplers.begin[j] + k];
      }
  }

  /// Sums of the samples in `line` for all voxels.
  void gather(const T* line, T* out) const {
    for (std::int32_t j = 0; j < length; ++j) out[j] = T(0);
    for (std::int32_t k = 0; k < columns; ++k) {
      const std::int32_t* const from = target.data() + std::size_t(k) * length;
      const T* const by = weight.data() + std::size_t(k) * length;
#pragma GCC ivdep
      for (std::int32_t j = 0; j < length; ++j) out[j] += by[j] * line[from[j]];
    }
  }
};

/// A row and how much of it counts.
template <class T>
struct WeightedRow {
  const T* from;
  T weight;
};

/// The weighted sum of rows, `vectors` of them from voxel i on.
template <int vectors, class T>
DEQREG_INLINE void sum_vectors(const WeightedRow<T>* rows, std::int32_t count, std::int32_t i, T* out) {
  constexpr int lanes = native_lanes<T>;
  using V = Vector<T, lanes>;
  typename V::Aligned sum[vectors] = {};
  for (std::int32_t k = 0; k < count; ++k)
    for (int v = 0; v < vectors; ++v)
      sum[v] += rows[k].weight * *reinterpret_cast<const typename V::Loose*>(rows[k].from + i + v * lanes);
  for (int v = 0; v < vectors; ++v) *reinterpret_cast<typename V::Loose*>(out + i + v * lanes) = sum[v];
}

/// The weighted sum of rows. In vectors by hand, four in work, for each waits for its last product: left to itself, GCC
/// takes two rows at once and voxel by voxel.
template <class T>
DEQREG_INLINE void sum_rows(const WeightedRow<T>* rows, std::int32_t count, std::int32_t length, T* out) {
  constexpr int lanes = native_lanes<T>;
  std::int32_t i = 0;
  for (; i + 4 * lanes <= length; i += 4 * lanes) sum_vectors<4>(rows, count, i, out);
  for (; i + lanes <= length; i += lanes) sum_vectors<1>(rows, count, i, out);
  for (; i < length; ++i) {
    T sum = T(0);
    for (std::int32_t k = 0; k < count; ++k) sum += rows[k].weight * rows[k].from[i];
    out[i] = sum;
  }
}

template <class T>
void resize_rows(const Resize& op, const Executor& executor) {
  const Extent source(op.source_grid), target(op.target_grid);
  const Taps<T> z(source.planes, target.planes), y(source.rows, target.rows), x(source.length, target.length);
  const std::int64_t rows = std::int64_t{target.planes} * target.rows;
  parallel_for(executor, op.batch * op.channels * rows, 1 + grain_voxels / target.length, [&](auto begin, auto end) {
    const std::unique_ptr<T[]> blended(new T[source.length]);
    for (std::int64_t r = begin; r < end; ++r) {
      const T* const image = static_cast<const T*>(op.source) + r / rows * source.voxels();
      const auto plane = static_cast<std::int32_t>(r % rows / target.rows);
      const auto row = static_cast<std::int32_t>(r % target.rows);
      const auto at = [&](std::int32_t p, std::int32_t q) {
        return image + (std::int64_t{p} * source.rows + q) * source.length;
      };
      const T *near0 = at(z.lower[plane], y.lower[row]), *near1 = at(z.lower[plane], y.upper[row]);
      const T *far0 = at(z.upper[plane], y.lower[row]), *far1 = at(z.upper[plane], y.upper[row]);
      const T wz = z.weight[plane], wy = y.weight[row];
      T* const line = blended.get();
#pragma GCC ivdep
      for (std::int32_t j = 0; j < source.length; ++j) {
        const T near = near0[j] + wy * (near1[j] - near0[j]), far = far0[j] + wy * (far1[j] - far0[j]);
        line[j] = near + wz * (far - near);
      }
      T* const out = static_cast<T*>(op.target) + r * target.length;
      const std::int32_t *lower = x.lower.data(), *upper = x.upper.data();
      const T* const weight = x.weight.data();
#pragma GCC ivdep
      for (std::int32_t i = 0; i < target.length; ++i)
        out[i] = line[lower[i]] + weight[i] * (line[upper[i]] - line[lower[i]]);
    }
  });
}

template <class T>
void pull_back_rows(const ResizeAdjoint& op, const Executor& executor) {
  const Extent source(op.source_grid), target(op.target_grid);
  const Samplers<T> z(source.planes, target.planes), y(source.rows, target.rows);
  const SamplerColumns<T> x(Samplers<T>(source.length, target.length));
  const std::int64_t rows = std::int64_t{source.planes} * source.rows;
  parallel_for(executor, op.batch * op.channels * rows, 1 + grain_voxels / target.length, [&](auto begin, auto end) {
    const std::unique_ptr<T[]> line(new T[target.length]);
    std::vector<WeightedRow<T>> sampling(std::size_t(z.most()) * y.most());
    for (std::int64_t r = begin; r < end; ++r) {
      const T* const grad = static_cast<const T*>(op.target) + r / rows * target.voxels();
      const std::int64_t plane = r % rows / source.rows, row = r % source.rows;
      std::int32_t count = 0;
      for (std::int32_t p = z.begin[plane]; p < z.begin[plane + 1]; ++p)
        for (std::int32_t q = y.begin[row]; q < y.begin[row + 1]; ++q)
          sampling[count++] = {grad + (std::int64_t{z.target[p]} * target.rows + y.target[q]) * target.length,
                               z.weight[p] * y.weight[q]};
      sum_rows(sampling.data(), count, target.length, line.get());
      x.gather(line.get(), static_cast<T*>(op.source) + r * source.length);
    }
  });
}

}  // namespace

void launch(const Resize& op, const Executor& executor) {
  if (op.batch * op.channels * op.target_grid.voxels() == 0) return;
  op.dtype == DType::float64 ? resize_rows<double>(op, executor) : resize_rows<float>(op, executor);
}

void launch(const ResizeAdjoint& op, const Executor& executor) {
  if (op.batch * op.channels * op.source_grid.voxels() == 0) return;
  op.dtype == DType::float64 ? pull_back_rows<double>(op, executor) : pull_back_rows<float>(op, executor);
}

}  // namespace deqreg::cpu::DEQREG_ISA
