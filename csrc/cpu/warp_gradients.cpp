// Both gradients of warp in one pass over the boxes of splat: a thread that owns where a box begins in the image finds
// the slopes there too. Positions, cells and values are then read once.
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
  const std::int64_t channels = splat.channels, ahead = 4 * splat.out_grid.size[D - 1];
  const BoxedSampling<D, T> boxed(splat);
  const Slopes<D, T> slopes(gradient);
  const auto reaches = find_reaches<padding>(boxed, executor);
  for_shares<T>(splat, 0, channels, executor, [&](Share share) {
    QuadSums<D, T> sums(boxed);
    const std::unique_ptr<SlopeRow<T>> row(new SlopeRow<T>);
    const auto quads = Buffer<T>::uninitialised(4 * boxed.capacity());
    for_boxes_of(boxed, reaches.get(), share, [&](const OutputBox& box, const auto& positions, const Reach& reach) {
      const bool owns = share.holds(reach.low[3 - D]), packs = worth_packing(box, reach);
      const std::int64_t plane = boxed.image_size[0] > 1 ? std::int64_t{4} * reach.rows * reach.row : 0;
      if (!packs) push_box<padding>(splat, boxed, box, share, 0, channels);
      for (std::int64_t c = box.sample * channels; c < (box.sample + 1) * channels; ++c) {
        if (packs) sums.clear(reach);
        if (packs && owns)
          pack_quads(boxed, reach, static_cast<const T*>(gradient.image) + c * boxed.image_voxels, quads.data());
        for (std::int32_t r = 0; r < box.rows(); ++r) {
          const std::int64_t offset = boxed.offset(box, r);
          if (!packs) {
            if (owns) slopes.template store_scattered<padding>(boxed.run(box, r), c, offset);
            continue;
          }
          fill_cells<padding>(boxed, box, positions, reach, r, row->tile);
          sums.add(row->tile, box.extent[2], slopes.values_at(c, offset), ahead, plane);
          if (!owns) continue;
          row->fetch(box.row, quads.data(), plane);
          slopes.store(*row, box.extent[2], c, offset);
        }
        if (packs) sums.unpack(boxed, reach, share, static_cast<T*>(splat.image) + c * boxed.image_voxels);
      }
    });
  });
}

}  // namespace

void launch(const WarpGradients& op, const Executor& executor) {
  const Splat splat{op.dtype,    op.batch,  op.channels, op.image_grid, op.out_grid,
                    op.sampling, op.values, op.by_image, true,          nullptr};
  const WarpGradient gradient{op.dtype,    op.batch, op.channels, op.image_grid, op.out_grid,
                              op.sampling, op.image, op.values,   op.by_position};
  select_types(op, op.image_grid.voxels(), [&](auto dims, auto scalar, auto) {
    using T = decltype(scalar);
    constexpr int D = dims;
    // vectors of channels share their loads in each of the two, and little would be left to share between them
    if (op.out_grid.voxels() == 0 || op.channels == 0 || channels_in_vectors<T>(op.channels) > 0) {
      DEQREG_ISA::launch(splat, executor);
      DEQREG_ISA::launch(gradient, executor);
      return;
    }
    select_padding(op.sampling.padding,
                   [&](auto padding) { gradients_boxes<D, T, padding>(splat, gradient, executor); });
  });
}

}  // namespace deqreg::cpu::DEQREG_ISA
