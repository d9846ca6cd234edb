// Composition with a factor on both fields, which saves scaling and squaring its pass of scaling.
#pragma once

#include "cuda/launch.h"

namespace deqreg::cuda {

/// out(x) = s inner(x) + s outer(x + s inner(x)).
void compose_scaled(const Compose& op, double scale, cudaStream_t stream);

}  // namespace deqreg::cuda
