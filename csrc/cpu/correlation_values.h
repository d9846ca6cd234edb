// The values of a correlation, a run of voxels at a time, handed to whoever stores or uses them. With a displacement a
// window's line of corners is a vector and the voxels follow one another; without one neighbouring voxels have
// neighbouring windows, and a run of voxels is the vector.
//
// A sink is what takes them: start(sample, run), then take(values) for every shift in order, values of run_voxels of
// which the first run.count count, then finish().
#pragma once

#include "cpu/correlation_box.h"
#include "cpu/parallel.h"

namespace deqreg::cpu::DEQREG_ISA {

/// Blends the corner dot products of a run, axis by axis, and hands over its voxels at every shift.
template <class T, class Sink>
void blend_corners(const Windows<T>& windows, const Cells<T>& cells, T* dots, Sink& sink) {
  const std::int32_t *shifts = windows.shifts, *corners = windows.corners;
  if (corners[0] > shifts[0])
    for_corners(windows, shifts[0], corners[1], corners[2], [&](std::int64_t at) {
      blend(dots + at, dots + at + windows.corner_step(0), cells.upper[0], dots + at);
    });
  for_corners(windows, shifts[0], shifts[1], corners[2], [&](std::int64_t at) {
    blend(dots + at, dots + at + windows.corner_step(1), cells.upper[1], dots + at);
  });
  for_corners(windows, shifts[0], shifts[1], shifts[2], [&](std::int64_t at) {
    alignas(64) T values[run_voxels];
    blend(dots + at, dots + at + run_voxels, cells.upper[2], values);
    sink.take(values);
  });
}

template <int lanes, class T, class Op, class MakeSink>
void correlate_displaced(const Op& op, const Executor& executor, const MakeSink& make_sink) {
  const Windows<T> windows(op);
  const std::int32_t slack = lanes - windows.corners[2];
  parallel_for(executor, Boxes<T>::tiles(windows), 1, [&](std::int64_t begin, std::int64_t end) {
    const std::unique_ptr<T[]> moving(new T[Boxes<T>::capacity(windows, slack)]);
    const std::unique_ptr<T[]> fixed(new T[Boxes<T>::fixed_capacity(windows)]);
    const std::unique_ptr<T[]> dots(new T[windows.corner_count() * run_voxels]);
    PackedBox<T> packed{moving.get(), fixed.get(), {}, {}, {}};
    Cells<T> cells;
    auto sink = make_sink(windows);
    for (Boxes<T> boxes(windows, slack, begin, end); boxes.next(packed.box);) {
      pack_features(op, windows, slack, packed);
      for_runs(windows, packed.box, [&](const Run& run) {
        fill_cells(windows, packed.box, packed.packing, run, cells);
        dot_corners<lanes>(windows, packed, run, cells, dots.get());
        sink.start(packed.box.sample, run);
        blend_corners(windows, cells, dots.get(), sink);
        sink.finish();
      });
    }
  });
}

/// Lines of a window that are correlated together: their sums fill the registers, and wait less for one another.
template <int shifts>
constexpr int lines_together = shifts == 3 ? 3 : 1;

/// out[y][x][j] = <fixed(j), moving(j + x)> for the shifts x along neighbouring lines y of a run's windows, `line`
/// apart. Not inlined: the registers are all for the sums.
template <int shifts, class T>
__attribute__((noinline)) void correlate_lines(const T* moving, std::int64_t row, std::int64_t line, const T* fixed,
                                               std::int64_t fixed_row, std::int64_t channels, T* out) {
  constexpr int wide = vector_bytes < 32 ? 32 / sizeof(T) : vector_bytes / sizeof(T), lines = lines_together<shifts>;
  using V = Vector<T, wide>;
  for (int j = 0; j < run_voxels; j += wide) {
    typename V::Aligned sum[lines][shifts];
    for (int y = 0; y < lines; ++y)
      for (int x = 0; x < shifts; ++x) sum[y][x] = typename V::Aligned{};
    const T *from = moving + j, *by = fixed + j;
    for (std::int64_t c = 0; c < channels; ++c) {
      const typename V::Aligned value = *reinterpret_cast<const typename V::Loose*>(by);
      for (int y = 0; y < lines; ++y)
        for (int x = 0; x < shifts; ++x)
          sum[y][x] += value * *reinterpret_cast<const typename V::Loose*>(from + y * line + x);
      from += row;
      by += fixed_row;
    }
    for (int y = 0; y < lines; ++y)
      for (int x = 0; x < shifts; ++x)
        *reinterpret_cast<typename V::Loose*>(out + (y * shifts + x) * run_voxels + j) = sum[y][x];
  }
}

template <int shifts, class T, class Op, class MakeSink>
void correlate_in_place(const Op& op, const Executor& executor, const MakeSink& make_sink) {
  const Windows<T> windows(op);
  parallel_for(executor, Boxes<T>::tiles(windows), 1, [&](std::int64_t begin, std::int64_t end) {
    const std::unique_ptr<T[]> moving(new T[Boxes<T>::capacity(windows, run_voxels)]);
    const std::unique_ptr<T[]> fixed(new T[Boxes<T>::fixed_capacity(windows)]);
    PackedBox<T> packed{moving.get(), fixed.get(), {}, {}, {}};
    constexpr int lines = lines_together<shifts>;
    T values[lines * shifts * run_voxels];
    auto sink = make_sink(windows);
    for (Boxes<T> boxes(windows, run_voxels, begin, end); boxes.next(packed.box);) {
      pack_features(op, windows, beyond(packed.box), packed);
      const Packing& packing = packed.packing;
      for_runs(windows, packed.box, [&](const Run& run) {
        const T* corner = packed.moving + (run.z - packed.box.begin[0]) * packing.plane +
                          (run.y - packed.box.begin[1]) * packing.line + (run.x - packed.box.begin[2]);
        sink.start(packed.box.sample, run);
        for (std::int32_t z = 0; z < windows.shifts[0]; ++z)
          for (std::int32_t y = 0; y < windows.shifts[1]; y += lines) {
            correlate_lines<shifts>(corner + z * packing.plane + y * packing.line, packing.row, packing.line,
                                    packed.fixed_at(run), packed.fixed_packing.row, windows.channels, values);
            for (int i = 0; i < lines * shifts; ++i) sink.take(values + i * run_voxels);
          }
        sink.finish();
      });
    }
  });
}

/// Correlates in the type T; make_sink(windows) gives each thread a sink of its own.
template <class T, class Op, class MakeSink>
void correlate(const Op& op, const Executor& executor, const MakeSink& make_sink) {
  if (op.displacement != nullptr)
    return select_lanes<T>(op, [&](auto lanes) { correlate_displaced<lanes, T>(op, executor, make_sink); });
  switch (op.radius) {
    case 0: return correlate_in_place<1, T>(op, executor, make_sink);
    case 1: return correlate_in_place<3, T>(op, executor, make_sink);
    case 2: return correlate_in_place<5, T>(op, executor, make_sink);
    case 3: return correlate_in_place<7, T>(op, executor, make_sink);
    default: return correlate_in_place<9, T>(op, executor, make_sink);
  }
}

}  // namespace deqreg::cpu::DEQREG_ISA
