// Linear sampling of many channels, a box of output voxels and a vector of channels at a time. What of the image a box
// reaches is packed with the channels last: a corner of a cell is one load for all of them, and so is its weight.
#pragma once

#include <cstring>
#include <memory>

#include "cpu/sampling_box.h"

namespace deqreg::cpu::DEQREG_ISA {

// The packed part has to stay in the second-level cache with all of its channels.
constexpr std::int32_t channels_box_size[3] = {8, 8, 64};

/// How many of an image's channels are sampled in vectors, from the first on: all but a rest that would leave more than
/// half a vector empty. Where vectors are short, quads are as few loads and none are.
template <class T>
constexpr std::int64_t channels_in_vectors(std::int64_t channels) {
  constexpr std::int64_t lanes = native_lanes<T>;
  const std::int64_t rest = channels % lanes;
  return lanes < 8 ? 0 : 2 * rest < lanes ? channels - rest : channels;
}

/// `count` rows of `width` values, `stride` apart and at most `lanes` of them, to [width][lanes]; the lanes beyond are
/// zero. `ahead` values further lies what is wanted next; `scratch` holds [lanes][whole_rows(width)].
template <class T>
inline void turn_channels_last(const T* from, std::int64_t stride, std::int32_t count, std::int32_t width,
                               std::int64_t ahead, T* scratch, T* to) {
  constexpr std::int32_t lanes = native_lanes<T>, cache_line = 64 / sizeof(T);
  const std::int32_t row = whole_rows(width);
  // Copied channel by channel: they lie apart by multiples of the caches' sizes as often as not, and would drive one
  // another out.
  for (std::int32_t c = 0; c < count; ++c) {
    const T* const channel = from + c * stride;
    for (std::int32_t x = 0; x < width; x += cache_line) __builtin_prefetch(channel + ahead + x, 0, 2);
    std::memcpy(scratch + c * row, channel, width * sizeof(T));
  }
  for (std::int32_t c = count; c < lanes; ++c) std::memset(scratch + c * row, 0, width * sizeof(T));
  for (std::int32_t x = 0; x < width; x += lanes) transpose<T>(scratch + x, row, to + x * lanes, lanes);
}

/// The eight corners of the cells of a box, a vector of channels at each.
template <class T>
struct CellChannels {
  static constexpr int lanes = native_lanes<T>;
  using V = typename Vector<T, lanes>::Aligned;

  const T* packed;         // [planes, rows, row, lanes]
  std::int64_t corner[8];  // elements from a cell's first corner to each

  CellChannels(const Reach& reach, const T* packed) : packed(packed) {
    const std::int64_t step[3] = {reach.planes > 1 ? std::int64_t{reach.rows} * reach.row : 0,
                                  reach.rows > 1 ? reach.row : 0, reach.width > 1 ? 1 : 0};
    for (int k = 0; k < 8; ++k) corner[k] = lanes * ((k >> 2) * step[0] + (k >> 1 & 1) * step[1] + (k & 1) * step[2]);
  }

  DEQREG_INLINE V at(std::int32_t cell, int k) const {
    return *reinterpret_cast<const V*>(packed + std::int64_t{lanes} * cell + corner[k]);
  }
};

/// A row of a box: its cells, and the weights of their corners.
template <class T>
struct ChannelsValueRow {
  using V = typename CellChannels<T>::V;
  LinearTile<3, T, std::int32_t> tile;
  alignas(64) T weight[8][box_size[2]];

  void weigh(std::int32_t count) {
#pragma GCC ivdep
    for (std::int32_t j = 0; j < count; ++j)
      for (int k = 0; k < 8; ++k)
        weight[k][j] = (k & 4 ? tile.upper : tile.lower)[0][j] * (k & 2 ? tile.upper : tile.lower)[1][j] *
                       (k & 1 ? tile.upper : tile.lower)[2][j];
  }

  /// The channels of voxel j.
  DEQREG_INLINE V value(std::int32_t j, const CellChannels<T>& cells) const {
    V sum = weight[0][j] * cells.at(tile.offset[j], 0);
    for (int k = 1; k < 8; ++k) sum += weight[k][j] * cells.at(tile.offset[j], k);
    return sum;
  }
};

/// A row of a box for the slopes: weights of the four corners in a plane, for values and for slopes in it.
template <class T>
struct ChannelsSlopeRow {
  using V = typename CellChannels<T>::V;
  SlopeTile<3, T, std::int32_t> tile;
  alignas(64) T weight[3][4][box_size[2]];  // of the value, of the slopes along the second and the third axis

  void weigh(std::int32_t count) {
#pragma GCC ivdep
    for (std::int32_t j = 0; j < count; ++j)
      for (int k = 0; k < 4; ++k) {
        const T row = (k & 2 ? tile.upper : tile.lower)[1][j], column = (k & 1 ? tile.upper : tile.lower)[2][j];
        weight[0][k][j] = row * column;
        weight[1][k][j] = (k & 2 ? tile.slope_upper : tile.slope_lower)[1][j] * column;
        weight[2][k][j] = row * (k & 1 ? tile.slope_upper : tile.slope_lower)[2][j];
      }
  }

  /// The channels' slopes along each of the three axes at voxel j.
  DEQREG_INLINE void slope(std::int32_t j, const CellChannels<T>& cells, V (&along)[3]) const {
    for (V& sum : along) sum = V{};
    for (int k = 0; k < 4; ++k) {
      const V lower = cells.at(tile.offset[j], k), upper = cells.at(tile.offset[j], 4 + k);
      const V between = tile.lower[0][j] * lower + tile.upper[0][j] * upper;
      along[0] += weight[0][k][j] * (tile.slope_lower[0][j] * lower + tile.slope_upper[0][j] * upper);
      along[1] += weight[1][k][j] * between;
      along[2] += weight[2][k][j] * between;
    }
  }
};

/// `count` channels from `channel` on of what a box reaches, channels last.
template <int D, class T>
inline void pack_channels(const BoxedSampling<D, T>& boxed, const Reach& reach, const T* image, std::int64_t channel,
                          std::int32_t count, T* scratch, T* packed) {
  const std::int64_t line = boxed.image_size[2], voxels = boxed.image_voxels;
  for (std::int32_t z = 0; z < reach.planes; ++z)
    for (std::int32_t y = 0; y < reach.rows; ++y) {
      const std::int64_t row = std::int64_t{reach.low[0] + z} * boxed.image_size[1] + reach.low[1] + y;
      turn_channels_last(image + channel * voxels + row * line + reach.low[2], voxels, count, reach.width, line,
                         scratch, packed + (std::int64_t{z} * reach.rows + y) * reach.row * native_lanes<T>);
    }
}

/// Calls packed(row, cells, extent, channel, count, offset) for the rows of all boxes and each vector of channels:
/// `count` channels from `channel` on, counted over the batch, at `extent` voxels from `offset` on; where cells
/// scatter, scattered(run, channel, offset) for each single channel.
template <class Row, Padding padding, int D, class T, class Op, class Packed, class Scattered>
inline void for_channel_boxes(const Op& op, const Executor& executor, const Packed& packed,
                              const Scattered& scattered) {
  constexpr std::int64_t lanes = native_lanes<T>;
  const std::int64_t channels = channels_in_vectors<T>(op.channels);
  if (channels == 0) return;
  const BoxedSampling<D, T> boxed(op, channels_box_size);
  parallel_for(executor, boxed.count(), 1, [&](std::int64_t begin, std::int64_t end) {
    const std::unique_ptr<Positions<T>> positions(new Positions<T>);
    const std::unique_ptr<Row> row(new Row);
    const auto image = Buffer<T>::uninitialised(lanes * boxed.capacity());
    const Buffer<T> scratch(lanes * whole_rows(boxed.image_size[2]));
    for (std::int64_t i = begin; i < end; ++i) {
      const OutputBox box = boxed.box(i), next = boxed.box(i + 1 < end ? i + 1 : i);
      positions->fill(boxed, box);
      const Reach reach = with_neighbours(boxed, find_reach<padding>(boxed, *positions));
      const bool packs = worth_packing(box, reach);
      const CellChannels<T> cells(reach, image.data());
      for (std::int64_t k = 0; k < channels; k += lanes) {
        const std::int64_t c = box.sample * op.channels + k;
        const std::int32_t count = static_cast<std::int32_t>(channels - k < lanes ? channels - k : lanes);
        if (packs) pack_channels(boxed, reach, static_cast<const T*>(op.image), c, count, scratch.data(), image.data());
        for (std::int32_t r = 0; r < box.rows(); ++r) {
          if (k == 0) boxed.prefetch(next, r);
          if (!packs) {
            for (std::int64_t l = 0; l < count; ++l) scattered(boxed.run(box, r), c + l, boxed.offset(box, r));
            continue;
          }
          fill_cells<padding>(boxed, box, *positions, reach, r, row->tile);
          row->weigh(box.row);
          packed(*row, cells, box.extent[2], c, count, boxed.offset(box, r));
        }
      }
    }
  });
}

}  // namespace deqreg::cpu::DEQREG_ISA
