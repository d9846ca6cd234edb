// The gradients of a correlation and of what takes its values, all from one pass over the output voxels. Every voxel
// spreads its gradient over the corners of its window by the adjoint of the blend, axis by axis, and then
//
//   grad_fixed(x)         = sum over corners of that times moving,
//   grad_moving(corner)  += that times fixed(x),
//   grad_displacement(x)  = for each axis the half-spread gradient times differences of half-blended dot products.
//
// grad_moving is summed in packed boxes, several at a time, which are added to the image in the order of the boxes: the
// same bits at any number of threads.
//
// A source says what the gradient of the correlation's values is, and may want the values too, box by box:
// read(sample, run, to) writes it to array [shift][run], wants_values(), add(run, values), and finish_box() in the
// order of the boxes.
#pragma once

#include <initializer_list>
#include <vector>

#include "cpu/correlation_box.h"
#include "cpu/parallel.h"

namespace deqreg::cpu::DEQREG_ISA {

/// One box at work, and its memory.
template <int lanes, class T, class Source>
struct Work {
  Source source;
  PackedBox<T> packed;
  std::unique_ptr<T[]> moving, fixed, grad_moving;    // packed boxes
  std::unique_ptr<T[]> grad;                          // [corner][run], as are the next four: where it is a shift
  std::unique_ptr<T[]> spread_x, spread_y, spread_z;  // grad spread along one, two and three axes
  std::unique_ptr<T[]> dots;
  std::unique_ptr<T[]> weights;  // spread_z as [line][run][lane]
  std::unique_ptr<T[]> sums;     // [run][channel][lane]
  Cells<T> cells;
  Run run;

  Work(Source own, const Windows<T>& windows, std::int32_t slack, bool need_moving) : source(std::move(own)) {
    const std::int64_t box = Boxes<T>::capacity(windows, slack), corners = windows.corner_count() * run_voxels;
    moving.reset(new T[box]);
    fixed.reset(new T[Boxes<T>::fixed_capacity(windows)]);
    if (need_moving) grad_moving.reset(new T[box]);
    for (auto* array : {&grad, &spread_x, &spread_y, &spread_z, &dots}) array->reset(new T[corners]);
    weights.reset(new T[windows.line_count() * run_voxels * lanes]);
    sums.reset(new T[windows.channels * run_voxels * lanes]);
    packed.moving = moving.get();
    packed.fixed = fixed.get();
  }
};

/// [lane][run] to [run][lane], zeros in the lanes that are no corners: the reverse of transpose_line.
template <int lanes, class T>
DEQREG_INLINE void gather_line(const T* from, std::int32_t corners, T* to) {
  alignas(64) T all[lanes * run_voxels];
  for (std::int32_t i = 0; i < lanes * run_voxels; ++i) all[i] = i < corners * run_voxels ? from[i] : T(0);
#pragma GCC ivdep
  for (std::int32_t j = 0; j < run_voxels; ++j)
#pragma GCC unroll 16
    for (int l = 0; l < lanes; ++l) to[j * lanes + l] = all[l * run_voxels + j];
}

/// Spreads along one axis: a corner collects from the shift of its own number and from the one below, where there is
/// one. `counts` are the corners to fill along each axis.
template <class T>
void spread(const Windows<T>& windows, const Cells<T>& cells, int axis, const std::int32_t (&counts)[3], const T* from,
            T* to) {
  const std::int64_t step = windows.corner_step(axis);
  const T* weight = cells.upper[axis];
  for (std::int32_t z = 0; z < counts[0]; ++z)
    for (std::int32_t y = 0; y < counts[1]; ++y)
      for (std::int32_t x = 0; x < counts[2]; ++x) {
        const std::int32_t corner = axis == 0 ? z : axis == 1 ? y : x;
        const std::int64_t at = z * windows.corner_step(0) + y * windows.corner_step(1) + x * windows.corner_step(2);
        const T *here = from + at, *below = here - step;
        if (corner == 0)
          for (std::int32_t j = 0; j < run_voxels; ++j) to[at + j] = here[j] - weight[j] * here[j];
        else if (corner == windows.shifts[axis])
          for (std::int32_t j = 0; j < run_voxels; ++j) to[at + j] = weight[j] * below[j];
        else
          blend(here, below, weight, to + at);
      }
}

/// Spreads the run's gradient over the corners of its windows.
template <int lanes, class T, class Source>
void spread_grad(const Windows<T>& windows, Work<lanes, T, Source>& work) {
  const std::int32_t *shifts = windows.shifts, *corners = windows.corners;
  work.source.read(work.packed.box.sample, work.run, work.grad.get());
  spread(windows, work.cells, 2, {shifts[0], shifts[1], corners[2]}, work.grad.get(), work.spread_x.get());
  spread(windows, work.cells, 1, {shifts[0], corners[1], corners[2]}, work.spread_x.get(), work.spread_y.get());
  spread(windows, work.cells, 0, {corners[0], corners[1], corners[2]}, work.spread_y.get(), work.spread_z.get());
  for (std::int64_t line = 0; line < windows.line_count(); ++line)
    gather_line<lanes>(work.spread_z.get() + line * corners[2] * run_voxels, corners[2],
                       work.weights.get() + line * run_voxels * lanes);
}

/// sums[c] += the spread gradient of one voxel on `lines` neighbouring lines times moving.
template <int lines, int lanes, class T>
__attribute__((noinline)) void add_fixed(const T* weights, const T* corner, const Packing& packing,
                                         std::int64_t channels, T* sums) {
  using V = Vector<T, lanes>;
  typename V::Aligned weight[lines];
  for (int g = 0; g < lines; ++g)
    weight[g] = *reinterpret_cast<const typename V::Loose*>(weights + g * (run_voxels * lanes));
  const std::int64_t line = packing.line, row = packing.row;
  for (std::int64_t c = 0; c < channels; ++c) {
    typename V::Aligned sum = *reinterpret_cast<const typename V::Loose*>(sums);
    for (int g = 0; g < lines; ++g) sum += weight[g] * *reinterpret_cast<const typename V::Loose*>(corner + g * line);
    *reinterpret_cast<typename V::Loose*>(sums) = sum;
    corner += row;
    sums += lanes;
  }
}

/// corner[c] += the spread gradient of one voxel on `lines` neighbouring lines times fixed.
template <int lines, int lanes, class T>
__attribute__((noinline)) void add_moving(const T* weights, const T* fixed, std::int64_t fixed_row,
                                          const Packing& packing, std::int64_t channels, T* corner) {
  using V = Vector<T, lanes>;
  typename V::Aligned weight[lines];
  for (int g = 0; g < lines; ++g)
    weight[g] = *reinterpret_cast<const typename V::Loose*>(weights + g * (run_voxels * lanes));
  const std::int64_t line = packing.line, row = packing.row;
  for (std::int64_t c = 0; c < channels; ++c) {
    const T value = *fixed;
    for (int g = 0; g < lines; ++g) {
      auto* const at = reinterpret_cast<typename V::Loose*>(corner + g * line);
      *at = *at + value * weight[g];
    }
    corner += row;
    fixed += fixed_row;
  }
}

/// Calls body(integral_constant<int, lines>, spread gradient, offset of the corner in the packed box, j) for groups of
/// neighbouring lines of the run's windows, so ordered that what a group reads stays in the nearest cache.
template <int lanes, class T, class Source, class Body>
DEQREG_INLINE void for_lines(const Windows<T>& windows, const Work<lanes, T, Source>& work, const Body& body) {
  const T* weights = work.weights.get();
  for (std::int32_t z = 0; z < windows.corners[0]; ++z)
    for_groups(windows.corners[1], [&](auto lines, std::int32_t y) {
      const std::int64_t corner = z * work.packed.packing.plane + y * work.packed.packing.line;
      for (std::int32_t j = 0; j < work.run.count; ++j)
        body(lines, weights + j * lanes, corner + work.cells.offset[j], j);
      weights += lines * run_voxels * lanes;
    });
}

template <int lanes, class T, class Source>
void write_grad_fixed(const Windows<T>& windows, Work<lanes, T, Source>& work, T* out) {
  const std::int64_t channels = windows.channels;
  T* const sums = work.sums.get();
  for (std::int64_t i = 0; i < run_voxels * channels * lanes; ++i) sums[i] = T(0);
  for_lines(windows, work, [&](auto lines, const T* weights, std::int64_t corner, std::int32_t j) {
    add_fixed<lines, lanes>(weights, work.packed.moving + corner, work.packed.packing, channels,
                            sums + j * channels * lanes);
  });
  for (std::int64_t c = 0; c < channels; ++c)
    for (std::int32_t j = 0; j < work.run.count; ++j) {
      const T* of_voxel = sums + (j * channels + c) * lanes;
      T sum = T(0);
      for (std::int32_t l = 0; l < windows.corners[2]; ++l) sum += of_voxel[l];
      out[c * windows.voxels + work.run.offset + j] = windows.scale * sum;
    }
}

/// The gradient along one axis: sums the spread gradient times the slope of the dot products, which it then blends.
/// `out` may be null. `counts` are the corners along each axis that have both.
template <class T>
void slope_and_blend(const Windows<T>& windows, const Cells<T>& cells, const Run& run, int axis,
                     const std::int32_t (&counts)[3], const T* grad, T* dots, T* out) {
  const std::int64_t step = windows.corner_step(axis);
  alignas(64) T sums[run_voxels] = {};
  for_corners(windows, counts[0], counts[1], counts[2], [&](std::int64_t at) {
    T* lower = dots + at;
    for (std::int32_t j = 0; j < run_voxels; ++j) sums[j] += grad[at + j] * (lower[step + j] - lower[j]);
    blend(lower, lower + step, cells.upper[axis], lower);
  });
  if (out == nullptr) return;
  for (std::int32_t j = 0; j < run.count; ++j) out[run.offset + j] = sums[j];
}

/// The run's values, and on the way there its gradient by the displacement, `out`, where that is not null.
template <int lanes, class T, class Source>
void differentiate_values(const Windows<T>& windows, Work<lanes, T, Source>& work, std::int32_t dims, T* out) {
  const std::int32_t *shifts = windows.shifts, *corners = windows.corners;
  T* const dots = work.dots.get();
  dot_corners<lanes>(windows, work.packed, work.run, work.cells, dots);
  if (windows.displacement[2] != nullptr) {
    const auto component = [&](int axis) { return out == nullptr ? nullptr : out + axis * windows.voxels; };
    if (dims == 3)
      slope_and_blend(windows, work.cells, work.run, 0, {shifts[0], corners[1], corners[2]}, work.spread_y.get(), dots,
                      component(0));
    slope_and_blend(windows, work.cells, work.run, 1, {shifts[0], shifts[1], corners[2]}, work.spread_x.get(), dots,
                    component(dims - 2));
    slope_and_blend(windows, work.cells, work.run, 2, {shifts[0], shifts[1], shifts[2]}, work.grad.get(), dots,
                    component(dims - 1));
  }
  if (work.source.wants_values()) work.source.add(work.run, dots);
}

/// Everything that one box contributes, grad_moving into its packed box.
template <int lanes, class T, class Source, class Op>
void differentiate_box(const Op& op, const Windows<T>& windows, std::int32_t slack, Work<lanes, T, Source>& work) {
  const Box& box = work.packed.box;
  const std::int64_t features = box.sample * windows.channels * windows.voxels;
  T* const by_displacement = static_cast<T*>(op.grad_displacement);
  pack_features(op, windows, slack, work.packed);
  if (op.grad_moving != nullptr)
    for (std::int64_t i = 0; i < work.packed.packing.elements; ++i) work.grad_moving[i] = T(0);
  for_runs(windows, box, [&](const Run& run) {
    work.run = run;
    fill_cells(windows, box, work.packed.packing, run, work.cells);
    spread_grad(windows, work);
    if (op.grad_fixed != nullptr) write_grad_fixed(windows, work, static_cast<T*>(op.grad_fixed) + features);
    if (op.grad_moving != nullptr)
      for_lines(windows, work, [&](auto lines, const T* weights, std::int64_t corner, std::int32_t j) {
        add_moving<lines, lanes>(weights, work.packed.fixed_at(run) + j, work.packed.fixed_packing.row,
                                 work.packed.packing, windows.channels, work.grad_moving.get() + corner);
      });
    if (by_displacement != nullptr || work.source.wants_values())
      differentiate_values(
          windows, work, op.grid.dims,
          by_displacement == nullptr ? nullptr : by_displacement + box.sample * windows.displacement_sample);
  });
}

/// image += a packed box, in channels [begin, end): the adjoint of pack.
template <class T>
void unpack_add(const Windows<T>& windows, const Box& box, const Packing& packing, const T* packed, std::int64_t begin,
                std::int64_t end, T* image) {
  const std::int32_t width = windows.size[2], extent = box.extent[2];
  const std::int32_t inside = core::clamp(-box.low[2], 0, extent);
  const std::int32_t outside = core::clamp(width - box.low[2], inside, extent);
  for (std::int64_t c = begin; c < end; ++c)
    for (std::int32_t z = 0; z < box.extent[0]; ++z)
      for (std::int32_t y = 0; y < box.extent[1]; ++y) {
        const T* from = packed + z * packing.plane + y * packing.line + c * packing.row;
        T* to = image + (box.sample * windows.channels + c) * windows.voxels +
                windows.offset(core::nearest_inside(box.low[0] + z, windows.size[0]),
                               core::nearest_inside(box.low[1] + y, windows.size[1]), 0);
        for (std::int32_t x = 0; x < inside; ++x) to[0] += from[x];
        for (std::int32_t x = inside; x < outside; ++x) to[box.low[2] + x] += from[x];
        for (std::int32_t x = outside; x < extent; ++x) to[width - 1] += from[x];
      }
}

template <int lanes, class T, class Op, class MakeSource>
void differentiate(const Op& op, const Executor& executor, const MakeSource& make_source) {
  const Windows<T> windows(op);
  const std::int32_t slack = lanes - windows.corners[2];
  T* const grad_moving = static_cast<T*>(op.grad_moving);
  const std::int64_t wave = 2 * executor.threads;
  std::vector<Work<lanes, T, decltype(make_source(windows))>> works;
  works.reserve(wave);
  for (std::int64_t i = 0; i < wave; ++i)
    works.emplace_back(make_source(windows), windows, slack, grad_moving != nullptr);
  if (grad_moving != nullptr)
    parallel_for(executor, op.batch * op.channels, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin * windows.voxels; i < end * windows.voxels; ++i) grad_moving[i] = T(0);
    });
  Boxes<T> boxes(windows, slack, 0, Boxes<T>::tiles(windows));
  for (std::int64_t count = wave; count == wave;) {
    for (count = 0; count < wave && boxes.next(works[count].packed.box);) ++count;
    parallel_for(executor, count, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) differentiate_box(op, windows, slack, works[i]);
    });
    for (std::int64_t i = 0; i < count; ++i) works[i].source.finish_box();
    if (grad_moving != nullptr)
      parallel_for(executor, op.channels, 1, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = 0; i < count; ++i)
          unpack_add(windows, works[i].packed.box, works[i].packed.packing, works[i].grad_moving.get(), begin, end,
                     grad_moving);
      });
  }
}

}  // namespace deqreg::cpu::DEQREG_ISA
