// One operation on made-up input, a function each: run on any backend, it returns every output.
#pragma once

#include <random>
#include <string>
#include <utility>
#include <vector>

#include "backend.h"

namespace native {

using deqreg::Grid;
using deqreg::Interpolation;
using deqreg::Padding;
using deqreg::Sampling;

/// What an operation is run with; a case reads what concerns it.
struct Setting {
  DType dtype = DType::float32;
  Grid image{3, {7, 9, 37}}, out{3, {6, 5, 41}};
  std::int64_t batch = 2, channels = 3;
  Padding padding = Padding::border;
  Interpolation interpolation = Interpolation::linear;
  bool affine = false, deterministic = false;
  std::int32_t radius = 1;    // of correlation
  double displacement = 3.0;  // voxels; three of them leave these small images on every side

  std::string text() const {
    const char* const dtypes[] = {"float32", "float64", "float16", "bfloat16"};
    std::string words = dtypes[static_cast<int>(dtype)];
    for (const Grid& grid : {image, out}) {
      words += ' ';
      for (int a = 0; a < grid.dims; ++a) words += (a > 0 ? "x" : "") + std::to_string(grid.size[a]);
    }
    if (radius != 1) words += " radius " + std::to_string(radius);
    if (padding == Padding::zeros) words += " zeros";
    if (interpolation == Interpolation::nearest) words += " nearest";
    if (affine) words += " affine";
    if (displacement < 1.0) words += " smooth";
    if (deterministic) words += " deterministic";
    return words;
  }
};

/// Normally distributed values, the same in every run and on every platform's generator.
class Random {
 public:
  Values normal(std::int64_t count, double scale = 1.0) {
    Values values(static_cast<std::size_t>(count));
    for (double& value : values) {
      value = -6.0;
      for (int k = 0; k < 12; ++k) value += static_cast<double>(engine_()) / 4294967296.0;
      value *= scale;
    }
    return values;
  }

  /// [A | t] near the identity, for each sample.
  Values affine(std::int64_t batch, int dims) {
    Values values = normal(batch * dims * (dims + 1), 0.1);
    for (std::int64_t n = 0; n < batch; ++n)
      for (int a = 0; a < dims; ++a) values[static_cast<std::size_t>((n * dims + a) * (dims + 1) + a)] += 1.0;
    return values;
  }

 private:
  std::mt19937 engine_{5};
};

template <class Backend>
Sampling sampling(Backend& on, const Setting& s, Random& random) {
  const DType dtype = coordinates_of(s.dtype);
  const int dims = s.image.dims;
  const void* displacement = on.input(random.normal(s.batch * dims * s.out.voxels(), s.displacement), dtype);
  const void* affine = s.affine ? on.input(random.affine(s.batch, dims), dtype) : nullptr;
  return {displacement, affine, s.interpolation, s.padding};
}

template <class Backend>
Outputs warp(Backend& on, const Setting& s) {
  Random random;
  const std::int64_t planes = s.batch * s.channels;
  const auto count = static_cast<std::size_t>(planes * s.out.voxels());
  const void* image = on.input(random.normal(planes * s.image.voxels()), s.dtype);
  void* out = on.output(count, s.dtype);
  on.launch(deqreg::Warp{on.stored(s.dtype), s.batch, s.channels, s.image, s.out, sampling(on, s, random), image, out});
  return {on.read(out, count, s.dtype)};
}

template <class Backend>
Outputs splat(Backend& on, const Setting& s) {
  Random random;
  const std::int64_t planes = s.batch * s.channels;
  const auto count = static_cast<std::size_t>(planes * s.image.voxels());
  const void* values = on.input(random.normal(planes * s.out.voxels()), s.dtype);
  void* image = on.output(count, s.dtype);
  deqreg::Splat op{on.stored(s.dtype),      s.batch, s.channels, s.image,         s.out,
                   sampling(on, s, random), values,  image,      s.deterministic, nullptr};
  op.workspace = on.workspace(op);
  on.launch(op);
  return {on.read(image, count, s.dtype)};
}

template <class Backend>
Outputs warp_gradient(Backend& on, const Setting& s) {
  Random random;
  const std::int64_t planes = s.batch * s.channels;
  const auto count = static_cast<std::size_t>(s.batch * s.image.dims * s.out.voxels());
  const void* image = on.input(random.normal(planes * s.image.voxels()), s.dtype);
  const void* values = on.input(random.normal(planes * s.out.voxels()), s.dtype);
  void* out = on.output(count, coordinates_of(s.dtype));
  on.launch(deqreg::WarpGradient{on.stored(s.dtype), s.batch, s.channels, s.image, s.out, sampling(on, s, random),
                                 image, values, out});
  return {on.read(out, count, coordinates_of(s.dtype))};
}

template <class Backend>
Outputs compose(Backend& on, const Setting& s) {
  Random random;
  const int dims = s.image.dims;
  const auto count = static_cast<std::size_t>(s.batch * dims * s.out.voxels());
  const void* outer = on.input(random.normal(s.batch * dims * s.image.voxels(), 2.0), s.dtype);
  const void* inner = on.input(random.normal(s.batch * dims * s.out.voxels(), 2.0), s.dtype);
  void* out = on.output(count, s.dtype);
  on.launch(deqreg::Compose{s.dtype, s.batch, s.image, s.out, outer, inner, out});
  return {on.read(out, count, s.dtype)};
}

template <int steps, class Backend>
Outputs exponential(Backend& on, const Setting& s) {
  Random random;
  const auto count = static_cast<std::size_t>(s.batch * s.image.dims * s.image.voxels());
  const void* velocity = on.input(random.normal(static_cast<std::int64_t>(count)), s.dtype);
  void* out = on.output(count, s.dtype);
  on.launch(deqreg::Exponential{s.dtype, s.batch, steps, s.image, velocity, out, on.output(count, s.dtype)});
  return {on.read(out, count, s.dtype)};
}

/// Sigmas that take one, two and three passes, and a radius beyond a short axis.
template <int sigmas, class Backend>
Outputs gaussian(Backend& on, const Setting& s) {
  constexpr double sigma[4][3] = {{0.0, 0.0, 0.0}, {0.0, 1.5, 0.0}, {4.0, 0.5, 0.0}, {0.7, 1.0, 12.0}};
  Random random;
  const auto count = static_cast<std::size_t>(s.batch * s.channels * s.image.voxels());
  const void* image = on.input(random.normal(static_cast<std::int64_t>(count)), s.dtype);
  void* out = on.output(count, s.dtype);
  deqreg::Gaussian op{on.stored(s.dtype), s.batch, s.channels, s.image, {}, image, out, on.output(count, s.dtype)};
  for (int a = 0; a < s.image.dims; ++a) op.sigma[a] = sigma[sigmas][a];
  on.launch(op);
  return {on.read(out, count, s.dtype)};
}

template <class Backend>
Outputs resize(Backend& on, const Setting& s) {
  Random random;
  const auto count = static_cast<std::size_t>(s.batch * s.channels * s.out.voxels());
  const void* image = on.input(random.normal(s.batch * s.channels * s.image.voxels()), s.dtype);
  void* out = on.output(count, s.dtype);
  on.launch(deqreg::Resize{on.stored(s.dtype), s.batch, s.channels, s.image, s.out, image, out});
  return {on.read(out, count, s.dtype)};
}

template <class Backend>
Outputs resize_adjoint(Backend& on, const Setting& s) {
  Random random;
  const auto count = static_cast<std::size_t>(s.batch * s.channels * s.image.voxels());
  const void* grad = on.input(random.normal(s.batch * s.channels * s.out.voxels()), s.dtype);
  void* out = on.output(count, s.dtype);
  on.launch(deqreg::ResizeAdjoint{on.stored(s.dtype), s.batch, s.channels, s.image, s.out, grad, out});
  return {on.read(out, count, s.dtype)};
}

template <class Backend>
Outputs jacobian_determinant(Backend& on, const Setting& s) {
  Random random;
  const auto count = static_cast<std::size_t>(s.batch * s.image.voxels());
  const void* field = on.input(random.normal(s.batch * s.image.dims * s.image.voxels(), 0.3), s.dtype);
  void* out = on.output(count, s.dtype);
  on.launch(deqreg::JacobianDeterminant{s.dtype, s.batch, s.image, field, out});
  return {on.read(out, count, s.dtype)};
}

template <class Backend>
Outputs jacobian_determinant_gradient(Backend& on, const Setting& s) {
  Random random;
  const std::int64_t elements = s.batch * s.image.dims * s.image.voxels();
  const void* field = on.input(random.normal(elements, 0.3), s.dtype);
  const void* grad = on.input(random.normal(s.batch * s.image.voxels()), s.dtype);
  void* out = on.output(static_cast<std::size_t>(elements), s.dtype);
  on.launch(deqreg::JacobianDeterminantGradient{s.dtype, s.batch, s.image, field, grad, out});
  return {on.read(out, static_cast<std::size_t>(elements), s.dtype)};
}

/// A mask that leaves the first voxels out, and holes.
template <class Backend>
const std::uint8_t* mask_of(Backend& on, const Setting& s) {
  std::vector<std::uint8_t> mask(static_cast<std::size_t>(s.batch * s.image.voxels()));
  for (std::size_t i = 0; i < mask.size(); ++i) mask[i] = i % 1000 > 40 && i * 7919 % 11 != 0;
  return on.raw(mask);
}

template <int window, bool masked, int gradients, class Backend>
Outputs lncc(Backend& on, const Setting& s) {
  Random random;
  const auto count = static_cast<std::size_t>(s.batch * s.image.voxels());
  const DType sums = coordinates_of(s.dtype);
  const Values fixed = random.normal(static_cast<std::int64_t>(count), 0.3);
  Values warped = random.normal(static_cast<std::int64_t>(count), 0.2);
  for (std::size_t i = 0; i < count; ++i) warped[i] += fixed[i];
  deqreg::Lncc op{};
  op.dtype = on.stored(s.dtype);
  op.batch = s.batch;
  op.window = window;
  op.epsilon = 1e-3;
  op.shared = 1e-4;
  op.grid = s.image;
  op.fixed = on.input(fixed, s.dtype);
  op.warped = on.input(warped, s.dtype);
  op.mask = masked ? mask_of(on, s) : nullptr;
  op.value = on.output(static_cast<std::size_t>(s.batch), sums);
  op.grad_warped = gradients > 0 ? on.output(count, sums) : nullptr;
  op.grad_fixed = gradients > 1 ? on.output(count, sums) : nullptr;
  op.workspace = on.workspace(op);
  on.launch(op);
  Outputs outputs{on.read(op.value, static_cast<std::size_t>(s.batch), sums)};
  if (gradients > 0) outputs.push_back(on.read(op.grad_warped, count, sums));
  if (gradients > 1) outputs.push_back(on.read(op.grad_fixed, count, sums));
  return outputs;
}

inline std::size_t shifts_of(const Setting& s) {
  const std::size_t along = 2 * s.radius + 1;
  return along * along * (s.image.dims == 3 ? along : 1);
}

template <bool displaced, class Backend>
Outputs correlation(Backend& on, const Setting& s) {
  Random random;
  const std::int64_t voxels = s.image.voxels(), elements = s.batch * s.channels * voxels;
  const auto count = static_cast<std::size_t>(s.batch * voxels) * shifts_of(s);
  deqreg::Correlation op{on.stored(s.dtype), s.batch, s.channels, s.radius, s.image, {}, {}, {}, {}};
  op.fixed = on.input(random.normal(elements), s.dtype);
  op.moving = on.input(random.normal(elements), s.dtype);
  if (displaced)
    op.displacement = on.input(random.normal(s.batch * s.image.dims * voxels, s.displacement), coordinates_of(s.dtype));
  op.out = on.output(count, s.dtype);
  on.launch(op);
  return {on.read(op.out, count, s.dtype)};
}

template <bool displaced, int outputs, bool with_bias, class Backend>
Outputs correlation_projection(Backend& on, const Setting& s) {
  Random random;
  const std::int64_t voxels = s.image.voxels(), elements = s.batch * s.channels * voxels;
  const auto count = static_cast<std::size_t>(s.batch * voxels * outputs);
  deqreg::CorrelationProjection op{};
  op.dtype = on.stored(s.dtype);
  op.batch = s.batch;
  op.channels = s.channels;
  op.outputs = outputs;
  op.radius = s.radius;
  op.grid = s.image;
  op.fixed = on.input(random.normal(elements), s.dtype);
  op.moving = on.input(random.normal(elements), s.dtype);
  if (displaced)
    op.displacement = on.input(random.normal(s.batch * s.image.dims * voxels, s.displacement), coordinates_of(s.dtype));
  op.weight = on.input(random.normal(outputs * static_cast<std::int64_t>(shifts_of(s)), 0.2), s.dtype);
  if (with_bias) op.bias = on.input(random.normal(outputs), s.dtype);
  op.out = on.output(count, s.dtype);
  on.launch(op);
  return {on.read(op.out, count, s.dtype)};
}

/// `needs`: 1 for the gradient by fixed, 2 by moving, 4 by the displacement, added up.
template <bool displaced, int needs, class Backend>
Outputs correlation_gradient(Backend& on, const Setting& s) {
  Random random;
  const std::int64_t voxels = s.image.voxels(), elements = s.batch * s.channels * voxels;
  const auto features = static_cast<std::size_t>(elements);
  const auto field = static_cast<std::size_t>(s.batch * s.image.dims * voxels);
  const auto shifts = static_cast<std::int64_t>(shifts_of(s));
  deqreg::CorrelationGradient op{};
  op.dtype = on.stored(s.dtype);
  op.batch = s.batch;
  op.channels = s.channels;
  op.radius = s.radius;
  op.grid = s.image;
  op.deterministic = s.deterministic;
  op.fixed = on.input(random.normal(elements), s.dtype);
  op.moving = on.input(random.normal(elements), s.dtype);
  if (displaced)
    op.displacement =
        on.input(random.normal(static_cast<std::int64_t>(field), s.displacement), coordinates_of(s.dtype));
  op.grad = on.input(random.normal(s.batch * voxels * shifts), s.dtype);
  op.grad_fixed = needs & 1 ? on.output(features, s.dtype) : nullptr;
  op.grad_moving = needs & 2 ? on.output(features, s.dtype) : nullptr;
  op.grad_displacement = needs & 4 ? on.output(field, coordinates_of(s.dtype)) : nullptr;
  op.workspace = on.workspace(op);
  on.launch(op);
  Outputs outputs;
  if (needs & 1) outputs.push_back(on.read(op.grad_fixed, features, s.dtype));
  if (needs & 2) outputs.push_back(on.read(op.grad_moving, features, s.dtype));
  if (needs & 4) outputs.push_back(on.read(op.grad_displacement, field, coordinates_of(s.dtype)));
  return outputs;
}

/// The state of an Anderson iteration on `elements` numbers a sample.
template <class Backend>
struct AndersonState {
  static constexpr std::int64_t batch = 2, max_steps = 16;
  std::int64_t elements, partial_count;
  std::int32_t slots;
  DType dtype;
  void *z, *values, *residuals;
  double *partials, *gram, *history, *weights;
  deqreg::core::AndersonCounters* counters;
  deqreg::core::AndersonLevels* levels;

  AndersonState(Backend& on, const Values& start, std::int32_t slots, DType dtype)
      : elements(static_cast<std::int64_t>(start.size()) / batch),
        partial_count((elements + deqreg::core::anderson_chunk - 1) / deqreg::core::anderson_chunk),
        slots(slots),
        dtype(dtype) {
    const auto zeros = [&](std::int64_t count) { return on.raw(Values(static_cast<std::size_t>(count))); };
    z = on.input(start, dtype);
    values = on.output(start.size() * static_cast<std::size_t>(slots), dtype);
    residuals = on.output(start.size() * static_cast<std::size_t>(slots), dtype);
    partials =
        static_cast<double*>(on.output(static_cast<std::size_t>(batch * partial_count * (slots + 1)), DType::float64));
    gram = zeros(batch * slots * slots);
    history = zeros(max_steps * batch);
    weights = zeros(batch * slots);
    counters = on.raw(std::vector<deqreg::core::AndersonCounters>(batch, {0, -1, 0, 0, 0, 0, 0, 0}));
    levels = on.raw(std::vector<deqreg::core::AndersonLevels>(batch, {0.0, 0.0}));
  }

  void step(Backend& on, const void* value, const deqreg::core::AndersonRule& rule) const {
    on.launch(deqreg::AndersonUpdate{dtype, batch, elements, slots, partial_count, 0, z, value, values, residuals,
                                     partials, counters});
    on.launch(deqreg::AndersonSolve{batch, slots, partial_count, max_steps, rule, partials, gram, counters, levels,
                                    history, weights});
    on.launch(deqreg::AndersonMix{dtype, batch, elements, slots, values, residuals, weights, levels, counters, z});
  }
};

/// Steps with values that do not depend on the state, so that rounding is not fed back.
template <int slots, int elements, class Backend>
Outputs anderson(Backend& on, const Setting& s) {
  Random random;
  constexpr std::int64_t batch = AndersonState<Backend>::batch;
  const AndersonState<Backend> state(on, random.normal(batch * elements), slots, s.dtype);
  const deqreg::core::AndersonRule rule{slots, 0.8, 1e-3, 1e-9, 2.0, 1e6, 50, 1.0, 0.0};
  Outputs outputs;
  for (int k = 0; k < slots + 2; ++k) {
    state.step(on, on.input(random.normal(batch * elements, 1.0 / (k + 1)), s.dtype), rule);
    outputs.push_back(on.read(state.z, batch * elements, s.dtype));
    outputs.push_back(on.read_raw(state.weights, batch * slots));
    Values books;
    for (const auto& c : on.read_raw(state.counters, batch))
      for (std::int64_t entry : {c.slot, c.best, c.valid, c.mixed, c.retreats, c.stale, c.steps, c.status})
        books.push_back(static_cast<double>(entry));
    outputs.push_back(books);
  }
  outputs.push_back(on.read_raw(state.history, batch * state.max_steps));
  return outputs;
}

/// A case with a name. `ordered`: its CUDA kernel gives the same bits in every run. `passes`: how often a value is
/// rounded to its stored type on the way.
template <class Backend>
struct Case {
  std::string name;
  Setting setting;
  Outputs (*run)(Backend&, const Setting&);
  bool ordered = true;
  int passes = 1;
};

inline Grid grid2(std::int64_t a, std::int64_t b) { return {2, {a, b, 1}}; }

inline Grid grid3(std::int64_t a, std::int64_t b, std::int64_t c) { return {3, {a, b, c}}; }

inline std::vector<Setting> sampling_settings() {
  std::vector<Setting> settings;
  for (DType dtype : {DType::float32, DType::float64, DType::float16, DType::bfloat16}) {
    for (int k = 0; k < 8; ++k) {
      if (dtype != DType::float32 && k != 0 && k != 3 && k != 5) continue;  // types and modes do not interact
      Setting s;
      s.dtype = dtype;
      s.padding = k & 1 ? Padding::zeros : Padding::border;
      s.interpolation = k & 2 ? Interpolation::nearest : Interpolation::linear;
      s.affine = (k & 4) != 0;
      settings.push_back(s);
    }
    Setting flat;
    flat.dtype = dtype;
    flat.image = grid2(19, 45);
    flat.out = grid2(33, 70);
    settings.push_back(flat);
  }
  for (Padding padding : {Padding::border, Padding::zeros}) {  // neighbouring voxels sample neighbouring cells
    Setting smooth;
    smooth.padding = padding;
    smooth.displacement = 0.1;
    settings.push_back(smooth);
  }
  Setting thin;  // axes of one voxel, and an image that every sample falls into
  thin.image = grid3(1, 6, 1);
  thin.out = grid3(3, 3, 3);
  settings.push_back(thin);
  return settings;
}

inline std::vector<Setting> field_settings() {
  std::vector<Setting> settings;
  for (DType dtype : {DType::float32, DType::float64}) {
    for (const auto& grids : {std::pair{grid3(7, 9, 37), grid3(6, 5, 41)}, std::pair{grid2(19, 45), grid2(33, 70)}}) {
      Setting s;
      s.dtype = dtype;
      s.image = grids.first;
      s.out = grids.second;
      settings.push_back(s);
    }
  }
  return settings;
}

template <class Backend>
void add_splats(const Setting& setting, std::vector<Case<Backend>>& cases) {
  Setting s = setting;
  cases.push_back({"splat", s, splat<Backend>, false});
  s.deterministic = true;
  cases.push_back({"splat", s, splat<Backend>});
}

template <class Backend>
void add_gaussians(const Setting& setting, std::vector<Case<Backend>>& cases) {
  Setting s = setting;
  for (const Grid& grid : {grid3(7, 9, 37), grid3(70, 2, 33), grid2(3, 300)}) {
    s.image = s.out = grid;
    cases.push_back({"gaussian 0", s, gaussian<0, Backend>});
    cases.push_back({"gaussian 1", s, gaussian<1, Backend>, true, 1});
    cases.push_back({"gaussian 2", s, gaussian<2, Backend>, true, 2});
    cases.push_back({"gaussian 3", s, gaussian<3, Backend>, true, 3});
  }
}

/// To more voxels, to fewer, and along axes of one.
template <class Backend>
void add_resizes(const Setting& setting, std::vector<Case<Backend>>& cases) {
  Setting s = setting;
  for (const auto& grids : {std::pair{grid3(7, 9, 37), grid3(14, 17, 75)}, std::pair{grid3(12, 8, 41), grid3(5, 8, 9)},
                            std::pair{grid2(1, 45), grid2(33, 1)}}) {
    s.image = grids.first;
    s.out = grids.second;
    cases.push_back({"resize", s, resize<Backend>});
    cases.push_back({"resize_adjoint", s, resize_adjoint<Backend>});
  }
}

template <class Backend>
void add_lnccs(const Setting& s, std::vector<Case<Backend>>& cases) {
  cases.push_back({"lncc 5", s, lncc<5, false, 0, Backend>});
  cases.push_back({"lncc 9 gradient", s, lncc<9, false, 1, Backend>});
  cases.push_back({"lncc 3 masked gradients", s, lncc<3, true, 2, Backend>});
  cases.push_back({"lncc 61 masked gradients", s, lncc<61, true, 2, Backend>});  // beyond shared memory
}

inline std::vector<Setting> correlation_settings() {
  std::vector<Setting> settings;
  const auto add = [&](DType dtype, const Grid& grid, std::int32_t radius, std::int64_t channels) -> Setting& {
    Setting s;
    s.dtype = dtype;
    s.image = s.out = grid;
    s.radius = radius;
    s.channels = channels;
    settings.push_back(s);
    return settings.back();
  };
  for (std::int32_t radius = 0; radius <= 4; ++radius) {  // rows that are whole vectors, and rows that are not
    add(DType::float32, radius < 2 ? grid3(3, 10, 36) : grid3(2, 3, 36), radius, 3);
    add(DType::float64, grid2(11, 37), radius, 3);
  }
  for (DType dtype : {DType::float64, DType::float16, DType::bfloat16}) add(dtype, grid3(3, 4, 38), 1, 3);
  add(DType::float16, grid2(19, 40), 2, 3);
  add(DType::float32, grid2(3, 5), 1, 35).batch = 1;  // more channels than are at work at a time
  add(DType::float64, grid2(3, 5), 1, 19).batch = 1;
  add(DType::float32, grid3(1, 6, 1), 2, 3);  // axes of one voxel, where all windows end on the border
  add(DType::float32, grid3(2, 5, 70), 1, 3).displacement = 0.1;  // neighbouring voxels have neighbouring windows
  add(DType::float32, grid3(4, 5, 6), 1, 3).displacement = 1e4;   // far outside
  return settings;
}

template <class Backend>
void add_correlations(const Setting& setting, std::vector<Case<Backend>>& cases) {
  Setting s = setting;
  cases.push_back({"correlation in place", s, correlation<false, Backend>});
  cases.push_back({"correlation in place gradients", s, correlation_gradient<false, 3, Backend>});
  cases.push_back({"correlation", s, correlation<true, Backend>});
  cases.push_back({"correlation gradients", s, correlation_gradient<true, 7, Backend>, false});
  cases.push_back({"correlation projection in place", s, correlation_projection<false, 5, true, Backend>});
  cases.push_back({"correlation projection", s, correlation_projection<true, 5, false, Backend>});
  s.deterministic = true;
  cases.push_back({"correlation gradients", s, correlation_gradient<true, 7, Backend>});
}

template <class Backend>
std::vector<Case<Backend>> all_cases() {
  std::vector<Case<Backend>> cases;
  for (const Setting& s : sampling_settings()) {
    cases.push_back({"warp", s, warp<Backend>});
    add_splats(s, cases);
    if (s.interpolation == Interpolation::linear) cases.push_back({"warp_gradient", s, warp_gradient<Backend>});
  }
  for (const Setting& s : field_settings()) {
    cases.push_back({"compose", s, compose<Backend>});
    cases.push_back({"exponential 0", s, exponential<0, Backend>});
    cases.push_back({"exponential 1", s, exponential<1, Backend>});
    cases.push_back({"exponential 4", s, exponential<4, Backend>});
    cases.push_back({"jacobian_determinant", s, jacobian_determinant<Backend>});
    cases.push_back({"jacobian_determinant_gradient", s, jacobian_determinant_gradient<Backend>});
    add_lnccs(s, cases);
  }
  for (DType dtype : {DType::float32, DType::float64, DType::float16, DType::bfloat16}) {
    Setting s;
    s.dtype = dtype;
    s.batch = 1;
    s.channels = 2;
    add_gaussians(s, cases);
    add_resizes(s, cases);
  }
  for (DType dtype : {DType::float32, DType::float64}) {
    Setting s;
    s.dtype = dtype;
    cases.push_back({"anderson 3 slots", s, anderson<3, 20000, Backend>});
    cases.push_back({"anderson 7 slots", s, anderson<7, 8191, Backend>});
  }
  for (const Setting& s : correlation_settings()) add_correlations(s, cases);
  Setting one;
  one.image = one.out = grid3(3, 4, 5);
  cases.push_back({"correlation gradient by fixed", one, correlation_gradient<true, 1, Backend>});
  cases.push_back({"correlation gradient by moving", one, correlation_gradient<true, 2, Backend>, false});
  cases.push_back({"correlation gradient by the displacement", one, correlation_gradient<true, 4, Backend>});
  cases.push_back({"correlation in place gradient by fixed", one, correlation_gradient<false, 1, Backend>});
  cases.push_back({"correlation in place gradient by moving", one, correlation_gradient<false, 2, Backend>});
  // more outputs than a CUDA block has at a time
  cases.push_back({"correlation projection of many in place", one, correlation_projection<false, 70, true, Backend>});
  cases.push_back({"correlation projection of many", one, correlation_projection<true, 70, true, Backend>});
  for (DType dtype : {DType::float16, DType::bfloat16}) {
    Setting s;
    s.dtype = dtype;
    cases.push_back({"lncc 9 gradient", s, lncc<9, false, 1, Backend>});
  }
  return cases;
}

}  // namespace native
