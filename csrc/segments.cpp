// Padded sequences, cut at resets, in the order of a ragged batch.
#include <fastrnn/fastrnn.h>

#include "check.h"

namespace fastrnn {
namespace {

bool reset_at(const PaddedBatch& batch, int64_t t, int64_t b) {
  return batch.reset && batch.reset[t * batch.reset_step + b * batch.reset_row];
}

// Calls f(b, begin, end) for each segment, sequence by sequence, in order of time.
template <class Function>
void each_segment(const PaddedBatch& batch, const Function& f) {
  for (int64_t b = 0; b < batch.B; ++b) {
    const int64_t length = batch.lengths ? batch.lengths[b] : batch.T;
    int64_t begin = 0;
    for (int64_t t = batch.reset ? 1 : length; t < length; ++t)
      if (reset_at(batch, t, b)) {
        f(b, begin, t);
        begin = t;
      }
    if (length > 0) f(b, begin, length);
  }
}

}  // namespace

SegmentSizes segment_sizes(const PaddedBatch& batch) {
  SegmentSizes sizes;
  for (int64_t b = 0; b < batch.B; ++b) {
    const int64_t length = batch.lengths ? batch.lengths[b] : batch.T;
    FASTRNN_CHECK(length >= 0 && length <= batch.T, "lengths must be in [0, T] = [0, "
                                                        << batch.T << "], got " << length << " at "
                                                        << b);
    sizes.N += length;
    sizes.empty += length == 0;
  }
  each_segment(batch, [&](int64_t, int64_t begin, int64_t end) {
    ++sizes.B;
    sizes.T = end - begin > sizes.T ? end - begin : sizes.T;
  });
  return sizes;
}

void segments(const PaddedBatch& batch, const SegmentBuffers& to) {
  const SegmentSizes sizes = segment_sizes(batch);
  // alive[s]: segments of more than s steps, of which the one of s + 1 steps that comes next has
  // the place next[s + 1].
  std::vector<int64_t> alive(size_t(sizes.T + 1)), next, first(size_t(sizes.B));
  each_segment(batch,
               [&](int64_t, int64_t begin, int64_t end) { ++alive[size_t(end - begin - 1)]; });
  for (size_t s = alive.size() - 1; s-- > 0;) alive[s] += alive[s + 1];
  next = alive;

  for (int64_t b = 0; b < batch.B; ++b) to.last[0][b] = to.last[1][b] = 0;
  each_segment(batch, [&](int64_t b, int64_t begin, int64_t end) {
    const int64_t length = batch.lengths ? batch.lengths[b] : batch.T;
    const int64_t place = next[size_t(end - begin)]++;
    first[size_t(place)] = begin * batch.B + b;
    to.owner[place] = b;
    to.fresh[0][place] = begin > 0 || reset_at(batch, 0, b);
    to.fresh[1][place] = end < length;
    if (begin == 0) to.last[1][b] = place;
    if (end == length) to.last[0][b] = place;
  });

  int64_t row = 0;
  to.offsets[0] = 0;
  for (int64_t s = 0; s < sizes.T; ++s) {
    for (int64_t i = 0; i < alive[size_t(s)]; ++i) to.rows[row++] = first[size_t(i)] + s * batch.B;
    to.offsets[s + 1] = row;
  }
}

}  // namespace fastrnn
