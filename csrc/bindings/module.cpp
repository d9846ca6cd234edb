// What is no tensor operator: how the library was built, and the choice of instruction set at run time.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "kernels.h"

namespace {

using deqreg::cpu::Isa;

constexpr const char* isa_names[] = {"baseline", "avx2", "avx512"};

std::vector<std::string> instruction_sets(bool (*has)(Isa)) {
  std::vector<std::string> names;
  for (int i = 0; i < 3; ++i)
    if (has(static_cast<Isa>(i))) names.emplace_back(isa_names[i]);
  return names;
}

bool select_by_name(const std::string& name) {
  for (int i = 0; i < 3; ++i)
    if (name == isa_names[i]) return deqreg::cpu::isa_select(static_cast<Isa>(i));
  return false;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
#if defined(DEQREG_WITH_CUDA)
  m.attr("cuda_architectures") = DEQREG_CUDA_ARCHITECTURES;
#else
  m.attr("cuda_architectures") = "";
#endif
  m.attr("anderson_chunk") = deqreg::core::anderson_chunk;
  m.attr("anderson_max_slots") = deqreg::core::anderson_max_slots;
  m.attr("compiler") = DEQREG_COMPILER;
  m.def("instruction_sets_compiled", [] { return instruction_sets(deqreg::cpu::isa_compiled); });
  m.def("instruction_sets_supported", [] { return instruction_sets(deqreg::cpu::isa_supported); });
  m.def("instruction_set", [] { return isa_names[static_cast<int>(deqreg::cpu::isa_selected())]; });
  m.def("select_instruction_set", &select_by_name, pybind11::arg("name"));
}
