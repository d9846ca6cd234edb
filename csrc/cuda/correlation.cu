// Correlation.
//
// Without a displacement neighbouring voxels have neighbouring windows. A block has a tile of one plane and one shift
// along the first axis; it brings a few channels at a time into shared memory, moving with the border that its windows
// reach. A thread has a run of voxels along the fastest axis and a few lines of shifts: the moving values that one run
// needs for one line of shifts are read once, as vectors, for run x shifts products.
//
// With one, windows start anywhere. A thread has one voxel, sums the products with a few lines of corners in registers,
// and blends them axis by axis as they become complete: along a line in registers, along the lines with the line
// before, along the planes with the plane before, which it keeps in shared memory. Nothing but the output is ever
// stored.
#include <cmath>

#include "cuda/correlation.h"

namespace deqreg::cuda {
namespace {

/// Writes a run of voxels of which `count` are in the grid; as one vector where the grid lets them be.
template <int run, class Storage, class T>
__device__ __forceinline__ void store_run(const T (&values)[run], std::int32_t count, bool aligned, Storage* to) {
  if (aligned && count == run) {
    Pack<Storage, run> pack;
#pragma unroll
    for (int v = 0; v < run; ++v) pack.values[v] = Storage(values[v]);
    *reinterpret_cast<Pack<Storage, run>*>(to) = pack;
    return;
  }
#pragma unroll
  for (int v = 0; v < run; ++v)
    if (v < count) to[v] = Storage(values[v]);
}

template <class Storage, int radius, class T = CoordinateOf<Storage>, class S = Shape<T, radius>>
__global__ void __launch_bounds__(S::threads, resident_threads<T> / S::threads)
    correlate_kernel(const __grid_constant__ Extent extent, const __grid_constant__ Tiles tiles,
                     const Storage* __restrict__ fixed, const Storage* __restrict__ moving, Storage* __restrict__ out,
                     T scale, bool aligned) {
  __shared__ __align__(16) T moving_tile[S::channels][S::reach_rows][S::pitch];
  __shared__ __align__(16) T fixed_tile[S::channels][S::rows][warp_lanes];
  const int column = threadIdx.x % S::row_threads * S::run, row = threadIdx.x / S::row_threads % S::rows;
  const int first_line = threadIdx.x / (S::row_threads * S::rows) * S::lines;
  for_parts(extent, tiles, extent.planes(), [&](std::int64_t sample, const Corner& corner, std::int32_t plane) {
    T sums[S::lines][S::shifts][S::run];
#pragma unroll
    for (int g = 0; g < S::lines; ++g)
#pragma unroll
      for (int l = 0; l < S::shifts; ++l)
#pragma unroll
        for (int v = 0; v < S::run; ++v) sums[g][l][v] = T(0);
    const Storage* from = moving + sample * extent.channels * extent.voxels;
    const Storage* by = fixed + sample * extent.channels * extent.voxels;
    correlate_plane<S, radius>(extent, corner, plane, row, column, first_line, from, by, moving_tile, fixed_tile, sums);
    const std::int32_t y = corner.y + row, x = corner.x + column;
    if (y >= extent.size[1] || x >= extent.size[2]) return;
    const std::int32_t left = extent.size[2] - x;
    const std::int64_t shift = (std::int64_t{plane} * S::shifts + first_line) * S::shifts;
    const std::int64_t shifts = std::int64_t{extent.planes()} * S::shifts * S::shifts;
    Storage* to = out + (sample * shifts + shift) * extent.voxels + extent.row(corner.z, y) + x;
#pragma unroll
    for (int g = 0; g < S::lines; ++g) {
      if (first_line + g >= S::shifts) break;
#pragma unroll
      for (int l = 0; l < S::shifts; ++l) {
#pragma unroll
        for (int v = 0; v < S::run; ++v) sums[g][l][v] *= scale;
        store_run(sums[g][l], left < S::run ? left : S::run, aligned, to);
        to += extent.voxels;
      }
    }
  });
}

template <class Storage, int radius, class T = CoordinateOf<Storage>>
__global__ void __launch_bounds__(displaced_threads<T>, resident_threads<T> / displaced_threads<T>)
    correlate_displaced_kernel(const __grid_constant__ Extent extent, const __grid_constant__ Tiles tiles,
                               const Storage* __restrict__ fixed, const Storage* __restrict__ moving,
                               const T* __restrict__ displacement, Storage* __restrict__ out, T scale) {
  constexpr int shifts = 2 * radius + 1, corners = shifts + 1, lines = lines_at_a_time(radius);
  __shared__ T before[shifts * shifts][displaced_threads<T>];  // a thread's own: the plane of corners before
  for_parts(extent, tiles, 1, [&](std::int64_t sample, const Corner& corner, std::int32_t) {
    const Window<T, radius> window(extent, displacement, sample, corner);
    if (!window.inside) return;
    const std::int64_t features = sample * extent.channels * extent.voxels;
    Storage* const first = out + sample * extent.planes() * shifts * shifts * extent.voxels + window.offset;
    for (std::int32_t z = 0; z < window.planes; ++z) {
      T line_before[shifts];
      // planes of shifts end one plane of corners later, but in 2-D
      Storage* to = first + (z - (extent.dims == 3 ? 1 : 0)) * (shifts * shifts * extent.voxels);
#pragma unroll 1
      for (int y = 0; y < corners; y += lines) {
        T dots[lines][corners];
        dot_lines<lines>(extent, window, fixed + features, moving + features, z, y, dots);
#pragma unroll
        for (int g = 0; g < lines; ++g) {
#pragma unroll
          for (int l = 0; l < shifts; ++l) {
            const T along_line = scale * mix(dots[g][l], dots[g][l + 1], window.upper[2]);
            if (y + g > 0) {
              const T value = mix(line_before[l], along_line, window.upper[1]);
              T& kept = before[(y + g - 1) * shifts + l][threadIdx.x];
              if (z > 0)
                to[0] = Storage(mix(kept, value, window.upper[0]));
              else if (extent.dims == 2)
                to[0] = Storage(value);
              kept = value;
              to += extent.voxels;
            }
            line_before[l] = along_line;
          }
        }
      }
    }
  });
}

template <class Storage, int radius>
void correlate(const Correlation& op, cudaStream_t stream) {
  using T = CoordinateOf<Storage>;
  const Extent extent(op);
  const auto* const fixed = static_cast<const Storage*>(op.fixed);
  const auto* const moving = static_cast<const Storage*>(op.moving);
  auto* const out = static_cast<Storage*>(op.out);
  const T scale = inverse_root<T>(op.channels);
  if (op.displacement != nullptr) {
    const Tiles tiles = displaced_tiles<T>(extent);
    run(stream, tiles.blocks(extent, 1), displaced_threads<T>, correlate_displaced_kernel<Storage, radius>, extent,
        tiles, fixed, moving, static_cast<const T*>(op.displacement), out, scale);
    return;
  }
  using S = Shape<T, radius>;
  const Tiles tiles(extent, S::rows);
  const bool aligned =
      extent.size[2] % S::run == 0 && reinterpret_cast<std::uintptr_t>(op.out) % (S::run * sizeof(Storage)) == 0;
  run(stream, tiles.blocks(extent, extent.planes()), S::threads, correlate_kernel<Storage, radius>, extent, tiles,
      fixed, moving, out, scale, aligned);
}

}  // namespace

void launch(const Correlation& op, cudaStream_t stream) {
  if (op.batch * op.grid.voxels() == 0) return;
  select_window(op, [&](auto storage, auto radius) {
    correlate<typename decltype(storage)::type, decltype(radius)::value>(op, stream);
  });
}

}  // namespace deqreg::cuda
