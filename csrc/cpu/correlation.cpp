// Correlation: every value is stored.
#include "cpu/correlation_values.h"
#include "cpu/isa.h"

namespace deqreg::cpu::DEQREG_ISA {
namespace {

template <class T>
class Store {
 public:
  Store(const Windows<T>& windows, T* out)
      : windows_(windows),
        streams_(worth_streaming<T>(windows.batch * windows.shift_count() * windows.voxels)),
        out_(out) {}

  void start(std::int64_t sample, const Run& run) {
    to_ = out_ + sample * windows_.shift_count() * windows_.voxels + run.offset;
    count_ = run.count;
  }
  void take(const T* values) {
    store_row(values, count_, streams_, to_);
    to_ += windows_.voxels;
  }
  void finish() {}

 private:
  const Windows<T>& windows_;
  const bool streams_;
  T *out_, *to_ = nullptr;
  std::int32_t count_ = 0;
};

template <class T>
void correlate_and_store(const Correlation& op, const Executor& executor) {
  correlate<T>(op, executor, [&](const Windows<T>& windows) { return Store<T>(windows, static_cast<T*>(op.out)); });
}

}  // namespace

void launch(const Correlation& op, const Executor& executor) {
  if (op.batch * op.grid.voxels() == 0) return;
  op.dtype == DType::float64 ? correlate_and_store<double>(op, executor) : correlate_and_store<float>(op, executor);
}

}  // namespace deqreg::cpu::DEQREG_ISA
