// Correlation, projected where its values are: each finished line of shifts is multiplied by its columns of the weight
// and added to the sums of the outputs, which stay in shared memory until the last. The work is cut as correlation.cu
// cuts it, but a block has all planes of shifts of its tile, and a part of the outputs.
//
// The weight is read from global memory at one address a warp: a broadcast from the first-level cache.
#include <cmath>

#include "cuda/correlation.h"

namespace deqreg::cuda {
namespace {

// Outputs whose sums a block keeps at a time. More are further parts of a tile, which correlate again. With the tiles
// of the images these fit the 99 KiB that consumer devices since sm_86 lend to a block.
constexpr int outputs_at_a_time = 28;

template <class Storage>
struct Projection {
  const Storage* weight;  // [outputs, shifts of the window]
  const Storage* bias;    // [outputs] or null
  std::int64_t outputs, inputs;

  __device__ __forceinline__ CoordinateOf<Storage> start(std::int64_t o) const {
    return bias == nullptr ? CoordinateOf<Storage>(0) : CoordinateOf<Storage>(bias[o]);
  }
};

/// The outputs of a part: [first, first + count).
struct Part {
  std::int64_t first;
  std::int32_t count;

  __device__ __forceinline__ Part(std::int64_t outputs, std::int32_t part)
      : first(std::int64_t{part} * outputs_at_a_time),
        count(static_cast<std::int32_t>(outputs - first < outputs_at_a_time ? outputs - first : outputs_at_a_time)) {}
};

template <class Storage, int radius, class T = CoordinateOf<Storage>, class S = Shape<T, radius>>
__global__ void __launch_bounds__(S::threads, 256 / S::threads)
    project_kernel(const __grid_constant__ Extent extent, const __grid_constant__ Tiles tiles,
                   const Storage* __restrict__ fixed, const Storage* __restrict__ moving,
                   const __grid_constant__ Projection<Storage> projection, Storage* __restrict__ out, T scale,
                   std::int32_t parts) {
  __shared__ __align__(16) T moving_tile[S::channels][S::reach_rows][S::pitch];
  __shared__ __align__(16) T fixed_tile[S::channels][S::rows][warp_lanes];
  T* const sums_of_outputs = dynamic_shared<T>();  // [output, row, column]
  const int column = threadIdx.x % S::row_threads * S::run, row = threadIdx.x / S::row_threads % S::rows;
  const int group = threadIdx.x / (S::row_threads * S::rows), first_line = group * S::lines;
  for_parts(extent, tiles, parts, [&](std::int64_t sample, const Corner& corner, std::int32_t index) {
    const Part part(projection.outputs, index);
    const Storage* from = moving + sample * extent.channels * extent.voxels;
    const Storage* by = fixed + sample * extent.channels * extent.voxels;
    for (std::int32_t plane = 0; plane < extent.planes(); ++plane) {
      T sums[S::lines][S::shifts][S::run];
#pragma unroll
      for (int g = 0; g < S::lines; ++g)
#pragma unroll
        for (int l = 0; l < S::shifts; ++l)
#pragma unroll
          for (int v = 0; v < S::run; ++v) sums[g][l][v] = T(0);
      correlate_plane<S, radius>(extent, corner, plane, row, column, first_line, from, by, moving_tile, fixed_tile,
                                 sums);
      // groups of threads have other lines of the same voxels: they add one after the other
#pragma unroll 1
      for (int turn = 0; turn < S::groups; ++turn) {
        if (turn > 0) __syncthreads();
        if (turn != group) continue;
        const Storage* weight = projection.weight + part.first * projection.inputs +
                                (std::int64_t{plane} * S::shifts + first_line) * S::shifts;
        T* to = sums_of_outputs + row * warp_lanes + column;
#pragma unroll 1
        for (std::int32_t o = 0; o < part.count; ++o) {
          T total[S::run];
#pragma unroll
          for (int v = 0; v < S::run; ++v) total[v] = T(0);
#pragma unroll
          for (int g = 0; g < S::lines; ++g) {
            if (first_line + g >= S::shifts) break;
#pragma unroll
            for (int l = 0; l < S::shifts; ++l) {
              const T factor = scale * T(weight[g * S::shifts + l]);
#pragma unroll
              for (int v = 0; v < S::run; ++v) total[v] += factor * sums[g][l][v];
            }
          }
          const bool fresh = plane == 0 && turn == 0;
#pragma unroll
          for (int v = 0; v < S::run; ++v) to[v] = total[v] + (fresh ? projection.start(part.first + o) : to[v]);
          weight += projection.inputs;
          to += S::rows * warp_lanes;
        }
      }
    }
    __syncthreads();
    for (std::int32_t i = threadIdx.x; i < part.count * S::rows * warp_lanes; i += S::threads) {
      const std::int32_t o = i / (S::rows * warp_lanes), place = i % (S::rows * warp_lanes);
      const std::int32_t y = corner.y + place / warp_lanes, x = corner.x + place % warp_lanes;
      if (y < extent.size[1] && x < extent.size[2])
        out[(sample * projection.outputs + part.first + o) * extent.voxels + extent.row(corner.z, y) + x] =
            Storage(sums_of_outputs[i]);
    }
    __syncthreads();
  });
}

/// sums[o] += weight[o][shift of a line] values, of one thread's voxel.
template <int shifts, class Storage, class T>
__device__ __forceinline__ void add_line(const Projection<Storage>& projection, const Part& part, std::int64_t shift,
                                         const T (&values)[shifts], T* sums) {
  const Storage* weight = projection.weight + part.first * projection.inputs + shift;
#pragma unroll 4
  for (std::int32_t o = 0; o < part.count; ++o) {
    T total = T(0);
#pragma unroll
    for (int l = 0; l < shifts; ++l) total += T(weight[l]) * values[l];
    *sums += total;
    sums += displaced_threads<T>;
    weight += projection.inputs;
  }
}

template <class Storage, int radius, class T = CoordinateOf<Storage>>
__global__ void __launch_bounds__(displaced_threads<T>, resident_threads<T> / displaced_threads<T>)
    project_displaced_kernel(const __grid_constant__ Extent extent, const __grid_constant__ Tiles tiles,
                             const Storage* __restrict__ fixed, const Storage* __restrict__ moving,
                             const T* __restrict__ displacement, const __grid_constant__ Projection<Storage> projection,
                             Storage* __restrict__ out, T scale, std::int32_t parts) {
  constexpr int shifts = 2 * radius + 1, corners = shifts + 1, lines = lines_at_a_time(radius);
  // a thread's own: the plane of corners before, and the sums of the outputs
  T* const before = dynamic_shared<T>() + threadIdx.x;  // [shift of a plane, thread]
  T* const sums = before + shifts * shifts * displaced_threads<T>;
  for_parts(extent, tiles, parts, [&](std::int64_t sample, const Corner& corner, std::int32_t index) {
    const Window<T, radius> window(extent, displacement, sample, corner);
    if (!window.inside) return;
    const Part part(projection.outputs, index);
    const std::int64_t features = sample * extent.channels * extent.voxels;
    for (std::int32_t o = 0; o < part.count; ++o) sums[o * displaced_threads<T>] = projection.start(part.first + o);
    for (std::int32_t z = 0; z < window.planes; ++z) {
      T line_before[shifts];
      // planes of shifts end one plane of corners later, but in 2-D
      const std::int32_t plane = z - (extent.dims == 3 ? 1 : 0);
#pragma unroll 1
      for (int y = 0; y < corners; y += lines) {
        T dots[lines][corners];
        dot_lines<lines>(extent, window, fixed + features, moving + features, z, y, dots);
#pragma unroll
        for (int g = 0; g < lines; ++g) {
          T values[shifts];
#pragma unroll
          for (int l = 0; l < shifts; ++l) {
            const T along_line = scale * mix(dots[g][l], dots[g][l + 1], window.upper[2]);
            if (y + g > 0) {
              const T value = mix(line_before[l], along_line, window.upper[1]);
              T& kept = before[((y + g - 1) * shifts + l) * displaced_threads<T>];
              values[l] = z > 0 ? mix(kept, value, window.upper[0]) : value;
              kept = value;
            }
            line_before[l] = along_line;
          }
          if (y + g > 0 && plane >= 0)
            add_line<shifts>(projection, part, (std::int64_t{plane} * shifts + y + g - 1) * shifts, values, sums);
        }
      }
    }
    Storage* to = out + (sample * projection.outputs + part.first) * extent.voxels + window.offset;
    for (std::int32_t o = 0; o < part.count; ++o, to += extent.voxels) *to = Storage(sums[o * displaced_threads<T>]);
  });
}

/// `most` is the same for every launch: the limit is the kernel's, and another thread may be launching it.
template <class Kernel>
void allow_shared(Kernel kernel, std::size_t most) {
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(most));
}

template <class Storage, int radius>
void project(const CorrelationProjection& op, cudaStream_t stream) {
  using T = CoordinateOf<Storage>;
  const Extent extent(op);
  const auto* const fixed = static_cast<const Storage*>(op.fixed);
  const auto* const moving = static_cast<const Storage*>(op.moving);
  auto* const out = static_cast<Storage*>(op.out);
  const T scale = inverse_root<T>(op.channels);
  constexpr std::int64_t shifts = 2 * radius + 1;
  const Projection<Storage> projection{static_cast<const Storage*>(op.weight), static_cast<const Storage*>(op.bias),
                                       op.outputs, shifts * shifts * extent.planes()};
  const auto parts = static_cast<std::int32_t>(divide_up(op.outputs, outputs_at_a_time));
  const auto kept = static_cast<std::size_t>(at_most(op.outputs, outputs_at_a_time));
  if (op.displacement != nullptr) {
    const Tiles tiles = displaced_tiles<T>(extent);
    const auto kernel = project_displaced_kernel<Storage, radius>;
    const std::size_t bytes = (shifts * shifts + kept) * displaced_threads<T> * sizeof(T);
    allow_shared(kernel, (shifts * shifts + outputs_at_a_time) * displaced_threads<T> * sizeof(T));
    run_shared(stream, tiles.blocks(extent, parts), displaced_threads<T>, bytes, kernel, extent, tiles, fixed, moving,
               static_cast<const T*>(op.displacement), projection, out, scale, parts);
    return;
  }
  using S = Shape<T, radius>;
  const Tiles tiles(extent, S::rows);
  const auto kernel = project_kernel<Storage, radius>;
  const std::size_t bytes = kept * S::rows * warp_lanes * sizeof(T);
  allow_shared(kernel, outputs_at_a_time * S::rows * warp_lanes * sizeof(T));
  run_shared(stream, tiles.blocks(extent, parts), S::threads, bytes, kernel, extent, tiles, fixed, moving, projection,
             out, scale, parts);
}

}  // namespace

void launch(const CorrelationProjection& op, cudaStream_t stream) {
  if (op.batch * op.grid.voxels() * op.outputs == 0) return;
  select_window(op, [&](auto storage, auto radius) {
    project<typename decltype(storage)::type, decltype(radius)::value>(op, stream);
  });
}

}  // namespace deqreg::cuda
