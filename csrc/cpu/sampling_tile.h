// Interpolation cells for a run of output voxels along the fastest axis, as separate arrays so that loops over the run
// vectorise.
#pragma once

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
  const T* affine;           // [D, D + 1] or null
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
DEQREG_INLINE void sample_position(const SampledRow<D, T>& row, std::int32_t j, T (&mapped)[D]) {
  T point[D];
  for (int a = 0; a < D; ++a) {
    point[a] = T(row.position[a]) + row.displacement[a * row.component + j];
    if (a == D - 1) point[a] += T(j);
  }
  core::apply_affine<D, T>(row.affine, point, mapped);
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

template <Padding padding, bool has_affine, int D, class T, class Index>
inline void fill_tile(SampledRow<D, T> row, std::int32_t begin, std::int32_t count, LinearTile<D, T, Index>& tile) {
  if constexpr (!has_affine) row.affine = nullptr;
  row.displacement += begin;
  row.position[D - 1] += begin;
#pragma GCC ivdep
  for (std::int32_t j = 0; j < count; ++j) {
    T mapped[D];
    sample_position(row, j, mapped);
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

template <Padding padding, bool has_affine, int D, class T, class Index>
inline void fill_tile(SampledRow<D, T> row, std::int32_t begin, std::int32_t count, NearestTile<D, T, Index>& tile) {
  if constexpr (!has_affine) row.affine = nullptr;
  row.displacement += begin;
  row.position[D - 1] += begin;
#pragma GCC ivdep
  for (std::int32_t j = 0; j < count; ++j) {
    T mapped[D];
    sample_position(row, j, mapped);
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

template <int D, class T, class Index>
inline void pull(const LinearTile<D, T, Index>& tile, std::int32_t count, const T* image, T* out) {
#pragma GCC ivdep
  for (std::int32_t j = 0; j < count; ++j) {
    core::LinearAxis<T> axes[D];
    tile.axes(j, axes);
    out[j] = core::blend<-1, D>(image, tile.offset[j], tile.stride, axes);
  }
}

template <int D, class T, class Index>
inline void pull(const NearestTile<D, T, Index>& tile, std::int32_t count, const T* image, T* out) {
#pragma GCC ivdep
  for (std::int32_t j = 0; j < count; ++j) out[j] = tile.weight[j] > T(0) ? image[tile.offset[j]] : T(0);
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
    row.affine =
        op.sampling.affine == nullptr ? nullptr : static_cast<const T*>(op.sampling.affine) + batch * D * (D + 1);
    row.position[D - 1] = 0;
    row.position[D - 2] = static_cast<std::int32_t>(in_sample % op.out_grid.size[D - 2]);
    if constexpr (D == 3) row.position[0] = static_cast<std::int32_t>(in_sample / op.out_grid.size[1]);
    for (int a = 0; a < D; ++a) row.image_size[a] = static_cast<std::int32_t>(op.image_grid.size[a]);
    visit(row, batch, in_sample * length, static_cast<std::int32_t>(length));
  }
}

/// Calls body with (integral_constant<int, D>, T{}, Index{}) for what the operation holds.
template <class Op, class Body>
inline void select_types(const Op& op, std::int64_t largest_volume, const Body& body) {
  // offsets stay within one channel; 32-bit ones gather twice as many values an instruction
  const bool small = largest_volume < (std::int64_t{1} << 31);
  const auto with_index = [&](auto dims, auto scalar) {
    small ? body(dims, scalar, std::int32_t{}) : body(dims, scalar, std::int64_t{});
  };
  const auto with_scalar = [&](auto dims) {
    op.dtype == DType::float64 ? with_index(dims, double{}) : with_index(dims, float{});
  };
  op.image_grid.dims == 3 ? with_scalar(std::integral_constant<int, 3>{})
                          : with_scalar(std::integral_constant<int, 2>{});
}

/// Calls body with (integral_constant<Padding, p>, bool_constant<affine>).
template <class Body>
inline void select_sampling(const Sampling& sampling, const Body& body) {
  const auto with_padding = [&](auto padding) {
    sampling.affine == nullptr ? body(padding, std::false_type{}) : body(padding, std::true_type{});
  };
  sampling.padding == Padding::border ? with_padding(std::integral_constant<Padding, Padding::border>{})
                                      : with_padding(std::integral_constant<Padding, Padding::zeros>{});
}

}  // namespace deqreg::cpu::DEQREG_ISA
