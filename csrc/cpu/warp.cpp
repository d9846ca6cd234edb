// Warp and its gradient by the sample position, a box of output voxels at a time; nearest voxels a tile at a time.
#include <cstring>

#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/sampling_box.h"
#include "cpu/sampling_channels.h"
#include "cpu/sampling_slopes.h"
#include "cpu/sampling_tile.h"

namespace deqreg::cpu::DEQREG_ISA {
namespace {

template <int D, class T, class Index, Padding padding>
void warp_tiles(const Warp& op, const Executor& executor) {
  const std::int64_t voxels = op.out_grid.voxels(), image_voxels = op.image_grid.voxels();
  using Tile = NearestTile<D, T, Index>;
  for_blocks<Tile>(op, executor, [&](Tile* tiles, std::int64_t begin, std::int64_t end) {
    for_channels<padding, D, T>(op, begin, end, tiles, [&](const Tile& tile, auto count, auto c, auto offset) {
      pull(tile, count, static_cast<const T*>(op.image) + c * image_voxels,
           static_cast<T*>(op.out) + c * voxels + offset);
    });
  });
}

template <int D, class T, Padding padding>
void warp_boxes(const Warp& op, const Executor& executor) {
  const std::int64_t voxels = op.out_grid.voxels(), image_voxels = op.image_grid.voxels();
  const auto scattered = [&](const SampledRun<D, T>& run, std::int64_t c, std::int64_t offset) {
    LinearTile<D, T, std::int64_t> tile;
    Corners<D, T> corners;
    fill_strides(op.image_grid, tile.stride);
    fill_tile<padding>(run, tile);
    pull(tile, run.count, static_cast<const T*>(op.image) + c * image_voxels, corners,
         static_cast<T*>(op.out) + c * voxels + offset);
  };
  constexpr int lanes = native_lanes<T>;
  const bool streams = worth_streaming<T>(op.batch * op.channels * voxels);
  for_channel_boxes<ChannelsValueRow<T>, padding, D, T>(
      op, executor,
      [&](const auto& row, const auto& cells, std::int32_t extent, std::int64_t c, std::int32_t count, auto offset) {
        alignas(64) T channels[lanes * box_size[2]], sampled[lanes * lanes];
        for (std::int32_t j = 0; j < extent; j += lanes) {
          for (std::int32_t i = 0; i < lanes; ++i)
            *reinterpret_cast<typename CellChannels<T>::V*>(sampled + i * lanes) = row.value(j + i, cells);
          transpose<T>(sampled, lanes, channels + j, box_size[2]);
        }
        for (std::int32_t l = 0; l < count; ++l)
          store_row(channels + l * box_size[2], extent, streams, static_cast<T*>(op.out) + (c + l) * voxels + offset);
      },
      scattered);
  for_boxes<ValueRow<T>, padding, D, T>(
      op, channels_in_vectors<T>(op.channels), executor,
      [&](const ValueRow<T>& row, std::int32_t count, std::int64_t c, std::int64_t offset) {
        T* const out = static_cast<T*>(op.out) + c * voxels + offset;
        for (std::int32_t j = 0; j < count; j += lanes) {
          // what is stored waits for its lines as well; four rows on, as in Slopes
          __builtin_prefetch(out + 4 * op.out_grid.size[D - 1] + j, 1);
          store_first(row.value(j), count - j, out + j);
        }
      },
      scattered);
}

template <int D, class T, Padding padding>
void gradient_boxes(const WarpGradient& op, const Executor& executor) {
  const std::int64_t voxels = op.out_grid.voxels();
  const Slopes<D, T> slopes(op);
  if (op.channels == 0) std::memset(op.out, 0, op.batch * D * voxels * sizeof(T));
  const auto scattered = [&](const SampledRun<D, T>& run, std::int64_t c, std::int64_t offset) {
    slopes.template store_scattered<padding>(run, c, offset);
  };
  constexpr int lanes = native_lanes<T>;
  for_channel_boxes<ChannelsSlopeRow<T>, padding, D, T>(
      op, executor,
      [&](const auto& row, const auto& cells, std::int32_t extent, std::int64_t c, std::int32_t count, auto offset) {
        using V = typename CellChannels<T>::V;
        alignas(64) T scratch[lanes * box_size[2]], values[lanes * box_size[2]];
        turn_channels_last(slopes.values_at(c, offset), voxels, count, extent, slopes.rows_ahead, scratch, values);
        T* const out = slopes.out_at(c, offset);
        const bool first = slopes.is_first(c);
        for (std::int32_t j = 0; j < extent; j += lanes) {
          V products[3][lanes];
          for (std::int32_t i = 0; i < lanes; ++i) {
            V along[3];
            row.slope(j + i, cells, along);
            for (int a = 0; a < 3; ++a)
              products[a][i] = along[a] * *reinterpret_cast<const V*>(values + (j + i) * lanes);
          }
          for (int a = 0; a < D; ++a)
            store_slope<T>(sum_each<T>(products[3 - D + a]), first, extent - j, out + a * voxels + j);
        }
      },
      scattered);
  for_boxes<SlopeRow<T>, padding, D, T>(
      op, channels_in_vectors<T>(op.channels), executor,
      [&](const SlopeRow<T>& row, std::int32_t count, std::int64_t c, std::int64_t offset) {
        slopes.store(row, count, c, offset);
      },
      scattered);
}

}  // namespace

void launch(const Warp& op, const Executor& executor) {
  if (op.batch * op.channels * op.out_grid.voxels() == 0) return;
  select_types(op, op.image_grid.voxels(), [&](auto dims, auto scalar, auto index) {
    using T = decltype(scalar);
    using Index = decltype(index);
    constexpr int D = dims;
    select_padding(op.sampling.padding, [&](auto padding) {
      if (op.sampling.interpolation == Interpolation::linear)
        warp_boxes<D, T, padding>(op, executor);
      else
        warp_tiles<D, T, Index, padding>(op, executor);
    });
  });
}

void launch(const WarpGradient& op, const Executor& executor) {
  if (op.batch * op.out_grid.voxels() == 0) return;
  select_types(op, op.image_grid.voxels(), [&](auto dims, auto scalar, auto) {
    using T = decltype(scalar);
    constexpr int D = dims;
    select_padding(op.sampling.padding, [&](auto padding) { gradient_boxes<D, T, padding>(op, executor); });
  });
}

}  // namespace deqreg::cpu::DEQREG_ISA
