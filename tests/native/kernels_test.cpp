// The CPU kernels on their own: exact where they must be, adjoint to each other, the same bits at any thread count, and
// the same to rounding with any instruction set.
#include "compare.h"

namespace native {
namespace {

using deqreg::cpu::Isa;

double dot(const Values& a, const Values& b) {
  double sum = 0.0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

void identity_is_exact(Report& report) {
  Cpu cpu(1);
  Random random;
  const Grid grid = grid3(9, 8, 70);
  const Values image = random.normal(grid.voxels());
  const void* stored = cpu.input(image, DType::float32);
  const void* zero = cpu.input(Values(static_cast<std::size_t>(3 * grid.voxels())), DType::float32);
  void* out = cpu.output(image.size(), DType::float32);
  const Sampling sampling{zero, nullptr, Interpolation::linear, Padding::border};
  cpu.launch(deqreg::Warp{DType::float32, 1, 1, grid, grid, sampling, stored, out});
  report.expect(same_bits(cpu.read(out, image.size(), DType::float32), cpu.read(stored, image.size(), DType::float32)),
                "warp", "the identity changes the image");
}

/// <splat(v), i> = <v, warp(i)>.
void splat_is_adjoint_to_warp(const Setting& s, Report& report) {
  Cpu cpu(1);
  Random random;
  const std::int64_t planes = s.batch * s.channels;
  const Values image = random.normal(planes * s.image.voxels()), values = random.normal(planes * s.out.voxels());
  const Sampling where = sampling(cpu, s, random);
  void* warped = cpu.output(values.size(), s.dtype);
  void* pushed = cpu.output(image.size(), s.dtype);
  cpu.launch(deqreg::Warp{s.dtype, s.batch, s.channels, s.image, s.out, where, cpu.input(image, s.dtype), warped});
  cpu.launch(deqreg::Splat{s.dtype, s.batch, s.channels, s.image, s.out, where, cpu.input(values, s.dtype), pushed,
                           false, nullptr});
  const double left = dot(cpu.read(pushed, image.size(), s.dtype), image);
  const double right = dot(values, cpu.read(warped, values.size(), s.dtype));
  const double scale = std::sqrt(dot(values, values) * dot(image, image));
  report.expect(std::fabs(left - right) < 1e-14 * scale, "splat " + s.text(), "not the adjoint of warp");
}

void threads_and_instruction_sets_agree(const Case<Cpu>& test, Report& report) {
  const std::string name = test.name + " " + test.setting.text();
  Outputs first;
  for (Isa isa : {Isa::baseline, Isa::avx2, Isa::avx512}) {
    if (!deqreg::cpu::isa_select(isa)) continue;
    Cpu one(1);
    const Outputs result = test.run(one, test.setting);
    for (int threads : {2, 4}) {
      Cpu several(threads);
      report.expect(same_bits(test.run(several, test.setting), result), name, "the thread count changes the result");
    }
    if (first.empty()) first = result;
    report.expect(close(result, first, order_tolerance(test.setting.dtype)), name, "instruction sets disagree");
  }
}

int run() {
  Report report;
  identity_is_exact(report);
  for (const Setting& s : sampling_settings())
    if (s.dtype == DType::float64) splat_is_adjoint_to_warp(s, report);
  for (const Case<Cpu>& test : all_cases<Cpu>())
    if (test.setting.dtype == DType::float32 || test.setting.dtype == DType::float64)
      threads_and_instruction_sets_agree(test, report);
  return report.finish();
}

}  // namespace
}  // namespace native

int main() { return native::run(); }
