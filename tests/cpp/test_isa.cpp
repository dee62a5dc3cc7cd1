// Each instruction set that runs on this processor computes; what is compiled in for others stays
// untouched. Arguments: the instruction sets that there must be. An emulator of an older processor
// (CMakeLists.txt) ends the program at the first instruction which that one does not have.
#include "cases.h"

namespace {

using namespace test;

void expect_available(int count, char** names) {
  const std::vector<std::string> wanted(names, names + count);
  std::string found;
  for (const std::string& isa : fastrnn::available_isas()) found += isa + ' ';
  EXPECT(count == 0 || fastrnn::available_isas() == wanted, "found " << found);
}

// In whole vectors, without biases, which are loaded one by one: where qemu loads a part of a
// vector it touches all of it.
template <class T>
void cells(const std::string& isa) {
  const int64_t V = vector_width<T>(isa);
  Setup s;
  Problem& p = s.problem;
  p.dtype = kDtype<T>, p.T = 5, p.B = 7, p.I = 2 * V, p.H = 5 * V, p.bias = false,
  p.training = true;
  for (Cell cell : {Cell::kElman, Cell::kLstm, Cell::kGru}) p.cell = cell, compare<T>(s, 1);
}

void other_functions() {
  std::vector<float> weights(1000, 0.5f);
  const void* pointer = weights.data();
  const size_t bytes = weights.size() * sizeof(float);
  const fastrnn::Fingerprint print = fastrnn::fingerprint(&pointer, &bytes, 1);
  weights[7] = 0;
  const fastrnn::Fingerprint other = fastrnn::fingerprint(&pointer, &bytes, 1);
  EXPECT(print.words[0] != other.words[0], "of other weights");
  for (Dtype dtype : {Dtype::kFloat32, Dtype::kFloat64, Dtype::kBfloat16, Dtype::kInt8})
    EXPECT(fastrnn::fma_peak(dtype, 1e-3) >= 0, int(dtype));  // 0: it was too short
  EXPECT(fastrnn::read_bandwidth(weights.data(), bytes, 1e-3) >= 0, "of L1");
}

}  // namespace

int main(int argc, char** argv) {
  expect_available(argc - 1, argv + 1);
  for (const std::string& isa : fastrnn::available_isas()) {
    fastrnn::set_isa(isa);
    cells<float>(isa), cells<double>(isa), other_functions();
    std::printf("%s\n", isa.c_str());
  }
  return finish("test_isa");
}
