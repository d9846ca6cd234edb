// Gaussian smoothing, one pass an axis, between the output and a workspace. A block brings the stretch of the axis that
// its outputs reach into shared memory once; lanes always run along memory.
#include "core/gaussian.h"
#include "cuda/launch.h"

namespace deqreg::cuda {
namespace {

using core::GaussianTaps;

/// The array as it looks from one axis: [outer, size, inner].
struct Axis {
  std::int64_t outer, size, inner;
};

constexpr int outputs = 8;                            // a thread's, in registers
constexpr int column_length = outputs * block_warps;  // along the axis, a block's
constexpr int segment_length = outputs * warp_lanes;  // along the axis where it is the fastest, a warp's

/// sum_k w(k) line(k), over taps `step` elements apart for each of a thread's outputs, `pitch` elements apart.
template <class T>
__device__ __forceinline__ void convolve(const GaussianTaps<T>& taps, const T* line, int step, int pitch,
                                         T (&sum)[outputs]) {
#pragma unroll
  for (int o = 0; o < outputs; ++o) sum[o] = taps.weight[0] * line[o * pitch];
  for (int k = 1; k <= taps.radius; ++k) {
    const T weight = taps.weight[k];
#pragma unroll
    for (int o = 0; o < outputs; ++o) sum[o] += weight * (line[o * pitch - k * step] + line[o * pitch + k * step]);
  }
}

/// Along a strided axis: a block has 32 columns, one a lane, and `column_length` outputs of each.
template <class Storage, class T>
__global__ void __launch_bounds__(block_threads)
    columns_kernel(const Storage* __restrict__ image, Storage* __restrict__ out, Axis axis,
                   const __grid_constant__ GaussianTaps<T> taps) {
  T* const shared = dynamic_shared<T>();
  const int lane = threadIdx.x % warp_lanes, warp = threadIdx.x / warp_lanes, radius = taps.radius;
  const std::int64_t column = std::int64_t{blockIdx.x} * warp_lanes + lane;
  for (std::int64_t o = blockIdx.z; o < axis.outer; o += gridDim.z) {
    for (std::int64_t first = std::int64_t{blockIdx.y} * column_length; first < axis.size;
         first += std::int64_t{gridDim.y} * column_length) {
      const std::int64_t base = o * axis.size * axis.inner + column;
      const std::int64_t left = axis.size - first;
      const int count = left < column_length ? static_cast<int>(left) : column_length;
      for (int row = warp; row < count + 2 * radius; row += block_warps)
        if (column < axis.inner)
          shared[row * warp_lanes + lane] =
              T(image[base + core::reflect(first + row - radius, axis.size) * axis.inner]);
      __syncthreads();
      T sum[outputs];
      convolve(taps, shared + (warp + radius) * warp_lanes + lane, warp_lanes, block_threads, sum);
#pragma unroll
      for (int k = 0; k < outputs; ++k) {
        const int row = warp + k * block_warps;
        if (row < count && column < axis.inner) out[base + (first + row) * axis.inner] = Storage(sum[k]);
      }
      __syncthreads();
    }
  }
}

/// Along the fastest axis: each warp has one row's segment of `segment_length` outputs.
template <class Storage, class T>
__global__ void __launch_bounds__(block_threads)
    rows_kernel(const Storage* __restrict__ image, Storage* __restrict__ out, Axis axis,
                const __grid_constant__ GaussianTaps<T> taps) {
  const int lane = threadIdx.x % warp_lanes, warp = threadIdx.x / warp_lanes, radius = taps.radius;
  T* const shared = dynamic_shared<T>() + warp * (segment_length + 2 * radius);
  const std::int64_t step = std::int64_t{gridDim.x} * block_warps;
  for (std::int64_t row = std::int64_t{blockIdx.x} * block_warps + warp; row < axis.outer; row += step) {
    for (std::int64_t first = std::int64_t{blockIdx.y} * segment_length; first < axis.size;
         first += std::int64_t{gridDim.y} * segment_length) {
      const std::int64_t left = axis.size - first;
      const int count = left < segment_length ? static_cast<int>(left) : segment_length;
      for (int i = lane; i < count + 2 * radius; i += warp_lanes)
        shared[i] = T(image[row * axis.size + core::reflect(first + i - radius, axis.size)]);
      __syncwarp();
      T sum[outputs];
      convolve(taps, shared + radius + lane, 1, warp_lanes, sum);
#pragma unroll
      for (int k = 0; k < outputs; ++k) {
        const int i = lane + k * warp_lanes;
        if (i < count) out[row * axis.size + first + i] = Storage(sum[k]);
      }
      __syncwarp();
    }
  }
}

template <class Storage>
void smooth(const Storage* image, Storage* out, const Axis& axis, double sigma, cudaStream_t stream) {
  using T = CoordinateOf<Storage>;
  const GaussianTaps<T> taps = core::gaussian_taps<T>(sigma);
  if (axis.inner == 1) {
    const std::size_t bytes = sizeof(T) * block_warps * (segment_length + 2 * taps.radius);
    const dim3 blocks(static_cast<unsigned>(at_most(divide_up(axis.outer, block_warps), max_blocks_x)),
                      static_cast<unsigned>(at_most(divide_up(axis.size, segment_length), max_blocks_yz)));
    run_shared(stream, blocks, block_threads, bytes, rows_kernel<Storage, T>, image, out, axis, taps);
  } else {
    const std::size_t bytes = sizeof(T) * warp_lanes * (column_length + 2 * taps.radius);
    const dim3 blocks(static_cast<unsigned>(divide_up(axis.inner, warp_lanes)),
                      static_cast<unsigned>(at_most(divide_up(axis.size, column_length), max_blocks_yz)),
                      static_cast<unsigned>(at_most(axis.outer, max_blocks_yz)));
    run_shared(stream, blocks, block_threads, bytes, columns_kernel<Storage, T>, image, out, axis, taps);
  }
}

/// An axis of one voxel, or with sigma zero, stays as it is.
int axes_to_smooth(const Gaussian& op, int (&axes)[3]) {
  int count = 0;
  for (int a = 0; a < op.grid.dims; ++a)
    if (op.sigma[a] > 0.0 && op.grid.size[a] > 1) axes[count++] = a;
  return count;
}

Axis axis_of(const Gaussian& op, int a) {
  Axis axis{op.batch * op.channels, op.grid.size[a], 1};
  for (int b = 0; b < a; ++b) axis.outer *= op.grid.size[b];
  for (int b = a + 1; b < op.grid.dims; ++b) axis.inner *= op.grid.size[b];
  return axis;
}

}  // namespace

void launch(const Gaussian& op, cudaStream_t stream) {
  const std::int64_t elements = op.batch * op.channels * op.grid.voxels();
  if (elements == 0) return;
  int axes[3];
  const int count = axes_to_smooth(op, axes);
  select_storage(op.dtype, [&](auto storage) {
    using Storage = typename decltype(storage)::type;
    if (count == 0)
      cudaMemcpyAsync(op.out, op.image, static_cast<std::size_t>(elements) * sizeof(Storage), cudaMemcpyDeviceToDevice,
                      stream);
    const void* current = op.image;
    for (int i = 0; i < count; ++i) {
      void* const next = (count - i) % 2 == 1 ? op.out : op.workspace;
      smooth(static_cast<const Storage*>(current), static_cast<Storage*>(next), axis_of(op, axes[i]), op.sigma[axes[i]],
             stream);
      current = next;
    }
  });
}

}  // namespace deqreg::cuda
