// Linear sampling, a box of output voxels at a time. What of the image a box reaches is packed as quads: at every voxel
// its own value and those of its upper neighbours along the two faster axes, side by side. A cell is then two loads,
// not four pairs far apart, neighbouring cells lie side by side, and the packed part stays in the second-level cache.
//
// There are three axes always; in 2-D the first has one voxel.
#pragma once

#include <memory>

#include "cpu/buffer.h"
#include "cpu/parallel.h"
#include "cpu/sampling_tile.h"
#include "cpu/vector.h"

namespace deqreg::cpu::DEQREG_ISA {

constexpr std::int32_t box_size[3] = {8, 16, 64};  // the last at most tile_voxels
constexpr std::int32_t box_voxels = box_size[0] * box_size[1] * box_size[2];
// Quads that a box may reach for each of its voxels. Beyond, cells are scattered and fetched from the image itself.
constexpr std::int32_t reach_factor = 8;
// Rows of an image that are asked for ahead: they are short, and the processor does not see them coming.
constexpr std::int32_t rows_ahead = 6;
// Rows of voxels and of quads are whole vectors of any instruction set.
constexpr std::int32_t row_multiple = 16;

constexpr std::int32_t whole_rows(std::int32_t count) {
  return (count + row_multiple - 1) / row_multiple * row_multiple;
}

/// Output voxels [begin, begin + extent) of one sample.
struct OutputBox {
  std::int64_t sample;
  std::int32_t begin[3], extent[3];
  std::int32_t row;  // voxels from one row to the next in arrays of the box

  std::int32_t rows() const { return extent[0] * extent[1]; }
};

/// What of the image a box reaches, packed: [planes, rows, row], from the voxel `low` of the image on.
struct Reach {
  std::int32_t low[3], planes, rows, width, row;

  std::int64_t voxels() const { return std::int64_t{planes} * rows * row; }
};

/// Sizes and displacement of an operation, and how its output is cut into boxes.
template <int D, class T>
struct BoxedSampling {
  std::int64_t batch, voxels, image_voxels;
  std::int32_t out_size[3] = {1, 1, 1}, image_size[3] = {1, 1, 1}, edge[3], boxes[3];
  const Sampling& sampling;

  /// `edges` of a box, at most those of box_size.
  template <class Op>
  explicit BoxedSampling(const Op& op, const std::int32_t (&edges)[3] = box_size)
      : batch(op.batch), voxels(op.out_grid.voxels()), image_voxels(op.image_grid.voxels()), sampling(op.sampling) {
    for (int a = 0; a < D; ++a) {
      out_size[3 - D + a] = static_cast<std::int32_t>(op.out_grid.size[a]);
      image_size[3 - D + a] = static_cast<std::int32_t>(op.image_grid.size[a]);
    }
    for (int a = 0; a < 3; ++a) {
      edge[a] = edges[a];
      boxes[a] = (out_size[a] + edge[a] - 1) / edge[a];
    }
  }

  std::int64_t count() const { return batch * boxes[0] * boxes[1] * boxes[2]; }

  OutputBox box(std::int64_t index) const {
    OutputBox box;
    for (int a = 2; a >= 0; --a) {
      box.begin[a] = static_cast<std::int32_t>(index % boxes[a]) * edge[a];
      box.extent[a] = out_size[a] - box.begin[a] < edge[a] ? out_size[a] - box.begin[a] : edge[a];
      index /= boxes[a];
    }
    box.sample = index;
    box.row = whole_rows(box.extent[2]);
    return box;
  }

  /// Voxels from the start of a sample's output to a row of a box.
  std::int64_t offset(const OutputBox& box, std::int32_t row) const {
    const std::int64_t z = box.begin[0] + row / box.extent[1], y = box.begin[1] + row % box.extent[1];
    return (z * out_size[1] + y) * out_size[2] + box.begin[2];
  }

  const T* affine(std::int64_t sample) const {
    return sampling.affine == nullptr ? identity_rows<D, T>()
                                      : static_cast<const T*>(sampling.affine) + sample * D * (D + 1);
  }

  /// The first component at the start of a row of a box.
  const T* displacement(const OutputBox& box, std::int32_t row) const {
    return static_cast<const T*>(sampling.displacement) + box.sample * D * voxels + offset(box, row);
  }

  /// Asks for a row of the displacement: rows are short and far apart, so that the processor does not see them coming.
  void prefetch(const OutputBox& box, std::int32_t row) const {
    constexpr std::int32_t cache_line = 64 / sizeof(T);
    if (row >= box.rows()) return;
    const T* const u = displacement(box, row);
    for (int a = 0; a < D; ++a)
      for (std::int32_t j = 0; j < box.extent[2]; j += cache_line) __builtin_prefetch(u + a * voxels + j, 0, 2);
  }

  /// A row of a box as a run.
  SampledRun<D, T> run(const OutputBox& box, std::int32_t row) const {
    SampledRun<D, T> run;
    run.component = voxels;
    run.displacement = displacement(box, row);
    run.scale = T(1);
    run.affine = affine(box.sample);
    const std::int32_t position[3] = {box.begin[0] + row / box.extent[1], box.begin[1] + row % box.extent[1],
                                      box.begin[2]};
    for (int a = 0; a < D; ++a) {
      run.position[a] = position[3 - D + a];
      run.out_size[a] = out_size[3 - D + a];
      run.image_size[a] = image_size[3 - D + a];
    }
    run.count = box.extent[2];
    return run;
  }

  /// Voxels from the start of a channel to where a row of a reach begins.
  std::int64_t reached_row(const Reach& reach, std::int32_t plane, std::int32_t row) const {
    return ((std::int64_t{reach.low[0]} + plane) * image_size[1] + reach.low[1] + row) * image_size[2] + reach.low[2];
  }

  /// The same for the row that is wanted `rows_ahead` rows later; past the reach after its last ones.
  std::int64_t reached_row_ahead(const Reach& reach, std::int32_t plane, std::int32_t row) const {
    const std::int32_t later = row + rows_ahead;
    return later < reach.rows ? reached_row(reach, plane, later) : reached_row(reach, plane + 1, later - reach.rows);
  }

  /// Packed voxels of the largest reach that is packed.
  std::int64_t capacity() const {
    const std::int64_t whole = std::int64_t{image_size[0]} * image_size[1] * whole_rows(image_size[2]);
    const std::int64_t most = std::int64_t{reach_factor} * edge[0] * edge[1] * edge[2];
    return whole < most ? whole : most;
  }
};

/// Where the voxels of a box sample the image, rows filled up with their last voxel.
template <class T>
struct Positions {
  alignas(64) T axis[3][box_voxels];
  // Along each axis. What is less than -1 or not a number counts as -1: its cell is the first one as well.
  T lowest[3], highest[3];

  template <int D>
  void fill(const BoxedSampling<D, T>& boxed, const OutputBox& box) {
    boxed.sampling.affine == nullptr ? fill_rows<false>(boxed, box) : fill_rows<true>(boxed, box);
  }

 private:
  static constexpr int lanes = native_lanes<T>;
  using V = typename Vector<T, lanes>::Aligned;

  template <bool has_affine, int D>
  void fill_rows(const BoxedSampling<D, T>& boxed, const OutputBox& box) {
    V low[3], high[3];
    for (int a = 0; a < 3; ++a) {
      low[a] = V{} + T(boxed.image_size[a]);
      high[a] = V{} - T(1);
    }
    T affine[D * (D + 1)];
    for (int i = 0; i < D * (D + 1); ++i) affine[i] = boxed.affine(box.sample)[i];
    alignas(64) T column[box_size[2]];
    for (std::int32_t j = 0; j < box.row; ++j)
      column[j] = T(box.begin[2] + (j < box.extent[2] ? j : box.extent[2] - 1));
    T* to[3] = {axis[0], axis[1], axis[2]};
    for (std::int32_t r = 0; r < box.rows(); ++r) {
      const T* const u = boxed.displacement(box, r);
      const T start[2] = {T(box.begin[0] + r / box.extent[1]), T(box.begin[1] + r % box.extent[1])};
      const std::int64_t voxels = boxed.voxels;
      const std::int32_t count = box.extent[2];
#pragma GCC ivdep
      for (std::int32_t j = 0; j < count; ++j) {
        T point[D], mapped[D];
        for (int a = 0; a < D; ++a) point[a] = (a == D - 1 ? column[j] : start[3 - D + a]) + u[a * voxels + j];
        core::apply_affine<D, T>(has_affine ? affine : nullptr, point, mapped);
        for (int a = 0; a < D; ++a) to[3 - D + a][j] = mapped[a];
      }
      for (int a = 3 - D; a < 3; ++a)
        for (std::int32_t j = count; j < box.row; ++j) to[a][j] = to[a][count - 1];
      if constexpr (D == 2)
        for (std::int32_t j = 0; j < box.row; ++j) to[0][j] = T(0);
      for (int a = 0; a < 3; ++a)
        for (std::int32_t j = 0; j < box.row; j += lanes) {
          const V position = *reinterpret_cast<const V*>(to[a] + j), least = V{} - T(1);
          const V known = position > least ? position : least;  // false for NaN
          low[a] = known < low[a] ? known : low[a];
          high[a] = known > high[a] ? known : high[a];
        }
      for (T*& row : to) row += box.row;
    }
    for (int a = 0; a < 3; ++a) {
      lowest[a] = low[a][0];
      highest[a] = high[a][0];
      for (int l = 1; l < lanes; ++l) {
        lowest[a] = low[a][l] < lowest[a] ? low[a][l] : lowest[a];
        highest[a] = high[a][l] > highest[a] ? high[a][l] : highest[a];
      }
    }
  }
};

template <Padding padding, int D, class T>
inline Reach find_reach(const BoxedSampling<D, T>& boxed, const Positions<T>& positions) {
  Reach reach;
  std::int32_t extent[3];
  for (int a = 0; a < 3; ++a) {
    const auto base = [&](T x) { return core::linear_axis<padding>(x, boxed.image_size[a]).base; };
    reach.low[a] = base(positions.lowest[a]);
    extent[a] = base(positions.highest[a]) - reach.low[a] + 1;
  }
  reach.planes = extent[0] + (boxed.image_size[0] > 1 ? 1 : 0);
  reach.rows = extent[1];
  reach.width = extent[2];
  reach.row = whole_rows(extent[2]);
  return reach;
}

/// Quads hold the upper neighbours along the two faster axes; where voxels are packed, these are voxels too.
template <int D, class T>
inline Reach with_neighbours(const BoxedSampling<D, T>& boxed, Reach reach) {
  reach.rows += boxed.image_size[1] > 1 ? 1 : 0;
  reach.width += boxed.image_size[2] > 1 ? 1 : 0;
  reach.row = whole_rows(reach.width);
  return reach;
}

inline bool worth_packing(const OutputBox& box, const Reach& reach) {
  return reach.voxels() <= std::int64_t{reach_factor} * box.rows() * box.row;
}

/// The cells of a row of a box, offsets in packed voxels.
template <Padding padding, int D, class T, class Tile>
inline void fill_cells(const BoxedSampling<D, T>& boxed, const OutputBox& box, const Positions<T>& positions,
                       const Reach& reach, std::int32_t row, Tile& tile) {
  const T* const from[3] = {positions.axis[0] + row * box.row, positions.axis[1] + row * box.row,
                            positions.axis[2] + row * box.row};
  const std::int32_t step[3] = {reach.rows * reach.row, reach.row, 1}, count = box.row;
  const std::int32_t low = reach.low[0] * step[0] + reach.low[1] * step[1] + reach.low[2];
  const std::int32_t size[3] = {boxed.image_size[0], boxed.image_size[1], boxed.image_size[2]};
#pragma GCC ivdep
  for (std::int32_t j = 0; j < count; ++j) {
    std::int32_t offset = -low;
    for (int a = 0; a < 3; ++a) {
      const auto axis = core::linear_axis<padding>(from[a][j], size[a]);
      offset += axis.base * step[a];
      tile.lower[a][j] = axis.lower;
      tile.upper[a][j] = axis.upper;
      if constexpr (Tile::has_slopes) {
        tile.slope_lower[a][j] = axis.slope_lower;
        tile.slope_upper[a][j] = axis.slope_upper;
      }
    }
    tile.offset[j] = offset;
  }
}

/// The voxels of one channel that a box reaches, as quads.
template <int D, class T>
inline void pack_quads(const BoxedSampling<D, T>& boxed, const Reach& reach, const T* image, T* quads) {
  constexpr int lanes = native_lanes<T>, cache_line = 64 / sizeof(T);
  using V = Vector<T, lanes>;
  const std::int64_t width = boxed.image_size[2];
  const std::int64_t right = width > 1 ? 1 : 0, below = boxed.image_size[1] > 1 ? width : 0;
  const T* const end = image + boxed.image_voxels;
  for (std::int32_t z = 0; z < reach.planes; ++z)
    for (std::int32_t y = 0; y < reach.rows; ++y) {
      const T* from = image + boxed.reached_row(reach, z, y);
      const T* later = image + boxed.reached_row_ahead(reach, z, y);
      T* to = quads + (std::int64_t{z} * reach.rows + y) * reach.row * 4;
      for (std::int32_t x = 0; x < reach.width; x += cache_line) __builtin_prefetch(later + x);
      std::int32_t x = 0;
      if constexpr (lanes >= 4) {
        const auto load = [](const T* at) { return *reinterpret_cast<const typename V::Loose*>(at); };
        for (; x < reach.width && from + x + lanes + right + below <= end; x += lanes) {
          const typename V::Aligned upper[2] = {load(from + x), load(from + x + right)};
          const typename V::Aligned lower[2] = {load(from + x + below), load(from + x + below + right)};
          interleave_four<T>(upper[0], upper[1], lower[0], lower[1], to + 4 * x);
        }
      }
      for (; x < reach.width; ++x) {
        to[4 * x] = from[x];
        to[4 * x + 1] = from[x + right];
        to[4 * x + 2] = from[x + below];
        to[4 * x + 3] = from[x + below + right];
      }
    }
}

/// Corners of `lanes` neighbouring cells in a plane: first, right, below, below right.
template <class T>
struct PlaneCorners {
  static constexpr int lanes = native_lanes<T>;
  using V = typename Vector<T, lanes>::Aligned;
  V value[4];

  /// From quads side by side.
  DEQREG_INLINE explicit PlaneCorners(const T* quads) {
    if constexpr (lanes >= 4) {
      deinterleave_four<T>(quads, value);
    } else {
      for (int k = 0; k < 4; ++k)
        for (int l = 0; l < lanes; ++l) value[k][l] = quads[4 * l + k];
    }
  }

  DEQREG_INLINE V blend(const T* left, const T* right, const T* above, const T* below) const {
    const auto at = [](const T* weight) -> V {
      return *reinterpret_cast<const typename Vector<T, lanes>::Loose*>(weight);
    };
    return at(above) * (at(left) * value[0] + at(right) * value[1]) +
           at(below) * (at(left) * value[2] + at(right) * value[3]);
  }
};

/// A cell's lower and its upper quad.
template <class T>
struct QuadPair {
  using Q = typename Vector<T, 4>::Loose;
  typename Vector<T, 4>::Aligned lower, upper;

  /// `plane` elements lie between the two.
  DEQREG_INLINE QuadPair(const T* at, std::int64_t plane)
      : lower(*reinterpret_cast<const Q*>(at)), upper(*reinterpret_cast<const Q*>(at + plane)) {}

  DEQREG_INLINE void blend(T lower_weight, T upper_weight, T* out) const {
    *reinterpret_cast<Q*>(out) = lower_weight * lower + upper_weight * upper;
  }
};

/// A row of a box: its cells, and their corners blended along the first axis.
template <class T>
struct ValueRow {
  LinearTile<3, T, std::int32_t> tile;
  alignas(64) T values[4 * box_size[2]];

  void fetch(std::int32_t count, const T* quads, std::int64_t plane) {
    for (std::int32_t j = 0; j < count; ++j)
      QuadPair<T>(quads + std::int64_t{4} * tile.offset[j], plane)
          .blend(tile.lower[0][j], tile.upper[0][j], values + 4 * j);
  }

  /// Of `lanes` voxels from j on.
  DEQREG_INLINE auto value(std::int32_t j) const {
    return PlaneCorners<T>(values + 4 * j)
        .blend(tile.lower[2] + j, tile.upper[2] + j, tile.lower[1] + j, tile.upper[1] + j);
  }
};

/// A row of a box for the slopes of the image: its corners blended along the first axis, and their slope along it.
template <class T>
struct SlopeRow {
  using V = typename Vector<T, native_lanes<T>>::Aligned;
  SlopeTile<3, T, std::int32_t> tile;
  alignas(64) T values[4 * box_size[2]], slopes[4 * box_size[2]];

  void fetch(std::int32_t count, const T* quads, std::int64_t plane) {
    for (std::int32_t j = 0; j < count; ++j)
      fetch_cell(j, quads + std::int64_t{4} * tile.offset[j], plane, tile.lower[0][j], tile.upper[0][j]);
  }

  /// Voxel j's alone, whose lower quad is at `cell`.
  DEQREG_INLINE void fetch_cell(std::int32_t j, const T* cell, std::int64_t plane, T lower, T upper) {
    const QuadPair<T> pair(cell, plane);
    pair.blend(lower, upper, values + 4 * j);
    pair.blend(tile.slope_lower[0][j], tile.slope_upper[0][j], slopes + 4 * j);
  }

  /// Along each of the three axes, of `lanes` voxels from j on.
  DEQREG_INLINE void slope(std::int32_t j, V (&along)[3]) const {
    const T *const left = tile.lower[2] + j, *const right = tile.upper[2] + j;
    const T *const above = tile.lower[1] + j, *const below = tile.upper[1] + j;
    const PlaneCorners<T> corners(values + 4 * j);
    along[0] = PlaneCorners<T>(slopes + 4 * j).blend(left, right, above, below);
    along[1] = corners.blend(left, right, tile.slope_lower[1] + j, tile.slope_upper[1] + j);
    along[2] = corners.blend(tile.slope_lower[2] + j, tile.slope_upper[2] + j, above, below);
  }
};

/// Calls packed(row, count, channel, offset) for the rows of all boxes and each channel from `first` on, channel by
/// channel, with what the row needs of the image; where cells scatter, scattered(run, channel, offset). `offset` is in
/// voxels of a channel.
template <class Row, Padding padding, int D, class T, class Op, class Packed, class Scattered>
inline void for_boxes(const Op& op, std::int64_t first, const Executor& executor, const Packed& packed,
                      const Scattered& scattered) {
  if (first == op.channels) return;
  const BoxedSampling<D, T> boxed(op);
  const std::int64_t grain = 1 + grain_voxels / (box_voxels * (op.channels - first + 1));
  parallel_for(executor, boxed.count(), grain, [&](std::int64_t begin, std::int64_t end) {
    const std::unique_ptr<Positions<T>> positions(new Positions<T>);
    Row row;
    const auto quads = Buffer<T>::uninitialised(4 * boxed.capacity());
    for (std::int64_t i = begin; i < end; ++i) {
      const OutputBox box = boxed.box(i), next = boxed.box(i + 1 < end ? i + 1 : i);
      positions->fill(boxed, box);
      const Reach reach = find_reach<padding>(boxed, *positions);
      const bool packs = worth_packing(box, reach);
      const std::int64_t plane = boxed.image_size[0] > 1 ? std::int64_t{4} * reach.rows * reach.row : 0;
      for (std::int64_t k = first; k < op.channels; ++k) {
        const std::int64_t c = box.sample * op.channels + k;
        if (packs) pack_quads(boxed, reach, static_cast<const T*>(op.image) + c * boxed.image_voxels, quads.data());
        for (std::int32_t r = 0; r < box.rows(); ++r) {
          if (k == first) boxed.prefetch(next, r);
          if (!packs) {
            scattered(boxed.run(box, r), c, boxed.offset(box, r));
            continue;
          }
          fill_cells<padding>(boxed, box, *positions, reach, r, row.tile);
          row.fetch(box.row, quads.data(), plane);
          packed(row, box.extent[2], c, boxed.offset(box, r));
        }
      }
    }
  });
}

/// The first `count` values from `from` on, a whole vector of them at most; the others are zero.
template <class T>
DEQREG_INLINE auto load_first(const T* from, std::int32_t count) {
  constexpr int lanes = native_lanes<T>;
  typename Vector<T, lanes>::Aligned values{};
  if (count >= lanes)
    values = *reinterpret_cast<const typename Vector<T, lanes>::Loose*>(from);
  else
    for (std::int32_t l = 0; l < count; ++l) values[l] = from[l];
  return values;
}

/// to[0 ... count) = the first of a vector's values, all of them at most.
template <class V, class T>
DEQREG_INLINE void store_first(V value, std::int32_t count, T* to) {
  constexpr int lanes = sizeof(V) / sizeof(T);
  if (count >= lanes)
    *reinterpret_cast<typename Vector<T, lanes>::Loose*>(to) = value;
  else
    for (std::int32_t l = 0; l < count; ++l) to[l] = value[l];
}

}  // namespace deqreg::cpu::DEQREG_ISA
