// Splat: each thread owns planes of the image (rows in 2-D) and adds, in the order of the output's boxes, what falls
// into them. No two threads write one voxel, and what a box adds is summed by itself first, whatever part of it a
// thread owns: the result is the same bits at any number of threads. Boxes that miss a thread's planes are passed over.
#include <cstring>
#include <memory>

#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/sampling_box.h"
#include "cpu/sampling_channels.h"
#include "cpu/sampling_tile.h"

namespace deqreg::cpu::DEQREG_ISA {
namespace {

template <class Index>
struct Bounds {
  Index lowest, highest;  // offsets of the voxels that a tile falls on
};

template <class Index>
struct Slab {
  Index begin, end;  // offsets within one channel
};

template <int D, class T, class Index, Padding padding>
void find_bounds(const Splat& op, const Executor& executor, Bounds<Index>* bounds) {
  using Tile = NearestTile<D, T, Index>;
  parallel_for(executor, op.batch * tiles_of(op), grain_tiles(1), [&](auto begin, auto end) {
    Tile tile;
    fill_strides(op.image_grid, tile.stride);
    Bounds<Index>* next = bounds + begin;
    for_tiles<D, T>(op, begin, end, [&](const auto& run, std::int64_t, std::int64_t) {
      fill_tile<padding>(run, tile);
      Bounds<Index> found{static_cast<Index>(op.image_grid.voxels()), 0};
      for (std::int32_t j = 0; j < run.count; ++j) {
        found.lowest = tile.offset[j] < found.lowest ? tile.offset[j] : found.lowest;
        found.highest = tile.offset[j] > found.highest ? tile.offset[j] : found.highest;
      }
      *next++ = found;
    });
  });
}

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

template <int D, class T, class Index>
void push(const NearestTile<D, T, Index>& tile, std::int32_t count, const T* values, Slab<Index> slab, T* image) {
  for (std::int32_t j = 0; j < count; ++j) {
    const Index offset = tile.offset[j];
    if (offset >= slab.begin && offset < slab.end) image[offset] += tile.weight[j] > T(0) ? values[j] : T(0);
  }
}

template <int D, class T, class Index, Padding padding>
void splat_nearest(const Splat& op, const Executor& executor) {
  const std::int64_t voxels = op.out_grid.voxels(), tiles = op.batch * tiles_of(op);
  const std::int64_t image_voxels = op.image_grid.voxels(), plane = image_voxels / op.image_grid.size[0];
  const std::unique_ptr<Bounds<Index>[]> bounds(new Bounds<Index>[tiles]);
  find_bounds<D, T, Index, padding>(op, executor, bounds.get());
  for_shares<T>(op, 0, op.channels, executor, [&](Share share) {
    const Slab<Index> slab{static_cast<Index>(share.begin * plane), static_cast<Index>(share.end * plane)};
    NearestTile<D, T, Index> tile;
    fill_strides(op.image_grid, tile.stride);
    for (std::int64_t t = 0; t < tiles; ++t) {
      if (bounds[t].highest < slab.begin || bounds[t].lowest >= slab.end) continue;
      for_tiles<D, T>(op, t, t + 1, [&](const auto& run, std::int64_t sample, std::int64_t offset) {
        fill_tile<padding>(run, tile);
        for (std::int64_t c = sample * op.channels; c < (sample + 1) * op.channels; ++c)
          push(tile, run.count, static_cast<const T*>(op.values) + c * voxels + offset, slab,
               static_cast<T*>(op.image) + c * image_voxels);
      });
    }
  });
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
/// axes.
template <int D, class T>
class QuadSums {
 public:
  static constexpr int lanes = native_lanes<T>;

  explicit QuadSums(const BoxedSampling<D, T>& boxed)
      : quads_(Buffer<T>::uninitialised(4 * boxed.capacity())),
        parts_(2 * (whole_rows(boxed.image_size[2]) + row_multiple)) {}

  void clear(const Reach& reach) { std::memset(quads_.data(), 0, 4 * reach.voxels() * sizeof(T)); }

  /// `plane` elements lie between a cell's lower quad and its upper one; both are the same where it is 0. `ahead`
  /// values further lies what is wanted next.
  void add(const LinearTile<3, T, std::int32_t>& tile, std::int32_t count, const T* values, std::int64_t ahead,
           std::int64_t plane) {
    using Q = typename Vector<T, 4>::Loose;
    constexpr std::int32_t cache_line = 64 / sizeof(T);
    for (std::int32_t j = 0; j < count; j += cache_line) __builtin_prefetch(values + ahead + j, 0, 2);
    alignas(64) T weighted[4 * box_size[2]];
    weigh(tile, count, values, weighted);
    for (std::int32_t j = 0; j < count; ++j) {
      const typename Vector<T, 4>::Aligned four = *reinterpret_cast<const Q*>(weighted + 4 * j);
      T* const at = quads_.data() + std::int64_t{4} * tile.offset[j];
      *reinterpret_cast<Q*>(at) += tile.lower[0][j] * four;
      *reinterpret_cast<Q*>(at + plane) += tile.upper[0][j] * four;
    }
  }

  /// Adds the sums to the rows of a channel that a thread owns.
  void unpack(const BoxedSampling<D, T>& boxed, const Reach& reach, Share share, T* image) {
    const Reach all = with_neighbours(boxed, reach);
    for_owned_rows(boxed, all, share, image, [&](T* to, std::int32_t z, std::int32_t y) {
      const std::int64_t row = std::int64_t{4} * reach.row;
      const T* const own = quads_.data() + (std::int64_t{z} * reach.rows + y) * row;
      if (y < reach.rows) add_row(own, reach.row, all.width, to);
      if (y > 0) add_row(own - row + 2, reach.row, all.width, to);
    });
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

  /// to[x] += what a row of quads holds for x itself, first, and for its right neighbour, second.
  void add_row(const T* quads, std::int32_t row, std::int32_t count, T* to) {
    T *const own = parts_.data(), *const right = own + row + row_multiple;
    for (std::int32_t x = 0; x < row; ++x) {
      own[x] = quads[4 * x];
      right[x + 1] = quads[4 * x + 1];
    }
    own[row] = right[0] = T(0);
    for (std::int32_t x = 0; x < count; ++x) to[x] += own[x] + right[x];
  }

  Buffer<T> quads_, parts_;
};

/// What a box adds to a vector of channels, channels last.
template <int D, class T>
class ChannelSums {
 public:
  using V = typename CellChannels<T>::V;
  static constexpr int lanes = native_lanes<T>;

  explicit ChannelSums(const BoxedSampling<D, T>& boxed)
      : sums_(Buffer<T>::uninitialised(lanes * boxed.capacity())), scratch_(lanes * whole_rows(boxed.image_size[2])) {}

  /// `reach` is that with neighbours, here and below.
  void clear(const Reach& reach) { std::memset(sums_.data(), 0, lanes * reach.voxels() * sizeof(T)); }

  /// `values` are channels last.
  void add(const ChannelsValueRow<T>& row, const CellChannels<T>& cells, std::int32_t extent, const T* values) {
    for (std::int32_t j = 0; j < extent; ++j) {
      const V value = *reinterpret_cast<const V*>(values + j * lanes);
      T* const first = sums_.data() + std::int64_t{lanes} * row.tile.offset[j];
      for (int k = 0; k < 8; ++k) *reinterpret_cast<V*>(first + cells.corner[k]) += row.weight[k][j] * value;
    }
  }

  /// Adds the sums to the rows that a thread owns of `count` channels.
  void unpack(const BoxedSampling<D, T>& boxed, const Reach& reach, Share share, std::int32_t count, T* image) {
    for_owned_rows(boxed, reach, share, image, [&](T* to, std::int32_t z, std::int32_t y) {
      const T* const from = sums_.data() + (std::int64_t{z} * reach.rows + y) * reach.row * lanes;
      for (std::int32_t x = 0; x < reach.width; x += lanes)
        transpose<T>(from + std::int64_t{x} * lanes, lanes, scratch_.data() + x, reach.row);
      for (std::int32_t c = 0; c < count; ++c) {
        const T* const channel = scratch_.data() + c * reach.row;
        for (std::int32_t x = 0; x < reach.width; ++x) to[c * boxed.image_voxels + x] += channel[x];
      }
    });
  }

 private:
  Buffer<T> sums_, scratch_;
};

/// What every box reaches.
template <Padding padding, int D, class T>
std::unique_ptr<Reach[]> find_reaches(const BoxedSampling<D, T>& boxed, const Executor& executor) {
  std::unique_ptr<Reach[]> reaches(new Reach[boxed.count()]);
  parallel_for(executor, boxed.count(), 1, [&](std::int64_t begin, std::int64_t end) {
    const std::unique_ptr<Positions<T>> positions(new Positions<T>);
    for (std::int64_t i = begin; i < end; ++i) {
      const OutputBox box = boxed.box(i);
      positions->fill(boxed, box);
      reaches[i] = find_reach<padding>(boxed, box, *positions);
    }
  });
  return reaches;
}

/// Calls body(box, its positions, its reach) for the boxes that reach into a share.
template <int D, class T, class Body>
void for_boxes_of(const BoxedSampling<D, T>& boxed, const Reach* reaches, Share share, const Body& body) {
  const std::unique_ptr<Positions<T>> positions(new Positions<T>);
  for (std::int64_t i = 0; i < boxed.count(); ++i) {
    const Reach& reach = reaches[i];
    const std::int32_t first = reach.low[3 - D], last = first + (D == 3 ? reach.planes - 1 : reach.rows);
    if (last < share.begin || first >= share.end) continue;
    const OutputBox box = boxed.box(i);
    positions->fill(boxed, box);
    body(box, *positions, reach);
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

template <int D, class T, Padding padding>
void splat_boxes(const Splat& op, const Executor& executor) {
  const std::int64_t first = channels_in_vectors<T>(op.channels);
  if (first == op.channels) return;
  const BoxedSampling<D, T> boxed(op);
  const auto reaches = find_reaches<padding>(boxed, executor);
  const std::int64_t ahead = 4 * op.out_grid.size[D - 1];
  for_shares<T>(op, first, op.channels, executor, [&](Share share) {
    QuadSums<D, T> sums(boxed);
    LinearTile<3, T, std::int32_t> tile;
    for_boxes_of(boxed, reaches.get(), share, [&](const OutputBox& box, const auto& positions, const Reach& reach) {
      if (!worth_packing(box, reach)) return push_box<padding>(op, boxed, box, share, first, op.channels);
      const std::int64_t plane = boxed.image_size[0] > 1 ? std::int64_t{4} * reach.rows * reach.row : 0;
      for (std::int64_t k = first; k < op.channels; ++k) {
        const std::int64_t c = box.sample * op.channels + k;
        const T* const values = static_cast<const T*>(op.values) + c * boxed.voxels;
        sums.clear(reach);
        for (std::int32_t r = 0; r < box.rows(); ++r) {
          fill_cells<padding>(boxed, box, positions, reach, r, tile);
          sums.add(tile, box.extent[2], values + boxed.offset(box, r), ahead, plane);
        }
        sums.unpack(boxed, reach, share, static_cast<T*>(op.image) + c * boxed.image_voxels);
      }
    });
  });
}

template <int D, class T, Padding padding>
void splat_channels(const Splat& op, const Executor& executor) {
  constexpr std::int64_t lanes = native_lanes<T>;
  const std::int64_t channels = channels_in_vectors<T>(op.channels);
  if (channels == 0) return;
  const BoxedSampling<D, T> boxed(op, channels_box_size);
  const auto reaches = find_reaches<padding>(boxed, executor);
  for_shares<T>(op, 0, channels, executor, [&](Share share) {
    ChannelSums<D, T> sums(boxed);
    const std::unique_ptr<ChannelsValueRow<T>> row(new ChannelsValueRow<T>);
    const auto values = Buffer<T>::uninitialised(2 * lanes * box_size[2]);
    T* const scratch = values.data() + lanes * box_size[2];
    for_boxes_of(boxed, reaches.get(), share, [&](const OutputBox& box, const auto& positions, const Reach& quads) {
      const Reach reach = with_neighbours(boxed, quads);
      if (!worth_packing(box, reach)) return push_box<padding>(op, boxed, box, share, 0, channels);
      const CellChannels<T> cells(reach, nullptr);
      for (std::int64_t k = 0; k < channels; k += lanes) {
        const std::int64_t c = box.sample * op.channels + k;
        const std::int32_t count = static_cast<std::int32_t>(channels - k < lanes ? channels - k : lanes);
        sums.clear(reach);
        for (std::int32_t r = 0; r < box.rows(); ++r) {
          const T* const from = static_cast<const T*>(op.values) + c * boxed.voxels + boxed.offset(box, r);
          fill_cells<padding>(boxed, box, positions, reach, r, row->tile);
          row->weigh(box.row);
          turn_channels_last(from, boxed.voxels, count, box.extent[2], boxed.out_size[2], scratch, values.data());
          sums.add(*row, cells, box.extent[2], values.data());
        }
        sums.unpack(boxed, reach, share, count, static_cast<T*>(op.image) + c * boxed.image_voxels);
      }
    });
  });
}

}  // namespace

void launch(const Splat& op, const Executor& executor) {
  select_types(op, op.image_grid.voxels(), [&](auto dims, auto scalar, auto index) {
    using T = decltype(scalar);
    using Index = decltype(index);
    constexpr int D = dims;
    select_padding(op.sampling.padding, [&](auto padding) {
      if (op.sampling.interpolation == Interpolation::nearest) return splat_nearest<D, T, Index, padding>(op, executor);
      splat_channels<D, T, padding>(op, executor);
      splat_boxes<D, T, padding>(op, executor);
    });
  });
}

}  // namespace deqreg::cpu::DEQREG_ISA
