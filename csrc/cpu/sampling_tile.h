// Interpolation cells for a run of output voxels along the fastest axis, as separate arrays so that loops over the run
// vectorise.
#pragma once

#include <cstring>
#include <type_traits>

#include "core/sampling.h"
#include "kernels.h"

namespace deqreg::cpu::DEQREG_ISA {

// Cells of 128 voxels take 15 KiB in float: they stay in the first-level cache beside the image rows they point into.
constexpr std::int32_t tile_voxels = 128;

// Fewer voxels than this a thread are not worth waking one.
constexpr std::int64_t grain_voxels = 16384;

/// Where one output row lies and what it samples.
template <int D, class T>
struct SampledRow {
  const T* displacement;     // of the row's first voxel, component stride below
  std::int64_t component;    // voxels between displacement components
  const T* affine;           // [D, D + 1]
  std::int32_t position[D];  // of the row's first voxel
  std::int32_t image_size[D];
};

template <class Index, int D>
inline void fill_strides(const Grid& grid, Index (&stride)[D]) {
  Index step = 1;
  for (int a = D - 1; a >= 0; --a) {
    stride[a] = grid.size[a] > 1 ? step : 0;  // an axis of one voxel has no upper neighbour
    step *= static_cast<Index>(grid.size[a]);
  }
}

/// The voxel coordinates y = A (x + u) + t of voxel `j` of the row.
template <int D, class T>
DEQREG_INLINE void sample_position(const SampledRow<D, T>& row, const T* affine, std::int32_t j, T (&mapped)[D]) {
  T point[D];
  for (int a = 0; a < D; ++a) {
    point[a] = T(row.position[a]) + row.displacement[a * row.component + j];
    if (a == D - 1) point[a] += T(j);
  }
  core::apply_affine<D, T>(affine, point, mapped);
}

template <int D, class T, class Index>
struct LinearTile {
  alignas(64) Index offset[tile_voxels];
  alignas(64) T lower[D][tile_voxels], upper[D][tile_voxels];
  alignas(64) T slope_lower[D][tile_voxels], slope_upper[D][tile_voxels];
  Index stride[D];

  DEQREG_INLINE void axes(std::int32_t j, core::LinearAxis<T> (&out)[D]) const {
    for (int a = 0; a < D; ++a) out[a] = {0, lower[a][j], upper[a][j], slope_lower[a][j], slope_upper[a][j]};
  }
};

template <Padding padding, int D, class T, class Index>
inline void fill_tile(SampledRow<D, T> row, std::int32_t begin, std::int32_t count, LinearTile<D, T, Index>& tile) {
  row.displacement += begin;
  row.position[D - 1] += begin;
  T affine[D * (D + 1)];  // a copy: the compiler cannot know that the tile's stores leave the original alone
  for (int i = 0; i < D * (D + 1); ++i) affine[i] = row.affine[i];
#pragma GCC ivdep
  for (std::int32_t j = 0; j < count; ++j) {
    T mapped[D];
    sample_position(row, affine, j, mapped);
    Index offset = 0;
    for (int a = 0; a < D; ++a) {
      const auto axis = core::linear_axis<padding>(mapped[a], row.image_size[a]);
      offset += static_cast<Index>(axis.base) * tile.stride[a];
      tile.lower[a][j] = axis.lower;
      tile.upper[a][j] = axis.upper;
      tile.slope_lower[a][j] = axis.slope_lower;
      tile.slope_upper[a][j] = axis.slope_upper;
    }
    tile.offset[j] = offset;
  }
}

template <int D, class T, class Index>
struct NearestTile {
  alignas(64) Index offset[tile_voxels];
  alignas(64) T weight[tile_voxels];
  Index stride[D];
};

template <Padding padding, int D, class T, class Index>
inline void fill_tile(SampledRow<D, T> row, std::int32_t begin, std::int32_t count, NearestTile<D, T, Index>& tile) {
  row.displacement += begin;
  row.position[D - 1] += begin;
  T affine[D * (D + 1)];  // a copy: the compiler cannot know that the tile's stores leave the original alone
  for (int i = 0; i < D * (D + 1); ++i) affine[i] = row.affine[i];
#pragma GCC ivdep
  for (std::int32_t j = 0; j < count; ++j) {
    T mapped[D];
    sample_position(row, affine, j, mapped);
    Index offset = 0;
    T weight = T(1);
    for (int a = 0; a < D; ++a) {
      const auto axis = core::nearest_axis<padding>(mapped[a], row.image_size[a]);
      offset += static_cast<Index>(axis.index) * tile.stride[a];
      weight *= axis.weight;
    }
    tile.offset[j] = offset;
    tile.weight[j] = weight;
  }
}

/// The corners of a tile's cells, copied out of the image two neighbours along the fastest axis at a time: a quarter of
/// the time of vector gathers, which fetch value by value, and as good on processors that have none.
template <int D, class T>
struct Corners {
  // [2, 2, tile_voxels, 2], the first axis missing in 2-D
  alignas(64) T value[(1 << D) * tile_voxels];
};

template <int D, class T, class Index>
inline void fetch(const LinearTile<D, T, Index>& tile, std::int32_t count, const T* image, Corners<D, T>& corners) {
  const auto fetch_pairs = [&](const T* from, T* to) {
    if (tile.stride[D - 1] == 1) {
      for (std::int32_t j = 0; j < count; ++j) std::memcpy(to + 2 * j, from + tile.offset[j], 2 * sizeof(T));
    } else {  // an axis of one voxel
      for (std::int32_t j = 0; j < count; ++j) to[2 * j] = to[2 * j + 1] = from[tile.offset[j]];
    }
  };
  constexpr std::int32_t rows = 1 << (D - 1);
  for (std::int32_t r = 0; r < rows; ++r) {
    const Index offset = D == 3 ? (r / 2) * tile.stride[0] + (r % 2) * tile.stride[1] : r * tile.stride[0];
    fetch_pairs(image + offset, corners.value + r * 2 * tile_voxels);
  }
}

/// blend over fetched corners.
template <int Slope, int D, class T, class Index>
DEQREG_INLINE T blend_fetched(const LinearTile<D, T, Index>& tile, const Corners<D, T>& corners, std::int32_t j) {
  constexpr std::int32_t strides[3][3] = {{}, {2 * tile_voxels, 1}, {4 * tile_voxels, 2 * tile_voxels, 1}};
  core::LinearAxis<T> axes[D];
  tile.axes(j, axes);
  std::int32_t stride[D];
  for (int a = 0; a < D; ++a) stride[a] = strides[D - 1][a];
  return core::blend<Slope, D>(corners.value, 2 * j, stride, axes);
}

template <int D, class T, class Index>
inline void pull(const LinearTile<D, T, Index>& tile, std::int32_t count, const T* image, T* out) {
  Corners<D, T> corners;
  fetch(tile, count, image, corners);
#pragma GCC ivdep
  for (std::int32_t j = 0; j < count; ++j) out[j] = blend_fetched<-1>(tile, corners, j);
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

/// Calls visit(row, batch, row_offset, length) for rows [begin, end) of the output grid, row_offset in voxels.
template <int D, class T, class Op, class Visit>
inline void for_rows(const Op& op, std::int64_t begin, std::int64_t end, const Visit& visit) {
  const std::int64_t length = op.out_grid.size[D - 1], voxels = op.out_grid.voxels();
  const std::int64_t rows = voxels / length;  // of one sample
  for (std::int64_t r = begin; r < end; ++r) {
    const std::int64_t batch = r / rows, in_sample = r % rows;
    SampledRow<D, T> row;
    row.displacement = static_cast<const T*>(op.sampling.displacement) + batch * D * voxels + in_sample * length;
    row.component = voxels;
    row.affine = op.sampling.affine == nullptr ? identity_rows<D, T>()
                                               : static_cast<const T*>(op.sampling.affine) + batch * D * (D + 1);
    row.position[D - 1] = 0;
    row.position[D - 2] = static_cast<std::int32_t>(in_sample % op.out_grid.size[D - 2]);
    if constexpr (D == 3) row.position[0] = static_cast<std::int32_t>(in_sample / op.out_grid.size[1]);
    for (int a = 0; a < D; ++a) row.image_size[a] = static_cast<std::int32_t>(op.image_grid.size[a]);
    visit(row, batch, in_sample * length, static_cast<std::int32_t>(length));
  }
}

/// Calls body with (integral_constant<int, D>, T{}, Index{}) for what the operation holds. Each combination is code to
/// compile, three times over: doubles, which are for checking, always take the wide index.
template <class Op, class Body>
inline void select_types(const Op& op, std::int64_t largest_volume, const Body& body) {
  // offsets stay within one channel; 32-bit ones gather twice as many values an instruction
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
