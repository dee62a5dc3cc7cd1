// Misuse is reported by std::invalid_argument that names the field; sizes, names and instruction
// sets; empty batches; fingerprints.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <functional>
#include <set>
#include <stdexcept>

#include "engine.h"

namespace {

using namespace fastrnn;

template <class Call>
std::string error_of(const Call& call) {
  try {
    call();
  } catch (const std::invalid_argument& e) {
    return e.what();
  }
  return "no error";
}

template <class Call>
void expect_error(const Call& call, const char* field) {
  const std::string text = error_of(call);
  EXPECT(text.find(field) != std::string::npos,
         "expected an error about " << field << ", got: " << text);
}

Problem small() {
  Problem p;
  p.T = 2, p.B = 2, p.I = 3, p.H = 4, p.training = true;
  return p;
}

void check_problems() {
  const auto bad = [](const char* field, const std::function<void(Problem&)>& change) {
    Problem p = small();
    change(p);
    expect_error([&] { sizes(p); }, field);
    expect_error([&] { forward(p, {}); }, field);
    expect_error([&] { backward(p, {}); }, field);
  };
  bad("T must", [](Problem& p) { p.T = 0; });
  bad("T must", [](Problem& p) { p.T = -1; });
  bad("B must", [](Problem& p) { p.B = -1; });
  bad("I must", [](Problem& p) { p.I = -1; });
  bad("H must", [](Problem& p) { p.H = 0; });
  bad("P must", [](Problem& p) { p.P = -1; });
  bad("P must", [](Problem& p) { p.P = p.H; });
  bad("P must", [](Problem& p) { p.P = 1, p.cell = Cell::kGru; });
  bad("P must", [](Problem& p) { p.P = 1, p.cell = Cell::kElman; });
  bad("directions", [](Problem& p) { p.directions = 0; });
  bad("directions", [](Problem& p) { p.directions = 3; });
  bad("reverse", [](Problem& p) { p.directions = 2, p.reverse = true; });
  bad("threads", [](Problem& p) { p.threads = 0; });
  bad("samples", [](Problem& p) { p.samples = 0; });
  bad("samples", [](Problem& p) { p.samples = 3; });
  bad("activation", [](Problem& p) { p.activation = Activation::kRelu; });
  bad("activation", [](Problem& p) { p.activation = Activation::kRelu, p.cell = Cell::kGru; });
}

// Buffers that are good for any problem of small()'s sizes.
struct Buffers {
  alignas(64) float memory[1 << 16] = {};
  ForwardBuffers forward;
  BackwardBuffers backward;

  Buffers() {
    ForwardBuffers& f = forward;
    float *w = memory, *io = memory + 4096, *space = memory + 8192;
    for (Weights& d : f.weights) d = {w, w, w, w, w};
    f.x = io, f.y = io + 512, f.h_n = io + 1024, f.c_n = io + 1280, f.reserve = io + 1536;
    f.x_strides = {16, 8}, f.y_strides = {16, 8};
    f.packed = space, f.workspace = space + 16384;
    BackwardBuffers& b = backward;
    b.x = f.x, b.y = f.y, b.reserve = f.reserve, b.workspace = f.workspace;
    b.x_strides = f.x_strides, b.y_strides = f.y_strides;
    for (int d = 0; d < 2; ++d) b.weights[d] = f.weights[d];
  }
};

void check_buffers() {
  auto owner = std::make_unique<Buffers>();
  const Buffers& good = *owner;
  const Problem p = small();
  const Sizes s = sizes(p);
  EXPECT(std::max(s.workspace, s.backward_workspace) < 32768 * 4 && s.packed < 16384 * 4, "small");
  EXPECT(error_of([&] { forward(p, good.forward); }) == "no error", "the good buffers");
  EXPECT(error_of([&] { backward(p, good.backward); }) == "no error", "the good buffers");

  const auto bad_forward = [&](const char* field, const Problem& problem,
                               const std::function<void(ForwardBuffers&)>& change) {
    ForwardBuffers b = good.forward;
    change(b);
    expect_error([&] { forward(problem, b); }, field);
  };
  const auto bad_backward = [&](const char* field, const Problem& problem,
                                const std::function<void(BackwardBuffers&)>& change) {
    BackwardBuffers b = good.backward;
    change(b);
    expect_error([&] { backward(problem, b); }, field);
  };
  const auto bad_both = [&](const char* field, const Problem& problem, const auto& change) {
    bad_forward(field, problem, change);
    bad_backward(field, problem, change);
  };
  Problem projected = p, both = p, no_bias = p, no_training = p, one_step = p, more_steps = p;
  one_step.T = 1, more_steps.T = 5;
  projected.P = 2, both.directions = 2, no_bias.bias = false, no_training.training = false;
  bad_both("w_ih", p, [](auto& b) { b.weights[0].w_ih = nullptr; });
  bad_both("w_hh", p, [](auto& b) { b.weights[0].w_hh = nullptr; });
  bad_both("w_hh", both, [](auto& b) { b.weights[1].w_hh = nullptr; });
  bad_both("weights 1", both, [](auto& b) { b.weights[1].w_hh = nullptr; });
  bad_both("b_ih", p, [](auto& b) { b.weights[0].b_ih = nullptr; });
  bad_both("b_hh", p, [](auto& b) { b.weights[0].b_hh = nullptr; });
  bad_both("w_hr", projected, [](auto& b) { b.weights[0].w_hr = nullptr; });
  bad_forward("x, y", p, [](ForwardBuffers& b) { b.x = nullptr; });
  bad_forward("x, y", p, [](ForwardBuffers& b) { b.y = nullptr; });
  bad_backward("x and y", p, [](BackwardBuffers& b) { b.x = nullptr; });
  bad_backward("x and y", p, [](BackwardBuffers& b) { b.y = nullptr; });
  bad_both("reserve", p, [](auto& b) { b.reserve = nullptr; });
  bad_both("workspace", p, [](auto& b) { b.workspace = nullptr; });
  bad_forward("packed", more_steps, [](ForwardBuffers& b) { b.packed = nullptr; });
  bad_forward("packed", one_step, [](ForwardBuffers& b) { b.packed = nullptr, b.repack = false; });
  bad_forward("h_n", p, [](ForwardBuffers& b) { b.h_n = nullptr; });
  bad_forward("c_n", p, [](ForwardBuffers& b) { b.c_n = nullptr; });
  bad_backward("training", no_training, [](BackwardBuffers&) {});

  // What is not needed may be absent.
  ForwardBuffers f = good.forward;
  f.weights[0].b_ih = f.weights[0].b_hh = f.weights[0].w_hr = f.weights[1].w_hh = nullptr;
  EXPECT(error_of([&] { forward(no_bias, f); }) == "no error", "no bias");
  f = good.forward, f.reserve = nullptr;
  EXPECT(error_of([&] { forward(no_training, f); }) == "no error", "no training");
  Problem elman = p;
  elman.cell = Cell::kElman, f.c_n = nullptr;
  EXPECT(error_of([&] { forward(elman, f); }) == "no error", "elman keeps nothing");
}

void check_offsets() {
  auto owner = std::make_unique<Buffers>();
  const auto with = [&](const std::vector<int64_t>& offsets, bool ragged) {
    Problem p = small();
    p.T = std::max(int64_t(1), int64_t(offsets.size()) - 1), p.ragged = ragged;
    ForwardBuffers f = owner->forward;
    BackwardBuffers b = owner->backward;
    f.offsets = b.offsets = offsets.empty() ? nullptr : offsets.data();
    const std::string text = error_of([&] { forward(p, f); });
    EXPECT(text == error_of([&] { backward(p, b); }), "backward takes other offsets than forward");
    return text;
  };
  for (const auto& good : {std::vector<int64_t>{0, 2, 4, 5, 6}, {0, 2}, {0, 2, 3}})
    EXPECT(with(good, true) == "no error", with(good, true));
  using Offsets = std::vector<int64_t>;
  for (const Offsets& bad : {Offsets{},
                             {1, 3},
                             {0, 3, 4},
                             {0, 1},
                             {0, 2, 2},
                             {0, 2, 5},
                             {0, 2, 1},
                             {0, 2, 3, 5},
                             {0, 2, 4, 4, 5}})
    EXPECT(with(bad, true).find("offsets") == 0, "ragged: " << with(bad, true));
  EXPECT(with({0, 2, 4}, false).find("offsets") == 0, "dense: " << with({0, 2, 4}, false));
}

// Rows outside the caller's buffers are found before anything is touched.
void check_tables() {
  const int64_t offsets[] = {0, 2, 3};
  const auto with = [&](std::vector<int64_t> rows, int64_t T, int64_t B, bool ragged = true) {
    Problem p;
    p.T = 2, p.B = 2, p.I = 3, p.H = 4, p.ragged = ragged, p.training = true;
    ForwardBuffers f;
    BackwardBuffers b;
    f.offsets = b.offsets = ragged ? offsets : nullptr;
    f.table = b.table = {rows.data(), T, B};
    const std::string text = error_of([&] { forward(p, f); });
    EXPECT(text == error_of([&] { backward(p, b); }), "backward takes other tables than forward");
    return text;
  };
  EXPECT(with({0, 5, 2}, 2, 3).find("table") != 0, "a good table: " << with({0, 5, 2}, 2, 3));
  for (const std::vector<int64_t>& rows :
       {std::vector<int64_t>{0, 6, 2}, {0, -1, 2}, {0, 1, INT64_MAX}, {INT64_MIN, 0, 1}, {4, 1, 4}})
    EXPECT(with(rows, 2, 3).find("table.rows") == 0,
           "rows out of range, or twice: " << with(rows, 2, 3));
  EXPECT(with({0, 1, 2}, 3, 0).find("table.rows") == 0, "no sequences: " << with({0, 1, 2}, 3, 0));
  EXPECT(with({0, 1, 2}, -1, 3).find("table.T") == 0, "negative: " << with({0, 1, 2}, -1, 3));
  EXPECT(with({0, 1, 2, 3}, 2, 2, false).find("table") == 0, "dense problems have no table");
}

// Lengths 3, 0, 4 of T = 4; sequence 2 starts anew at step 1, and sequence 0 in its padding.
void check_segments() {
  const std::vector<int64_t> lengths = {3, 0, 4};
  bool reset[4][3] = {};
  reset[1][2] = reset[3][0] = reset[0][2] = true;
  fastrnn::PaddedBatch batch{4, 3, lengths.data(), &reset[0][0], 3, 1};
  const fastrnn::SegmentSizes sizes = segment_sizes(batch);
  EXPECT(sizes.T == 3 && sizes.B == 3 && sizes.N == 7 && sizes.empty == 1, "sizes of segments");
  std::vector<int64_t> offsets(4), rows(7), owner(3), last(6);
  bool fresh[2][3];
  segments(batch, {offsets.data(),
                   rows.data(),
                   owner.data(),
                   {fresh[0], fresh[1]},
                   {last.data(), last.data() + 3}});
  EXPECT((offsets == std::vector<int64_t>{0, 3, 5, 7}), "offsets");
  EXPECT((rows == std::vector<int64_t>{0, 5, 2, 3, 8, 6, 11}), "rows");
  EXPECT((owner == std::vector<int64_t>{0, 2, 2}), "owner");
  EXPECT((last == std::vector<int64_t>{0, 0, 1, 0, 0, 2}), "last");
  EXPECT(!fresh[0][0] && fresh[0][1] && fresh[0][2], "fresh, forwards");
  EXPECT(!fresh[1][0] && !fresh[1][1] && fresh[1][2], "fresh, backwards");
  batch.T = 3;
  EXPECT(error_of([&] { segment_sizes(batch); }).find("lengths") == 0, "a length beyond T");
}

void check_names() {
  EXPECT(cell_from_name("elman") == Cell::kElman && cell_from_name("lstm") == Cell::kLstm &&
             cell_from_name("gru") == Cell::kGru,
         "cells by name");
  expect_error([] { cell_from_name("transformer"); }, "elman, lstm, gru, got transformer");
  const CellInfo lstm = cell_info(Cell::kLstm), gru = cell_info(Cell::kGru);
  EXPECT(lstm.gates == 4 && lstm.states == 2 && gru.gates == 3 && gru.states == 1, "counts");
  for (Cell cell : {Cell::kElman, Cell::kLstm, Cell::kGru}) {
    Problem p = small();
    p.cell = cell;
    EXPECT(sizes(p).saved == cell_info(cell).saved, "saved of " << cell_info(cell).name);
    EXPECT(cell_from_name(cell_info(cell).name) == cell, cell_info(cell).name);
  }
  EXPECT(std::string(version()).find('.') != std::string::npos, version());
  const std::string before = isa();
  for (const char* name : {"", "sse9", "AVX2", "avx2 "})
    expect_error([&] { set_isa(name); }, "isa");
  EXPECT(before == isa(), "an unknown instruction set changed the one in use");
  for (const std::string& name : available_isas()) {
    set_isa(name);
    EXPECT(name == isa(), name);
  }
  EXPECT(isa() == before, "the best one is the last, and was in use");
}

// Must run before anything asks for the instruction set.
void check_environment() {
  const auto child = [](const char* name, const std::function<bool()>& check) {
    std::fflush(stdout);
    const pid_t pid = fork();
    if (pid == 0) {
      setenv("FASTRNN_ISA", name, 1);
      _exit(check() ? 0 : 1);
    }
    int status = 1;
    waitpid(pid, &status, 0);
    EXPECT(WIFEXITED(status) && !WEXITSTATUS(status), "FASTRNN_ISA=" << name);
  };
  child("sse9", [] { return error_of([] { isa(); }).find("FASTRNN_ISA must be one of") == 0; });
  child("sse9",
        [] { return error_of([] { sizes(small()); }).find("got sse9") != std::string::npos; });
  const std::vector<std::string> names = available_isas();
  for (const std::string& name : names) child(name.c_str(), [&] { return name == isa(); });
}

template <class T>
void check_empty_batch() {
  for (Cell cell : {Cell::kElman, Cell::kLstm, Cell::kGru})
    for (int directions : {1, 2}) {
      test::Setup setup;
      Problem& p = setup.problem;
      p.cell = cell, p.dtype = test::kDtype<T>, p.directions = directions, p.training = true;
      p.T = 3, p.B = 0, p.I = 5, p.H = 7, p.P = cell == Cell::kLstm ? 3 : 0, p.threads = 2;
      const test::Geometry g(p, setup.lengths);
      const test::Inputs in = test::make_inputs(p, g, setup.given, 1);
      test::Engine<T> engine(setup, g, in);
      engine.forward();
      engine.backward();
      engine.expect_clean();
      const auto r = engine.results();
      for (int d = 0; d < directions; ++d)
        for (const auto& dw : r.dw[d])
          EXPECT(std::count(dw.begin(), dw.end(), T(0)) == int64_t(dw.size()),
                 "gradients of an empty batch are zeros, " << test::describe(setup));
    }
}

using Hash = std::pair<uint64_t, uint64_t>;
Hash hash(const std::vector<std::vector<unsigned char>>& buffers) {
  std::vector<const void*> pointers;
  std::vector<size_t> bytes;
  for (const auto& b : buffers) pointers.push_back(b.data()), bytes.push_back(b.size());
  const Fingerprint f = fingerprint(pointers.data(), bytes.data(), buffers.size());
  return {f.words[0], f.words[1]};
}

// A word's halves, less the constants of its lane, may be what a hash multiplies: neither 0 nor 1
// in one half must hide a change of the other.
void check_half_words() {
  const auto mix = [](uint64_t x) {
    x = (x ^ x >> 32) * 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 29) * 0xc2b2ae3d27d4eb4fu;
    return x ^ x >> 32;
  };
  for (uint64_t lane = 0; lane < 32; ++lane)
    for (uint64_t half : {0, 1})
      for (int bit = 0; bit < 64; ++bit) {
        const uint64_t key = mix(lane + 1), low = 0xffffffffu;
        const uint64_t high_part = (key & ~low) ^ half << 32, low_part = (key & low) ^ half;
        uint64_t words[64] = {};
        words[lane] = bit < 32 ? high_part | (key & 0x3c23d70au) : low_part;
        const void* pointer = words;
        const size_t bytes = sizeof words;
        const Fingerprint before = fingerprint(&pointer, &bytes, 1);
        words[lane] ^= uint64_t(1) << bit;
        const Fingerprint after = fingerprint(&pointer, &bytes, 1);
        EXPECT(std::memcmp(&before, &after, sizeof before),
               isa() << ": bit " << bit << " of word " << lane << " does not count");
      }
}

void check_fingerprint() {
  test::Random random(9);
  int64_t changes = 0;
  for (size_t n : {1, 2, 3, 4, 7, 8, 9, 31, 64, 255, 256, 257, 511, 512, 513, 1000, 2052}) {
    std::vector<unsigned char> a(n);
    for (auto& byte : a) byte = (unsigned char)random.bits();
    const Hash original = hash({a});
    std::set<Hash> seen = {original};
    for (size_t i = 0; i < n; ++i) {
      // A bit at either end of the byte, and a whole word where one fits.
      for (unsigned char flip : {1, 128}) {
        a[i] ^= flip;
        EXPECT(seen.insert(hash({a})).second, "byte " << i << " of " << n << " does not count");
        a[i] ^= flip;
      }
      if (i % 8 == 0 && i + 8 <= n) {
        for (size_t j = i; j < i + 8; ++j) a[j] ^= 0x5a;
        EXPECT(seen.insert(hash({a})).second, "word " << i << " of " << n << " does not count");
        for (size_t j = i; j < i + 8; ++j) a[j] ^= 0x5a;
      }
    }
    changes += int64_t(seen.size());
    std::vector<unsigned char> moved(n + 3);
    std::copy(a.begin(), a.end(), moved.begin() + 3);
    const void* pointer = moved.data() + 3;
    const Fingerprint f = fingerprint(&pointer, &n, 1);
    EXPECT(Hash(f.words[0], f.words[1]) == original, "equal content elsewhere, " << n << " bytes");
    // Splits, order, and what is added.
    const std::vector<unsigned char> head(a.begin(), a.begin() + int64_t(n / 2));
    const std::vector<unsigned char> tail(a.begin() + int64_t(n / 2), a.end());
    std::vector<unsigned char> longer(a);
    longer.push_back(0);
    const Hash others[] = {hash({}),     hash({a, {}}),      hash({{}, a}),     hash({longer}),
                           hash({a, a}), hash({head, tail}), hash({tail, head})};
    for (const Hash& other : others) {
      if (n == 1 && (&other == &others[5] || &other == &others[6]))
        continue;  // as {{}, a}, {a, {}}
      EXPECT(seen.insert(other).second, "buffers split, ordered or added alike, " << n << " bytes");
    }
  }
  std::printf("%s: %lld different fingerprints\n", isa(), static_cast<long long>(changes));
}

// A hint changes nothing that is there, wherever memory starts and ends.
void check_large_pages() {
  constexpr size_t kBytes = (5 << 20) + 77;
  std::vector<unsigned char> memory(kBytes);
  for (size_t i = 0; i < kBytes; ++i) memory[i] = static_cast<unsigned char>(i * 7);
  for (const size_t start : {0, 1, 4095, 4096, 12345})
    for (const size_t bytes : {size_t(0), size_t(1), size_t(4096), size_t(9000), kBytes - start})
      fastrnn::advise_large_pages(memory.data() + start, bytes);
  bool same = true;
  for (size_t i = 0; i < kBytes; ++i) same &= memory[i] == static_cast<unsigned char>(i * 7);
  EXPECT(same, "advise_large_pages() changed memory");
  fastrnn::advise_large_pages(nullptr, 0);
}

}  // namespace

int main() {
  check_environment();
  check_problems();
  check_buffers();
  check_offsets();
  check_tables();
  check_segments();
  check_names();
  check_large_pages();
  std::printf("misuse is named; names, sizes and instruction sets\n");
  for (const std::string& name : available_isas()) {
    set_isa(name);
    check_empty_batch<float>();
    check_empty_batch<double>();
    check_fingerprint();
    check_half_words();
  }
  std::printf("empty batches; fingerprints of changed, moved, split and reordered buffers\n");
  return test::finish("test_api");
}
