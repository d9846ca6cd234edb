// The operators on CUDA, on torch's current device and stream.
#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>

#include "bindings/anderson.h"
#include "bindings/compose.h"
#include "bindings/correlation.h"
#include "bindings/correlation_projection.h"
#include "bindings/exponential.h"
#include "bindings/gaussian.h"
#include "bindings/jacobian_determinant.h"
#include "bindings/lncc.h"
#include "bindings/resize.h"
#include "bindings/splat.h"
#include "bindings/warp.h"

namespace deqreg::bindings {
namespace {

struct Cuda {
  template <class Op>
  static std::int64_t workspace_bytes(const Op& op) {
    return static_cast<std::int64_t>(cuda::workspace_bytes(op));
  }

  template <class Op>
  static void launch(const Tensor& on, const Op& op) {
    const auto device = static_cast<torch::stable::accelerator::DeviceIndex>(on.get_device());
    const torch::stable::accelerator::DeviceGuard guard(device);
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
    cuda::launch(op, static_cast<cudaStream_t>(stream));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(deqreg, CUDA, m) {
  m.impl("anderson_mix", TORCH_BOX(&anderson_mix<Cuda>));
  m.impl("anderson_solve", TORCH_BOX(&anderson_solve<Cuda>));
  m.impl("anderson_update", TORCH_BOX(&anderson_update<Cuda>));
  m.impl("compose", TORCH_BOX(&compose<Cuda>));
  m.impl("correlation", TORCH_BOX(&correlation<Cuda>));
  m.impl("correlation_gradient", TORCH_BOX(&correlation_gradient<Cuda>));
  m.impl("correlation_projection", TORCH_BOX(&correlation_projection<Cuda>));
  m.impl("exponential", TORCH_BOX(&exponential<Cuda>));
  m.impl("gaussian", TORCH_BOX(&gaussian<Cuda>));
  m.impl("jacobian_determinant", TORCH_BOX(&jacobian_determinant<Cuda>));
  m.impl("jacobian_determinant_gradient", TORCH_BOX(&jacobian_determinant_gradient<Cuda>));
  m.impl("lncc", TORCH_BOX(&lncc<Cuda>));
  m.impl("lncc_gradient", TORCH_BOX(&lncc_gradient<Cuda>));
  m.impl("resize", TORCH_BOX(&resize<Cuda>));
  m.impl("resize_adjoint", TORCH_BOX(&resize_adjoint<Cuda>));
  m.impl("splat", TORCH_BOX(&splat<Cuda>));
  m.impl("warp", TORCH_BOX(&warp<Cuda>));
  m.impl("warp_gradient", TORCH_BOX(&warp_gradient<Cuda>));
}

}  // namespace deqreg::bindings
