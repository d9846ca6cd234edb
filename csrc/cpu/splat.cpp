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
#include "cpu/splat_boxes.h"

namespace deqreg::cpu::DEQREG_ISA {
namespace {

template <class Index>
struct Bounds {
  Index lowest, highest;  // offsets of the voxels that a tile falls on
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

template <int D, class T, Padding padding>
void splat_boxes(const Splat& op, const Executor& executor) {
  const std::int64_t first = channels_in_vectors<T>(op.channels);
  if (first == op.channels) return;
  const BoxedSampling<D, T> boxed(op);
  const auto planes = find_planes<padding>(boxed, executor);
  const std::int64_t ahead = 4 * op.out_grid.size[D - 1];
  for_shares<T>(op, first, op.channels, executor, [&](Share share) {
    QuadSums<D, T> sums(boxed);
    LinearTile<3, T, std::int32_t> tile;
    for_boxes_of<padding>(
        boxed, planes.get(), share, [&](const OutputBox& box, const auto& positions, const Reach& reach) {
          if (!worth_packing(box, reach)) return push_box<padding>(op, boxed, box, share, first, op.channels);
          const std::int64_t plane = boxed.image_size[0] > 1 ? std::int64_t{4} * reach.rows * reach.row : 0;
          for (std::int64_t k = first; k < op.channels; ++k) {
            const std::int64_t c = box.sample * op.channels + k;
            const T* const values = static_cast<const T*>(op.values) + c * boxed.voxels;
            for (std::int32_t r = 0; r < box.rows(); ++r) {
              fill_cells<padding>(boxed, box, positions, reach, r, tile);
              sums.add(tile, box.extent[2], values + boxed.offset(box, r), ahead, plane, [](auto, auto, T, T) {});
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
  const auto planes = find_planes<padding>(boxed, executor);
  for_shares<T>(op, 0, channels, executor, [&](Share share) {
    ChannelSums<D, T> sums(boxed);
    const std::unique_ptr<ChannelsValueRow<T>> row(new ChannelsValueRow<T>);
    const auto values = Buffer<T>::uninitialised(2 * lanes * box_size[2]);
    T* const scratch = values.data() + lanes * box_size[2];
    for_boxes_of<padding>(
        boxed, planes.get(), share, [&](const OutputBox& box, const auto& positions, const Reach& quads) {
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
