// The gradients of correlation, where the gradient of its values is given.
#include "cpu/correlation_differentials.h"
#include "cpu/isa.h"

namespace deqreg::cpu::DEQREG_ISA {
namespace {

template <class T>
class Given {
 public:
  Given(const Windows<T>& windows, const T* grad) : windows_(windows), grad_(grad) {}

  void read(std::int64_t sample, const Run& run, T* to) const {
    const T* from = grad_ + sample * windows_.shift_count() * windows_.voxels + run.offset;
    for_corners(windows_, windows_.shifts[0], windows_.shifts[1], windows_.shifts[2], [&](std::int64_t at) {
      for (std::int32_t j = 0; j < run_voxels; ++j) to[at + j] = j < run.count ? from[j] : T(0);
      from += windows_.voxels;
    });
  }
  bool wants_values() const { return false; }
  void add(const Run&, const T*) {}
  void finish_box() {}

 private:
  const Windows<T>& windows_;
  const T* grad_;
};

template <class T>
void differentiate_given(const CorrelationGradient& op, const Executor& executor) {
  select_lanes<T>(op, [&](auto lanes) {
    differentiate<lanes, T>(
        op, executor, [&](const Windows<T>& windows) { return Given<T>(windows, static_cast<const T*>(op.grad)); });
  });
}

}  // namespace

void launch(const CorrelationGradient& op, const Executor& executor) {
  if (op.batch * op.grid.voxels() == 0) return;
  op.dtype == DType::float64 ? differentiate_given<double>(op, executor) : differentiate_given<float>(op, executor);
}

}  // namespace deqreg::cpu::DEQREG_ISA
