// Composition with a factor on both fields, which saves scaling and squaring its pass of scaling.
#pragma once

#include "kernels.h"

namespace deqreg::cpu::DEQREG_ISA {

/// out(x) = s inner(x) + s outer(x + s inner(x)).
void compose_scaled(const Compose& op, double scale, const Executor& executor);

}  // namespace deqreg::cpu::DEQREG_ISA
