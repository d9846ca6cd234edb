// Local normalised cross-correlation and its gradients in one pass over the planes of axis 0. Each thread takes a slab:
//   a plane enters  moments: for every column of voxels along axis 0, the window's sums of I, J, II, JJ, IJ (and of the
//                   mask), a plane added and a plane taken away, both read from the images themselves
//   rows follow     band: the moments summed along axis 1 in the same way; then along axis 2: whole windows
//   coefficients    a, b, c of core/lncc.h from each window, box-summed along axes 2 and 1 into a ring of planes
//   planes leave    the ring summed along axis 0, a group of planes at a time: their gradients, `radius` planes behind
// A 2-D image is a stack of planes of one row.
//
// Intensities are counted from an origin within their range, which takes a common offset away, and sums of them are
// double: the squares of floats are exact in it, so that a variance survives a mean 1e6 times the deviation. They are
// taken anew every `restart_planes` planes, counted from the image's edge and not the slab's. Sums of coefficients are
// added up afresh, for a group of neighbouring windows at a time, and never subtracted from: they differ by many orders
// between flat and textured places, and what a running sum loses beside a large one would stay lost. Either way no
// voxel's bits depend on where a slab begins.
#include "core/lncc.h"

#include <cstdint>
#include <memory>
#include <type_traits>
#include <utility>

#include "cpu/buffer.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/vector.h"

namespace deqreg::cpu::DEQREG_ISA {
namespace {

constexpr std::int64_t restart_planes = 32;
constexpr std::int64_t group = 4;  // neighbouring windows that are summed together, sharing what they share

/// One axis and the window along it. A radius beyond the image covers the same voxels as one up to its edge.
struct Axis {
  std::int64_t size;
  std::int64_t radius;

  Axis(std::int64_t voxels, std::int64_t window)
      : size(voxels), radius(window / 2 < voxels ? window / 2 : voxels - 1) {}
  std::int64_t window() const { return 2 * radius + 1; }
  std::int64_t first(std::int64_t centre) const { return centre > radius ? centre - radius : 0; }
  std::int64_t end(std::int64_t centre) const { return centre + radius < size ? centre + radius + 1 : size; }
  std::int64_t count(std::int64_t centre) const { return end(centre) - first(centre); }
};

template <class T>
DEQREG_INLINE void add(const T* a, const T* b, std::int64_t count, T* out) {
#pragma GCC ivdep
  for (std::int64_t x = 0; x < count; ++x) out[x] = a[x] + b[x];
}

template <class T>
constexpr std::int64_t lanes = static_cast<std::int64_t>(vector_bytes / sizeof(T));

/// To a multiple of every lane count.
constexpr std::int64_t round_up(std::int64_t count) { return (count + 15) / 16 * 16; }

/// sum[x] = source[x] + ... + source[x + window - 1] for `vectors` of x, side by side in registers.
template <int vectors, class T>
DEQREG_INLINE void box_vectors(const T* source, std::int64_t window, T* out) {
  using V = typename Vector<T, lanes<T>>::Loose;
  V sum[vectors];
  for (int v = 0; v < vectors; ++v) sum[v] = *reinterpret_cast<const V*>(source + v * lanes<T>);
  for (std::int64_t k = 1; k < window; ++k)
    for (int v = 0; v < vectors; ++v) sum[v] += *reinterpret_cast<const V*>(source + k + v * lanes<T>);
  for (int v = 0; v < vectors; ++v) *reinterpret_cast<V*>(out + v * lanes<T>) = sum[v];
}

/// out[x] = source[x] + ... + source[x + window - 1], in whole vectors. Sums of sums of neighbours would take fewer
/// additions, but each would be read back, at another alignment, before it has left for the cache.
template <class T>
void box_row(const T* source, std::int64_t count, std::int64_t window, T* out) {
  std::int64_t x = 0;
  for (; x + 4 * lanes<T> <= count; x += 4 * lanes<T>) box_vectors<4>(source + x, window, out + x);
  for (; x < count; x += lanes<T>) box_vectors<1>(source + x, window, out + x);
}

/// out = rows[0] + ... + rows[count - 1], in this order.
template <class T, class RowAt>
DEQREG_INLINE void sum_rows(const RowAt& row_at, std::int64_t begin, std::int64_t end, std::int64_t length, T* out) {
  const T* first = row_at(begin);
  for (std::int64_t x = 0; x < length; ++x) out[x] = first[x];
  std::int64_t k = begin + 1;
  for (; k + 4 <= end; k += 4) {
    const T *r0 = row_at(k), *r1 = row_at(k + 1), *r2 = row_at(k + 2), *r3 = row_at(k + 3);
#pragma GCC ivdep
    for (std::int64_t x = 0; x < length; ++x) out[x] += (r0[x] + r1[x]) + (r2[x] + r3[x]);
  }
  for (; k < end; ++k) add(out, row_at(k), length, out);
}

/// The sums of a group of windows along an axis, centred on first ... first + 3: they have all rows but six in common.
template <class T, class RowAt>
void sum_group(const RowAt& row_at, const Axis& axis, std::int64_t first, std::int64_t length, const T* zeros,
               T* common, T* const (&out)[group]) {
  const std::int64_t radius = axis.radius;
  const auto row = [&](std::int64_t k) { return k >= 0 && k < axis.size ? row_at(k) : zeros; };
  if (radius == 0) {
    for (std::int64_t k = 0; k < group; ++k) add(row(first + k), zeros, length, out[k]);
    return;
  }
  const std::int64_t begin = axis.first(first + group - 1), end = axis.end(first);
  if (begin < end) sum_rows(row_at, begin, end, length, common);
  const T* const rest = begin < end ? common : zeros;
  const T *f0 = row(first - radius), *f1 = row(first - radius + 1), *f2 = row(first - radius + 2);
  const T *b0 = row(first + radius + 1), *b1 = row(first + radius + 2), *b2 = row(first + radius + 3);
  T *const out0 = out[0], *const out1 = out[1], *const out2 = out[2], *const out3 = out[3];
#pragma GCC ivdep
  for (std::int64_t x = 0; x < length; ++x) {
    const T front = f1[x] + f2[x], back = b0[x] + b1[x];
    out0[x] = rest[x] + (f0[x] + front);
    out1[x] = rest[x] + front + b0[x];
    out2[x] = rest[x] + f2[x] + back;
    out3[x] = rest[x] + (back + b2[x]);
  }
}

/// What is known of a sample before its windows are.
struct Sample {
  std::int64_t voxels;                 // of the mask, or of the image
  double fixed_origin, warped_origin;  // where intensities are counted from
};

template <class T>
struct ImageRow {
  const T* fixed;
  const T* warped;
  const std::uint8_t* mask;  // null without one
};

template <class T>
struct Images {
  ImageRow<T> voxel;  // the sample's first
  T* grad_fixed;
  T* grad_warped;

  ImageRow<T> row(std::int64_t offset) const {
    return {voxel.fixed + offset, voxel.warped + offset, voxel.mask == nullptr ? nullptr : voxel.mask + offset};
  }
};

/// moments[q] += what enters - what leaves, for one row; q-th moment at q * stride.
template <bool masked, class T>
void slide(const Sample& sample, ImageRow<T> in, ImageRow<T> out, std::int64_t count, std::int64_t stride,
           double* moments) {
  double *fixed = moments, *warped = fixed + stride, *fixed_squared = warped + stride;
  double *warped_squared = fixed_squared + stride, *product = warped_squared + stride, *voxels = product + stride;
  const double fixed_origin = sample.fixed_origin, warped_origin = sample.warped_origin;
#pragma GCC ivdep
  for (std::int64_t x = 0; x < count; ++x) {
    // a select and not a product: what lies outside the mask may be anything
    const bool enters = !masked || in.mask[x], leaves = !masked || out.mask[x];
    const double in_fixed = enters ? in.fixed[x] - fixed_origin : 0.0;
    const double in_warped = enters ? in.warped[x] - warped_origin : 0.0;
    const double out_fixed = leaves ? out.fixed[x] - fixed_origin : 0.0;
    const double out_warped = leaves ? out.warped[x] - warped_origin : 0.0;
    fixed[x] += in_fixed - out_fixed;
    warped[x] += in_warped - out_warped;
    fixed_squared[x] += in_fixed * in_fixed - out_fixed * out_fixed;
    warped_squared[x] += in_warped * in_warped - out_warped * out_warped;
    product[x] += in_fixed * in_warped - out_fixed * out_warped;
    if constexpr (masked) voxels[x] += (enters ? 1.0 : 0.0) - (leaves ? 1.0 : 0.0);
  }
}

/// One thread's planes of one sample.
template <class T, bool masked, int gradients>
class Slab {
  static constexpr int moments = masked ? 6 : 5;
  static constexpr int fields = 1 + 2 * gradients;  // a, b and c by the warped image, b and c by the fixed one

 public:
  Slab(const Axis (&axes)[3], double epsilon, double shared)
      : planes_(axes[0]),
        rows_(axes[1]),
        columns_(axes[2]),
        epsilon_(epsilon),
        shared_(shared),
        lead_(round_up(columns_.radius)),
        stride_(lead_ + round_up(round_up(columns_.size) + columns_.radius)),
        sums_(rows_.size * moments * stride_),
        band_(moments * stride_),
        windows_(spilling(moments)),
        values_(columns_.size),
        inverse_count_(columns_.size),
        fixed_outside_(columns_.size),
        warped_outside_(columns_.size),
        mask_outside_(columns_.size),
        coefficients_(gradients ? fields * stride_ : 0),
        row_ring_(gradients ? kept(rows_) * field_row() : 0),
        plane_ring_(gradients ? kept(planes_) * rows_.size * field_row() : 0),
        boxes_(gradients ? group * field_row() : 0),
        common_(gradients ? field_row() : 0),
        no_fields_(gradients ? field_row() : 0),
        beyond_(gradients ? field_row() : 0) {
    for (std::int64_t x = 0; x < columns_.size; ++x) inverse_count_.data()[x] = 1.0 / double(columns_.count(x));
  }

  /// Planes [begin, end), whole groups: their sums of values, and the gradients.
  void run(const Images<T>& images, const Sample& sample, std::int64_t begin, std::int64_t end, double* plane_values) {
    images_ = images;
    sample_ = sample;
    for (std::int64_t x = 0; x < columns_.size; ++x) {
      fixed_outside_.data()[x] = T(sample.fixed_origin);
      warped_outside_.data()[x] = T(sample.warped_origin);
    }
    const std::int64_t reach = gradients ? planes_.radius : 0;
    const std::int64_t first = begin > reach ? begin - reach : 0;
    for (std::int64_t z = first / restart_planes * restart_planes; z < first; ++z)
      for (std::int64_t y = 0; y < rows_.size; ++y) enter(z, y);
    for (std::int64_t z = first; z < end + reach; ++z) {
      if (z < planes_.size) {
        const double value = sweep(z);
        if (z >= begin && z < end) plane_values[z] = value;
      }
      const std::int64_t behind = z - reach;
      if (gradients && behind >= begin && completes_group(behind, planes_)) leave(behind / group * group);
    }
  }

 private:
  /// Rows of coefficients that a group of windows along an axis reads.
  static std::int64_t kept(const Axis& axis) { return axis.window() + group - 1; }
  static bool completes_group(std::int64_t centre, const Axis& axis) {
    return centre % group == group - 1 || centre == axis.size - 1;
  }
  /// Room for `rows` rows end to end, filled in order in whole vectors.
  std::int64_t spilling(int rows) const { return round_up((rows - 1) * columns_.size + round_up(columns_.size)); }
  std::int64_t field_row() const { return spilling(fields); }
  double* sums(std::int64_t y) const { return sums_.data() + y * moments * stride_; }
  T* row_ring(std::int64_t y) const { return row_ring_.data() + y % kept(rows_) * field_row(); }
  T* plane_ring(std::int64_t z, std::int64_t y) const {
    return plane_ring_.data() + (z % kept(planes_) * rows_.size + y) * field_row();
  }
  ImageRow<T> image_row(std::int64_t z, std::int64_t y) const {
    if (z < 0 || z >= planes_.size) return {fixed_outside_.data(), warped_outside_.data(), mask_outside_.data()};
    return images_.row((z * rows_.size + y) * columns_.size);
  }

  /// Moves the moments of row y to the window around plane z, from the one around z - 1 or from nothing.
  void enter(std::int64_t z, std::int64_t y) const {
    double* const row = sums(y);
    const auto step = [&](std::int64_t in, std::int64_t out) {
      slide<masked>(sample_, image_row(in, y), image_row(out, y), columns_.size, stride_, row + lead_);
    };
    if (z % restart_planes != 0) return step(z + planes_.radius, z - planes_.radius - 1);
    for (std::int64_t i = 0; i < moments * stride_; ++i) row[i] = 0.0;
    for (std::int64_t plane = planes_.first(z); plane < planes_.end(z); ++plane) step(plane, -1);
  }

  /// Plane z from images to box-summed coefficients; the sum of its values.
  double sweep(std::int64_t z) const {
    double* const values = values_.data();
    for (std::int64_t i = 0; i < moments * stride_; ++i) band_.data()[i] = 0.0;
    for (std::int64_t x = 0; x < columns_.size; ++x) values[x] = 0.0;
    const std::int64_t radius = rows_.radius, last = rows_.size + (gradients ? 2 : 1) * radius;
    for (std::int64_t y = 0; y < last; ++y) {
      if (y < rows_.size) enter(z, y);
      move_band(y);
      if (y >= radius && y - radius < rows_.size) emit(z, y - radius);
      const std::int64_t behind = y - 2 * radius;
      if (gradients && behind >= 0 && completes_group(behind, rows_)) box_rows(z, behind / group * group);
    }
    double total = 0.0;
    for (std::int64_t x = 0; x < columns_.size; ++x) total += values[x];
    return total;
  }

  /// Moves the band to the window that ends with row y.
  void move_band(std::int64_t y) const {
    const std::int64_t leaving = y - rows_.window();
    double* const band = band_.data();
    const double* const in = y < rows_.size ? sums(y) : nullptr;
    const double* const out = leaving >= 0 && leaving < rows_.size ? sums(leaving) : nullptr;
    if (in != nullptr && out != nullptr) {
#pragma GCC ivdep
      for (std::int64_t i = 0; i < moments * stride_; ++i) band[i] += in[i] - out[i];
    } else if (in != nullptr) {
      add(band, in, moments * stride_, band);
    } else if (out != nullptr) {
#pragma GCC ivdep
      for (std::int64_t i = 0; i < moments * stride_; ++i) band[i] -= out[i];
    }
  }

  /// The windows centred on row y of plane z: values, and coefficients summed along the row.
  void emit(std::int64_t z, std::int64_t y) const {
    const std::int64_t count = columns_.size, window = columns_.window();
    for (int q = 0; q < moments; ++q)
      box_row(band_.data() + q * stride_ + lead_ - columns_.radius, count, window, windows_.data() + q * count);
    correlate(1.0 / double(planes_.count(z) * rows_.count(y)), image_row(z, y).mask);
    if constexpr (gradients > 0)
      for (int f = 0; f < fields; ++f)
        box_row(coefficients_.data() + f * stride_ + lead_ - columns_.radius, count, window, row_ring(y) + f * count);
  }

  void correlate(double inverse_rows, const std::uint8_t* mask) const {
    const std::int64_t count = columns_.size;
    const double *fixed = windows_.data(), *warped = fixed + count, *fixed_squared = warped + count;
    const double *warped_squared = fixed_squared + count, *product = warped_squared + count, *voxels = product + count;
    const double* const inverse_count = inverse_count_.data();
    double* const values = values_.data();
    T* const a = coefficients_.data() + lead_;
#pragma GCC ivdep
    for (std::int64_t x = 0; x < count; ++x) {
      core::LnccMoments<double> m;
      m.inverse_count = masked ? 1.0 / (voxels[x] > 1.0 ? voxels[x] : 1.0) : inverse_rows * inverse_count[x];
      m.fixed = fixed[x] * m.inverse_count;
      m.warped = warped[x] * m.inverse_count;
      m.fixed_variance = fixed_squared[x] * m.inverse_count - m.fixed * m.fixed;
      m.warped_variance = warped_squared[x] * m.inverse_count - m.warped * m.warped;
      m.covariance = product[x] * m.inverse_count - m.fixed * m.warped;
      const auto term = core::lncc_term(m, epsilon_, shared_);
      const double inside = !masked || mask[x] ? 1.0 : 0.0;
      values[x] += inside * term.value;
      if constexpr (gradients > 0) {
        a[x] = T(inside * term.a);
        a[x + stride_] = T(inside * term.b_warped);
        a[x + 2 * stride_] = T(inside * term.c_warped);
      }
      if constexpr (gradients > 1) {
        a[x + 3 * stride_] = T(inside * term.b_fixed);
        a[x + 4 * stride_] = T(inside * term.c_fixed);
      }
    }
  }

  /// The coefficients of plane z summed along axes 1 and 2 around a group of rows.
  void box_rows(std::int64_t z, std::int64_t first) const {
    T* out[group];
    for (std::int64_t k = 0; k < group; ++k)
      out[k] = first + k < rows_.size ? plane_ring(z, first + k) : beyond_.data();
    sum_group([&](std::int64_t y) -> const T* { return row_ring(y); }, rows_, first, field_row(), no_fields_.data(),
              common_.data(), {out[0], out[1], out[2], out[3]});
  }

  /// The gradients of a group of planes.
  void leave(std::int64_t first) const {
    const std::int64_t length = field_row();
    T* const boxes = boxes_.data();
    for (std::int64_t y = 0; y < rows_.size; ++y) {
      sum_group([&](std::int64_t z) -> const T* { return plane_ring(z, y); }, planes_, first, length, no_fields_.data(),
                common_.data(), {boxes, boxes + length, boxes + 2 * length, boxes + 3 * length});
      for (std::int64_t k = 0; k < group && first + k < planes_.size; ++k)
        write_gradients(((first + k) * rows_.size + y) * columns_.size, boxes + k * length);
    }
  }

  /// The gradients of the row at `offset` from its box-summed coefficients.
  void write_gradients(std::int64_t offset, const T* box) const {
    const ImageRow<T> row = images_.row(offset);
    const std::int64_t count = columns_.size;
    const T fixed = T(sample_.fixed_origin), warped = T(sample_.warped_origin);
    write_gradient(row.fixed, fixed, row.warped, warped, row.mask, box, box + count, box + 2 * count,
                   images_.grad_warped + offset);
    if constexpr (gradients > 1)
      write_gradient(row.warped, warped, row.fixed, fixed, row.mask, box, box + 3 * count, box + 4 * count,
                     images_.grad_fixed + offset);
  }

  void write_gradient(const T* other, T other_origin, const T* own, T own_origin, const std::uint8_t* mask, const T* a,
                      const T* b, const T* c, T* out) const {
    const T scale = T(1.0 / double(sample_.voxels));
#pragma GCC ivdep
    for (std::int64_t x = 0; x < columns_.size; ++x) {
      const T slope = (other[x] - other_origin) * a[x] - (own[x] - own_origin) * b[x] - c[x];
      out[x] = !masked || mask[x] ? slope * scale : T(0);
    }
  }

  const Axis planes_, rows_, columns_;
  const double epsilon_, shared_;
  const std::int64_t lead_, stride_;  // rows that windows slide along have zeros on either side
  Images<T> images_{};
  Sample sample_{};
  Buffer<double> sums_;     // [rows, moments, stride]: summed along axis 0
  Buffer<double> band_;     // [moments, stride]: and along axis 1
  Buffer<double> windows_;  // [moments, columns]: and along axis 2
  Buffer<double> values_, inverse_count_;
  Buffer<T> fixed_outside_, warped_outside_;  // a row that adds nothing to any sum
  Buffer<std::uint8_t> mask_outside_;
  Buffer<T> coefficients_;
  Buffer<T> row_ring_;                     // [window + 3, fields, columns]: coefficients summed along axis 2
  Buffer<T> plane_ring_;                   // [window + 3, rows, fields, columns]: and along axis 1
  Buffer<T> boxes_;                        // [group, fields, columns]: and along axis 0
  Buffer<T> common_, no_fields_, beyond_;  // rows of a group's sums: what it shares, zeros, what nobody reads
};

/// Counts the mask and chooses origins: the first voxel inside, which lies within the intensities' range.
template <class T>
Sample examine(const Images<T>& images, std::int64_t voxels) {
  std::int64_t inside = voxels, first = 0;
  if (const std::uint8_t* const mask = images.voxel.mask) {
    inside = 0;
    for (std::int64_t i = 0; i < voxels; ++i) inside += mask[i] != 0;
    while (first + 1 < voxels && mask[first] == 0) ++first;
  }
  return {inside, double(images.voxel.fixed[first]), double(images.voxel.warped[first])};
}

template <class T, bool masked, int gradients>
void correlate_images(const Lncc& op, const Executor& executor) {
  const std::int64_t* const size = op.grid.size;
  const bool flat = op.grid.dims == 2;
  const Axis axes[] = {{size[0], op.window}, {flat ? 1 : size[1], op.window}, {size[flat ? 1 : 2], op.window}};
  const std::int64_t planes = size[0], voxels = op.grid.voxels();
  const std::unique_ptr<Images<T>[]> images(new Images<T>[op.batch]);
  const std::unique_ptr<Sample[]> samples(new Sample[op.batch]);
  const auto at = [&](auto* first, std::int64_t n) { return first == nullptr ? nullptr : first + n * voxels; };
  parallel_for(executor, op.batch, 1, [&](auto begin, auto end) {
    for (std::int64_t n = begin; n < end; ++n) {
      images[n] = {{at(static_cast<const T*>(op.fixed), n), at(static_cast<const T*>(op.warped), n), at(op.mask, n)},
                   at(static_cast<T*>(op.grad_fixed), n),
                   at(static_cast<T*>(op.grad_warped), n)};
      samples[n] = examine(images[n], voxels);
    }
  });
  const std::unique_ptr<double[]> values(new double[op.batch * planes]);
  const std::int64_t groups = (planes + group - 1) / group;  // of a sample; whatever the threads, no group is divided
  const std::int64_t grain = 1 + (axes[0].window() + 16384 * planes / voxels) / group;
  parallel_for(executor, op.batch * groups, grain, [&](auto begin, auto end) {
    Slab<T, masked, gradients> slab(axes, op.epsilon, op.shared);
    for (std::int64_t n = begin / groups; n * groups < end; ++n) {
      const std::int64_t first = begin > n * groups ? begin - n * groups : 0;
      const std::int64_t last = end < (n + 1) * groups ? end - n * groups : groups;
      slab.run(images[n], samples[n], first * group, last < groups ? last * group : planes, values.get() + n * planes);
    }
  });
  for (std::int64_t n = 0; n < op.batch; ++n) {
    double total = 0.0;
    for (std::int64_t z = 0; z < planes; ++z) total += values[n * planes + z];
    static_cast<T*>(op.value)[n] = T(samples[n].voxels > 0 ? total / double(samples[n].voxels) : 0.0);
  }
}

template <class T, bool masked>
void select_gradients(Lncc op, const Executor& executor) {
  if (op.grad_warped == nullptr) {  // the similarity is symmetric: one gradient is always the second image's
    std::swap(op.fixed, op.warped);
    std::swap(op.grad_fixed, op.grad_warped);
  }
  if (op.grad_warped == nullptr) return correlate_images<T, masked, 0>(op, executor);
  if (op.grad_fixed == nullptr) return correlate_images<T, masked, 1>(op, executor);
  correlate_images<T, masked, 2>(op, executor);
}

}  // namespace

void launch(const Lncc& op, const Executor& executor) {
  if (op.batch * op.grid.voxels() == 0) return;
  const auto with_scalar = [&](auto scalar) {
    using T = decltype(scalar);
    op.mask == nullptr ? select_gradients<T, false>(op, executor) : select_gradients<T, true>(op, executor);
  };
  op.dtype == DType::float64 ? with_scalar(double{}) : with_scalar(float{});
}

}  // namespace deqreg::cpu::DEQREG_ISA
