// How a block runs: each of its threads is a fiber with a stack of its own, resumed in turn until all of them wait at a
// barrier or have ended. A thread that reads what another has not yet written - a forgotten barrier - reads poison.
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <vector>

#include "cuda_runtime.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace deqreg::cuda {
alignas(16) thread_local unsigned char dynamic_shared_bytes[163 * 1024];  // what sm_80 lends a block at most
}

namespace emulation {

bool reversed = false;

namespace {

constexpr std::size_t stack_bytes = 64 * 1024;
constexpr std::size_t usual_shared_bytes = 48 * 1024;
constexpr unsigned warp = 32;
constexpr unsigned everyone = 0xffffffffu;

enum class State { ready, at_block_barrier, at_warp_barrier, ended };

struct Fiber {
  ucontext_t context;
  State state;
  std::uint64_t slots[2];  // what this lane brings to an exchange, and what it brought to the one before
  unsigned exchanges;
  std::unique_ptr<unsigned char[]> stack;
};

std::vector<Fiber> fibers;
ucontext_t scheduler;
unsigned current;
const std::function<void()>* running;
cudaError_t last_error = cudaSuccess;
std::map<const void*, std::size_t> allowed_shared_bytes;  // by kernel, where more than usual

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "emulation: %s in block (%u, %u, %u)\n", what, blockIdx.x, blockIdx.y, blockIdx.z);
  std::abort();
}

/// Tells the address sanitizer that the stack changes; it would take another fiber's frames for overflows.
class StackChange {
 public:
  StackChange(const void* stack, std::size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&saved_, stack, bytes);
#else
    (void)stack, (void)bytes;
#endif
  }
  ~StackChange() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(saved_, nullptr, nullptr);
#endif
  }

 private:
  void* saved_ = nullptr;
};

const void* scheduler_stack;
std::size_t scheduler_stack_bytes;

void pause(State state) {
  Fiber& fiber = fibers[current];
  fiber.state = state;
  const StackChange change(scheduler_stack, scheduler_stack_bytes);
  swapcontext(&fiber.context, &scheduler);
}

void enter() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_bytes);
#endif
  (*running)();
  pause(State::ended);
}

void resume(unsigned index) {
  current = index;
  threadIdx = {index, 0, 0};
  const StackChange change(fibers[index].stack.get(), stack_bytes);
  swapcontext(&scheduler, &fibers[index].context);
}

/// Whether any thread of [begin, end) has not ended, and all such are in `state`.
bool all_in(State state, unsigned begin, unsigned end) {
  bool any = false;
  for (unsigned i = begin; i < end; ++i) {
    if (fibers[i].state != State::ended && fibers[i].state != state) return false;
    any = any || fibers[i].state == state;
  }
  return any;
}

bool release(State state, unsigned begin, unsigned end) {
  if (!all_in(state, begin, end)) return false;
  for (unsigned i = begin; i < end; ++i) {
    if (fibers[i].state == State::ended && state == State::at_warp_barrier)
      fail("a lane ended before its warp's barrier");
    if (fibers[i].state == state) fibers[i].state = State::ready;
  }
  return true;
}

void start_fibers(unsigned threads) {
  if (fibers.size() < threads) fibers.resize(threads);
  for (unsigned i = 0; i < threads; ++i) {
    Fiber& fiber = fibers[i];
    if (!fiber.stack) fiber.stack = std::make_unique<unsigned char[]>(stack_bytes);
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = stack_bytes;
    fiber.context.uc_link = nullptr;
    fiber.state = State::ready;
    fiber.exchanges = 0;
    makecontext(&fiber.context, enter, 0);
  }
}

void run_block(unsigned threads, std::size_t shared_bytes) {
  std::memset(deqreg::cuda::dynamic_shared_bytes, 0xff, shared_bytes);
  start_fibers(threads);
  for (bool left = true; left;) {
    bool progress = false;
    left = false;
    for (unsigned k = 0; k < threads; ++k) {
      const unsigned i = reversed ? threads - 1 - k : k;
      if (fibers[i].state == State::ready) {
        resume(i);
        progress = true;
      }
    }
    for (unsigned i = 0; i < threads; ++i) left = left || fibers[i].state != State::ended;
    for (unsigned i = 0; i < threads; i += warp)
      progress = release(State::at_warp_barrier, i, i + warp < threads ? i + warp : threads) || progress;
    progress = release(State::at_block_barrier, 0, threads) || progress;
    if (left && !progress) fail("threads wait for each other at different barriers");
  }
}

}  // namespace

cudaError_t allow_shared_memory(const void* kernel, int bytes) {
  if (bytes < 0 || static_cast<std::size_t>(bytes) > sizeof(deqreg::cuda::dynamic_shared_bytes))
    return last_error = cudaErrorInvalidValue;
  allowed_shared_bytes[kernel] = static_cast<std::size_t>(bytes);
  return cudaSuccess;
}

cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel, const std::function<void()>& body) {
  const dim3 grid = config.gridDim, block = config.blockDim;
  const auto found = allowed_shared_bytes.find(kernel);
  const std::size_t raised = found == allowed_shared_bytes.end() ? 0 : found->second;
  const std::size_t allowed = raised > usual_shared_bytes ? raised : usual_shared_bytes;
  const bool valid = grid.x > 0 && grid.y > 0 && grid.z > 0 && grid.x < (1u << 31) && grid.y < 65536 &&
                     grid.z < 65536 && block.x > 0 && block.x <= 1024 && block.y == 1 && block.z == 1 &&
                     config.dynamicSmemBytes <= allowed;
  if (!valid) return last_error = cudaErrorInvalidConfiguration;
  running = &body;
  blockDim = block;
  gridDim = grid;
  const std::uint64_t count = std::uint64_t{grid.x} * grid.y * grid.z;
  for (std::uint64_t k = 0; k < count; ++k) {
    const std::uint64_t i = reversed ? count - 1 - k : k;
    blockIdx = {static_cast<unsigned>(i % grid.x), static_cast<unsigned>(i / grid.x % grid.y),
                static_cast<unsigned>(i / grid.x / grid.y)};
    run_block(block.x, config.dynamicSmemBytes);
  }
  return cudaSuccess;
}

void synchronize_block() { pause(State::at_block_barrier); }

void synchronize_warp(unsigned mask) {
  if (mask != everyone) fail("a barrier of part of a warp, which is not emulated,");
  pause(State::at_warp_barrier);
}

std::uint64_t exchange(unsigned mask, std::uint64_t bits, unsigned source) {
  Fiber& fiber = fibers[current];
  const unsigned slot = fiber.exchanges++ % 2;  // no lane can be two exchanges ahead of another
  fiber.slots[slot] = bits;
  synchronize_warp(mask);
  return fibers[current / warp * warp + source].slots[slot];
}

unsigned lane() { return current % warp; }

}  // namespace emulation

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}

cudaError_t cudaGetLastError() {
  const cudaError_t error = emulation::last_error;
  emulation::last_error = cudaSuccess;
  return error;
}

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
  }
  return "unknown error";
}

cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }

cudaError_t cudaMalloc(void** pointer, std::size_t bytes) {
  *pointer = std::malloc(bytes);
  return *pointer == nullptr ? cudaErrorMemoryAllocation : cudaSuccess;
}

cudaError_t cudaFree(void* pointer) {
  std::free(pointer);
  return cudaSuccess;
}

cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind, cudaStream_t) {
  return cudaMemcpy(to, from, bytes, kind);
}

cudaError_t cudaMemset(void* pointer, int value, std::size_t bytes) {
  std::memset(pointer, value, bytes);
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* pointer, int value, std::size_t bytes, cudaStream_t) {
  return cudaMemset(pointer, value, bytes);
}
