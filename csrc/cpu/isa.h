// Each kernel file is compiled once per instruction set, into the namespace DEQREG_ISA names; dispatch.cpp chooses.
#pragma once

#include "kernels.h"

#if defined(DEQREG_ISA)
namespace deqreg::cpu::DEQREG_ISA {
#define DEQREG_DECLARE(Op) void launch(const Op& op, const Executor& executor);
DEQREG_CPU_OPERATIONS(DEQREG_DECLARE)
#undef DEQREG_DECLARE
}  // namespace deqreg::cpu::DEQREG_ISA
#endif
