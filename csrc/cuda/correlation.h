// What correlation and its gradients share: the extent of an operation, and one voxel's displaced window.
#pragma once

#include "core/correlation.h"
#include "cuda/launch.h"

namespace deqreg::cuda {

/// Calls body(Type<Storage>, integral_constant<int, radius>).
template <class Op, class Body>
void select_window(const Op& op, const Body& body) {
  select_storage(op.dtype, [&](auto storage) {
    switch (op.radius) {
      case 0: return body(storage, std::integral_constant<int, 0>{});
      case 1: return body(storage, std::integral_constant<int, 1>{});
      case 2: return body(storage, std::integral_constant<int, 2>{});
      case 3: return body(storage, std::integral_constant<int, 3>{});
      default: return body(storage, std::integral_constant<int, 4>{});
    }
  });
}

/// The extent over three axes; a 2-D image is one plane, in which windows have one plane of shifts.
struct Extent {
  std::int64_t batch, channels, voxels;
  std::int32_t size[3];
  std::int32_t dims, plane_radius;  // radius along the first axis

  template <class Op>
  explicit Extent(const Op& op) : batch(op.batch), channels(op.channels), voxels(op.grid.voxels()), dims(op.grid.dims) {
    for (int a = 0; a < 3; ++a) {
      const std::int64_t extent = dims == 3 ? op.grid.size[a] : a == 0 ? 1 : op.grid.size[a - 1];
      size[a] = static_cast<std::int32_t>(extent);
    }
    plane_radius = dims == 3 ? op.radius : 0;
  }

  /// Shifts along the first axis.
  __host__ __device__ std::int32_t planes() const { return 2 * plane_radius + 1; }

  /// Where a row of a channel begins; outside the image the nearest one stands for it.
  __device__ __forceinline__ std::int64_t row(std::int32_t z, std::int32_t y) const {
    return (std::int64_t{core::nearest_inside(z, size[0])} * size[1] + core::nearest_inside(y, size[1])) * size[2];
  }
};

/// An extent cut into tiles of one plane, 32 columns and `rows` rows, one a block.
struct Tiles {
  std::int32_t rows, along[2];  // tiles along the rows and columns
  std::int64_t count;           // of a sample

  Tiles(const Extent& extent, std::int32_t rows) : rows(rows) {
    along[0] = static_cast<std::int32_t>(divide_up(extent.size[1], rows));
    along[1] = static_cast<std::int32_t>(divide_up(extent.size[2], warp_lanes));
    count = std::int64_t{extent.size[0]} * along[0] * along[1];
  }

  /// One block for each of `parts` parts of every tile, next to each other, for they read the same.
  dim3 blocks(const Extent& extent, std::int64_t parts) const {
    return dim3(static_cast<unsigned>(at_most(count * parts, max_blocks_x)),
                static_cast<unsigned>(at_most(extent.batch, max_blocks_yz)));
  }
};

/// The first voxel of a tile.
struct Corner {
  std::int32_t z, y, x;
};

/// Calls body(sample, corner, part) for this block's parts of tiles.
template <class Body>
__device__ __forceinline__ void for_parts(const Extent& extent, const Tiles& tiles, std::int32_t parts,
                                          const Body& body) {
  for (std::int64_t sample = blockIdx.y; sample < extent.batch; sample += gridDim.y)
    for (std::int64_t i = blockIdx.x; i < tiles.count * parts; i += gridDim.x) {
      const std::int64_t tile = i / parts, line = tile / tiles.along[1], plane = line / tiles.along[0];
      body(sample,
           Corner{static_cast<std::int32_t>(plane),
                  static_cast<std::int32_t>(line - plane * tiles.along[0]) * tiles.rows,
                  static_cast<std::int32_t>(tile - line * tiles.along[1]) * warp_lanes},
           static_cast<std::int32_t>(i - tile * parts));
    }
}

// Threads of a multiprocessor at least; the registers are shared out among them, and the kernels want many.
template <class T>
constexpr int resident_threads = std::is_same_v<T, double> ? 256 : 384;

template <class T, int count>
struct alignas(count * sizeof(T)) Pack {
  T values[count];
};

/// `count` values from shared memory, at an address aligned for vectors of 16 bytes.
template <int count, class T>
__device__ __forceinline__ void load_vectors(const T* from, T (&values)[count]) {
  constexpr int wide = 16 / sizeof(T), rest = count % wide;
#pragma unroll
  for (int i = 0; i < count / wide; ++i) {
    const auto pack = reinterpret_cast<const Pack<T, wide>*>(from)[i];
#pragma unroll
    for (int j = 0; j < wide; ++j) values[i * wide + j] = pack.values[j];
  }
  if constexpr (rest > 0) {
    const auto pack = *reinterpret_cast<const Pack<T, rest>*>(from + count - rest);
#pragma unroll
    for (int j = 0; j < rest; ++j) values[count - rest + j] = pack.values[j];
  }
}

/// to[k][i] = from[k][offset_of(i)] for the channels k < count, of `channels` that fit; all loads of an i at once.
template <int channels, int elements, int threads, class T, class Storage, class Offset>
__device__ __forceinline__ void stage(const Storage* __restrict__ from, std::int64_t voxels, std::int32_t count, T* to,
                                      const Offset& offset_of) {
#pragma unroll 1
  for (int i = threadIdx.x; i < elements; i += threads) {
    const Storage* at = from + offset_of(i);
    T values[channels];
#pragma unroll
    for (int k = 0; k < channels; ++k) {
      values[k] = k < count ? T(*at) : T(0);
      at += voxels;
    }
#pragma unroll
    for (int k = 0; k < channels; ++k) to[k * elements + i] = values[k];
  }
}

constexpr int staged_bytes = 32;  // of channels of one voxel in shared memory

/// How a window without displacement is shared out to threads.
template <class T, int radius>
struct Shape {
  static constexpr int shifts = 2 * radius + 1;
  static constexpr int run = 16 / sizeof(T);  // voxels of a thread, one vector
  // Lines of shifts of a thread, and threads side by side for all of them. The products are to fill the registers and
  // leave some for what is multiplied.
  static constexpr int lines = radius < 3 ? shifts : radius == 3 ? 4 : 3;
  static constexpr int groups = (shifts + lines - 1) / lines;
  static constexpr int row_threads = warp_lanes / run;
  static constexpr int rows = (groups == 1 ? 128 : 64) / row_threads;  // of a tile
  static constexpr int threads = row_threads * rows * groups;
  static constexpr int channels = staged_bytes / sizeof(T);
  static constexpr int reach_rows = rows + groups * lines - 1, reach_columns = warp_lanes + 2 * radius;
  static constexpr int pitch = (reach_columns + 3) / 4 * 4;
};

/// sums += the products of a thread's run with the lines of shifts from first_line on, on one plane of shifts of a
/// tile: a few channels at a time come to shared memory.
template <class S, int radius, class Storage, class T>
__device__ __forceinline__ void correlate_plane(const Extent& extent, const Corner& corner, std::int32_t plane, int row,
                                                int column, int first_line, const Storage* __restrict__ from,
                                                const Storage* __restrict__ by,
                                                T (&moving_tile)[S::channels][S::reach_rows][S::pitch],
                                                T (&fixed_tile)[S::channels][S::rows][warp_lanes],
                                                T (&sums)[S::lines][S::shifts][S::run]) {
  for (std::int64_t c = 0; c < extent.channels; c += S::channels) {
    const auto count = static_cast<std::int32_t>(extent.channels - c < S::channels ? extent.channels - c : S::channels);
    __syncthreads();
    stage<S::channels, S::reach_rows * S::pitch, S::threads>(
        from + c * extent.voxels, extent.voxels, count, &moving_tile[0][0][0], [&](int i) {
          const int y = i / S::pitch, x = i % S::pitch;
          return extent.row(corner.z + plane - extent.plane_radius, corner.y + y - radius) +
                 core::nearest_inside(corner.x + x - radius, extent.size[2]);
        });
    stage<S::channels, S::rows * warp_lanes, S::threads>(
        by + c * extent.voxels, extent.voxels, count, &fixed_tile[0][0][0], [&](int i) {
          return extent.row(corner.z, corner.y + i / warp_lanes) +
                 core::nearest_inside(corner.x + i % warp_lanes, extent.size[2]);
        });
    __syncthreads();
#pragma unroll 1
    for (int k = 0; k < count; ++k) {
      T values[S::run];
      load_vectors(&fixed_tile[k][row][column], values);
#pragma unroll
      for (int g = 0; g < S::lines; ++g) {
        T line[S::run + 2 * radius];
        load_vectors(&moving_tile[k][row + first_line + g][column], line);
#pragma unroll
        for (int l = 0; l < S::shifts; ++l)
#pragma unroll
          for (int v = 0; v < S::run; ++v) sums[g][l][v] += values[v] * line[v + l];
      }
    }
  }
}

// Threads of a block whose lanes have one displaced voxel each; what such a kernel keeps in shared memory is small
// enough at any radius.
template <class T>
constexpr int displaced_threads = 512 / sizeof(T);

template <class T>
Tiles displaced_tiles(const Extent& extent) {
  return {extent, displaced_threads<T> / warp_lanes};
}

/// One voxel and the corners of its window. A lane beyond the grid has the window of the nearest voxel.
template <class T, int radius>
struct Window {
  static constexpr int shifts = 2 * radius + 1, corners = shifts + 1;

  std::int64_t offset;  // of the voxel in its channel
  bool inside;
  std::int32_t first[3];         // corner, unclamped
  std::int32_t planes;           // of corners
  std::int32_t column[corners];  // offset in a row
  T upper[3];                    // blending weights

  __device__ __forceinline__ Window(const Extent& extent, const T* displacement, std::int64_t sample,
                                    const Corner& corner)
      : planes(extent.dims == 3 ? corners : 1) {
    const std::int32_t lane = threadIdx.x % warp_lanes, warp = threadIdx.x / warp_lanes;
    const std::int32_t y = corner.y + warp, x = corner.x + lane;
    inside = y < extent.size[1] && x < extent.size[2];
    const std::int32_t position[3] = {corner.z, core::nearest_inside(y, extent.size[1]),
                                      core::nearest_inside(x, extent.size[2])};
    offset = extent.row(position[0], position[1]) + position[2];
    const T* u = displacement + sample * extent.dims * extent.voxels + offset;
    first[0] = 0;
    upper[0] = T(0);
#pragma unroll
    for (int a = 0; a < 3; ++a) {
      if (a == 0 && extent.dims == 2) continue;
      const auto axis = core::window_axis(T(position[a]) + *u, extent.size[a], radius);
      first[a] = axis.first;
      upper[a] = axis.upper;
      u += extent.voxels;
    }
#pragma unroll
    for (int l = 0; l < corners; ++l) column[l] = core::nearest_inside(first[2] + l, extent.size[2]);
  }

  /// Where a line of corners begins in a channel, without its columns.
  __device__ __forceinline__ std::int64_t line(const Extent& extent, std::int32_t z, std::int32_t y) const {
    return extent.row(first[0] + z, first[1] + y);
  }
};

/// dots[g][l] = <fixed, the l-th corner of line y + g> over the channels. All corners of a line come from the
/// first-level cache: neighbouring lanes have read them.
template <int lines, class T, int radius, class Storage>
__device__ __forceinline__ void dot_lines(const Extent& extent, const Window<T, radius>& window,
                                          const Storage* __restrict__ fixed, const Storage* __restrict__ moving,
                                          std::int32_t z, std::int32_t y,
                                          T (&dots)[lines][Window<T, radius>::corners]) {
  constexpr int corners = Window<T, radius>::corners;
  const Storage* from[lines];
#pragma unroll
  for (int g = 0; g < lines; ++g) {
    from[g] = moving + window.line(extent, z, y + g);
#pragma unroll
    for (int l = 0; l < corners; ++l) dots[g][l] = T(0);
  }
  const Storage* by = fixed + window.offset;
  for (std::int64_t c = 0; c < extent.channels; ++c) {
    const T value = T(*by);
#pragma unroll
    for (int g = 0; g < lines; ++g) {
#pragma unroll
      for (int l = 0; l < corners; ++l) dots[g][l] += value * T(from[g][window.column[l]]);
      from[g] += extent.voxels;
    }
    by += extent.voxels;
  }
}

/// Lines of corners that a thread sums at a time, a divisor of all: enough that reading fixed does not count, few
/// enough for the registers.
constexpr int lines_at_a_time(int radius) { return radius < 2 ? 2 * radius + 2 : radius == 2 ? 3 : 2; }

template <class T>
__device__ __forceinline__ T mix(T lower, T upper, T weight) {
  return lower + weight * (upper - lower);
}

template <class T>
T inverse_root(std::int64_t channels) {
  return T(1) / std::sqrt(T(channels));
}

}  // namespace deqreg::cuda
