// Gaussian smoothing in one pass over memory: each thread marches through planes of the first axis, smooths a plane
// along its two axes while it is in cache, and keeps as many of those in a ring as the first axis has taps.
#include "core/gaussian.h"

#include <memory>

#include "cpu/isa.h"
#include "cpu/parallel.h"

namespace deqreg::cpu::DEQREG_ISA {
namespace {

using core::GaussianTaps;
using core::reflect;

/// A 2-D grid is a 3-D one whose middle axis has one voxel.
struct Planes {
  std::int64_t count, rows, length;  // along axes 0, 1, 2
};

template <class T>
struct Taps {
  GaussianTaps<T> axis[3];
};

/// out = taps[0] row(0) + sum_k taps[k] (row(-k) + row(k)), elementwise over `length`, row(k) given by `at`.
template <class T, class At>
inline void combine(const GaussianTaps<T>& taps, std::int64_t length, const At& at, T* out) {
  const T* const centre = at(0);
  const T first = taps.weight[0];
  if (taps.radius == 0) {
    for (std::int64_t j = 0; j < length; ++j) out[j] = centre[j];
    return;
  }
  const T* before = at(-1);
  const T* after = at(1);
  const T second = taps.weight[1];
#pragma GCC ivdep
  for (std::int64_t j = 0; j < length; ++j) out[j] = first * centre[j] + second * (before[j] + after[j]);
  std::int32_t k = 2;
  for (; k + 1 <= taps.radius; k += 2) {  // two distances a sweep: half the traffic on `out`
    const T *b0 = at(-k), *a0 = at(k), *b1 = at(-k - 1), *a1 = at(k + 1);
    const T w0 = taps.weight[k], w1 = taps.weight[k + 1];
#pragma GCC ivdep
    for (std::int64_t j = 0; j < length; ++j) out[j] += w0 * (b0[j] + a0[j]) + w1 * (b1[j] + a1[j]);
  }
  if (k <= taps.radius) {
    const T *b0 = at(-k), *a0 = at(k);
    const T w0 = taps.weight[k];
#pragma GCC ivdep
    for (std::int64_t j = 0; j < length; ++j) out[j] += w0 * (b0[j] + a0[j]);
  }
}

/// Smooths one plane along its rows into `scratch`, then across them into `out`.
template <class T>
void smooth_plane(const T* plane, const Planes& grid, const Taps<T>& taps, T* padded, T* scratch, T* out) {
  const std::int32_t radius = taps.axis[2].radius;
  for (std::int64_t y = 0; y < grid.rows; ++y) {
    const T* row = plane + y * grid.length;
    for (std::int64_t j = 0; j < grid.length; ++j) padded[radius + j] = row[j];
    for (std::int64_t j = 1; j <= radius; ++j) {
      padded[radius - j] = row[reflect(-j, grid.length)];
      padded[radius + grid.length - 1 + j] = row[reflect(grid.length - 1 + j, grid.length)];
    }
    combine(taps.axis[2], grid.length, [&](std::int64_t k) { return padded + radius + k; }, scratch + y * grid.length);
  }
  for (std::int64_t y = 0; y < grid.rows; ++y)
    combine(
        taps.axis[1], grid.length, [&](std::int64_t k) { return scratch + reflect(y + k, grid.rows) * grid.length; },
        out + y * grid.length);
}

/// Planes [begin, end) of one channel.
template <class T>
void smooth_slab(const T* image, const Planes& grid, const Taps<T>& taps, std::int64_t begin, std::int64_t end,
                 T* buffer, T* out) {
  const std::int64_t plane = grid.rows * grid.length, radius = taps.axis[0].radius, slots = 2 * radius + 1;
  T* const scratch = buffer + slots * plane;
  T* const padded = scratch + plane;
  const auto slot = [&](std::int64_t z) { return buffer + ((z + slots) % slots) * plane; };  // z >= -radius
  for (std::int64_t z = begin - radius; z < end + radius; ++z) {
    smooth_plane(image + reflect(z, grid.count) * plane, grid, taps, padded, scratch, slot(z));
    const std::int64_t ready = z - radius;
    if (ready < begin) continue;
    for (std::int64_t y = 0; y < grid.rows; ++y)
      combine(
          taps.axis[0], grid.length, [&](std::int64_t k) { return slot(ready + k) + y * grid.length; },
          out + ready * plane + y * grid.length);
  }
}

template <class T>
void smooth(const Gaussian& op, const Executor& executor) {
  const bool volume = op.grid.dims == 3;
  const Planes grid{op.grid.size[0], volume ? op.grid.size[1] : 1, op.grid.size[volume ? 2 : 1]};
  const Taps<T> taps{{core::gaussian_taps<T>(op.sigma[0]), core::gaussian_taps<T>(volume ? op.sigma[1] : 0.0),
                      core::gaussian_taps<T>(op.sigma[volume ? 2 : 1])}};
  const std::int64_t plane = grid.rows * grid.length, voxels = grid.count * plane;
  const std::int64_t slots = 2 * taps.axis[0].radius + 1;
  const auto elements = static_cast<std::size_t>((slots + 1) * plane + grid.length + 2 * taps.axis[2].radius);
  // a slab pays for 2 radius planes more than it writes: give each thread one slab, and none for a few planes
  const std::int64_t grain = taps.axis[0].radius + 1 + 16384 / plane;
  parallel_for(executor, op.batch * op.channels * grid.count, grain, [&](std::int64_t begin, std::int64_t end) {
    const std::unique_ptr<T[]> buffer(new T[elements]);
    for (std::int64_t at = begin; at < end;) {
      const std::int64_t channel = at / grid.count, first = at % grid.count;
      const std::int64_t last = end - channel * grid.count < grid.count ? end - channel * grid.count : grid.count;
      smooth_slab(static_cast<const T*>(op.image) + channel * voxels, grid, taps, first, last, buffer.get(),
                  static_cast<T*>(op.out) + channel * voxels);
      at += last - first;
    }
  });
}

}  // namespace

void launch(const Gaussian& op, const Executor& executor) {
  if (op.batch * op.channels * op.grid.voxels() == 0) return;
  op.dtype == DType::float64 ? smooth<double>(op, executor) : smooth<float>(op, executor);
}

}  // namespace deqreg::cpu::DEQREG_ISA
