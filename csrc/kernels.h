// The native layer's table of contents: one argument struct an operation, one launcher for it on each device.
//
// Arrays are contiguous, [N, C, *S] with S in array order; a displacement is [N, D, *S] in voxels. Pointers are device
// pointers for cuda::launch. Nothing here allocates for the caller, throws, or knows what a tensor is: extents and
// aliasing are the caller's duty, `workspace` sizes come from the matching workspace_bytes().
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/anderson.h"
#include "core/sampling.h"

#if defined(DEQREG_WITH_CUDA)
#include <cuda_runtime_api.h>
#endif

namespace deqreg {

using core::Interpolation;
using core::Padding;

/// How the values of an image are stored. Coordinates and sums are float, or double where the image is float64.
enum class DType : std::int32_t { float32 = 0, float64 = 1, float16 = 2, bfloat16 = 3 };

/// Spatial extent in array order; a 2-D grid uses the first two entries.
struct Grid {
  std::int32_t dims;
  std::int64_t size[3];

  std::int64_t voxels() const { return size[0] * size[1] * (dims == 3 ? size[2] : 1); }
};

/// Where an output voxel samples its image: y(x) = A (x + u(x)) + t.
struct Sampling {
  const void* displacement;  // [N, D, *out]
  const void* affine;        // [N, D, D + 1], or null for the identity
  Interpolation interpolation;
  Padding padding;
};

/// out(x) = image(y(x)). Pulls.
struct Warp {
  DType dtype;
  std::int64_t batch, channels;
  Grid image_grid, out_grid;
  Sampling sampling;
  const void* image;  // [N, C, *image]
  void* out;          // [N, C, *out]
};

/// image(y(x)) += values(x): the adjoint of Warp in its image. Pushes. Writes all of `image`.
struct Splat {
  DType dtype;
  std::int64_t batch, channels;
  Grid image_grid, out_grid;
  Sampling sampling;
  const void* values;  // [N, C, *out]
  void* image;         // [N, C, *image]
  bool deterministic;  // CUDA: the same bits from run to run, slower. The CPU kernel always is
  void* workspace;     // CUDA: workspace_bytes(). The CPU kernel takes none
};

/// out(x) = sum_c values_c(x) grad image_c (y(x)), in the image's voxel axes: the gradient of Warp by y.
struct WarpGradient {
  DType dtype;
  std::int64_t batch, channels;
  Grid image_grid, out_grid;
  Sampling sampling;
  const void* image;   // [N, C, *image]
  const void* values;  // [N, C, *out]
  void* out;           // [N, D, *out], float32, or float64 with a float64 image
};

/// Both gradients of Warp, linear, of the same sampling and values.
struct WarpGradients {
  Splat by_image;
  WarpGradient by_position;
};

/// out(x) = inner(x) + outer(x + inner(x)), border padding: the displacement of the composed map.
struct Compose {
  DType dtype;  // float32 or float64
  std::int64_t batch;
  Grid outer_grid, inner_grid;
  const void* outer;  // [N, D, *outer]
  const void* inner;  // [N, D, *inner]
  void* out;          // [N, D, *inner]
};

/// out = exp(velocity): the displacement that flowing along a stationary velocity for unit time makes, by scaling and
/// squaring, u <- compose(u, u), `steps` times from velocity / 2^steps.
struct Exponential {
  DType dtype;  // float32 or float64
  std::int64_t batch;
  std::int32_t steps;
  Grid grid;
  const void* velocity;  // [N, D, *S]
  void* out;             // [N, D, *S]
  void* workspace;       // as large as out
};

/// out = G_sigma * image along every axis, half-sample symmetric at the border, so that it is its own adjoint.
struct Gaussian {
  DType dtype;
  std::int64_t batch, channels;
  Grid grid;
  double sigma[3];  // voxels, one an axis; 0 leaves an axis as it is
  const void* image;
  void* out;        // may not alias image
  void* workspace;  // CUDA: as large as out. The CPU kernel takes none
};

/// target = source by linear interpolation, on a grid of other voxels over the same extent, see core/resize.h.
struct Resize {
  DType dtype;
  std::int64_t batch, channels;
  Grid source_grid, target_grid;
  const void* source;  // [N, C, *source]
  void* target;        // [N, C, *target]
};

/// source = the adjoint of Resize applied to target. Writes all of `source`.
struct ResizeAdjoint {
  DType dtype;
  std::int64_t batch, channels;
  Grid source_grid, target_grid;
  const void* target;  // [N, C, *target]
  void* source;        // [N, C, *source]
};

/// out(x) = det(I + du/dx) by central differences, one-sided at the border.
struct JacobianDeterminant {
  DType dtype;
  std::int64_t batch;
  Grid grid;
  const void* displacement;  // [N, D, *S]
  void* out;                 // [N, *S]
};

/// The gradient of JacobianDeterminant by its displacement.
struct JacobianDeterminantGradient {
  DType dtype;
  std::int64_t batch;
  Grid grid;
  const void* displacement;  // [N, D, *S]
  const void* grad;          // [N, *S]
  void* out;                 // [N, D, *S]
};

/// out(delta, x) = <fixed(x), moving(x + u(x) + delta)> / sqrt(C), delta in a cube of (2 radius + 1)^D, last axis
/// fastest.
struct Correlation {
  DType dtype;
  std::int64_t batch, channels;
  std::int32_t radius;
  Grid grid;
  const void* fixed;         // [N, C, *S]
  const void* moving;        // [N, C, *S]
  const void* displacement;  // [N, D, *S], or null for zero
  void* out;                 // [N, (2 radius + 1)^D, *S]
};

/// out(o, x) = bias(o) + sum_delta weight(o, delta) <fixed(x), moving(x + u(x) + delta)> / sqrt(C): Correlation and a
/// convolution of one voxel behind it.
struct CorrelationProjection {
  DType dtype;
  std::int64_t batch, channels, outputs;
  std::int32_t radius;
  Grid grid;
  const void* fixed;         // [N, C, *S]
  const void* moving;        // [N, C, *S]
  const void* displacement;  // [N, D, *S], or null for zero
  const void* weight;        // [O, (2 radius + 1)^D]
  const void* bias;          // [O], or null for zero
  void* out;                 // [N, O, *S]
};

/// The gradients of Correlation; a null output is not computed.
struct CorrelationGradient {
  DType dtype;
  std::int64_t batch, channels;
  std::int32_t radius;
  Grid grid;
  const void* fixed;
  const void* moving;
  const void* displacement;  // or null
  const void* grad;          // [N, (2 radius + 1)^D, *S]
  void* grad_fixed;          // [N, C, *S] or null
  void* grad_moving;         // [N, C, *S] or null
  void* grad_displacement;   // [N, D, *S] or null
  bool deterministic;        // as in Splat, where there is a displacement; without one the same bits always
  void* workspace;           // CUDA: workspace_bytes(). The CPU kernel takes none
};

/// The gradients of CorrelationProjection; a null output is not computed.
struct CorrelationProjectionGradient {
  DType dtype;
  std::int64_t batch, channels, outputs;
  std::int32_t radius;
  Grid grid;
  const void* fixed;
  const void* moving;
  const void* displacement;  // or null
  const void* weight;        // [O, (2 radius + 1)^D]
  const void* grad;          // [N, O, *S]
  void* grad_fixed;          // [N, C, *S] or null
  void* grad_moving;         // [N, C, *S] or null
  void* grad_displacement;   // [N, D, *S] or null
  void* grad_projection;     // [O, (2 radius + 1)^D + 1], of the weight and, in the last column, of the bias, or null
};

/// value = mean over x of (cov(x) + s)^2 / ((var_fixed(x) + e) (var_warped(x) + e)) in cubic windows clipped to image
/// and mask. Gradients by either image where asked for; a null output is not computed.
struct Lncc {
  DType dtype;
  std::int64_t batch;
  std::int32_t window;  // odd edge length in voxels
  double epsilon;       // e, in squared intensities
  double shared;        // s, added to the covariance, at most e
  Grid grid;
  const void* fixed;         // [N, 1, *S]
  const void* warped;        // [N, 1, *S]
  const std::uint8_t* mask;  // [N, 1, *S], zero outside, or null
  void* value;               // [N], float32, or float64 with float64 images
  // [N, 1, *S] or null, of value's type: divided by the voxels, they would underflow in float16
  void* grad_fixed;
  void* grad_warped;
  void* workspace;  // CUDA: workspace_bytes(). The CPU kernel takes none
};

/// Enters f(z) and g = f(z) - z into every running sample's slot of the ring, and sums the products of g with the
/// ring's residuals, a chunk of core::anderson_chunk elements to a partial. Entries of slots outside the history are
/// undefined.
struct AndersonUpdate {
  DType dtype;  // float32 or float64
  std::int64_t batch, elements;
  std::int32_t slots;
  std::int64_t partial_count, partial_offset;  // of a state's all components, and where this one's begin
  const void* z;                               // [N, elements]
  const void* value;                           // [N, elements], f(z)
  void* values;                                // [slots, N, elements]
  void* residuals;                             // [slots, N, elements]
  double* partials;                            // [N, partial_count, slots + 1], the last product is |f(z)|^2
  const core::AndersonCounters* counters;      // [N]
};

/// Adds the partials up and decides every running sample's next step, see core::advance_anderson.
struct AndersonSolve {
  std::int64_t batch;
  std::int32_t slots;
  std::int64_t partial_count, max_steps;
  core::AndersonRule rule;
  const double* partials;            // [N, partial_count, slots + 1]
  double* gram;                      // [N, slots, slots]
  core::AndersonCounters* counters;  // [N]
  core::AndersonLevels* levels;      // [N]
  double* history;                   // [max_steps, N]
  double* weights;                   // [N, slots]

  DEQREG_INLINE core::AndersonSample sample(std::int64_t n) const {
    return {gram + n * slots * slots, counters + n, levels + n, history + n, weights + n * slots, batch, max_steps};
  }
};

/// z = sum_j w_j (f_j - (1 - step) g_j) for every running sample; slots of weight zero are not read.
struct AndersonMix {
  DType dtype;
  std::int64_t batch, elements;
  std::int32_t slots;
  const void* values;                      // [slots, N, elements]
  const void* residuals;                   // [slots, N, elements]
  const double* weights;                   // [N, slots]
  const core::AndersonLevels* levels;      // [N]
  const core::AndersonCounters* counters;  // [N]
  void* z;                                 // [N, elements]
};

namespace cpu {

/// How a kernel spreads its work: lent by the caller, so that the library brings no thread pool of its own.
struct Executor {
  using Body = void (*)(std::int64_t begin, std::int64_t end, void* context);
  int threads;
  void (*parallel_for)(std::int64_t count, std::int64_t grain, Body body, void* context);
};

/// Every operation the CPU kernels implement, for the files that have to name them all.
// clang-format off
#define DEQREG_CPU_OPERATIONS(X) \
  X(AndersonMix) X(AndersonSolve) X(AndersonUpdate) X(Compose) \
  X(Correlation) X(CorrelationGradient) X(CorrelationProjection) \
  X(CorrelationProjectionGradient) X(Exponential) X(Gaussian) \
  X(JacobianDeterminant) X(JacobianDeterminantGradient) X(Lncc) X(Resize) \
  X(ResizeAdjoint) X(Splat) X(Warp) X(WarpGradient) \
  X(WarpGradients)
// clang-format on

#define DEQREG_DECLARE(Op) void launch(const Op& op, const Executor& executor);
DEQREG_CPU_OPERATIONS(DEQREG_DECLARE)
#undef DEQREG_DECLARE

/// Instruction sets compiled in, in ascending order.
enum class Isa : std::int32_t { baseline = 0, avx2 = 1, avx512 = 2 };

bool isa_compiled(Isa isa);
bool isa_supported(Isa isa);  // compiled in, and this processor has it
Isa isa_selected();           // the best supported one until isa_select() says otherwise
bool isa_select(Isa isa);     // false, and no change, where unsupported

}  // namespace cpu

#if defined(DEQREG_WITH_CUDA)
namespace cuda {

void launch(const AndersonUpdate& op, cudaStream_t stream);
void launch(const AndersonSolve& op, cudaStream_t stream);
void launch(const AndersonMix& op, cudaStream_t stream);
void launch(const Compose& op, cudaStream_t stream);
void launch(const Correlation& op, cudaStream_t stream);
void launch(const CorrelationGradient& op, cudaStream_t stream);
void launch(const CorrelationProjection& op, cudaStream_t stream);
void launch(const Exponential& op, cudaStream_t stream);
void launch(const Gaussian& op, cudaStream_t stream);
void launch(const JacobianDeterminant& op, cudaStream_t stream);
void launch(const JacobianDeterminantGradient& op, cudaStream_t stream);
void launch(const Lncc& op, cudaStream_t stream);
void launch(const Resize& op, cudaStream_t stream);
void launch(const ResizeAdjoint& op, cudaStream_t stream);
void launch(const Splat& op, cudaStream_t stream);
void launch(const Warp& op, cudaStream_t stream);
void launch(const WarpGradient& op, cudaStream_t stream);

std::size_t workspace_bytes(const CorrelationGradient& op);
std::size_t workspace_bytes(const Lncc& op);
std::size_t workspace_bytes(const Splat& op);

}  // namespace cuda
#endif

}  // namespace deqreg
