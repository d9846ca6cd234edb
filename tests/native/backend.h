// Where a case's operations run. A backend takes inputs as doubles, stores them in the type asked for, and gives
// outputs back as doubles, so that a case is written once for the CPU, the emulation and a GPU.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "half.h"
#include "kernels.h"

namespace native {

using deqreg::DType;
using Values = std::vector<double>;
using Bytes = std::vector<unsigned char>;
using Outputs = std::vector<Values>;

inline std::size_t size_of(DType dtype) { return dtype == DType::float64 ? 8 : dtype == DType::float32 ? 4 : 2; }

/// The type of coordinates and sums beside values of `dtype`.
inline DType coordinates_of(DType dtype) { return dtype == DType::float64 ? DType::float64 : DType::float32; }

inline double load(const unsigned char* from, DType dtype) {
  double wide;
  float narrow;
  std::uint16_t bits;
  switch (dtype) {
    case DType::float64: return std::memcpy(&wide, from, 8), wide;
    case DType::float32: return std::memcpy(&narrow, from, 4), narrow;
    case DType::float16: return std::memcpy(&bits, from, 2), half::float16_to_float(bits);
    case DType::bfloat16: return std::memcpy(&bits, from, 2), half::bfloat16_to_float(bits);
  }
  return 0.0;
}

inline void store(double value, unsigned char* to, DType dtype) {
  const auto narrow = static_cast<float>(value);
  if (dtype == DType::float64) {
    std::memcpy(to, &value, 8);
  } else if (dtype == DType::float32) {
    std::memcpy(to, &narrow, 4);
  } else {
    const std::uint16_t bits =
        dtype == DType::float16 ? half::float16_from_float(narrow) : half::bfloat16_from_float(narrow);
    std::memcpy(to, &bits, 2);
  }
}

inline Bytes encode(const Values& values, DType dtype) {
  Bytes bytes(values.size() * size_of(dtype));
  for (std::size_t i = 0; i < values.size(); ++i) store(values[i], bytes.data() + i * size_of(dtype), dtype);
  return bytes;
}

inline Values decode(const Bytes& bytes, DType dtype) {
  Values values(bytes.size() / size_of(dtype));
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = load(bytes.data() + i * size_of(dtype), dtype);
  return values;
}

/// The CPU kernels on threads started for each loop. What a GPU would store in half precision is float32 here, after
/// the same rounding of the inputs.
class Cpu {
 public:
  explicit Cpu(int threads) { threads_ = threads; }

  DType stored(DType dtype) const { return coordinates_of(dtype); }

  void* input(const Values& values, DType dtype) {
    return keep(encode(decode(encode(values, dtype), dtype), stored(dtype)));
  }

  /// Filled with not-a-number, so that an element which nothing writes shows.
  void* output(std::size_t count, DType dtype) { return keep(Bytes(count * size_of(stored(dtype)), 0xff)); }

  /// Plain data that is the same everywhere: masks, counters.
  template <class T>
  T* raw(const std::vector<T>& values) {
    const auto* bytes = reinterpret_cast<const unsigned char*>(values.data());
    return reinterpret_cast<T*>(keep(Bytes(bytes, bytes + values.size() * sizeof(T))));
  }

  template <class T>
  std::vector<T> read_raw(const T* pointer, std::size_t count) const {
    return {pointer, pointer + count};
  }

  template <class Op>
  void* workspace(const Op&) {
    return nullptr;
  }

  template <class Op>
  void launch(const Op& op) {
    deqreg::cpu::launch(op, deqreg::cpu::Executor{threads_, spread});
  }

  Values read(const void* pointer, std::size_t count, DType dtype) const {
    const auto* bytes = static_cast<const unsigned char*>(pointer);
    return decode(Bytes(bytes, bytes + count * size_of(stored(dtype))), stored(dtype));
  }

 private:
  void* keep(Bytes bytes) {
    kept_.push_back(std::make_unique<Bytes>(std::move(bytes)));
    return kept_.back()->data();
  }

  static void spread(std::int64_t count, std::int64_t grain, deqreg::cpu::Executor::Body body, void* context) {
    const std::int64_t wanted = (count + grain - 1) / grain;
    const std::int64_t parts = wanted < threads_ ? wanted : threads_;
    std::vector<std::thread> threads;
    for (std::int64_t i = 0; i < parts; ++i)
      threads.emplace_back([=] { body(count * i / parts, count * (i + 1) / parts, context); });
    for (auto& thread : threads) thread.join();
  }

  static inline int threads_ = 1;  // an executor's function has no state of its own
  std::vector<std::unique_ptr<Bytes>> kept_;
};

}  // namespace native
