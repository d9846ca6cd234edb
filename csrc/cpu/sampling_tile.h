// Interpolation cells for a tile of output voxels, as separate arrays so that loops over the tile vectorise. A tile is
// consecutive voxels of one sample, across the ends of rows: no row leaves a rest to be done voxel by voxel.
#pragma once

#include <cstring>
#include <memory>
#include <type_traits>

#include "core/sampling.h"
#include "cpu/parallel.h"
#include "kernels.h"

namespace deqreg::cpu::DEQREG_ISA {

// Cells and corners of 128 voxels take 12 KiB in float: they stay in the first-level cache beside the image rows.
constexpr std::int32_t tile_voxels = 128;

// Fewer sampled values than this a thread are not worth waking one.
constexpr std::int64_t grain_voxels = 16384;

/// Consecutive output voxels and what they sample.
template <int D, class T>
struct SampledRun {
  const T* displacement;     // of the run's first voxel, component stride below
  std::int64_t component;    // voxels between displacement components
  T scale;                   // of the displacement
  const T* affine;           // [D, D + 1]
  std::int32_t position[D];  // of the run's first voxel
  std::int32_t out_size[D];  // where the next row begins
  std::int32_t image_size[D];
  std::int32_t count;  // voxels, at most tile_voxels
};

template <class Index, int D>
inline void fill_strides(const Grid& grid, Index (&stride)[D]) {
  Index step = 1;
  for (int a = D - 1; a >= 0; --a) {
    stride[a] = grid.size[a] > 1 ? step : 0;  // an axis of one voxel has no upper neighbour
    step *= static_cast<Index>(grid.size[a]);
  }
}

/// Array indices of a run's voxels.
template <int D, class T>
struct Indices {
  alignas(64) T axis[D][tile_voxels];

  explicit Indices(const SampledRun<D, T>& run) {
    std::int32_t at[D];
    for (int a = 0; a < D; ++a) at[a] = run.position[a];
    for (std::int32_t j = 0; j < run.count;) {
      const std::int32_t rest = run.out_size[D - 1] - at[D - 1];
      const std::int32_t length = rest < run.count - j ? rest : run.count - j;
      for (std::int32_t k = 0; k < length; ++k) {
        for (int a = 0; a < D - 1; ++a) axis[a][j + k] = T(at[a]);
        axis[D - 1][j + k] = T(at[D - 1] + k);
      }
      j += length;
      at[D - 1] = 0;
      for (int a = D - 2; a >= 0 && ++at[a] == run.out_size[a]; --a) at[a] = 0;
    }
  }
};

/// Calls visit(j, y) with the voxel coordinates y = A (x + scale u) + t of every voxel of the run.
template <int D, class T, class Visit>
DEQREG_INLINE void for_positions(const SampledRun<D, T>& run, const Visit& visit) {
  const Indices<D, T> indices(run);
  T affine[D * (D + 1)];  // a copy: the compiler cannot know that what visit stores leaves the original alone
  for (int i = 0; i < D * (D + 1); ++i) affine[i] = run.affine[i];
  const std::int32_t count = run.count;
#pragma GCC ivdep
  for (std::int32_t j = 0; j < count; ++j) {
    T point[D], mapped[D];
    for (int a = 0; a < D; ++a) point[a] = indices.axis[a][j] + run.scale * run.displacement[a * run.component + j];
    core::apply_affine<D, T>(affine, point, mapped);
    visit(j, mapped);
  }
}

template <int D, class T, class Index>
struct LinearTile {
  static constexpr bool has_slopes = false;
  alignas(64) Index offset[tile_voxels];
  alignas(64) T lower[D][tile_voxels], upper[D][tile_voxels];
  Index stride[D];

  DEQREG_INLINE void axes(std::int32_t j, core::LinearAxis<T> (&out)[D]) const {
    for (int a = 0; a < D; ++a) out[a] = {0, lower[a][j], upper[a][j], T(0), T(0)};
  }
};

/// With the derivatives of the weights.
template <int D, class T, class Index>
struct SlopeTile : LinearTile<D, T, Index> {
  static constexpr bool has_slopes = true;
  alignas(64) T slope_lower[D][tile_voxels], slope_upper[D][tile_voxels];

  DEQREG_INLINE void axes(std::int32_t j, core::LinearAxis<T> (&out)[D]) const {
    for (int a = 0; a < D; ++a)
      out[a] = {0, this->lower[a][j], this->upper[a][j], slope_lower[a][j], slope_upper[a][j]};
  }
};

template <int D, class T, class Index>
struct NearestTile {
  alignas(64) Index offset[tile_voxels];
  alignas(64) T weight[tile_voxels];
  Index stride[D];
};

template <Padding padding, int D, class T, class Tile>
inline void fill_linear(const SampledRun<D, T>& run, Tile& tile) {
  for_positions(run, [&](std::int32_t j, const T(&mapped)[D]) {
    std::remove_reference_t<decltype(tile.offset[0])> offset = 0;
    for (int a = 0; a < D; ++a) {
      const auto axis = core::linear_axis<padding>(mapped[a], run.image_size[a]);
      offset += static_cast<decltype(offset)>(axis.base) * tile.stride[a];
      tile.lower[a][j] = axis.lower;
      tile.upper[a][j] = axis.upper;
      if constexpr (Tile::has_slopes) {
        tile.slope_lower[a][j] = axis.slope_lower;
        tile.slope_upper[a][j] = axis.slope_upper;
      }
    }
    tile.offset[j] = offset;
  });
}

template <Padding padding, int D, class T, class Index>
inline void fill_tile(const SampledRun<D, T>& run, LinearTile<D, T, Index>& tile) {
  fill_linear<padding>(run, tile);
}

template <Padding padding, int D, class T, class Index>
inline void fill_tile(const SampledRun<D, T>& run, SlopeTile<D, T, Index>& tile) {
  fill_linear<padding>(run, tile);
}

template <Padding padding, int D, class T, class Index>
inline void fill_tile(const SampledRun<D, T>& run, NearestTile<D, T, Index>& tile) {
  for_positions(run, [&](std::int32_t j, const T(&mapped)[D]) {
    Index offset = 0;
    T weight = T(1);
    for (int a = 0; a < D; ++a) {
      const auto axis = core::nearest_axis<padding>(mapped[a], run.image_size[a]);
      offset += static_cast<Index>(axis.index) * tile.stride[a];
      weight *= axis.weight;
    }
    tile.offset[j] = offset;
    tile.weight[j] = weight;
  });
}

/// The corners of a tile's cells, copied out of the image two neighbours along the fastest axis at a time. Vector
/// gathers fetch value by value and take twice as long.
template <int D, class T>
struct Corners {
  static constexpr std::int32_t row = 2 * tile_voxels;
  alignas(64) T value[(1 << (D - 1)) * row];  // [2, 2, tile_voxels, 2], the first axis missing in 2-D

  template <class Index>
  void fetch(const LinearTile<D, T, Index>& tile, std::int32_t count, const T* image) {
    for (std::int32_t r = 0; r < 1 << (D - 1); ++r) {
      const Index upper_row = (r & 1) * tile.stride[D - 2], upper_plane = (r >> 1) * tile.stride[0];
      fetch_pairs(tile, count, image + upper_row + upper_plane, value + r * row);
    }
  }

  /// The value of voxel j, or its slope along an axis.
  template <int Slope, class Tile>
  DEQREG_INLINE T blend(const Tile& tile, std::int32_t j) const {
    core::LinearAxis<T> axes[D];
    tile.axes(j, axes);
    std::int32_t stride[D];
    stride[0] = (1 << (D - 2)) * row;
    if constexpr (D == 3) stride[1] = row;
    stride[D - 1] = 1;
    return core::blend<Slope, D>(value, 2 * j, stride, axes);
  }

 private:
  template <class Index>
  static void fetch_pairs(const LinearTile<D, T, Index>& tile, std::int32_t count, const T* from, T* to) {
    if (tile.stride[D - 1] == 1) {
      for (std::int32_t j = 0; j < count; ++j) std::memcpy(to + 2 * j, from + tile.offset[j], 2 * sizeof(T));
    } else {  // an axis of one voxel
      for (std::int32_t j = 0; j < count; ++j) to[2 * j] = to[2 * j + 1] = from[tile.offset[j]];
    }
  }
};

template <int D, class T, class Index>
inline void pull(const LinearTile<D, T, Index>& tile, std::int32_t count, const T* image, Corners<D, T>& corners,
                 T* out) {
  corners.fetch(tile, count, image);
#pragma GCC ivdep
  for (std::int32_t j = 0; j < count; ++j) out[j] = corners.template blend<-1>(tile, j);
}

template <int D, class T, class Index>
inline void pull(const NearestTile<D, T, Index>& tile, std::int32_t count, const T* image, T* out) {
#pragma GCC ivdep
  for (std::int32_t j = 0; j < count; ++j) out[j] = tile.weight[j] > T(0) ? image[tile.offset[j]] : T(0);
}

/// The map that leaves positions as they are.
template <int D, class T>
inline const T* identity_rows() {
  static constexpr T rows[3][12] = {{}, {1, 0, 0, 0, 1, 0}, {1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0}};
  return rows[D - 1];
}

/// Tiles of one sample's output.
template <class Op>
inline std::int64_t tiles_of(const Op& op) {
  return (op.out_grid.voxels() + tile_voxels - 1) / tile_voxels;
}

/// How many tiles, with all their channels, are a thread's least share.
inline std::int64_t grain_tiles(std::int64_t channels) { return 1 + grain_voxels / (tile_voxels * (channels + 1)); }

/// Calls visit(run, sample, offset) for tiles [begin, end) of all samples' output, offset in voxels within the sample.
template <int D, class T, class Op, class Visit>
inline void for_tiles(const Op& op, std::int64_t begin, std::int64_t end, const Visit& visit, T scale = T(1)) {
  const std::int64_t voxels = op.out_grid.voxels(), tiles = tiles_of(op);
  SampledRun<D, T> run;
  run.component = voxels;
  run.scale = scale;
  for (int a = 0; a < D; ++a) {
    run.out_size[a] = static_cast<std::int32_t>(op.out_grid.size[a]);
    run.image_size[a] = static_cast<std::int32_t>(op.image_grid.size[a]);
  }
  for (std::int64_t i = begin; i < end; ++i) {
    const std::int64_t sample = i / tiles, first = i % tiles * tile_voxels;
    run.count = static_cast<std::int32_t>(voxels - first < tile_voxels ? voxels - first : tile_voxels);
    run.displacement = static_cast<const T*>(op.sampling.displacement) + sample * D * voxels + first;
    run.affine = op.sampling.affine == nullptr ? identity_rows<D, T>()
                                               : static_cast<const T*>(op.sampling.affine) + sample * D * (D + 1);
    std::int64_t rest = first;
    for (int a = D - 1; a >= 0; --a) {
      run.position[a] = static_cast<std::int32_t>(rest % op.out_grid.size[a]);
      rest /= op.out_grid.size[a];
    }
    visit(run, sample, first);
  }
}

/// Tiles that are in work together: with many channels as many as keep their cells in the second-level cache, so that
/// each channel is read for some rows before the next. Channels lie apart by multiples of the cache's size as often as
/// not, and would drive one another out.
inline std::int64_t tiles_together(std::int64_t channels) { return channels > 1 ? 32 : 1; }

/// Calls body(tiles, begin, end) on blocks of at most tiles_together() tiles of one sample, with room for their cells.
template <class Tile, class Op, class Body>
inline void for_blocks(const Op& op, const Executor& executor, const Body& body) {
  const std::int64_t together = tiles_together(op.channels), of_sample = tiles_of(op);
  parallel_for(executor, op.batch * of_sample, grain_tiles(op.channels), [&](std::int64_t begin, std::int64_t end) {
    const std::unique_ptr<Tile[]> tiles(new Tile[together]);
    for (std::int64_t i = 0; i < together; ++i) fill_strides(op.image_grid, tiles[i].stride);
    for (std::int64_t i = begin, next = 0; i < end; i = next) {
      next = i + together < end ? i + together : end;
      const std::int64_t last = (i / of_sample + 1) * of_sample;
      if (next > last) next = last;
      body(tiles.get(), i, next);
    }
  });
}

/// Fills the tiles [begin, end), which belong to one sample, and calls visit(tile, count, channel, offset) for each and
/// each channel, channel by channel.
template <Padding padding, int D, class T, class Op, class Tile, class Visit>
inline void for_channels(const Op& op, std::int64_t begin, std::int64_t end, Tile* tiles, const Visit& visit) {
  Tile* tile = tiles;
  for_tiles<D, T>(op, begin, end,
                  [&](const auto& run, std::int64_t, std::int64_t) { fill_tile<padding>(run, *tile++); });
  const std::int64_t voxels = op.out_grid.voxels(), sample = begin / tiles_of(op);
  for (std::int64_t c = sample * op.channels; c < (sample + 1) * op.channels; ++c) {
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t offset = i % tiles_of(op) * tile_voxels, rest = voxels - offset;
      visit(tiles[i - begin], static_cast<std::int32_t>(rest < tile_voxels ? rest : tile_voxels), c, offset);
    }
  }
}

/// Calls body with (integral_constant<int, D>, T{}, Index{}) for what the operation holds. Each combination is code to
/// compile, three times over: doubles, which are for checking, always take the wide index.
template <class Op, class Body>
inline void select_types(const Op& op, std::int64_t largest_volume, const Body& body) {
  // offsets stay within one channel; 32-bit ones are twice as many an instruction
  const bool small = largest_volume < (std::int64_t{1} << 31);
  const auto with_scalar = [&](auto dims) {
    if (op.dtype == DType::float64) return body(dims, double{}, std::int64_t{});
    small ? body(dims, float{}, std::int32_t{}) : body(dims, float{}, std::int64_t{});
  };
  op.image_grid.dims == 3 ? with_scalar(std::integral_constant<int, 3>{})
                          : with_scalar(std::integral_constant<int, 2>{});
}

/// Calls body with integral_constant<Padding, p>.
template <class Body>
inline void select_padding(Padding padding, const Body& body) {
  padding == Padding::border ? body(std::integral_constant<Padding, Padding::border>{})
                             : body(std::integral_constant<Padding, Padding::zeros>{});
}

}  // namespace deqreg::cpu::DEQREG_ISA
