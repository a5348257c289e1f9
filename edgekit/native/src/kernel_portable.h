// What the kernels share.
#pragma once

#include "kernels.h"

namespace edgekit {

extern const Kernel kPortable;

struct Scaling {
  float scale;
  float inverse;  // 0: all codes of the chunk are 0
};

// Of a chunk whose largest magnitude has these bits as a float32; infinities and NaN have the largest bits of all.
Scaling scaling_of(uint32_t most_bits);

// Writes the sums of `rows` rows of W, from row `first` on, with the bias.
void store_rows(const Weights& weights, const float* sums, size_t first, size_t rows, float* y);

}  // namespace edgekit
