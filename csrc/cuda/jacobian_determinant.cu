// The determinant of the Jacobian and its gradient, a voxel a thread; what neighbours share comes out of the cache.
#include "core/jacobian.h"
#include "cuda/launch.h"

namespace deqreg::cuda {
namespace {

template <int D>
struct Strides {
  std::int64_t component, stride[D];

  explicit Strides(const Grid& grid) : component(grid.voxels()) {
    std::int64_t step = 1;
    for (int a = D - 1; a >= 0; --a) {
      stride[a] = step;
      step *= grid.size[a];
    }
  }
};

template <int D, class T>
__device__ __forceinline__ void find_rules(const Tiling<D>& tiling, const std::int32_t (&position)[D],
                                           core::Difference<T> (&rules)[D]) {
#pragma unroll
  for (int a = 0; a < D; ++a) rules[a] = core::difference<T>(position[a], tiling.size[a]);
}

template <int D, class T>
__global__ void __launch_bounds__(block_threads)
    determinant_kernel(const T* __restrict__ u, T* __restrict__ out, Strides<D> strides, Tiling<D> tiling) {
  for_tiles<1>(tiling, [&](std::int64_t sample, const std::int32_t (&position)[D]) {
    if (!contains(tiling, position)) return;
    core::Difference<T> rules[D];
    find_rules(tiling, position, rules);
    const auto offset = offset_of<std::int64_t>(tiling, position);
    out[sample * strides.component + offset] = core::jacobian_determinant<D>(
        u + sample * D * strides.component + offset, strides.component, strides.stride, rules);
  });
}

template <int D, class T>
__global__ void __launch_bounds__(block_threads)
    gradient_kernel(const T* __restrict__ u, const T* __restrict__ grad, T* __restrict__ out, Strides<D> strides,
                    Tiling<D> tiling) {
  for_tiles<1>(tiling, [&](std::int64_t sample, const std::int32_t (&position)[D]) {
    if (!contains(tiling, position)) return;
    core::Difference<T> rules[D];
    find_rules(tiling, position, rules);
    const auto offset = offset_of<std::int64_t>(tiling, position);
    const std::int64_t first = sample * D * strides.component + offset;
    T sum[D];
    core::jacobian_determinant_gradient<D>(u + first, grad + sample * strides.component + offset, strides.component,
                                           strides.stride, rules, sum);
#pragma unroll
    for (int a = 0; a < D; ++a) out[first + a * strides.component] = sum[a];
  });
}

/// Calls body(integral_constant<int, D>, Type<T>) where there is anything to compute.
template <class Op, class Body>
void select(const Op& op, const Body& body) {
  if (op.batch * op.grid.voxels() == 0) return;
  select_dims(op.grid.dims, [&](auto dims) { select_field(op.dtype, [&](auto type) { body(dims, type); }); });
}

}  // namespace

void launch(const JacobianDeterminant& op, cudaStream_t stream) {
  select(op, [&](auto dims, auto type) {
    constexpr int D = decltype(dims)::value;
    using T = typename decltype(type)::type;
    const Tiling<D> tiling(op.grid, op.batch, 1);
    run(stream, tiling.blocks(), block_threads, determinant_kernel<D, T>, static_cast<const T*>(op.displacement),
        static_cast<T*>(op.out), Strides<D>(op.grid), tiling);
  });
}

void launch(const JacobianDeterminantGradient& op, cudaStream_t stream) {
  select(op, [&](auto dims, auto type) {
    constexpr int D = decltype(dims)::value;
    using T = typename decltype(type)::type;
    const Tiling<D> tiling(op.grid, op.batch, 1);
    run(stream, tiling.blocks(), block_threads, gradient_kernel<D, T>, static_cast<const T*>(op.displacement),
        static_cast<const T*>(op.grad), static_cast<T*>(op.out), Strides<D>(op.grid), tiling);
  });
}

}  // namespace deqreg::cuda
