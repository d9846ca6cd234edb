// What the adjoint of sampling is made of: planes of the image that a thread owns, and what a box adds to them.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>

#include "cpu/buffer.h"
#include "cpu/parallel.h"
#include "cpu/sampling_box.h"
#include "cpu/sampling_tile.h"

namespace deqreg::cpu::DEQREG_ISA {

template <class Index>
struct Slab {
  Index begin, end;  // offsets within one channel
};

/// Planes of the image, rows in 2-D, that a thread owns.
struct Share {
  std::int32_t begin, end;

  bool holds(std::int32_t index) const { return index >= begin && index < end; }
};

/// Shares out the image's planes, zeroes what a thread owns of channels [first, last), and calls body(share).
template <class T, class Body>
void for_shares(const Splat& op, std::int64_t first, std::int64_t last, const Executor& executor, const Body& body) {
  const std::int64_t image_voxels = op.image_grid.voxels(), plane = image_voxels / op.image_grid.size[0];
  parallel_for(executor, op.image_grid.size[0], 1 + grain_voxels / plane, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t n = 0; n < op.batch; ++n)
      for (std::int64_t c = first; c < last; ++c)
        std::memset(static_cast<T*>(op.image) + (n * op.channels + c) * image_voxels + begin * plane, 0,
                    (end - begin) * plane * sizeof(T));
    body(Share{static_cast<std::int32_t>(begin), static_cast<std::int32_t>(end)});
  });
}

/// Adds one value to the 2^(D - 1) corners of a cell that lie in one plane.
template <int D, class T, class Index>
DEQREG_INLINE void add_corners(const LinearTile<D, T, Index>& tile, std::int32_t j, T value, T* plane) {
  if constexpr (D == 2) {
    plane[0] += tile.lower[1][j] * value;
    plane[tile.stride[1]] += tile.upper[1][j] * value;
  } else {
    T* const rows[] = {plane, plane + tile.stride[1]};
    const T weights[] = {tile.lower[1][j] * value, tile.upper[1][j] * value};
    for (int r = 0; r < 2; ++r) {
      rows[r][0] += tile.lower[2][j] * weights[r];
      rows[r][tile.stride[2]] += tile.upper[2][j] * weights[r];
    }
  }
}

template <int D, class T, class Index>
void push(const LinearTile<D, T, Index>& tile, std::int32_t count, const T* values, Slab<Index> slab, T* image) {
  for (std::int32_t j = 0; j < count; ++j) {
    const Index lower = tile.offset[j], upper = lower + tile.stride[0];
    if (lower >= slab.begin && lower < slab.end) add_corners(tile, j, tile.lower[0][j] * values[j], image + lower);
    if (upper >= slab.begin && upper < slab.end) add_corners(tile, j, tile.upper[0][j] * values[j], image + upper);
  }
}

/// Calls visit(row of the image, z, y) for the rows that a reach covers and a thread owns; `image` is a channel.
template <int D, class T, class Visit>
void for_owned_rows(const BoxedSampling<D, T>& boxed, const Reach& reach, Share share, T* image, const Visit& visit) {
  constexpr std::int32_t cache_line = 64 / sizeof(T);
  for (std::int32_t z = 0; z < reach.planes; ++z)
    for (std::int32_t y = 0; y < reach.rows; ++y) {
      if (!share.holds(D == 3 ? reach.low[0] + z : reach.low[1] + y)) continue;
      const T* later = image + boxed.reached_row_ahead(reach, z, y);
      for (std::int32_t x = 0; x < reach.width; x += cache_line) __builtin_prefetch(later + x, 1);
      visit(image + boxed.reached_row(reach, z, y), z, y);
    }
}

/// What a box adds to one channel, as quads: what falls on a voxel and on its upper neighbours along the two faster
/// axes. All are zero before a box and after it.
template <int D, class T>
class QuadSums {
 public:
  static constexpr int lanes = native_lanes<T>;

  explicit QuadSums(const BoxedSampling<D, T>& boxed)
      : quads_(4 * boxed.capacity()), nothing_(4 * whole_rows(boxed.image_size[2])) {}

  /// `plane` elements lie between a cell's lower quad and its upper one; both are the same where it is 0. `ahead`
  /// values further lies what is wanted next. Calls visit(j, elements up to its lower quad, weight of the lower quad,
  /// weight of the upper one) for each voxel on the way.
  template <class Visit>
  void add(const LinearTile<3, T, std::int32_t>& tile, std::int32_t count, const T* values, std::int64_t ahead,
           std::int64_t plane, const Visit& visit) {
    using Q = typename Vector<T, 4>::Loose;
    constexpr std::int32_t cache_line = 64 / sizeof(T);
    for (std::int32_t j = 0; j < count; j += cache_line) __builtin_prefetch(values + ahead + j, 0, 2);
    alignas(64) T weighted[4 * box_size[2]];
    weigh(tile, count, values, weighted);
    T* const sums = quads_.data();
    for (std::int32_t j = 0; j < count; ++j) {
      const typename Vector<T, 4>::Aligned four = *reinterpret_cast<const Q*>(weighted + 4 * j);
      const std::int64_t cell = std::int64_t{4} * tile.offset[j];
      T* const at = sums + cell;
      const T lower = tile.lower[0][j], upper = tile.upper[0][j];
      visit(j, cell, lower, upper);
      *reinterpret_cast<Q*>(at) += lower * four;
      *reinterpret_cast<Q*>(at + plane) += upper * four;
    }
  }

  /// Adds the sums to the rows of a channel that a thread owns: the upper halves of a row's own quads, and the lower
  /// ones of those above, which are zeroed while they are at hand.
  void unpack(const BoxedSampling<D, T>& boxed, const Reach& reach, Share share, T* image) {
    const Reach all = with_neighbours(boxed, reach);
    for_owned_rows(boxed, all, share, image, [&](T* to, std::int32_t z, std::int32_t y) {
      const auto quads_of = [&](std::int32_t row) {
        return quads_.data() + (std::int64_t{z} * reach.rows + row) * reach.row * 4;
      };
      T* const above = y > 0 ? quads_of(y - 1) : nothing_.data();
      add_row(y < reach.rows ? quads_of(y) : nothing_.data(), above, reach.row, all.width, to);
      if (y > 0) std::memset(above, 0, 4 * reach.row * sizeof(T));
    });
    const std::int32_t low = all.low[3 - D], count = D == 3 ? all.planes : all.rows;
    const bool visited = share.holds(low) && share.holds(low + count - 1) && all.rows > reach.rows;
    if (!visited) std::memset(quads_.data(), 0, 4 * reach.voxels() * sizeof(T));
  }

 private:
  /// The values times the weights of the four corners in a plane; zero beyond `count`, to the end of a vector.
  static void weigh(const LinearTile<3, T, std::int32_t>& tile, std::int32_t count, const T* values, T* weighted) {
    const auto at = [](const T* from) { return *reinterpret_cast<const typename Vector<T, lanes>::Loose*>(from); };
    for (std::int32_t j = 0; j < count; j += lanes) {
      const typename Vector<T, lanes>::Aligned value = load_first<T>(values + j, count - j);
      const typename Vector<T, lanes>::Aligned above = value * at(tile.lower[1] + j),
                                               below = value * at(tile.upper[1] + j);
      const typename Vector<T, lanes>::Aligned left = at(tile.lower[2] + j), right = at(tile.upper[2] + j);
      if constexpr (lanes >= 4) {
        interleave_four<T, typename Vector<T, lanes>::Aligned>(above * left, above * right, below * left, below * right,
                                                               weighted + 4 * j);
      } else {
        for (int l = 0; l < lanes; ++l) {
          weighted[4 * (j + l)] = above[l] * left[l];
          weighted[4 * (j + l) + 1] = above[l] * right[l];
          weighted[4 * (j + l) + 2] = below[l] * left[l];
          weighted[4 * (j + l) + 3] = below[l] * right[l];
        }
      }
    }
  }

  /// to[x] += the first of own[x], the second of own[x - 1], the third of above[x] and the fourth of above[x - 1], of
  /// rows of `row` quads; `count` is one more at most.
  static void add_row(const T* own, const T* above, std::int32_t row, std::int32_t count, T* to) {
    using V = typename Vector<T, lanes>::Aligned;
    const std::make_integer_sequence<int, lanes> all;
    V before{};
    for (std::int32_t x = 0; x < row && x < count; x += lanes) {
      const auto* const upper = reinterpret_cast<const V*>(own + 4 * x);
      const auto* const lower = reinterpret_cast<const V*>(above + 4 * x);
      V pairs[2];  // what falls on a voxel, and what on its right neighbour
      for (int half = 0; half < 2; ++half)
        pairs[half] = every_other<T, 2, 0>(upper[2 * half], upper[2 * half + 1], all) +
                      every_other<T, 2, 1>(lower[2 * half], lower[2 * half + 1], all);
      const V right = every_other<T, 1, 1>(pairs[0], pairs[1], all);
      const V sum = every_other<T, 1, 0>(pairs[0], pairs[1], all) + shift_in<T>(before, right, all);
      store_first(load_first<T>(to + x, count - x) + sum, count - x, to + x);
      before = right;
    }
    if (count > row) to[row] += before[lanes - 1];
  }

  Buffer<T> quads_, nothing_;
};

/// Planes of the image that a box adds to, and maybe more; rows in 2-D.
struct Planes {
  std::int32_t first, last;
};

/// Of `count` boxes side by side from `first_box` on. Without an affine map the first component says it all: a part of
/// the displacement is read, as it lies in memory.
template <Padding padding, int D, class T>
void find_planes(const BoxedSampling<D, T>& boxed, std::int64_t first_box, std::int32_t count, Planes* planes) {
  using V = typename Vector<T, native_lanes<T>>::Aligned;
  struct Extremes {
    V low, high;
  };
  const std::int32_t size = boxed.image_size[3 - D];
  const V least = V{} - T(1);
  const std::unique_ptr<Extremes[]> extremes(new Extremes[count]);
  for (std::int32_t b = 0; b < count; ++b) extremes[b] = {V{} + T(size), least};
  const OutputBox strip = boxed.box(first_box);
  for (std::int32_t r = 0; r < strip.rows(); ++r) {
    const T start = T(D == 3 ? strip.begin[0] + r / strip.extent[1] : strip.begin[1] + r % strip.extent[1]);
    for (std::int32_t b = 0; b < count; ++b) {
      const std::int32_t begin = b * boxed.edge[2], extent = std::min(boxed.edge[2], boxed.out_size[2] - begin);
      const T* const u = boxed.displacement(strip, r) + begin;
      V low = extremes[b].low, high = extremes[b].high;
      for (std::int32_t j = 0; j < extent; j += native_lanes<T>) {
        const V position = start + load_first<T>(u + j, extent - j);  // past the row as without displacement
        const V known = position > least ? position : least;          // false for NaN
        low = known < low ? known : low;
        high = known > high ? known : high;
      }
      extremes[b] = {low, high};
    }
  }
  const auto base = [&](T x) { return core::linear_axis<padding>(x, size).base; };
  for (std::int32_t b = 0; b < count; ++b) {
    planes[b] = {base(extremes[b].low[0]), base(extremes[b].high[0]) + 1};
    for (int l = 1; l < native_lanes<T>; ++l) {
      const std::int32_t low = base(extremes[b].low[l]), high = base(extremes[b].high[l]) + 1;
      planes[b].first = low < planes[b].first ? low : planes[b].first;
      planes[b].last = high > planes[b].last ? high : planes[b].last;
    }
  }
}

/// Of all boxes.
template <Padding padding, int D, class T>
std::unique_ptr<Planes[]> find_planes(const BoxedSampling<D, T>& boxed, const Executor& executor) {
  std::unique_ptr<Planes[]> planes(new Planes[boxed.count()]);
  if (boxed.sampling.affine == nullptr) {
    parallel_for(executor, boxed.count() / boxed.boxes[2], 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i)
        find_planes<padding>(boxed, i * boxed.boxes[2], boxed.boxes[2], planes.get() + i * boxed.boxes[2]);
    });
    return planes;
  }
  parallel_for(executor, boxed.count(), 1, [&](std::int64_t begin, std::int64_t end) {
    const std::unique_ptr<Positions<T>> positions(new Positions<T>);
    for (std::int64_t i = begin; i < end; ++i) {
      positions->fill(boxed, boxed.box(i));
      const Reach reach = find_reach<padding>(boxed, *positions);
      const std::int32_t first = reach.low[3 - D];
      planes[i] = {first, first + (D == 3 ? reach.planes - 1 : reach.rows)};
    }
  });
  return planes;
}

/// Calls body(box, its positions, its reach) for the boxes that reach into a share.
template <Padding padding, int D, class T, class Body>
void for_boxes_of(const BoxedSampling<D, T>& boxed, const Planes* planes, Share share, const Body& body) {
  const std::unique_ptr<Positions<T>> positions(new Positions<T>);
  for (std::int64_t i = 0; i < boxed.count(); ++i) {
    if (planes[i].last < share.begin || planes[i].first >= share.end) continue;
    const OutputBox box = boxed.box(i);
    positions->fill(boxed, box);
    body(box, *positions, find_reach<padding>(boxed, *positions));
  }
}

/// Adds channels [first, last) of a box whose cells scatter, voxel by voxel.
template <Padding padding, int D, class T>
void push_box(const Splat& op, const BoxedSampling<D, T>& boxed, const OutputBox& box, Share share, std::int64_t first,
              std::int64_t last) {
  using Index = std::int64_t;
  const Index plane = boxed.image_voxels / op.image_grid.size[0];
  LinearTile<D, T, Index> tile;
  fill_strides(op.image_grid, tile.stride);
  for (std::int32_t r = 0; r < box.rows(); ++r) {
    fill_tile<padding>(boxed.run(box, r), tile);
    for (std::int64_t c = box.sample * op.channels + first; c < box.sample * op.channels + last; ++c)
      push(tile, box.extent[2], static_cast<const T*>(op.values) + c * boxed.voxels + boxed.offset(box, r),
           Slab<Index>{share.begin * plane, share.end * plane}, static_cast<T*>(op.image) + c * boxed.image_voxels);
  }
}

}  // namespace deqreg::cpu::DEQREG_ISA
