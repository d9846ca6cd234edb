// Every CUDA kernel against the CPU's on the same input, and against itself: on a GPU, which compute-sanitizer can
// watch, or emulated. Exit code 77 says that there is no GPU.
#include "compare.h"
#include "cuda_backend.h"

#if defined(DEQREG_EMULATED)
#include "cuda_runtime.h"
#endif

namespace native {
namespace {

constexpr int skipped = 77;

/// A second run, in the emulation with blocks and threads in the opposite order.
Outputs run_again(const Case<Cuda>& test) {
#if defined(DEQREG_EMULATED)
  emulation::reversed = true;
#endif
  Cuda cuda;
  const Outputs result = test.run(cuda, test.setting);
#if defined(DEQREG_EMULATED)
  emulation::reversed = false;
#endif
  return result;
}

void compare(const Case<Cuda>& test, const Case<Cpu>& expected, Report& report) {
  const DType dtype = test.setting.dtype;
  const std::string name = test.name + " " + test.setting.text();
  Cuda cuda;
  Cpu cpu(1);
  const Outputs result = test.run(cuda, test.setting);
  // the CPU does not round to half precision in between
  const double tolerance = order_tolerance(dtype) + 1.01 * test.passes * rounding(dtype);
  report.expect(close(result, expected.run(cpu, expected.setting), tolerance), name, "differs from the CPU");
  const Outputs again = run_again(test);
  if (test.ordered)
    report.expect(same_bits(again, result), name, "differs from run to run");
  else
    report.expect(close(again, result, tolerance), name, "differs from run to run by more than rounding");
}

int run() {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("skipped: no GPU\n");
    return skipped;
  }
  Report report;
  const auto cuda = all_cases<Cuda>();
  const auto cpu = all_cases<Cpu>();
  for (std::size_t i = 0; i < cuda.size(); ++i) compare(cuda[i], cpu[i], report);
  return report.finish();
}

}  // namespace
}  // namespace native

int main() { return native::run(); }
