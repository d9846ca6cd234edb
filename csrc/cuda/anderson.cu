// Anderson's step in three launches: note the newest residual and its products with the ring's, decide on one block a
// sample, mix. Nothing is read back by the host, every sum has a fixed order, and the slot to fill is read from the
// device, so that a captured graph of one step can be replayed for all of them.
#include "core/anderson.h"
#include "cuda/launch.h"

namespace deqreg::cuda {
namespace {

using core::anderson_chunk;

/// Four neighbouring elements, or one where a sample's rows are not aligned to four.
template <class T, int Width>
struct alignas(sizeof(T) * Width) Pack {
  T element[Width];
};

template <class T, int Width>
__device__ __forceinline__ Pack<T, Width> load(const T* from) {
  return *reinterpret_cast<const Pack<T, Width>*>(from);
}

template <class T, int Width>
__device__ __forceinline__ void store(T* to, const Pack<T, Width>& pack) {
  *reinterpret_cast<Pack<T, Width>*>(to) = pack;
}

template <int Width, class T>
bool aligned(const T* pointer) {
  return reinterpret_cast<std::uintptr_t>(pointer) % (sizeof(T) * Width) == 0;
}

__device__ __forceinline__ double warp_sum(double value) {
#pragma unroll
  for (int lane = warp_lanes / 2; lane > 0; lane /= 2) value += __shfl_down_sync(0xffffffffu, value, lane);
  return value;
}

/// Sums `Count` values over the block; thread j < Count gets the sum of value[j].
template <int Count>
__device__ __forceinline__ double block_sum(const double (&value)[Count], double (&shared)[block_warps][Count]) {
  const int lane = threadIdx.x % warp_lanes, warp = threadIdx.x / warp_lanes;
#pragma unroll
  for (int j = 0; j < Count; ++j) {
    const double sum = warp_sum(value[j]);
    if (lane == 0) shared[warp][j] = sum;
  }
  __syncthreads();
  double sum = 0.0;
  if (threadIdx.x < Count)
    for (int w = 0; w < block_warps; ++w) sum += shared[w][threadIdx.x];
  return sum;
}

/// The arguments of a launch that a kernel indexes by sample, with typed pointers.
template <class T>
struct Ring {
  T* values;
  T* residuals;
  std::int64_t batch, elements;

  __device__ __forceinline__ std::int64_t slot(std::int64_t index, std::int64_t sample) const {
    return (index * batch + sample) * elements;
  }
};

template <int Slots, int Width, class T>
__global__ void __launch_bounds__(block_threads)
    update_kernel(const T* __restrict__ z, const T* __restrict__ value, Ring<T> ring, double* __restrict__ partials,
                  const core::AndersonCounters* __restrict__ counters, std::int32_t slots, std::int64_t partial_count,
                  std::int64_t partial_offset) {
  __shared__ double shared[block_warps][Slots + 1];
  const std::int64_t begin = std::int64_t{blockIdx.x} * anderson_chunk;
  const std::int64_t rest = ring.elements - begin, size = rest < anderson_chunk ? rest : anderson_chunk;
  for (std::int64_t sample = blockIdx.y; sample < ring.batch; sample += gridDim.y) {
    if (!core::takes_part(counters[sample], slots)) continue;
    const auto slot = static_cast<std::int32_t>(counters[sample].slot);
    const auto valid = static_cast<std::int32_t>(counters[sample].valid);
    const T* past = ring.residuals + ring.slot(0, sample) + begin;
    const std::int64_t stride = ring.slot(1, 0);
    const T* from_z = z + ring.slot(0, sample) + begin;
    const T* from_value = value + ring.slot(0, sample) + begin;
    T* to_values = ring.values + ring.slot(slot, sample) + begin;
    T* to_residuals = ring.residuals + ring.slot(slot, sample) + begin;
    double sum[Slots + 1] = {};
#pragma unroll 1
    for (std::int64_t i = threadIdx.x * Width; i < size; i += block_threads * Width) {
      const Pack<T, Width> f = load<T, Width>(from_value + i), before = load<T, Width>(from_z + i);
      Pack<T, Width> g, other[Slots];
#pragma unroll
      for (int j = 0; j < Slots; ++j)
        if (valid >> j & 1) other[j] = load<T, Width>(past + j * stride + i);
#pragma unroll
      for (int k = 0; k < Width; ++k) g.element[k] = f.element[k] - before.element[k];
      store<T, Width>(to_values + i, f);
      store<T, Width>(to_residuals + i, g);
#pragma unroll
      for (int k = 0; k < Width; ++k) {
        const double newest = static_cast<double>(g.element[k]);
#pragma unroll
        for (int j = 0; j < Slots; ++j)
          if (j == slot || (valid >> j & 1))
            sum[j] += newest * (j == slot ? newest : static_cast<double>(other[j].element[k]));
        sum[Slots] += static_cast<double>(f.element[k]) * static_cast<double>(f.element[k]);
      }
    }
    double* row = partials + (sample * partial_count + partial_offset + blockIdx.x) * (slots + 1);
    const double found = block_sum(sum, shared);
    if (threadIdx.x < slots) row[threadIdx.x] = found;
    if (threadIdx.x == Slots) row[slots] = found;
    __syncthreads();
  }
}

template <int Slots>
__global__ void __launch_bounds__(block_threads, 1) solve_kernel(AndersonSolve op) {
  __shared__ double shared[block_warps][Slots + 1];
  __shared__ double row[Slots + 1];
  __shared__ core::AndersonWork work;
  const std::int64_t sample = blockIdx.x;
  const double* partials = op.partials + sample * op.partial_count * (op.slots + 1);
  double sum[Slots + 1] = {};
#pragma unroll 1
  for (std::int64_t p = threadIdx.x; p < op.partial_count; p += block_threads) {
    const double* entry = partials + p * (op.slots + 1);
#pragma unroll
    for (int j = 0; j < Slots; ++j)
      if (j < op.slots) sum[j] += entry[j];
    sum[Slots] += entry[op.slots];
  }
  const double found = block_sum(sum, shared);
  if (threadIdx.x < op.slots) row[threadIdx.x] = found;
  if (threadIdx.x == Slots) row[op.slots] = found;
  __syncthreads();
  if (threadIdx.x == 0) core::advance_anderson(op.rule, op.slots, row, op.sample(sample), work);
}

template <int Slots, int Width, class T>
__global__ void __launch_bounds__(block_threads, 2)
    mix_kernel(Ring<const T> ring, T* __restrict__ z, const double* __restrict__ weights,
               const core::AndersonLevels* __restrict__ levels, const core::AndersonCounters* __restrict__ counters,
               std::int32_t slots) {
  const std::int64_t step = std::int64_t{gridDim.x} * block_threads * Width;
  for (std::int64_t sample = blockIdx.y; sample < ring.batch; sample += gridDim.y) {
    if (!core::takes_part(counters[sample], slots)) continue;
    const double back = 1.0 - levels[sample].step;
    double weight[Slots];
#pragma unroll
    for (int j = 0; j < Slots; ++j) weight[j] = j < slots ? weights[sample * slots + j] : 0.0;
    const std::int64_t stride = ring.slot(1, 0), first = ring.slot(0, sample);
    const std::int64_t thread = std::int64_t{blockIdx.x} * block_threads + threadIdx.x;
#pragma unroll 1
    for (std::int64_t i = thread * Width; i < ring.elements; i += step) {
      double sum[Width] = {};
      Pack<T, Width> value[Slots];
#pragma unroll
      for (int j = 0; j < Slots; ++j)
        if (weight[j] != 0.0) value[j] = load<T, Width>(ring.values + first + j * stride + i);
#pragma unroll
      for (int j = 0; j < Slots; ++j)
        if (weight[j] != 0.0)
          for (int k = 0; k < Width; ++k) sum[k] += weight[j] * static_cast<double>(value[j].element[k]);
      if (back != 0.0) {
#pragma unroll
        for (int j = 0; j < Slots; ++j) {
          if (weight[j] == 0.0) continue;
          const Pack<T, Width> residual = load<T, Width>(ring.residuals + first + j * stride + i);
          for (int k = 0; k < Width; ++k) sum[k] -= weight[j] * back * static_cast<double>(residual.element[k]);
        }
      }
      Pack<T, Width> mixed;
#pragma unroll
      for (int k = 0; k < Width; ++k) mixed.element[k] = static_cast<T>(sum[k]);
      store<T, Width>(z + first + i, mixed);
    }
  }
}

/// Calls body(integral_constant<int, Slots>) with the smallest compiled ring that holds `slots`.
template <class Body>
void select_slots(std::int32_t slots, const Body& body) {
  if (slots <= 4) return body(std::integral_constant<int, 4>{});
  if (slots <= 6) return body(std::integral_constant<int, 6>{});
  if (slots <= 8) return body(std::integral_constant<int, 8>{});
  body(std::integral_constant<int, core::anderson_max_slots>{});
}

dim3 sample_blocks(std::int64_t blocks, std::int64_t batch) {
  return dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(at_most(batch, 65535)));
}

}  // namespace

void launch(const AndersonUpdate& op, cudaStream_t stream) {
  if (op.batch * op.elements == 0) return;
  const dim3 blocks = sample_blocks(divide_up(op.elements, anderson_chunk), op.batch);
  select_field(op.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const auto* z = static_cast<const T*>(op.z);
    const auto* value = static_cast<const T*>(op.value);
    const Ring<T> ring{static_cast<T*>(op.values), static_cast<T*>(op.residuals), op.batch, op.elements};
    select_slots(op.slots, [&](auto slots) {
      constexpr int Slots = decltype(slots)::value, Width = sizeof(T) == 4 && Slots <= 8 ? 4 : 2;
      const bool wide = op.elements % Width == 0 && aligned<Width>(z) && aligned<Width>(value) &&
                        aligned<Width>(ring.values) && aligned<Width>(ring.residuals);
      run(stream, blocks, block_threads, wide ? update_kernel<Slots, Width, T> : update_kernel<Slots, 1, T>, z, value,
          ring, op.partials, op.counters, op.slots, op.partial_count, op.partial_offset);
    });
  });
}

void launch(const AndersonSolve& op, cudaStream_t stream) {
  if (op.batch == 0) return;
  select_slots(op.slots, [&](auto slots) {
    run(stream, dim3(static_cast<unsigned>(op.batch)), block_threads, solve_kernel<decltype(slots)::value>, op);
  });
}

void launch(const AndersonMix& op, cudaStream_t stream) {
  if (op.batch * op.elements == 0) return;
  select_field(op.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    auto* z = static_cast<T*>(op.z);
    const Ring<const T> ring{static_cast<const T*>(op.values), static_cast<const T*>(op.residuals), op.batch,
                             op.elements};
    select_slots(op.slots, [&](auto slots) {
      constexpr int Slots = decltype(slots)::value, Width = sizeof(T) == 4 && Slots <= 8 ? 4 : 2;
      const bool wide = op.elements % Width == 0 && aligned<Width>(z) && aligned<Width>(ring.values) &&
                        aligned<Width>(ring.residuals);
      const std::int64_t packs = divide_up(op.elements, wide ? Width : 1);
      const dim3 blocks =
          sample_blocks(at_most(divide_up(packs, block_threads), (std::int64_t{1} << 31) - 1), op.batch);
      run(stream, blocks, block_threads, wide ? mix_kernel<Slots, Width, T> : mix_kernel<Slots, 1, T>, ring, z,
          op.weights, op.levels, op.counters, op.slots);
    });
  });
}

}  // namespace deqreg::cuda
