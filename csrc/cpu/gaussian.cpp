// Gaussian smoothing in one pass over memory. A thread takes a strip of rows and marches with it through the planes of
// the first axis: it smooths each plane's strip along its two axes and keeps as many of those in a ring as the first
// axis has taps. The strip is as wide as lets the ring stay in the second-level cache. Within a strip rows lie end to
// end, so that across rows and planes all of it is one run of vectors.
#include "core/gaussian.h"

#include <cstring>

#include "cpu/buffer.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/vector.h"

namespace deqreg::cpu::DEQREG_ISA {
namespace {

using core::gaussian_max_radius;
using core::GaussianTaps;
using core::reflect;

constexpr std::int64_t ring_bytes = std::int64_t{3} << 17;  // of a second-level cache of 512 KiB or more

/// A 2-D grid is a 3-D one whose middle axis has one voxel.
struct Planes {
  std::int64_t count, rows, length;  // along axes 0, 1, 2
};

template <class T>
struct Taps {
  GaussianTaps<T> axis[3];
};

template <class T>
constexpr int lanes = static_cast<int>(vector_bytes / sizeof(T));

template <class T>
std::int64_t round_up(std::int64_t count) {
  return (count + lanes<T> - 1) / lanes<T> * lanes<T>;
}

/// Where the rows that are combined begin, by distance from the centre.
template <class T>
class Rows {
 public:
  const T*& operator[](std::int64_t k) { return at_[gaussian_max_radius + k]; }
  const T* operator[](std::int64_t k) const { return at_[gaussian_max_radius + k]; }

 private:
  const T* at_[2 * gaussian_max_radius + 1];
};

/// sum = taps[0] row(0) + sum_k taps[k] (row(-k) + row(k)) from entry j on, `vectors` of them side by side in
/// registers.
template <int vectors, class T, class V>
DEQREG_INLINE void combine_vectors(const GaussianTaps<T>& taps, const Rows<T>& rows, std::int64_t j,
                                   V (&sum)[vectors]) {
  using Loose = typename Vector<T, lanes<T>>::Loose;
  const auto load = [](const T* at, int v) { return *reinterpret_cast<const Loose*>(at + v * lanes<T>); };
  for (int v = 0; v < vectors; ++v) sum[v] = taps.weight[0] * load(rows[0] + j, v);
  for (std::int32_t k = 1; k <= taps.radius; ++k) {
    const T *before = rows[-k] + j, *after = rows[k] + j;
    for (int v = 0; v < vectors; ++v) sum[v] += taps.weight[k] * (load(before, v) + load(after, v));
  }
}

/// The combination of `count` entries from entry `first` on; rows are read to the end of the last vector.
template <class T>
void combine(const GaussianTaps<T>& taps, const Rows<T>& rows, std::int64_t first, std::int64_t count, T* out) {
  using V = typename Vector<T, lanes<T>>::Loose;
  constexpr int vectors = 4;
  std::int64_t j = 0;
  for (; j + vectors * lanes<T> <= count; j += vectors * lanes<T>) {
    V sum[vectors];
    combine_vectors(taps, rows, first + j, sum);
    for (int v = 0; v < vectors; ++v) *reinterpret_cast<V*>(out + j + v * lanes<T>) = sum[v];
  }
  for (; j < count; j += lanes<T>) {
    V sum[1];
    combine_vectors(taps, rows, first + j, sum);
    if (count - j < lanes<T>)
      std::memcpy(out + j, sum, static_cast<std::size_t>(count - j) * sizeof(T));
    else
      *reinterpret_cast<V*>(out + j) = sum[0];
  }
}

/// One thread's strips. Rows are whole vectors apart, so that only shifts along a row are unaligned.
template <class T>
class Strip {
 public:
  Strip(const Planes& grid, const Taps<T>& taps, std::int64_t height)
      : grid_(grid),
        taps_(taps),
        stride_(round_up<T>(grid.length)),
        padded_stride_(round_up<T>(grid.length + 2 * taps.axis[2].radius) + lanes<T>),
        slots_(2 * taps.axis[0].radius < grid.count ? 2 * taps.axis[0].radius + 1 : grid.count),
        slot_size_(height * stride_),
        padded_(padded_rows * padded_stride_),
        scratch_((height + 2 * taps.axis[1].radius) * stride_),
        ring_(slots_ * slot_size_) {}

  /// Planes [begin, end) of rows [first, last) of one channel.
  void run(const T* image, T* out, std::int64_t first, std::int64_t last, std::int64_t begin, std::int64_t end) {
    const GaussianTaps<T>& taps = taps_.axis[0];
    const std::int64_t plane = grid_.rows * grid_.length;
    std::int64_t next = begin > taps.radius ? begin - taps.radius : 0;
    for (std::int64_t z = begin; z < end; ++z) {
      for (; next < grid_.count && next <= z + taps.radius; ++next)
        smooth_plane(image + next * plane, first, last, slot(next));
      Rows<T> rows;
      for (std::int64_t k = -taps.radius; k <= taps.radius; ++k) rows[k] = slot(reflect(z + k, grid_.count));
      for (std::int64_t y = first; y < last; ++y)
        combine(taps, rows, (y - first) * stride_, grid_.length, out + z * plane + y * grid_.length);
    }
  }

 private:
  // Rows that are copied together before they are smoothed: what is read back at once, at another alignment, would have
  // to wait for the stores.
  static constexpr std::int64_t padded_rows = 8;
  // What the hardware fetches ahead ends with each page and with each strip.
  static constexpr std::int64_t prefetched_rows = 4;

  T* slot(std::int64_t z) const { return ring_.data() + z % slots_ * slot_size_; }

  /// Rows [first, last) of one plane, smoothed along and across.
  void smooth_plane(const T* plane, std::int64_t first, std::int64_t last, T* out) const {
    const GaussianTaps<T>& taps = taps_.axis[1];
    for (std::int64_t y = first - taps.radius; y < last + taps.radius; y += padded_rows) {
      const std::int64_t rest = last + taps.radius - y;
      T* const to = scratch_.data() + (y - first + taps.radius) * stride_;
      smooth_rows(plane, y, rest < padded_rows ? rest : padded_rows, to);
    }
    Rows<T> rows;
    for (std::int64_t k = -taps.radius; k <= taps.radius; ++k) rows[k] = scratch_.data() + (taps.radius + k) * stride_;
    combine(taps, rows, 0, (last - first) * stride_, out);
  }

  /// `count` rows from row y on, mirrored beyond the plane, smoothed along.
  void smooth_rows(const T* plane, std::int64_t y, std::int64_t count, T* out) const {
    const GaussianTaps<T>& taps = taps_.axis[2];
    const std::int64_t length = grid_.length, radius = taps.radius;
    for (std::int64_t i = 0; i < count; ++i) {
      const T* const row = plane + reflect(y + i, grid_.rows) * length;
      T* const padded = padded_.data() + i * padded_stride_ + radius;
      for (std::int64_t j = 0; j < length; j += lanes<T>) __builtin_prefetch(row + prefetched_rows * length + j);
      for (std::int64_t j = 0; j < length; ++j) padded[j] = row[j];
      for (std::int64_t j = 1; j <= radius; ++j) {
        padded[-j] = row[reflect(-j, length)];
        padded[length - 1 + j] = row[reflect(length - 1 + j, length)];
      }
    }
    Rows<T> rows;
    for (std::int64_t k = -radius; k <= radius; ++k) rows[k] = padded_.data() + radius + k;
    for (std::int64_t i = 0; i < count; ++i) combine(taps, rows, i * padded_stride_, stride_, out + i * stride_);
  }

  const Planes grid_;
  const Taps<T>& taps_;
  const std::int64_t stride_, padded_stride_, slots_, slot_size_;
  Buffer<T> padded_;   // rows with their mirrored ends
  Buffer<T> scratch_;  // rows smoothed along, with those that the outermost ones reach
  Buffer<T> ring_;     // [slots, rows of the strip], smoothed along and across
};

/// Rows of a strip: few enough for the ring to stay in cache, and no fewer than are smoothed along twice for it.
template <class T>
std::int64_t strip_height(const Planes& grid, const Taps<T>& taps) {
  const std::int64_t slots = 2 * taps.axis[0].radius + 1, twice = 2 * taps.axis[1].radius;
  const std::int64_t fitting = ring_bytes / (slots * round_up<T>(grid.length) * static_cast<std::int64_t>(sizeof(T)));
  const std::int64_t height = fitting > twice ? fitting : twice > 0 ? twice : 1;
  const std::int64_t strips = (grid.rows + height - 1) / height;
  return (grid.rows + strips - 1) / strips;
}

template <class T>
void smooth(const Gaussian& op, const Executor& executor) {
  const bool volume = op.grid.dims == 3;
  const Planes grid{op.grid.size[0], volume ? op.grid.size[1] : 1, op.grid.size[volume ? 2 : 1]};
  const Taps<T> taps{{core::gaussian_taps<T>(op.sigma[0]), core::gaussian_taps<T>(volume ? op.sigma[1] : 0.0),
                      core::gaussian_taps<T>(op.sigma[volume ? 2 : 1])}};
  const std::int64_t height = strip_height(grid, taps), strips = (grid.rows + height - 1) / height;
  // a thread smooths 2 radius planes more than it writes: give each one run of planes, and none for a few
  const std::int64_t grain = taps.axis[0].radius + 1 + 16384 / (height * grid.length);
  const std::int64_t planes = op.batch * op.channels * strips * grid.count;
  parallel_for(executor, planes, grain, [&](std::int64_t begin, std::int64_t end) {
    Strip<T> strip(grid, taps, height);
    for (std::int64_t at = begin; at < end;) {
      const std::int64_t channel = at / grid.count / strips, first = at / grid.count % strips * height;
      const std::int64_t plane = at % grid.count, rest = grid.count - plane;
      const std::int64_t count = rest < end - at ? rest : end - at;
      const std::int64_t last = first + height < grid.rows ? first + height : grid.rows;
      const std::int64_t offset = channel * grid.count * grid.rows * grid.length;
      strip.run(static_cast<const T*>(op.image) + offset, static_cast<T*>(op.out) + offset, first, last, plane,
                plane + count);
      at += count;
    }
  });
}

}  // namespace

void launch(const Gaussian& op, const Executor& executor) {
  if (op.batch * op.channels * op.grid.voxels() == 0) return;
  op.dtype == DType::float64 ? smooth<double>(op, executor) : smooth<float>(op, executor);
}

}  // namespace deqreg::cpu::DEQREG_ISA
