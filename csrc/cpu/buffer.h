// Memory of a thread's own.
#pragma once

#include <cstdint>
#include <memory>

namespace deqreg::cpu::DEQREG_ISA {

/// Aligned to a cache line.
template <class T>
class Buffer {
 public:
  /// Zeroed.
  explicit Buffer(std::int64_t size) : Buffer(new T[size + alignment / sizeof(T)]()) {}
  /// Its contents are undefined: what is not used costs no page.
  static Buffer uninitialised(std::int64_t size) { return Buffer(new T[size + alignment / sizeof(T)]); }
  T* data() const { return data_; }

 private:
  static constexpr std::int64_t alignment = 64;  // bytes

  explicit Buffer(T* storage) : storage_(storage) {
    const std::uintptr_t address = reinterpret_cast<std::uintptr_t>(storage_.get());
    data_ = reinterpret_cast<T*>((address + alignment - 1) / alignment * alignment);
  }

  std::unique_ptr<T[]> storage_;
  T* data_;
};

}  // namespace deqreg::cpu::DEQREG_ISA
