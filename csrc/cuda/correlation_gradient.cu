// The gradients of correlation, a kernel each. With grad the output's gradient, s = 1 / sqrt(C), and a voxel's grad
// spread over the corners of its window by the adjoint of the blend,
//
//   grad_fixed(x)         = s sum over corners of that times moving,
//   grad_moving(corner)  += s that times fixed(x),
//   grad_displacement(x)  = for each axis the half-spread grad times differences of half-blended dot products.
//
// Without a displacement both features' gradients are gathered: a voxel y sums, over the voxels of its window, their
// features times a weight. For grad_fixed the weight is grad at y. For grad_moving it is grad at the window's voxel x,
// summed over the shifts that take x to y - one, or, where y is on the border, all that end beyond it. A block has a
// tile of one plane and some channels; it brings a plane of features into shared memory, and the weights of one line of
// shifts. A thread has a run of voxels along the fastest axis and some channels.
//
// With a displacement a thread has one voxel, and passes over the lines of its window. grad_moving adds with atomics,
// for which see sums.h; the windows of neighbouring lanes mostly overlap in all corners but one, and lanes hand those
// over in registers.
#include <cmath>

#include "cuda/correlation.h"
#include "cuda/sums.h"

namespace deqreg::cuda {
namespace {

/// The gradient of the output, [N, shifts, *S].
template <class Storage>
struct Grad {
  const Storage* values;

  /// Of one shift at one voxel, in a sample that begins at `values`.
  __device__ __forceinline__ CoordinateOf<Storage> at(const Extent& extent, std::int64_t shift,
                                                      std::int64_t offset) const {
    return CoordinateOf<Storage>(values[shift * extent.voxels + offset]);
  }

  __device__ __forceinline__ Grad of_sample(const Extent& extent, std::int64_t sample, int shifts) const {
    return {values + sample * extent.planes() * shifts * shifts * extent.voxels};
  }
};

/// A position or a shift over three axes.
struct Triple {
  std::int32_t z, y, x;
};

/// The weight of moving(y + delta) in grad_fixed(y).
template <class Storage, int radius>
struct FixedWeights {
  Grad<Storage> grad;

  __device__ __forceinline__ auto at(const Extent& extent, const Triple& y, const Triple& delta) const {
    constexpr int shifts = 2 * radius + 1;
    const std::int64_t shift = (std::int64_t{delta.z + extent.plane_radius} * shifts + delta.y + radius) * shifts;
    return grad.at(extent, shift + delta.x + radius, extent.row(y.z, y.y) + y.x);
  }
};

/// The shifts along one axis that take voxel x to voxel y, where one beyond the border is the outermost.
struct Shifts {
  std::int32_t first, last;

  __device__ __forceinline__ Shifts(std::int32_t y, std::int32_t delta, std::int32_t size, std::int32_t radius)
      : first(y > 0 ? -delta : -radius), last(y < size - 1 ? -delta : radius) {
    const std::int32_t x = y + delta;
    if (x < 0 || x >= size) last = first - 1;  // x is no voxel
  }
};

/// The weight of fixed(y + delta) in grad_moving(y).
template <class Storage, int radius>
struct MovingWeights {
  Grad<Storage> grad;

  __device__ __forceinline__ auto at(const Extent& extent, const Triple& y, const Triple& delta) const {
    constexpr int shifts = 2 * radius + 1;
    const Shifts planes(y.z, delta.z, extent.size[0], extent.plane_radius);
    const Shifts lines(y.y, delta.y, extent.size[1], radius), columns(y.x, delta.x, extent.size[2], radius);
    const std::int64_t offset =
        extent.row(y.z + delta.z, y.y + delta.y) + core::nearest_inside(y.x + delta.x, extent.size[2]);
    auto sum = CoordinateOf<Storage>(0);
    for (std::int32_t z = planes.first; z <= planes.last; ++z)
      for (std::int32_t l = lines.first; l <= lines.last; ++l)
        for (std::int32_t x = columns.first; x <= columns.last; ++x)
          sum += grad.at(extent, (std::int64_t{z + extent.plane_radius} * shifts + l + radius) * shifts + x + radius,
                         offset);
    return sum;
  }
};

/// How gathering is shared out to threads.
template <class T, int radius>
struct Gathering {
  static constexpr int shifts = 2 * radius + 1;
  static constexpr int run = 16 / sizeof(T);  // voxels of a thread, one vector
  static constexpr int row_threads = warp_lanes / run, rows = block_warps;
  static constexpr int groups = block_threads / (row_threads * rows);  // of channels
  static constexpr int channels = 32 / sizeof(T);                      // of a thread
  static constexpr int reach_rows = rows + 2 * radius;
  static constexpr int pitch = (warp_lanes + 2 * radius + 3) / 4 * 4;
  static constexpr int plane = reach_rows * pitch;  // of one channel's features
  static constexpr std::size_t shared_bytes = (groups * channels * plane + shifts * block_threads) * sizeof(T);
};

template <class Storage, int radius, class Weights, class T = CoordinateOf<Storage>, class S = Gathering<T, radius>>
__global__ void __launch_bounds__(block_threads, 2)
    gather_kernel(const __grid_constant__ Extent extent, const __grid_constant__ Tiles tiles,
                  const Storage* __restrict__ features, Weights weights, Storage* __restrict__ out, T scale) {
  constexpr int at_a_time = S::groups * S::channels;
  T* const planes = dynamic_shared<T>();           // [channel, row, column]
  T* const lines = planes + at_a_time * S::plane;  // [shift, row, column]
  const int column = threadIdx.x % S::row_threads * S::run, row = threadIdx.x / S::row_threads % S::rows;
  const int first_channel = threadIdx.x / (S::row_threads * S::rows) * S::channels;
  const auto parts = static_cast<std::int32_t>((extent.channels + at_a_time - 1) / at_a_time);
  for_parts(extent, tiles, parts, [&](std::int64_t sample, const Corner& corner, std::int32_t part) {
    const std::int64_t begin = std::int64_t{part} * at_a_time, left = extent.channels - begin;
    const std::int64_t start = (sample * extent.channels + begin) * extent.voxels;
    const auto count = static_cast<std::int32_t>(left < at_a_time ? left : at_a_time);
    // the voxel whose weights this thread brings
    const Triple voxel{corner.z, corner.y + static_cast<std::int32_t>(threadIdx.x) / warp_lanes,
                       corner.x + static_cast<std::int32_t>(threadIdx.x) % warp_lanes};
    const bool inside = voxel.y < extent.size[1] && voxel.x < extent.size[2];
    const Weights of_sample{weights.grad.of_sample(extent, sample, S::shifts)};
    T sums[S::channels][S::run];
#pragma unroll
    for (int k = 0; k < S::channels; ++k)
#pragma unroll
      for (int v = 0; v < S::run; ++v) sums[k][v] = T(0);
    for (std::int32_t z = -extent.plane_radius; z <= extent.plane_radius; ++z) {
      __syncthreads();
#pragma unroll 1
      for (int first = 0; first < at_a_time; first += S::channels)
        stage<S::channels, S::plane, block_threads>(
            features + start + first * extent.voxels, extent.voxels, count - first, planes + first * S::plane,
            [&](int i) {
              return extent.row(corner.z + z, corner.y + i / S::pitch - radius) +
                     core::nearest_inside(corner.x + i % S::pitch - radius, extent.size[2]);
            });
      for (int y = 0; y < S::shifts; ++y) {
        __syncthreads();
#pragma unroll 2
        for (int l = 0; l < S::shifts; ++l)
          lines[l * block_threads + threadIdx.x] =
              inside ? of_sample.at(extent, voxel, Triple{z, y - radius, l - radius}) : T(0);
        __syncthreads();
        T weight[S::shifts][S::run];
#pragma unroll
        for (int l = 0; l < S::shifts; ++l)
          load_vectors(lines + l * block_threads + row * warp_lanes + column, weight[l]);
#pragma unroll
        for (int k = 0; k < S::channels; ++k) {
          T line[S::run + 2 * radius];
          load_vectors(planes + (first_channel + k) * S::plane + (row + y) * S::pitch + column, line);
#pragma unroll
          for (int l = 0; l < S::shifts; ++l)
#pragma unroll
            for (int v = 0; v < S::run; ++v) sums[k][v] += weight[l][v] * line[v + l];
        }
      }
    }
    const std::int32_t y = corner.y + row, x = corner.x + column;
    if (y >= extent.size[1]) return;
    Storage* to = out + start + first_channel * extent.voxels + extent.row(corner.z, y) + x;
#pragma unroll
    for (int k = 0; k < S::channels; ++k) {
      if (first_channel + k >= count) break;
#pragma unroll
      for (int v = 0; v < S::run; ++v)
        if (x + v < extent.size[2]) to[v] = Storage(scale * sums[k][v]);
      to += extent.voxels;
    }
  });
}

/// One voxel's grad on the four lines of shifts that one line of corners blends.
template <class T, int radius>
struct GradLines {
  static constexpr int shifts = 2 * radius + 1;

  T values[2][2][shifts];  // [plane of shifts below, this][line below, this]

  template <class Storage>
  __device__ __forceinline__ GradLines(const Extent& extent, const Grad<Storage>& grad, std::int64_t offset,
                                       std::int32_t z, std::int32_t y) {
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const std::int32_t plane = z - 1 + i, line = y - 1 + j;
        const bool there = plane >= 0 && plane < extent.planes() && line >= 0 && line < shifts;
        const std::int64_t first = (std::int64_t{plane} * shifts + line) * shifts;
#pragma unroll
        for (int l = 0; l < shifts; ++l) values[i][j][l] = there ? T(grad.at(extent, first + l, offset)) : T(0);
      }
  }

  /// Spread along planes, for the line below (0) or this one: this plane of corners is the upper one of a shift below.
  __device__ __forceinline__ T over_planes(int line, int l, T uz) const {
    return mix(values[1][line][l], values[0][line][l], uz);
  }

  /// Spread along planes and lines.
  __device__ __forceinline__ T over_lines(int l, T uz, T uy) const {
    return mix(over_planes(1, l, uz), over_planes(0, l, uz), uy);
  }
};

/// spread[l] = what one line of a voxel's corners gets of its grad.
template <class T, int radius, class Storage>
__device__ __forceinline__ void spread_line(const Extent& extent, const Window<T, radius>& window,
                                            const Grad<Storage>& grad, std::int32_t z, std::int32_t y,
                                            T (&spread)[Window<T, radius>::corners]) {
  const GradLines<T, radius> lines(extent, grad, window.offset, z, y);
  const T ux = window.upper[2];
#pragma unroll
  for (int l = 0; l <= 2 * radius + 1; ++l) spread[l] = T(0);
#pragma unroll
  for (int l = 0; l <= 2 * radius; ++l) {
    const T value = lines.over_lines(l, window.upper[0], window.upper[1]);
    spread[l] += (T(1) - ux) * value;
    spread[l + 1] += ux * value;
  }
}

// Channels that a thread sums at a time.
template <class T>
constexpr int channels_at_a_time = 64 / sizeof(T);

template <class Storage, int radius, class T = CoordinateOf<Storage>>
__global__ void __launch_bounds__(displaced_threads<T>, resident_threads<T> / displaced_threads<T>)
    fixed_kernel(const __grid_constant__ Extent extent, const __grid_constant__ Tiles tiles,
                 const Storage* __restrict__ moving, const T* __restrict__ displacement, Grad<Storage> grad,
                 Storage* __restrict__ out, T scale) {
  constexpr int channels = channels_at_a_time<T>, corners = 2 * radius + 2;
  for_parts(extent, tiles, 1, [&](std::int64_t sample, const Corner& corner, std::int32_t) {
    const Window<T, radius> window(extent, displacement, sample, corner);
    if (!window.inside) return;
    const Grad<Storage> of_sample = grad.of_sample(extent, sample, 2 * radius + 1);
    for (std::int64_t c = 0; c < extent.channels; c += channels) {
      const std::int64_t start = (sample * extent.channels + c) * extent.voxels, left = extent.channels - c;
      T sums[channels] = {};
      for (std::int32_t z = 0; z < window.planes; ++z)
#pragma unroll 1
        for (int y = 0; y < corners; ++y) {
          T spread[corners];
          spread_line(extent, window, of_sample, z, y, spread);
          const Storage* from = moving + start + window.line(extent, z, y);
#pragma unroll
          for (int k = 0; k < channels; ++k) {
            if (k >= left) break;
#pragma unroll
            for (int l = 0; l < corners; ++l) sums[k] += spread[l] * T(from[window.column[l]]);
            from += extent.voxels;
          }
        }
      Storage* to = out + start + window.offset;
#pragma unroll
      for (int k = 0; k < channels; ++k) {
        if (k >= left) break;
        *to = Storage(scale * sums[k]);
        to += extent.voxels;
      }
    }
  });
}

template <class Storage, int radius, class Sums, class T = CoordinateOf<Storage>>
__global__ void __launch_bounds__(displaced_threads<T>, resident_threads<T> / displaced_threads<T>)
    moving_kernel(const __grid_constant__ Extent extent, const __grid_constant__ Tiles tiles,
                  const Storage* __restrict__ fixed, const T* __restrict__ displacement, Grad<Storage> grad, Sums sums,
                  T scale) {
  constexpr int corners = 2 * radius + 2;
  const int lane = threadIdx.x % warp_lanes;
  for_parts(extent, tiles, 1, [&](std::int64_t sample, const Corner& corner, std::int32_t) {
    const Window<T, radius> window(extent, displacement, sample, corner);
    const Grad<Storage> of_sample = grad.of_sample(extent, sample, 2 * radius + 1);
    // a lane takes over from the one before where its window is one further along the line
    bool takes = lane > 0;
#pragma unroll
    for (int a = 0; a < 3; ++a) {
      const std::int32_t before = __shfl_up_sync(0xffffffffu, window.first[a], 1);
      takes = takes && before + (a == 2 ? 1 : 0) == window.first[a];
    }
    const bool gives = __shfl_down_sync(0xffffffffu, static_cast<int>(takes), 1) != 0 && lane < warp_lanes - 1;
    for (std::int32_t z = 0; z < window.planes; ++z)
#pragma unroll 1
      for (int y = 0; y < corners; ++y) {
        T spread[corners];
        spread_line(extent, window, of_sample, z, y, spread);
#pragma unroll
        for (int l = 0; l < corners; ++l) spread[l] = window.inside ? scale * spread[l] : T(0);
        const std::int64_t line = window.line(extent, z, y);
        const Storage* by = fixed + sample * extent.channels * extent.voxels + window.offset;
        for (std::int64_t c = 0; c < extent.channels; ++c) {
          const auto plane = sums.plane(sample * extent.channels + c, extent.voxels);
          const T value = T(*by);
          T carried = T(0);  // of the lane before
#pragma unroll
          for (int l = corners - 1; l >= 0; --l) {
            const T sum = spread[l] * value + carried;
            if (l == 0 || !gives) plane.add(line + window.column[l], sum);
            const T given = __shfl_up_sync(0xffffffffu, sum, 1);
            carried = takes ? given : T(0);
          }
          by += extent.voxels;
        }
      }
  });
}

template <class Storage, int radius, class T = CoordinateOf<Storage>>
__global__ void __launch_bounds__(displaced_threads<T>, resident_threads<T> / displaced_threads<T>)
    displacement_kernel(const __grid_constant__ Extent extent, const __grid_constant__ Tiles tiles,
                        const Storage* __restrict__ fixed, const Storage* __restrict__ moving,
                        const T* __restrict__ displacement, Grad<Storage> grad, T* __restrict__ out, T scale) {
  constexpr int shifts = 2 * radius + 1, corners = shifts + 1, lines = lines_at_a_time(radius);
  __shared__ T before[shifts * shifts][displaced_threads<T>];  // a thread's own: the plane of corners before, blended
  for_parts(extent, tiles, 1, [&](std::int64_t sample, const Corner& corner, std::int32_t) {
    const Window<T, radius> window(extent, displacement, sample, corner);
    if (!window.inside) return;
    const std::int64_t features = sample * extent.channels * extent.voxels;
    const Grad<Storage> of_sample = grad.of_sample(extent, sample, shifts);
    const T uz = window.upper[0], uy = window.upper[1], ux = window.upper[2];
    T sums[3] = {};
    for (std::int32_t z = 0; z < window.planes; ++z) {
      T line_before[shifts];
#pragma unroll 1
      for (int y = 0; y < corners; y += lines) {
        T dots[lines][corners];
        dot_lines<lines>(extent, window, fixed + features, moving + features, z, y, dots);
#pragma unroll
        for (int g = 0; g < lines; ++g) {
          const GradLines<T, radius> of_line(extent, of_sample, window.offset, z, y + g);
#pragma unroll
          for (int l = 0; l < shifts; ++l) {
            sums[2] += (dots[g][l + 1] - dots[g][l]) * of_line.over_lines(l, uz, uy);
            const T along_line = mix(dots[g][l], dots[g][l + 1], ux);
            if (y + g > 0) {
              sums[1] += (along_line - line_before[l]) * of_line.over_planes(0, l, uz);
              const T value = mix(line_before[l], along_line, uy);
              T& kept = before[(y + g - 1) * shifts + l][threadIdx.x];
              if (z > 0) sums[0] += (value - kept) * of_line.values[0][0][l];
              kept = value;
            }
            line_before[l] = along_line;
          }
        }
      }
    }
    T* to = out + sample * extent.dims * extent.voxels + window.offset;
#pragma unroll
    for (int a = 0; a < 3; ++a) {
      if (a == 0 && extent.dims == 2) continue;
      *to = scale * sums[a];
      to += extent.voxels;
    }
  });
}

template <class Storage, int radius, class Weights>
void gather(const CorrelationGradient& op, const void* features, void* out, cudaStream_t stream) {
  using T = CoordinateOf<Storage>;
  using S = Gathering<T, radius>;
  const Extent extent(op);
  const Tiles tiles(extent, S::rows);
  const auto kernel = gather_kernel<Storage, radius, Weights>;
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(S::shared_bytes));
  run_shared(stream, tiles.blocks(extent, divide_up(op.channels, S::groups * S::channels)), block_threads,
             S::shared_bytes, kernel, extent, tiles, static_cast<const Storage*>(features),
             Weights{{static_cast<const Storage*>(op.grad)}}, static_cast<Storage*>(out), inverse_root<T>(op.channels));
}

template <class Storage, int radius, class Sums>
void push(const CorrelationGradient& op, const Sums& sums, cudaStream_t stream) {
  using T = CoordinateOf<Storage>;
  const Extent extent(op);
  const Tiles tiles = displaced_tiles<T>(extent);
  run(stream, tiles.blocks(extent, 1), displaced_threads<T>, moving_kernel<Storage, radius, Sums>, extent, tiles,
      static_cast<const Storage*>(op.fixed), static_cast<const T*>(op.displacement),
      Grad<Storage>{static_cast<const Storage*>(op.grad)}, sums, inverse_root<T>(op.channels));
}

std::int64_t elements_of(const CorrelationGradient& op) { return op.batch * op.channels * op.grid.voxels(); }

std::int64_t shifts_of(const CorrelationGradient& op) {
  const std::int64_t along = 2 * op.radius + 1;
  return along * along * (op.grid.dims == 3 ? along : 1);
}

/// largest[n][c] *= largest_grad[n], as doubles: what a voxel adds to grad_moving is no larger.
__global__ void __launch_bounds__(block_threads)
    bound_kernel(Integer* largest, const Integer* largest_grad, std::int64_t channels, std::int64_t planes) {
  for_elements(planes, [&](std::int64_t i) {
    const double product = __longlong_as_double(static_cast<long long>(largest[i])) *
                           __longlong_as_double(static_cast<long long>(largest_grad[i / channels]));
    largest[i] = static_cast<Integer>(__double_as_longlong(fabs(product)));
  });
}

template <class Storage, int radius>
void push_fixed(const CorrelationGradient& op, cudaStream_t stream) {
  using Sums = FixedSums<CoordinateOf<Storage>>;
  const std::int64_t elements = elements_of(op), planes = op.batch * op.channels, voxels = op.grid.voxels();
  Integer* const sums = static_cast<Integer*>(op.workspace);
  Integer* const largest = sums + Sums::limbs * elements;
  cudaMemsetAsync(op.workspace, 0, workspace_bytes(op), stream);
  find_largest(stream, static_cast<const Storage*>(op.fixed), largest, voxels, planes);
  find_largest(stream, static_cast<const Storage*>(op.grad), largest + planes, shifts_of(op) * voxels, op.batch);
  run(stream, element_blocks(planes), block_threads, bound_kernel, largest, largest + planes, op.channels, planes);
  // all windows may lie on one voxel, and a window's corners share what its shifts have
  const Sums fixed{sums, largest, elements, fixed_bits(shifts_of(op) * voxels)};
  push<Storage, radius>(op, fixed, stream);
  run(stream, element_blocks(elements), block_threads, finish_kernel<Storage, Sums>, fixed,
      static_cast<Storage*>(op.grad_moving), elements, voxels);
}

template <class Storage, int radius>
void push_float(const CorrelationGradient& op, cudaStream_t stream) {
  using T = CoordinateOf<Storage>;
  constexpr bool direct = std::is_same_v<Storage, T>;
  const std::int64_t elements = elements_of(op);
  const FloatSums<T> sums{static_cast<T*>(direct ? op.grad_moving : op.workspace)};
  cudaMemsetAsync(sums.sums, 0, static_cast<std::size_t>(elements) * sizeof(T), stream);
  push<Storage, radius>(op, sums, stream);
  if constexpr (!direct)
    run(stream, element_blocks(elements), block_threads, finish_kernel<Storage, FloatSums<T>>, sums,
        static_cast<Storage*>(op.grad_moving), elements, op.grid.voxels());
}

template <class Storage, int radius>
void differentiate_displaced(const CorrelationGradient& op, cudaStream_t stream) {
  using T = CoordinateOf<Storage>;
  const Extent extent(op);
  const Tiles tiles = displaced_tiles<T>(extent);
  const auto* const fixed = static_cast<const Storage*>(op.fixed);
  const auto* const moving = static_cast<const Storage*>(op.moving);
  const auto* const displacement = static_cast<const T*>(op.displacement);
  const Grad<Storage> grad{static_cast<const Storage*>(op.grad)};
  const T scale = inverse_root<T>(op.channels);
  if (op.grad_fixed != nullptr)
    run(stream, tiles.blocks(extent, 1), displaced_threads<T>, fixed_kernel<Storage, radius>, extent, tiles, moving,
        displacement, grad, static_cast<Storage*>(op.grad_fixed), scale);
  if (op.grad_moving != nullptr)
    op.deterministic ? push_fixed<Storage, radius>(op, stream) : push_float<Storage, radius>(op, stream);
  if (op.grad_displacement != nullptr)
    run(stream, tiles.blocks(extent, 1), displaced_threads<T>, displacement_kernel<Storage, radius>, extent, tiles,
        fixed, moving, displacement, grad, static_cast<T*>(op.grad_displacement), scale);
}

template <class Storage, int radius>
void differentiate(const CorrelationGradient& op, cudaStream_t stream) {
  if (op.displacement != nullptr) return differentiate_displaced<Storage, radius>(op, stream);
  if (op.grad_fixed != nullptr)
    gather<Storage, radius, FixedWeights<Storage, radius>>(op, op.moving, op.grad_fixed, stream);
  if (op.grad_moving != nullptr)
    gather<Storage, radius, MovingWeights<Storage, radius>>(op, op.fixed, op.grad_moving, stream);
}

}  // namespace

std::size_t workspace_bytes(const CorrelationGradient& op) {
  if (op.displacement == nullptr || op.grad_moving == nullptr) return 0;
  const auto maxima = static_cast<std::size_t>(op.batch * (op.channels + 1));
  return sum_bytes(op.dtype, elements_of(op), op.deterministic) + (op.deterministic ? maxima * sizeof(Integer) : 0);
}

void launch(const CorrelationGradient& op, cudaStream_t stream) {
  if (op.batch * op.grid.voxels() == 0) return;
  select_window(op, [&](auto storage, auto radius) {
    differentiate<typename decltype(storage)::type, decltype(radius)::value>(op, stream);
  });
}

}  // namespace deqreg::cuda
