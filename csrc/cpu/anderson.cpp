// Anderson's step, a chunk of elements at a time. All three parts are bound by memory: a block of the newest residual
// stays in the first-level cache while the ring streams past it.
#include "core/anderson.h"

#include "cpu/isa.h"
#include "cpu/parallel.h"

namespace deqreg::cpu::DEQREG_ISA {
namespace {

using core::anderson_chunk;

constexpr std::int64_t block = 512;  // 4 KiB in double
constexpr std::int64_t lanes = 16;   // independent sums, so that a dot product vectorises; the same for every processor

struct Chunk {
  std::int64_t sample, index, begin, size;
};

std::int64_t chunks_of(std::int64_t elements) { return (elements + anderson_chunk - 1) / anderson_chunk; }

/// Calls visit(chunk, counters) for the chunks of every sample that still runs.
template <class Op, class Visit>
void for_chunks(const Op& op, const Executor& executor, const Visit& visit) {
  const std::int64_t chunks = chunks_of(op.elements);
  parallel_for(executor, op.batch * chunks, 2, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t first = i % chunks * anderson_chunk, rest = op.elements - first;
      const core::AndersonCounters& counters = op.counters[i / chunks];
      if (!core::takes_part(counters, op.slots)) continue;
      visit(Chunk{i / chunks, i % chunks, first, rest < anderson_chunk ? rest : anderson_chunk}, counters);
    }
  });
}

template <class T>
void add_products(const T* a, const T* b, std::int64_t count, double (&sums)[lanes]) {
  std::int64_t i = 0;
  for (; i + lanes <= count; i += lanes)
    for (std::int64_t l = 0; l < lanes; ++l) sums[l] += static_cast<double>(a[i + l]) * static_cast<double>(b[i + l]);
  for (; i < count; ++i) sums[0] += static_cast<double>(a[i]) * static_cast<double>(b[i]);
}

double total(const double (&sums)[lanes]) {
  double sum = 0.0;
  for (double lane : sums) sum += lane;
  return sum;
}

template <class T>
void update_chunk(const AndersonUpdate& op, const Chunk& chunk, const core::AndersonCounters& counters) {
  const std::int64_t offset = chunk.sample * op.elements + chunk.begin, ring = op.batch * op.elements;
  const T* z = static_cast<const T*>(op.z) + offset;
  const T* value = static_cast<const T*>(op.value) + offset;
  T* kept = static_cast<T*>(op.values) + counters.slot * ring + offset;
  T* residuals = static_cast<T*>(op.residuals) + offset;
  T* newest = residuals + counters.slot * ring;
  double sums[core::anderson_max_slots + 1][lanes] = {};
  for (std::int64_t i = 0; i < chunk.size; i += block) {
    const std::int64_t count = chunk.size - i < block ? chunk.size - i : block;
#pragma GCC ivdep
    for (std::int64_t k = i; k < i + count; ++k) {
      kept[k] = value[k];
      newest[k] = value[k] - z[k];
    }
    for (std::int32_t j = 0; j < op.slots; ++j)
      if (j == counters.slot || (counters.valid >> j & 1))
        add_products(newest + i, residuals + j * ring + i, count, sums[j]);
    add_products(value + i, value + i, count, sums[op.slots]);
  }
  double* row = op.partials + (chunk.sample * op.partial_count + op.partial_offset + chunk.index) * (op.slots + 1);
  for (std::int32_t j = 0; j <= op.slots; ++j) row[j] = total(sums[j]);
}

template <class T>
void mix_chunk(const AndersonMix& op, const Chunk& chunk) {
  const std::int64_t offset = chunk.sample * op.elements + chunk.begin, ring = op.batch * op.elements;
  const double back = 1.0 - op.levels[chunk.sample].step;
  T* z = static_cast<T*>(op.z) + offset;
  for (std::int64_t i = 0; i < chunk.size; i += block) {
    const std::int64_t count = chunk.size - i < block ? chunk.size - i : block;
    double sum[block] = {};
    for (std::int32_t j = 0; j < op.slots; ++j) {
      const double weight = op.weights[chunk.sample * op.slots + j];
      if (weight == 0.0) continue;
      const T* value = static_cast<const T*>(op.values) + j * ring + offset + i;
      for (std::int64_t k = 0; k < count; ++k) sum[k] += weight * static_cast<double>(value[k]);
      if (back == 0.0) continue;
      const T* residual = static_cast<const T*>(op.residuals) + j * ring + offset + i;
      for (std::int64_t k = 0; k < count; ++k) sum[k] -= weight * back * static_cast<double>(residual[k]);
    }
    for (std::int64_t k = 0; k < count; ++k) z[i + k] = static_cast<T>(sum[k]);
  }
}

}  // namespace

void launch(const AndersonUpdate& op, const Executor& executor) {
  for_chunks(op, executor, [&](const Chunk& chunk, const core::AndersonCounters& counters) {
    op.dtype == DType::float64 ? update_chunk<double>(op, chunk, counters) : update_chunk<float>(op, chunk, counters);
  });
}

void launch(const AndersonSolve& op, const Executor&) {
  core::AndersonWork work;
  for (std::int64_t n = 0; n < op.batch; ++n) {
    double row[core::anderson_max_slots + 1] = {};
    const double* partials = op.partials + n * op.partial_count * (op.slots + 1);
    for (std::int64_t p = 0; p < op.partial_count; ++p)
      for (std::int32_t j = 0; j <= op.slots; ++j) row[j] += partials[p * (op.slots + 1) + j];
    core::advance_anderson(op.rule, op.slots, row, op.sample(n), work);
  }
}

void launch(const AndersonMix& op, const Executor& executor) {
  for_chunks(op, executor, [&](const Chunk& chunk, const core::AndersonCounters&) {
    op.dtype == DType::float64 ? mix_chunk<double>(op, chunk) : mix_chunk<float>(op, chunk);
  });
}

}  // namespace deqreg::cpu::DEQREG_ISA
