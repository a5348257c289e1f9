// Rows of a packed matrix in float32.
#pragma once

#include "kernels.h"

namespace edgekit {

// `row` of W, `weights.columns` values: (code - 4) * scale, the same bits on every processor.
void gather_row(const Weights& weights, size_t row, float* out);

}  // namespace edgekit
