// Correlation, projected a run of voxels at a time: its values stay in the nearest cache, and the gradients find them
// again.
#include "cpu/buffer.h"
#include "cpu/correlation_differentials.h"
#include "cpu/correlation_values.h"
#include "cpu/isa.h"
#include "cpu/projection.h"

namespace deqreg::cpu::DEQREG_ISA {
namespace {

template <class T>
class Project {
 public:
  Project(const Windows<T>& windows, const CorrelationProjection& op)
      : windows_(windows), op_(op), values_(windows.shift_count() * run_voxels) {}

  void start(std::int64_t sample, const Run& run) {
    out_ = static_cast<T*>(op_.out) + sample * op_.outputs * windows_.voxels + run.offset;
    count_ = run.count;
    to_ = values_.data();
  }
  void take(const T* values) {
    for (std::int32_t j = 0; j < run_voxels; ++j) to_[j] = values[j];
    to_ += run_voxels;
  }
  void finish() {
    project(static_cast<const T*>(op_.weight), static_cast<const T*>(op_.bias), windows_.shift_count(), op_.outputs,
            values_.data(),
            [&](std::int64_t o, const T* values) { store_run(values, count_, out_ + o * windows_.voxels); });
  }

 private:
  const Windows<T>& windows_;
  const CorrelationProjection& op_;
  Buffer<T> values_;  // [shift][run]
  T *out_ = nullptr, *to_ = nullptr;
  std::int32_t count_ = 0;
};

template <class T>
void correlate_and_project(const CorrelationProjection& op, const Executor& executor) {
  correlate<T>(op, executor, [&](const Windows<T>& windows) { return Project<T>(windows, op); });
}

/// The gradient of the values is the transposed projection of the output's; that of the weight and bias sums, over all
/// voxels, the output's gradient times the values and times one.
template <class T>
class Unproject {
 public:
  Unproject(const Windows<T>& windows, const CorrelationProjectionGradient& op, const T* transposed, double* totals)
      : windows_(windows),
        op_(op),
        transposed_(transposed),
        totals_(totals),
        grad_(op.outputs * run_voxels),
        products_(wants_values() ? op.outputs * columns() * run_voxels : 0) {}

  bool wants_values() const { return op_.grad_projection != nullptr; }

  void read(std::int64_t sample, const Run& run, T* to) {
    const T* from = static_cast<const T*>(op_.grad) + sample * op_.outputs * windows_.voxels + run.offset;
    T* const grad = grad_.data();
    for (std::int64_t o = 0; o < op_.outputs; ++o, from += windows_.voxels)
      for (std::int32_t j = 0; j < run_voxels; ++j) grad[o * run_voxels + j] = j < run.count ? from[j] : T(0);
    const std::int64_t row = windows_.shifts[2], line = windows_.corners[2];
    project<T>(transposed_, nullptr, op_.outputs, windows_.shift_count(), grad,
               [&](std::int64_t shift, const T* values) {
                 const std::int64_t x = shift % row, y = shift / row % windows_.shifts[1];
                 const std::int64_t z = shift / row / windows_.shifts[1];
                 store_run(values, run_voxels, to + ((z * windows_.corners[1] + y) * line + x) * run_voxels);
               });
  }

  void add(const Run&, const T* values) {
    T* sums = products_.data();
    for (std::int64_t o = 0; o < op_.outputs; ++o) {
      const T* grad = grad_.data() + o * run_voxels;
      for_corners(windows_, windows_.shifts[0], windows_.shifts[1], windows_.shifts[2], [&](std::int64_t at) {
        for (std::int32_t j = 0; j < run_voxels; ++j) sums[j] += grad[j] * values[at + j];
        sums += run_voxels;
      });
      for (std::int32_t j = 0; j < run_voxels; ++j) sums[j] += grad[j];
      sums += run_voxels;
    }
  }

  /// Adds the box's sums to those of the boxes before it.
  void finish_box() {
    if (!wants_values()) return;
    T* sums = products_.data();
    for (std::int64_t i = 0; i < op_.outputs * columns(); ++i)
      for (std::int32_t j = 0; j < run_voxels; ++j, ++sums) {
        totals_[i] += static_cast<double>(*sums);
        *sums = T(0);
      }
  }

 private:
  std::int64_t columns() const { return windows_.shift_count() + 1; }

  const Windows<T>& windows_;
  const CorrelationProjectionGradient& op_;
  const T* transposed_;  // [shift][output]
  double* totals_;       // [output][column], of all boxes so far
  Buffer<T> grad_;       // [output][run]
  Buffer<T> products_;   // [output][column][run], of one box
};

template <class T>
void differentiate_projected(const CorrelationProjectionGradient& op, const Executor& executor) {
  const std::int64_t shifts = Windows<T>(op).shift_count(), elements = op.outputs * (shifts + 1);
  const T* const weight = static_cast<const T*>(op.weight);
  const Buffer<T> transposed(op.outputs * shifts);
  for (std::int64_t o = 0; o < op.outputs; ++o)
    for (std::int64_t k = 0; k < shifts; ++k) transposed.data()[k * op.outputs + o] = weight[o * shifts + k];
  const Buffer<double> totals(elements);
  select_lanes<T>(op, [&](auto lanes) {
    differentiate<lanes, T>(op, executor, [&](const Windows<T>& windows) {
      return Unproject<T>(windows, op, transposed.data(), totals.data());
    });
  });
  if (op.grad_projection != nullptr)
    for (std::int64_t i = 0; i < elements; ++i)
      static_cast<T*>(op.grad_projection)[i] = static_cast<T>(totals.data()[i]);
}

}  // namespace

void launch(const CorrelationProjection& op, const Executor& executor) {
  if (op.batch * op.grid.voxels() * op.outputs == 0) return;
  op.dtype == DType::float64 ? correlate_and_project<double>(op, executor) : correlate_and_project<float>(op, executor);
}

void launch(const CorrelationProjectionGradient& op, const Executor& executor) {
  op.dtype == DType::float64 ? differentiate_projected<double>(op, executor)
                             : differentiate_projected<float>(op, executor);
}

}  // namespace deqreg::cpu::DEQREG_ISA
