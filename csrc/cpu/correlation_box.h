// The part of a correlation that a thread works on at a time: a box of output voxels, and the box of image voxels that
// their windows reach, packed so that what a window reads together lies together.
//
// Features are planar in memory. Their channels are as far apart as a whole image, often by a multiple of the cache's
// size, and the windows of neighbouring voxels need not start at neighbouring voxels: neither a gather nor a run along
// the fastest axis is cheap there. Packed as [z, y, channel, x], a line of a window is one short vector a channel, at
// any displacement, beyond the border too, and there are no sums across lanes.
#pragma once

#include <cmath>
#include <memory>
#include <type_traits>

#include "core/correlation.h"
#include "cpu/vector.h"
#include "kernels.h"

namespace deqreg::cpu::DEQREG_ISA {

// Output voxels along the fastest axis that are in work together.
constexpr std::int32_t run_voxels = 16;
// Output voxels of a tile along each axis, before it is cut to fit the cache. With some tens of channels what its
// windows reach fits the second level, which is worth packing more of it twice.
constexpr std::int32_t tile_size[3] = {8, 8, 2 * run_voxels};
// What no box exceeds where windows scatter: the last-level cache should hold it, and the second level the windows of
// one run.
constexpr std::int64_t box_bytes = std::int64_t{3} << 20;

/// A correlation over three axes; in 2-D the first has one voxel and one corner.
template <class T>
struct Windows {
  std::int64_t batch, channels, voxels;
  std::int32_t size[3], radius[3], corners[3], shifts[3];
  std::int32_t lanes;                // at least the corners along the fastest axis
  const T* displacement[3];          // components, or null
  std::int64_t displacement_sample;  // elements between samples
  T scale;

  template <class Op>
  explicit Windows(const Op& op) : batch(op.batch), channels(op.channels), voxels(op.grid.voxels()) {
    const std::int32_t dims = op.grid.dims, missing = 3 - dims;
    for (int a = 0; a < 3; ++a) {
      const bool there = a >= missing;
      size[a] = there ? static_cast<std::int32_t>(op.grid.size[a - missing]) : 1;
      radius[a] = there ? op.radius : 0;
      shifts[a] = 2 * radius[a] + 1;
      corners[a] = shifts[a] + (there && op.displacement != nullptr ? 1 : 0);
      displacement[a] = there && op.displacement != nullptr
                            ? static_cast<const T*>(op.displacement) + (a - missing) * voxels
                            : nullptr;
    }
    displacement_sample = dims * voxels;
    lanes = corners[2] <= 4 ? 4 : corners[2] <= 8 ? 8 : 16;
    scale = T(1) / std::sqrt(T(channels));
  }

  std::int64_t shift_count() const { return std::int64_t{shifts[0]} * shifts[1] * shifts[2]; }
  std::int64_t line_count() const { return std::int64_t{corners[0]} * corners[1]; }
  std::int64_t corner_count() const { return line_count() * corners[2]; }
  /// Elements between neighbouring corners along an axis in an array [corner][run].
  std::int64_t corner_step(int axis) const {
    return std::int64_t{run_voxels} * (axis == 2 ? 1 : axis == 1 ? corners[2] : corners[1] * corners[2]);
  }
  std::int64_t offset(std::int32_t z, std::int32_t y, std::int32_t x) const {
    return (std::int64_t{z} * size[1] + y) * size[2] + x;
  }
};

/// Output voxels [begin, end), and the corners [low, low + extent) that their windows have.
struct Box {
  std::int64_t sample;
  std::int32_t begin[3], end[3], low[3], extent[3];
};

/// The output voxels of a box, as corners of the fixed features.
inline Box fixed_part(const Box& box) {
  Box part = box;
  for (int a = 0; a < 3; ++a) {
    part.low[a] = box.begin[a];
    part.extent[a] = box.end[a] - box.begin[a];
  }
  return part;
}

/// Layout of a packed box: [extent0, extent1, channels, row], rows `slack` wider than the box for reads past its end.
struct Packing {
  std::int64_t row = 0, line = 0, plane = 0, elements = 0;

  Packing() = default;
  Packing(const Box& box, std::int64_t channels, std::int32_t slack)
      : row(box.extent[2] + slack),
        line(channels * row),
        plane(box.extent[1] * line),
        elements(box.extent[0] * plane) {}
};

/// The windows of a run of voxels: offset of the first corner in the packed box, upper weights along each axis.
template <class T>
struct Cells {
  std::int64_t offset[run_voxels];
  alignas(64) T upper[3][run_voxels];
};

template <class T>
DEQREG_INLINE core::WindowAxis<T> window_at(const Windows<T>& windows, const Box& box, int axis, std::int32_t position,
                                            std::int64_t offset) {
  const T* u = windows.displacement[axis];
  if (u == nullptr) return {position - windows.radius[axis], T(0)};
  const T x = T(position) + u[box.sample * windows.displacement_sample + offset];
  return core::window_axis(x, windows.size[axis], windows.radius[axis]);
}

/// Finds the corners of a box whose output voxels are set.
template <class T>
inline void find_corners(const Windows<T>& windows, Box& box) {
  for (int a = 0; a < 3; ++a) {
    std::int32_t lowest = windows.size[a] + windows.radius[a], highest = -2 * windows.radius[a] - 2;
    for (std::int32_t z = box.begin[0]; z < box.end[0]; ++z)
      for (std::int32_t y = box.begin[1]; y < box.end[1]; ++y)
        for (std::int32_t x = box.begin[2]; x < box.end[2]; ++x) {
          const std::int32_t position = a == 0 ? z : a == 1 ? y : x;
          const std::int32_t first = window_at(windows, box, a, position, windows.offset(z, y, x)).first;
          lowest = first < lowest ? first : lowest;
          highest = first > highest ? first : highest;
        }
    box.low[a] = lowest;
    box.extent[a] = highest - lowest + windows.corners[a];
  }
}

/// Yields boxes that cover the output, in an order that depends on the arguments alone.
template <class T>
class Boxes {
 public:
  Boxes(const Windows<T>& windows, std::int32_t slack, std::int64_t first_tile, std::int64_t last_tile)
      : windows_(windows), slack_(slack), tile_(first_tile), last_tile_(last_tile) {}

  static std::int64_t tiles(const Windows<T>& windows) {
    std::int64_t count = windows.batch;
    for (int a = 0; a < 3; ++a) count *= along(windows, a);
    return count;
  }

  /// Elements that the largest box takes, packed: one voxel's window has to fit, whatever it needs.
  static std::int64_t capacity(const Windows<T>& windows, std::int32_t slack) {
    return at_least(windows.line_count() * windows.channels * (windows.corners[2] + slack));
  }

  static std::int64_t fixed_capacity(const Windows<T>& windows) {
    return at_least(windows.channels * (1 + run_voxels));
  }

  bool next(Box& box) {
    if (pending_ == 0) {
      if (tile_ == last_tile_) return false;
      push_tile(tile_++);
    }
    box = stack_[--pending_];
    find_corners(windows_, box);
    while (!fits(box)) {
      stack_[pending_++] = cut(box);
      find_corners(windows_, box);
    }
    return true;
  }

 private:
  static std::int64_t at_least(std::int64_t one) {
    const std::int64_t usual = box_bytes / static_cast<std::int64_t>(sizeof(T));
    return one > usual ? one : usual;
  }

  bool fits(const Box& box) const {
    return Packing(box, windows_.channels, slack_).elements <= capacity(windows_, slack_) &&
           Packing(fixed_part(box), windows_.channels, run_voxels).elements <= fixed_capacity(windows_);
  }

  static std::int32_t along(const Windows<T>& windows, int a) {
    return (windows.size[a] + tile_size[a] - 1) / tile_size[a];
  }

  void push_tile(std::int64_t tile) {
    Box& box = stack_[pending_++];
    for (int a = 2; a >= 0; --a) {
      const std::int32_t count = along(windows_, a);
      box.begin[a] = static_cast<std::int32_t>(tile % count) * tile_size[a];
      box.end[a] = box.begin[a] + tile_size[a] < windows_.size[a] ? box.begin[a] + tile_size[a] : windows_.size[a];
      tile /= count;
    }
    box.sample = tile;
  }

  /// Keeps the lower half of a box and returns the upper one. The fastest axis is the last to become short.
  static Box cut(Box& box) {
    int axis = 2;
    for (int a = 0; a < 2; ++a)
      if (4 * (box.end[a] - box.begin[a]) > (axis == 2 ? 1 : 4) * (box.end[axis] - box.begin[axis]) &&
          box.end[a] - box.begin[a] > 1)
        axis = a;
    Box upper = box;
    upper.begin[axis] = box.end[axis] = (box.begin[axis] + box.end[axis]) / 2;
    return upper;
  }

  const Windows<T>& windows_;
  std::int32_t slack_;
  std::int64_t tile_, last_tile_;
  std::int32_t pending_ = 0;
  Box stack_[16];  // halving a tile down to single voxels leaves log2 of its voxels, 11
};

/// packed = scale * the voxels of a box's corners, each the nearest one inside the image.
template <class T>
inline void pack(const Windows<T>& windows, const Box& box, const Packing& packing, const T* image, T scale,
                 T* packed) {
  constexpr std::int32_t cache_line = 64 / sizeof(T);
  const std::int32_t width = windows.size[2], row = static_cast<std::int32_t>(packing.row);
  // columns [inside, outside) of a row lie in the image
  const std::int32_t inside = core::clamp(-box.low[2], 0, row), outside = core::clamp(width - box.low[2], inside, row);
  for (std::int64_t c = 0; c < windows.channels; ++c) {
    const T* plane = image + (box.sample * windows.channels + c) * windows.voxels;
    const std::int64_t ahead = c + 1 < windows.channels ? windows.voxels : 0;
    for (std::int32_t z = 0; z < box.extent[0]; ++z) {
      const std::int32_t source_z = core::nearest_inside(box.low[0] + z, windows.size[0]);
      for (std::int32_t y = 0; y < box.extent[1]; ++y) {
        const std::int32_t source_y = core::nearest_inside(box.low[1] + y, windows.size[1]);
        const T* from = plane + windows.offset(source_z, source_y, 0);
        T* to = packed + z * packing.plane + y * packing.line + c * packing.row;
        // short rows far apart: the processor does not see the next channel's coming
        for (std::int32_t x = inside; x < outside; x += cache_line) __builtin_prefetch(from + ahead + box.low[2] + x);
        for (std::int32_t x = 0; x < inside; ++x) to[x] = scale * from[0];
        for (std::int32_t x = inside; x < outside; ++x) to[x] = scale * from[box.low[2] + x];
        for (std::int32_t x = outside; x < row; ++x) to[x] = scale * from[width - 1];
      }
    }
  }
}

/// The output voxels that a run covers: [x, x + count) of a row.
struct Run {
  std::int64_t offset;  // of the first one in its channel
  std::int32_t z, y, x, count;
};

/// A box and its features, packed into memory that its owner lends.
template <class T>
struct PackedBox {
  T *moving, *fixed;  // of Boxes::capacity() and Boxes::fixed_capacity() elements
  Box box;
  Packing packing, fixed_packing;

  const T* fixed_at(const Run& run) const {
    return fixed + (run.z - box.begin[0]) * fixed_packing.plane + (run.y - box.begin[1]) * fixed_packing.line +
           (run.x - box.begin[2]);
  }
};

/// Voxels that the last run of a row has beyond the box.
inline std::int32_t beyond(const Box& box) {
  const std::int32_t rest = (box.end[2] - box.begin[2]) % run_voxels;
  return rest == 0 ? 0 : run_voxels - rest;
}

/// Packs the features around packed.box, fixed scaled by 1 / sqrt(C).
template <class Op, class T>
inline void pack_features(const Op& op, const Windows<T>& windows, std::int32_t slack, PackedBox<T>& packed) {
  const Box part = fixed_part(packed.box);
  packed.packing = Packing(packed.box, windows.channels, slack);
  packed.fixed_packing = Packing(part, windows.channels, beyond(part));
  pack(windows, packed.box, packed.packing, static_cast<const T*>(op.moving), T(1), packed.moving);
  pack(windows, part, packed.fixed_packing, static_cast<const T*>(op.fixed), windows.scale, packed.fixed);
}

/// Calls visit(run) for the runs of a box's output voxels.
template <class T, class Visit>
inline void for_runs(const Windows<T>& windows, const Box& box, const Visit& visit) {
  for (std::int32_t z = box.begin[0]; z < box.end[0]; ++z)
    for (std::int32_t y = box.begin[1]; y < box.end[1]; ++y)
      for (std::int32_t x = box.begin[2]; x < box.end[2]; x += run_voxels) {
        const std::int32_t left = box.end[2] - x;
        visit(Run{windows.offset(z, y, x), z, y, x, left < run_voxels ? left : run_voxels});
      }
}

/// Places the windows of a run; beyond its count they repeat the last one, so that loops need not end early.
template <class T>
inline void fill_cells(const Windows<T>& windows, const Box& box, const Packing& packing, const Run& run,
                       Cells<T>& cells) {
  const std::int64_t step[3] = {packing.plane, packing.line, 1};
  for (std::int32_t j = 0; j < run_voxels; ++j) {
    const std::int32_t inside = j < run.count ? j : run.count - 1;
    const std::int32_t position[3] = {run.z, run.y, run.x + inside};
    cells.offset[j] = 0;
    for (int a = 0; a < 3; ++a) {
      const auto axis = window_at(windows, box, a, position[a], run.offset + inside);
      cells.offset[j] += (axis.first - box.low[a]) * step[a];
      cells.upper[a][j] = axis.upper;
    }
  }
}

/// Calls body(integral_constant<int, n>, first) for groups of n = 4, 2 or 1 consecutive items that cover [0, count).
template <class Body>
DEQREG_INLINE void for_groups(std::int32_t count, const Body& body) {
  std::int32_t i = 0;
  for (; i + 4 <= count; i += 4) body(std::integral_constant<int, 4>{}, i);
  if (i + 2 <= count) {
    body(std::integral_constant<int, 2>{}, i);
    i += 2;
  }
  if (i < count) body(std::integral_constant<int, 1>{}, i);
}

/// Corner dot products of `voxels` neighbouring voxels with `lines` neighbouring lines of their windows.
/// Not inlined: the registers are all for the sums.
template <int lines, int voxels, int lanes, class T>
__attribute__((noinline)) void dot_lines(const T* const (&corner)[voxels], const Packing& packing, const T* fixed,
                                         std::int64_t fixed_row, std::int64_t channels, T* out) {
  using V = Vector<T, lanes>;
  typename V::Aligned sum[voxels][lines];
  for (int v = 0; v < voxels; ++v)
    for (int g = 0; g < lines; ++g) sum[v][g] = typename V::Aligned{};
  std::int64_t offset = 0;
  for (std::int64_t c = 0; c < channels; ++c) {
    for (int v = 0; v < voxels; ++v)
      for (int g = 0; g < lines; ++g)
        sum[v][g] += fixed[v] * *reinterpret_cast<const typename V::Loose*>(corner[v] + offset + g * packing.line);
    fixed += fixed_row;
    offset += packing.row;
  }
  for (int v = 0; v < voxels; ++v)
    for (int g = 0; g < lines; ++g)
      *reinterpret_cast<typename V::Loose*>(out + g * (run_voxels * lanes) + v * lanes) = sum[v][g];
}

/// [run][lane] to [lane][run], for the lanes that are corners. The compiler turns it into shuffles.
template <int lanes, class T>
DEQREG_INLINE void transpose_line(const T* from, std::int32_t corners, T* to) {
  alignas(64) T all[lanes * run_voxels];
#pragma GCC ivdep
  for (std::int32_t j = 0; j < run_voxels; ++j)
#pragma GCC unroll 16
    for (int l = 0; l < lanes; ++l) all[l * run_voxels + j] = from[j * lanes + l];
  for (std::int32_t i = 0; i < corners * run_voxels; ++i) to[i] = all[i];
}

/// dots[corner][j] = <fixed(j), that corner of j's window>, corners in array order.
template <int lanes, class T>
inline void dot_corners(const Windows<T>& windows, const PackedBox<T>& packed, const Run& run, const Cells<T>& cells,
                        T* dots) {
  constexpr std::int64_t block = run_voxels * lanes;
  constexpr int voxels = lanes * sizeof(T) > vector_bytes ? 1 : 2;
  const T* fixed = packed.fixed_at(run);
  alignas(64) T products[4 * block] = {};
  for (std::int32_t z = 0; z < windows.corners[0]; ++z)
    for_groups(windows.corners[1], [&](auto lines, std::int32_t y) {
      const T* first = packed.moving + z * packed.packing.plane + y * packed.packing.line;
      for (std::int32_t j = 0; j < run.count; j += voxels) {
        const T* corner[voxels];
        for (int v = 0; v < voxels; ++v) corner[v] = first + cells.offset[j + v];
        dot_lines<lines, voxels, lanes>(corner, packed.packing, fixed + j, packed.fixed_packing.row, windows.channels,
                                        products + j * lanes);
      }
      for (int g = 0; g < lines; ++g, dots += windows.corners[2] * run_voxels)
        transpose_line<lanes>(products + g * block, windows.corners[2], dots);
    });
}

/// out = a + weight * (b - a) for the voxels of a run; `out` may be `a`.
template <class T>
DEQREG_INLINE void blend(const T* a, const T* b, const T* weight, T* out) {
#pragma GCC ivdep
  for (std::int32_t j = 0; j < run_voxels; ++j) out[j] = a[j] + weight[j] * (b[j] - a[j]);
}

/// to[j] = from[j] for the voxels of a run.
template <class T>
DEQREG_INLINE void store_run(const T* from, std::int32_t count, T* to) {
  if (count == run_voxels)
    for (std::int32_t j = 0; j < run_voxels; ++j) to[j] = from[j];
  else
    for (std::int32_t j = 0; j < count; ++j) to[j] = from[j];
}

/// Calls visit(offset) for the runs of an array [corner][run] whose corners are below `count` along each axis.
template <class T, class Visit>
DEQREG_INLINE void for_corners(const Windows<T>& windows, std::int32_t count0, std::int32_t count1, std::int32_t count2,
                               const Visit& visit) {
  for (std::int32_t z = 0; z < count0; ++z)
    for (std::int32_t y = 0; y < count1; ++y) {
      const std::int64_t line = (std::int64_t{z} * windows.corners[1] + y) * windows.corners[2] * run_voxels;
      for (std::int32_t x = 0; x < count2; ++x) visit(line + x * run_voxels);
    }
}

/// Calls body(integral_constant<int, lanes>) for the windows of an operation in the type T.
template <class T, class Op, class Body>
inline void select_lanes(const Op& op, const Body& body) {
  switch (Windows<T>(op).lanes) {
    case 4: return body(std::integral_constant<int, 4>{});
    case 8: return body(std::integral_constant<int, 8>{});
    default: return body(std::integral_constant<int, 16>{});
  }
}

}  // namespace deqreg::cpu::DEQREG_ISA
