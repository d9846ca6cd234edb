// Local normalised cross-correlation in two kernels of one shape, `march`: a block has a tile of rows and columns and
// steps through a chunk of planes. For every column within its windows' reach it keeps the sum over the window's
// planes, one plane added and one taken away a step; from those it sums rows, then columns, afresh for every plane.
//   windows_kernel   sums I, J, II, JJ, IJ (and the mask): values, and the coefficients a, b, c of core/lncc.h
//   gradient_kernel  sums the coefficients, and combines them with the images into one gradient
// Intensities are counted from the sample's first voxel: that takes a common offset away, and leaves a background of
// that intensity exactly zero in every sum. Windows that are flat in one image divide by epsilon, and what rounding
// leaves in them would show. The coefficients' sums over planes are double: they differ by many orders between flat and
// textured places, and what a running float sum loses beside a large one would stay lost.
//
// Sums live in shared memory; with windows too large for that, in the workspace, where the coefficients are. Values are
// summed a block at a time in double and in a fixed order. Everything is the same bits from run to run.
#include "core/lncc.h"
#include "cuda/launch.h"

namespace deqreg::cuda {
namespace {

using Count = unsigned long long;  // what 64-bit integer atomics take

constexpr int tile_rows = 16;
constexpr int chunk_planes =
    16;                   // a chunk starts with a whole window of planes, and is short for the sake of many blocks
constexpr int group = 4;  // neighbouring windows that a thread sums together, sharing what they share
constexpr std::size_t shared_limit = 96 << 10;  // every device since sm_80 lends a block so much
constexpr std::int64_t scratch_blocks = 256;    // at most so many where sums do not fit it

// Shared memory holds three blocks on a multiprocessor; registers should too.
template <class T>
constexpr int resident_blocks = std::is_same_v<T, double> ? 2 : 3;

/// How a volume is cut. A 2-D image is one plane.
struct Plan {
  std::int32_t size[3], radius[3];
  std::int32_t width;             // columns of a tile
  std::int32_t rows, columns;     // of a tile and its windows' reach
  std::int32_t pitch, box_pitch;  // elements between rows; odd, for lanes that run across rows
  std::int32_t tiles[3];
  std::int64_t batch, voxels;

  explicit Plan(const Lncc& op) : batch(op.batch), voxels(op.grid.voxels()) {
    for (int a = 0; a < 3; ++a) {
      const std::int64_t extent = op.grid.dims == 3 ? op.grid.size[a] : a == 0 ? 1 : op.grid.size[a - 1];
      size[a] = static_cast<std::int32_t>(extent);
      radius[a] = static_cast<std::int32_t>(at_most(op.window / 2, extent - 1));  // beyond it, the same voxels
    }
    columns =
        static_cast<std::int32_t>(divide_up(radius[2] <= 8 ? 64 : 2 * radius[2] + warp_lanes, warp_lanes)) * warp_lanes;
    width = columns - 2 * radius[2];
    rows = tile_rows + 2 * radius[1];
    pitch = columns + 3;  // odd; the last group of a row reads two columns past it
    box_pitch = static_cast<std::int32_t>(divide_up(width, group)) * group + 1;
    const std::int32_t extent[] = {chunk_planes, tile_rows, width};
    for (int a = 0; a < 3; ++a) tiles[a] = static_cast<std::int32_t>(divide_up(size[a], extent[a]));
  }

  __host__ __device__ std::int64_t tiles_per_sample() const { return std::int64_t{tiles[0]} * tiles[1] * tiles[2]; }

  std::size_t scratch_bytes(int sums, std::size_t state_size, std::size_t box_size) const {
    return sums * rows * (pitch * state_size + box_pitch * box_size);
  }
};

/// Its first sample, plane, row and column.
struct Tile {
  std::int64_t sample;
  std::int32_t plane, row, column;
};

__device__ __forceinline__ Tile tile_at(const Plan& plan, std::int64_t index) {
  const std::int64_t sample = index / plan.tiles_per_sample();
  const std::int64_t in_sample = index - sample * plan.tiles_per_sample();
  const std::int64_t line = in_sample / plan.tiles[2], chunk = line / plan.tiles[1];
  return {sample, static_cast<std::int32_t>(chunk) * chunk_planes,
          static_cast<std::int32_t>(line - chunk * plan.tiles[1]) * tile_rows,
          static_cast<std::int32_t>(in_sample - line * plan.tiles[2]) * plan.width};
}

/// The sums of `group` windows that start one step apart, each of `window` elements; only added up, never subtracted.
template <class Sum, class Element>
__device__ __forceinline__ void window_sums(const Element* line, int step, int window, Sum (&sums)[group]) {
  Sum shared = Sum(0);
#pragma unroll
  for (int i = 0; i < group; ++i) sums[i] = Sum(0);
#pragma unroll
  for (int k = 0; k < group - 1; ++k) {  // in the windows up to the k-th
    const Sum value = k < window ? Sum(line[k * step]) : Sum(0);
#pragma unroll
    for (int i = 0; i <= k; ++i) sums[i] += value;
  }
  for (int k = group - 1; k < window; ++k) shared += Sum(line[k * step]);  // in all
#pragma unroll
  for (int i = 0; i < group; ++i) sums[i] += shared;
#pragma unroll
  for (int k = 0; k < group - 1; ++k) {  // in the windows after the k-th
    const Sum value = Sum(line[(window + k) * step]);
#pragma unroll
    for (int i = k + 1; i < group; ++i)
      if (i <= window + k) sums[i] += value;
  }
}

/// Moves the sums over planes to the window around plane z, from the one around z - 1 or, first in the chunk, from
/// none.
template <int Q, class State, class Gather>
__device__ __forceinline__ void slide(const Plan& plan, const Tile& tile, std::int32_t z, State* state,
                                      const Gather& gather) {
  const std::int64_t plane = std::int64_t{plan.size[1]} * plan.size[2];
  const std::int32_t in = z + plan.radius[0], out = z - plan.radius[0] - 1;
  for (std::int32_t row = threadIdx.x / warp_lanes; row < plan.rows; row += block_warps) {
    const std::int32_t y = tile.row + row - plan.radius[1];
    for (std::int32_t column = threadIdx.x % warp_lanes; column < plan.columns; column += warp_lanes) {
      const std::int32_t x = tile.column + column - plan.radius[2];
      const bool inside = y >= 0 && y < plan.size[1] && x >= 0 && x < plan.size[2];
      const std::int64_t offset = std::int64_t{y} * plan.size[2] + x;
      State change[Q] = {};
      if (inside && z > tile.plane) {
        if (in < plan.size[0]) gather(offset + in * plane, 1, change);
        if (out >= 0) gather(offset + out * plane, -1, change);
      } else if (inside) {
        for (std::int32_t p = out + 1 > 0 ? out + 1 : 0; p <= in && p < plan.size[0]; ++p)
          gather(offset + p * plane, 1, change);
      }
      State* const cell = state + row * plan.pitch + column;
#pragma unroll
      for (int q = 0; q < Q; ++q)
        cell[q * plan.rows * plan.pitch] = z > tile.plane ? cell[q * plan.rows * plan.pitch] + change[q] : change[q];
    }
  }
}

/// Sums over the window's columns. Lanes run across rows: with an odd pitch they meet different banks.
template <int Q, class State, class Sum>
__device__ __forceinline__ void sum_columns(const Plan& plan, const State* state, Sum* boxes) {
  const std::int32_t groups = plan.box_pitch / group, window = 2 * plan.radius[2] + 1;
  for (std::int32_t task = threadIdx.x; task < plan.rows * groups; task += block_threads) {
    const std::int32_t first = task / plan.rows * group, row = task % plan.rows;
#pragma unroll
    for (int q = 0; q < Q; ++q) {
      Sum sums[group];
      window_sums(state + (q * plan.rows + row) * plan.pitch + first, 1, window, sums);
#pragma unroll
      for (int i = 0; i < group; ++i) boxes[(q * plan.rows + row) * plan.box_pitch + first + i] = sums[i];
    }
  }
}

/// Sums over the window's rows, and calls emit(z, y, x, sums) where windows are whole.
template <int Q, class Sum, class Emit>
__device__ __forceinline__ void sum_rows(const Plan& plan, const Tile& tile, std::int32_t z, const Sum* boxes,
                                         const Emit& emit) {
  for (std::int32_t task = threadIdx.x; task < plan.columns * (tile_rows / group); task += block_threads) {
    const std::int32_t row = task / plan.columns * group, column = task % plan.columns;
    const std::int32_t y = tile.row + row, x = tile.column + column;
    if (column >= plan.width || x >= plan.size[2] || y >= plan.size[1]) continue;
    Sum sums[Q][group];
#pragma unroll
    for (int q = 0; q < Q; ++q)
      window_sums(boxes + (q * plan.rows + row) * plan.box_pitch + column, plan.box_pitch, 2 * plan.radius[1] + 1,
                  sums[q]);
#pragma unroll
    for (int i = 0; i < group; ++i) {
      if (y + i >= plan.size[1]) break;
      Sum of_voxel[Q];
#pragma unroll
      for (int q = 0; q < Q; ++q) of_voxel[q] = sums[q][i];
      emit(z, y + i, x, of_voxel);
    }
  }
}

/// Sums Q quantities over the windows of every voxel of a tile. gather(offset, sign, sums) adds a voxel's, or takes
/// them.
template <int Q, class State, class Sum, class Gather, class Emit>
__device__ __forceinline__ void march(const Plan& plan, const Tile& tile, unsigned char* scratch, const Gather& gather,
                                      const Emit& emit) {
  State* const state = reinterpret_cast<State*>(scratch);                         // [Q, rows, pitch]
  Sum* const boxes = reinterpret_cast<Sum*>(state + Q * plan.rows * plan.pitch);  // [Q, rows, box_pitch]
  const std::int32_t left = plan.size[0] - tile.plane, planes = left < chunk_planes ? left : chunk_planes;
  for (std::int32_t z = tile.plane; z < tile.plane + planes; ++z) {
    slide<Q>(plan, tile, z, state, gather);
    __syncthreads();
    sum_columns<Q>(plan, state, boxes);
    __syncthreads();
    sum_rows<Q>(plan, tile, z, boxes, emit);
  }
}

/// combine() over the block's values, in a fixed order; thread 0 has the result.
template <class T, class Combine>
__device__ __forceinline__ T reduce_block(T value, const Combine& combine) {
  static __shared__ T values[block_threads];
  __syncthreads();
  values[threadIdx.x] = value;
  for (int half = block_threads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) values[threadIdx.x] = value = combine(value, values[threadIdx.x + half]);
  }
  return value;
}

struct Add {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};

struct Least {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a < b ? a : b;
  }
};

/// What is known of the masks before any window is.
struct Samples {
  Count* voxels;  // [N], inside, or null without a mask: all
  Count* first;   // [N], the first inside

  __device__ __forceinline__ double count(const Plan& plan, std::int64_t n) const {
    return voxels == nullptr ? static_cast<double>(plan.voxels) : static_cast<double>(voxels[n]);
  }

  /// Where a sample's intensities are counted from; `image` is the sample's.
  template <class T, class Storage>
  __device__ __forceinline__ T origin(const Plan& plan, std::int64_t n, const Storage* image) const {
    const Count voxel = voxels == nullptr ? 0 : first[n];
    return voxel < static_cast<Count>(plan.voxels) ? T(image[voxel]) : T(0);
  }
};

/// Adds to `voxels`, which starts at zero, and lowers `first`, which starts above all.
__global__ void __launch_bounds__(block_threads)
    examine_kernel(const std::uint8_t* __restrict__ mask, Samples samples, std::int64_t voxels, std::int64_t batch) {
  for (std::int64_t n = blockIdx.y; n < batch; n += gridDim.y) {
    Count inside = 0, first = ~Count{0};
    for_elements(voxels, [&](std::int64_t i) {
      if (mask[n * voxels + i] == 0) return;
      inside += 1;
      first = first < static_cast<Count>(i) ? first : static_cast<Count>(i);
    });
    inside = reduce_block(inside, Add{});
    first = reduce_block(first, Least{});
    if (threadIdx.x != 0 || inside == 0) continue;
    atomicAdd(samples.voxels + n, inside);
    atomicMin(samples.first + n, first);
  }
}

template <class Storage>
struct Images {
  const Storage* __restrict__ fixed;      // [N, *S]
  const Storage* __restrict__ warped;     // [N, *S]
  const std::uint8_t* __restrict__ mask;  // [N, *S] or null

  __device__ __forceinline__ Images of_sample(std::int64_t offset) const {
    return {fixed + offset, warped + offset, mask == nullptr ? nullptr : mask + offset};
  }
};

/// Adds a voxel's I, J, II, JJ, IJ and mask.
template <bool masked, class Storage, class T>
struct GatherMoments {
  static constexpr int count = masked ? 6 : 5;
  Images<Storage> images;
  T fixed_origin, warped_origin;

  __device__ __forceinline__ void operator()(std::int64_t offset, int sign, T (&sums)[count]) const {
    if constexpr (masked)
      if (images.mask[offset] == 0) return;
    const T fixed = T(images.fixed[offset]) - fixed_origin, warped = T(images.warped[offset]) - warped_origin;
    const T signed_fixed = T(sign) * fixed, signed_warped = T(sign) * warped;
    sums[0] += signed_fixed;
    sums[1] += signed_warped;
    sums[2] += signed_fixed * fixed;
    sums[3] += signed_warped * warped;
    sums[4] += signed_fixed * warped;
    if constexpr (masked) sums[5] += T(sign);
  }
};

__device__ __forceinline__ std::int32_t window_length(const Plan& plan, int axis, std::int32_t centre) {
  const std::int32_t first = centre > plan.radius[axis] ? centre - plan.radius[axis] : 0;
  const std::int32_t last = plan.size[axis] - 1 - centre;
  return centre - first + 1 + (last < plan.radius[axis] ? last : plan.radius[axis]);
}

/// The coefficients of one window, at `fields` and further ones `step` apart.
template <int gradients, class T>
__device__ __forceinline__ void store_coefficients(const core::LnccTerm<T>& term, T inside, T* fields,
                                                   std::int64_t step) {
  if constexpr (gradients > 0) {
    fields[0] = inside * term.a;
    fields[step] = inside * term.b_warped;
    fields[2 * step] = inside * term.c_warped;
  }
  if constexpr (gradients > 1) {
    fields[3 * step] = inside * term.b_fixed;
    fields[4 * step] = inside * term.c_fixed;
  }
}

/// values[tile] = the sum of its voxels' values; fields [1 + 2 gradients, N, *S] = the coefficients.
template <class Storage, bool masked, int gradients, class T = CoordinateOf<Storage>>
__global__ void __launch_bounds__(block_threads, resident_blocks<T>)
    windows_kernel(const __grid_constant__ Plan plan, Images<Storage> images, Samples samples, T epsilon, T shared,
                   T* fields, double* values, unsigned char* scratch, std::int64_t scratch_step) {
  unsigned char* const sums =
      scratch == nullptr ? dynamic_shared<unsigned char>() : scratch + blockIdx.x * scratch_step;
  constexpr int moments = GatherMoments<masked, Storage, T>::count;
  for (std::int64_t index = blockIdx.x; index < plan.batch * plan.tiles_per_sample(); index += gridDim.x) {
    const Tile tile = tile_at(plan, index);
    const std::int64_t start = tile.sample * plan.voxels;
    const Images<Storage> own = images.of_sample(start);
    const GatherMoments<masked, Storage, T> gather{own, samples.origin<T>(plan, tile.sample, own.fixed),
                                                   samples.origin<T>(plan, tile.sample, own.warped)};
    double value = 0.0;
    march<moments, T, T>(
        plan, tile, sums, gather, [&](std::int32_t z, std::int32_t y, std::int32_t x, const auto& sum) {
          const std::int64_t offset = (std::int64_t{z} * plan.size[1] + y) * plan.size[2] + x;
          T count = T(1), inside = T(1);
          if constexpr (masked) {
            inside = own.mask[offset] != 0 ? T(1) : T(0);
            count = sum[moments - 1] > T(1) ? sum[moments - 1] : T(1);
          } else {
            count = T(window_length(plan, 0, z)) * T(window_length(plan, 1, y)) * T(window_length(plan, 2, x));
          }
          core::LnccMoments<T> m;
          m.inverse_count = T(1) / count;
          m.fixed = sum[0] * m.inverse_count;
          m.warped = sum[1] * m.inverse_count;
          m.fixed_variance = sum[2] * m.inverse_count - m.fixed * m.fixed;
          m.warped_variance = sum[3] * m.inverse_count - m.warped * m.warped;
          m.covariance = sum[4] * m.inverse_count - m.fixed * m.warped;
          const auto term = core::lncc_term(m, epsilon, shared);
          value += static_cast<double>(inside * term.value);
          store_coefficients<gradients>(term, inside, fields + start + offset, plan.batch * plan.voxels);
        });
    value = reduce_block(value, Add{});
    if (threadIdx.x == 0) values[index] = value;
  }
}

/// value[n] = the mean of sample n's values, 0 where nothing is inside.
template <class T>
__global__ void __launch_bounds__(block_threads)
    mean_kernel(const __grid_constant__ Plan plan, Samples samples, const double* __restrict__ values, T* value) {
  for (std::int64_t n = blockIdx.x; n < plan.batch; n += gridDim.x) {
    double sum = 0.0;
    for (std::int64_t i = threadIdx.x; i < plan.tiles_per_sample(); i += block_threads)
      sum += values[n * plan.tiles_per_sample() + i];
    sum = reduce_block(sum, Add{});
    const double count = samples.count(plan, n);
    if (threadIdx.x == 0) value[n] = count > 0.0 ? T(sum / count) : T(0);
  }
}

/// Adds a voxel's coefficients a, b, c.
template <class T>
struct GatherCoefficients {
  const T* __restrict__ a, * __restrict__ b, * __restrict__ c;

  __device__ __forceinline__ void operator()(std::int64_t offset, int sign, double (&sums)[3]) const {
    sums[0] += static_cast<double>(T(sign) * a[offset]);
    sums[1] += static_cast<double>(T(sign) * b[offset]);
    sums[2] += static_cast<double>(T(sign) * c[offset]);
  }
};

/// out = (other Box(a) - own Box(b) - Box(c)) / voxels: the gradient by `own`, which images.warped is.
template <class Storage, bool masked, class T = CoordinateOf<Storage>>
__global__ void __launch_bounds__(block_threads, resident_blocks<T>)
    gradient_kernel(const __grid_constant__ Plan plan, Images<Storage> images, Samples samples,
                    GatherCoefficients<T> coefficients, T* __restrict__ out, unsigned char* scratch,
                    std::int64_t scratch_step) {
  unsigned char* const sums =
      scratch == nullptr ? dynamic_shared<unsigned char>() : scratch + blockIdx.x * scratch_step;
  for (std::int64_t index = blockIdx.x; index < plan.batch * plan.tiles_per_sample(); index += gridDim.x) {
    const Tile tile = tile_at(plan, index);
    const std::int64_t start = tile.sample * plan.voxels;
    const Images<Storage> own = images.of_sample(start);
    const T other_origin = samples.origin<T>(plan, tile.sample, own.fixed);
    const T own_origin = samples.origin<T>(plan, tile.sample, own.warped);
    const T scale = T(1.0 / samples.count(plan, tile.sample));
    const GatherCoefficients<T> gather{coefficients.a + start, coefficients.b + start, coefficients.c + start};
    march<3, double, T>(plan, tile, sums, gather, [&](std::int32_t z, std::int32_t y, std::int32_t x, const auto& sum) {
      const std::int64_t offset = (std::int64_t{z} * plan.size[1] + y) * plan.size[2] + x;
      const T slope =
          (T(own.fixed[offset]) - other_origin) * sum[0] - (T(own.warped[offset]) - own_origin) * sum[1] - sum[2];
      out[start + offset] = !masked || own.mask[offset] != 0 ? slope * scale : T(0);
    });
  }
}

/// How an operation's workspace is laid out, in bytes.
struct Layout {
  std::size_t windows_scratch, gradient_scratch;  // of a block
  std::size_t voxels, first, values, fields, scratch, end;

  explicit Layout(const Lncc& op) {
    const Plan plan(op);
    const std::size_t size = op.dtype == DType::float64 ? sizeof(double) : sizeof(float);
    const int gradients = (op.grad_fixed != nullptr) + (op.grad_warped != nullptr);
    windows_scratch = plan.scratch_bytes(op.mask == nullptr ? 5 : 6, size, size);
    gradient_scratch = gradients > 0 ? plan.scratch_bytes(3, sizeof(double), size) : 0;
    std::size_t outside = 0;  // the larger one of what does not fit into shared memory
    for (const std::size_t bytes : {windows_scratch, gradient_scratch})
      if (bytes > shared_limit && bytes > outside) outside = bytes;
    const std::size_t parts[] = {
        plan.batch * sizeof(Count), plan.batch * sizeof(Count), plan.batch * plan.tiles_per_sample() * sizeof(double),
        gradients > 0 ? (1 + 2 * gradients) * plan.batch * plan.voxels * size : 0, scratch_blocks * outside};
    std::size_t* const offsets[] = {&voxels, &first, &values, &fields, &scratch};
    end = 0;
    for (int i = 0; i < 5; ++i) {
      *offsets[i] = end;
      end += (parts[i] + 255) / 256 * 256;
    }
  }
};

/// Runs a marching kernel, whose last arguments say where its sums live.
template <class... Parameters, class... Arguments>
void run_march(cudaStream_t stream, const Plan& plan, std::size_t bytes, unsigned char* scratch,
               void (*kernel)(Parameters...), Arguments... arguments) {
  const bool fits = bytes <= shared_limit;
  const std::int64_t blocks = at_most(plan.batch * plan.tiles_per_sample(), fits ? max_blocks_x : scratch_blocks);
  // the same for every launch: the limit is the kernel's, and another thread may be launching it
  if (fits) cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_limit));
  run_shared(stream, dim3(static_cast<unsigned>(blocks)), block_threads, fits ? bytes : 0, kernel, plan, arguments...,
             fits ? nullptr : scratch, static_cast<std::int64_t>(bytes));
}

Samples examine(const Lncc& op, const Layout& layout, unsigned char* workspace, cudaStream_t stream) {
  if (op.mask == nullptr) return {nullptr, nullptr};
  const Samples samples{reinterpret_cast<Count*>(workspace + layout.voxels),
                        reinterpret_cast<Count*>(workspace + layout.first)};
  cudaMemsetAsync(samples.voxels, 0, op.batch * sizeof(Count), stream);
  cudaMemsetAsync(samples.first, 0xff, op.batch * sizeof(Count), stream);
  dim3 blocks = element_blocks(divide_up(op.grid.voxels(), 16));  // sixteen voxels a thread
  blocks.y = static_cast<unsigned>(at_most(op.batch, max_blocks_yz));
  run(stream, blocks, block_threads, examine_kernel, op.mask, samples, op.grid.voxels(), op.batch);
  return samples;
}

template <class Storage, bool masked, int gradients>
void correlate(const Lncc& op, cudaStream_t stream) {
  using T = CoordinateOf<Storage>;
  const Plan plan(op);
  const Layout layout(op);
  auto* const workspace = static_cast<unsigned char*>(op.workspace);
  const Samples samples = examine(op, layout, workspace, stream);
  const Images<Storage> images{static_cast<const Storage*>(op.fixed), static_cast<const Storage*>(op.warped), op.mask};
  T* const fields = reinterpret_cast<T*>(workspace + layout.fields);
  auto* const values = reinterpret_cast<double*>(workspace + layout.values);
  run_march(stream, plan, layout.windows_scratch, workspace + layout.scratch,
            windows_kernel<Storage, masked, gradients>, images, samples, T(op.epsilon), T(op.shared), fields, values);
  run(stream, dim3(static_cast<unsigned>(at_most(plan.batch, max_blocks_x))), block_threads, mean_kernel<T>, plan,
      samples, values, static_cast<T*>(op.value));
  const std::int64_t step = plan.batch * plan.voxels;
  if constexpr (gradients > 0)
    run_march(stream, plan, layout.gradient_scratch, workspace + layout.scratch, gradient_kernel<Storage, masked>,
              images, samples, GatherCoefficients<T>{fields, fields + step, fields + 2 * step},
              static_cast<T*>(op.grad_warped));
  if constexpr (gradients > 1)
    run_march(stream, plan, layout.gradient_scratch, workspace + layout.scratch, gradient_kernel<Storage, masked>,
              Images<Storage>{images.warped, images.fixed, images.mask}, samples,
              GatherCoefficients<T>{fields, fields + 3 * step, fields + 4 * step}, static_cast<T*>(op.grad_fixed));
}

template <class Storage, bool masked>
void select_gradients(Lncc op, cudaStream_t stream) {
  if (op.grad_warped == nullptr) {  // the similarity is symmetric: one gradient is always the second image's
    const void* const fixed = op.fixed;
    op.fixed = op.warped;
    op.warped = fixed;
    op.grad_warped = op.grad_fixed;
    op.grad_fixed = nullptr;
  }
  if (op.grad_warped == nullptr) return correlate<Storage, masked, 0>(op, stream);
  if (op.grad_fixed == nullptr) return correlate<Storage, masked, 1>(op, stream);
  correlate<Storage, masked, 2>(op, stream);
}

}  // namespace

std::size_t workspace_bytes(const Lncc& op) { return Layout(op).end; }

void launch(const Lncc& op, cudaStream_t stream) {
  if (op.batch * op.grid.voxels() == 0) return;
  select_storage(op.dtype, [&](auto type) {
    using Storage = typename decltype(type)::type;
    op.mask == nullptr ? select_gradients<Storage, false>(op, stream) : select_gradients<Storage, true>(op, stream);
  });
}

}  // namespace deqreg::cuda
