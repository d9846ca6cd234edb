// Both gradients of warp in one pass over the boxes of splat: a thread that owns where a box begins in the image finds
// the slopes there too. Cells are then found, and values read, once.
#include <memory>

#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/sampling_box.h"
#include "cpu/sampling_channels.h"
#include "cpu/sampling_slopes.h"
#include "cpu/splat_boxes.h"

namespace deqreg::cpu::DEQREG_ISA {
namespace {

template <int D, class T, Padding padding>
void gradients_boxes(const Splat& splat, const WarpGradient& gradient, const Executor& executor) {
  const std::int64_t channels = splat.channels;
  const BoxedSampling<D, T> boxed(splat);
  const Slopes<D, T> slopes(gradient);
  const auto planes = find_planes<padding>(boxed, executor);
  for_shares<T>(splat, 0, channels, executor, [&](Share share) {
    QuadSums<D, T> sums(boxed);
    const std::unique_ptr<SlopeRow<T>> row(new SlopeRow<T>);
    const auto quads = Buffer<T>::uninitialised(4 * boxed.capacity());
    for_boxes_of<padding>(
        boxed, planes.get(), share, [&](const OutputBox& box, const auto& positions, const Reach& reach) {
          const bool owns = share.holds(reach.low[3 - D]);
          const std::int64_t first = box.sample * channels, last = first + channels;
          if (!worth_packing(box, reach)) {
            push_box<padding>(splat, boxed, box, share, 0, channels);
            for (std::int64_t c = first; owns && c < last; ++c)
              for (std::int32_t r = 0; r < box.rows(); ++r)
                slopes.template store_scattered<padding>(boxed.run(box, r), c, boxed.offset(box, r));
            return;
          }
          const std::int64_t plane = boxed.image_size[0] > 1 ? std::int64_t{4} * reach.rows * reach.row : 0;
          for (std::int64_t c = first; c < last; ++c) {
            if (owns)
              pack_quads(boxed, reach, static_cast<const T*>(gradient.image) + c * boxed.image_voxels, quads.data());
            for (std::int32_t r = 0; r < box.rows(); ++r) {
              const std::int64_t offset = boxed.offset(box, r);
              fill_cells<padding>(boxed, box, positions, reach, r, row->tile);
              const auto add = [&](const auto& visit) {
                sums.add(row->tile, box.extent[2], slopes.values_at(c, offset), slopes.rows_ahead, plane, visit);
              };
              if (!owns) {
                add([](auto, auto, T, T) {});
                continue;
              }
              // one loop over the cells for both: a twentieth less than one after the other
              add([cells = row.get(), packed = quads.data(), plane](auto j, auto cell, T lower, T upper) {
                cells->fetch_cell(j, packed + cell, plane, lower, upper);
              });
              slopes.store(*row, box.extent[2], c, offset);
            }
            sums.unpack(boxed, reach, share, static_cast<T*>(splat.image) + c * boxed.image_voxels);
          }
        });
  });
}

}  // namespace

void launch(const WarpGradients& op, const Executor& executor) {
  const Splat& splat = op.by_image;
  select_types(splat, splat.image_grid.voxels(), [&](auto dims, auto scalar, auto) {
    using T = decltype(scalar);
    constexpr int D = dims;
    // vectors of channels share their loads in each of the two, and little would be left to share between them
    if (splat.channels == 0 || channels_in_vectors<T>(splat.channels) > 0) {
      DEQREG_ISA::launch(splat, executor);
      DEQREG_ISA::launch(op.by_position, executor);
      return;
    }
    select_padding(splat.sampling.padding,
                   [&](auto padding) { gradients_boxes<D, T, padding>(splat, op.by_position, executor); });
  });
}

}  // namespace deqreg::cpu::DEQREG_ISA
