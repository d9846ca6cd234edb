// The operators on the CPU, on torch's own threads.
#include <torch/csrc/stable/library.h>

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

struct Cpu {
  template <class Op>
  static std::int64_t workspace_bytes(const Op&) {
    return 0;
  }

  template <class Op>
  static void launch(const Tensor&, const Op& op) {
    const auto spread = [](std::int64_t count, std::int64_t grain, cpu::Executor::Body body, void* context) {
      torch::stable::parallel_for(0, count, grain,
                                  [&](std::int64_t begin, std::int64_t end) { body(begin, end, context); });
    };
    cpu::launch(op, cpu::Executor{static_cast<int>(torch::stable::get_num_threads()), spread});
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(deqreg, CPU, m) {
  m.impl("anderson_mix", TORCH_BOX(&anderson_mix<Cpu>));
  m.impl("anderson_solve", TORCH_BOX(&anderson_solve<Cpu>));
  m.impl("anderson_update", TORCH_BOX(&anderson_update<Cpu>));
  m.impl("compose", TORCH_BOX(&compose<Cpu>));
  m.impl("correlation", TORCH_BOX(&correlation<Cpu>));
  m.impl("correlation_gradient", TORCH_BOX(&correlation_gradient<Cpu>));
  m.impl("correlation_projection", TORCH_BOX(&correlation_projection<Cpu>));
  m.impl("correlation_projection_gradient", TORCH_BOX(&correlation_projection_gradient<Cpu>));
  m.impl("exponential", TORCH_BOX(&exponential<Cpu>));
  m.impl("gaussian", TORCH_BOX(&gaussian<Cpu>));
  m.impl("jacobian_determinant", TORCH_BOX(&jacobian_determinant<Cpu>));
  m.impl("jacobian_determinant_gradient", TORCH_BOX(&jacobian_determinant_gradient<Cpu>));
  m.impl("lncc", TORCH_BOX(&lncc<Cpu>));
  m.impl("lncc_gradient", TORCH_BOX(&lncc_gradient<Cpu>));
  m.impl("resize", TORCH_BOX(&resize<Cpu>));
  m.impl("resize_adjoint", TORCH_BOX(&resize_adjoint<Cpu>));
  m.impl("splat", TORCH_BOX(&splat<Cpu>));
  m.impl("warp", TORCH_BOX(&warp<Cpu>));
  m.impl("warp_gradient", TORCH_BOX(&warp_gradient<Cpu>));
  m.impl("warp_gradients", TORCH_BOX(&warp_gradients<Cpu>));
}

}  // namespace deqreg::bindings
