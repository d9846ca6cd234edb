// Memory of a thread's own.
#pragma once

#include <cstdint>
#include <memory>

namespace deqreg::cpu::DEQREG_ISA {

/// Zeroed, and aligned to a cache line.
template <class T>
class Buffer {
 public:
  explicit Buffer(std::int64_t size) : storage_(new T[size + alignment / sizeof(T)]()) {
    const std::uintptr_t address = reinterpret_cast<std::uintptr_t>(storage_.get());
    data_ = reinterpret_cast<T*>((address + alignment - 1) / alignment * alignment);
  }
  T* data() const { return data_; }

 private:
  static constexpr std::int64_t alignment = 64;  // bytes
  std::unique_ptr<T[]> storage_;
  T* data_;
};

}  // namespace deqreg::cpu::DEQREG_ISA
