// Runs an LSTM whose weights come from a file, without Python or torch, and compares the output
// with the one that torch computed. export_lstm.py writes the file and describes its format.
#include <fastrnn/fastrnn.h>

#include <cmath>
#include <cstdio>
#include <exception>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

template <class T>
std::vector<T> read(std::ifstream& file, int64_t count) {
  std::vector<T> values(count);
  const auto bytes = static_cast<std::streamsize>(count * sizeof(T));
  if (!file.read(reinterpret_cast<char*>(values.data()), bytes)) {
    throw std::runtime_error("the file is too short");
  }
  return values;
}

float largest_error(const std::vector<float>& y, const std::vector<float>& expected) {
  float largest = 0;
  for (size_t i = 0; i < y.size(); ++i) {
    const float error = std::abs(y[i] - expected[i]);
    if (!(error <= largest)) largest = error;  // in this form a NaN counts as an error too
  }
  return largest;
}

float run(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot open " + path);
  const std::vector<int64_t> header = read<int64_t>(file, 4);
  const int64_t T = header[0], B = header[1], I = header[2], H = header[3];
  const std::vector<float> w_ih = read<float>(file, 4 * H * I);
  const std::vector<float> w_hh = read<float>(file, 4 * H * H);
  const std::vector<float> b_ih = read<float>(file, 4 * H);
  const std::vector<float> b_hh = read<float>(file, 4 * H);
  const std::vector<float> x = read<float>(file, T * B * I);
  const std::vector<float> expected = read<float>(file, T * B * H);

  fastrnn::Problem problem;
  problem.cell = fastrnn::Cell::kLstm;
  problem.T = T;
  problem.B = B;
  problem.I = I;
  problem.H = H;

  // The caller owns every buffer, so a program that calls again and again allocates them once.
  const fastrnn::Sizes sizes = fastrnn::sizes(problem);
  std::vector<char> packed(sizes.packed), workspace(sizes.workspace);
  std::vector<float> y(T * B * H), h_n(B * H), c_n(B * H);

  fastrnn::ForwardBuffers buffers;  // without h0 and c0 the initial states are zeros
  buffers.x = x.data();
  buffers.x_strides = {B * I, I};
  buffers.weights[0] = {w_ih.data(), w_hh.data(), b_ih.data(), b_hh.data(), nullptr};
  buffers.y = y.data();
  buffers.y_strides = {B * H, H};
  buffers.h_n = h_n.data();
  buffers.c_n = c_n.data();
  buffers.packed = packed.data();
  buffers.workspace = workspace.data();
  fastrnn::forward(problem, buffers);

  // The weights have not changed: their packed form serves the next call as it is.
  buffers.repack = false;
  fastrnn::forward(problem, buffers);
  return largest_error(y, expected);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: lstm FILE\n");
    return 2;
  }
  try {
    constexpr float kTolerance = 1e-5F;
    const float error = run(argv[1]);
    std::printf("fastrnn %s (%s): largest difference from torch %.2e\n", fastrnn::version(),
                fastrnn::isa(), error);
    return error <= kTolerance ? 0 : 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "lstm: %s\n", error.what());
    return 2;
  }
}
