// y = x * W^T + bias for float activations: quantizes them, and shares the work out.
#pragma once

#include <functional>

#include "columns.h"
#include "kernels.h"

namespace edgekit {

// Calls a function for 0..count-1, on as many threads as it likes, and returns when all are done.
using Parallel = std::function<void(size_t count, const std::function<void(size_t)>& work)>;

// How activations enter the product: as they are (ONNX Runtime's accuracy level 0) or in 8 bits (level 4).
enum class Accuracy { kFloat, kInt8 };

// x (rows, weights.columns), y (rows, weights.rows). Throws std::bad_alloc and what `parallel` throws.
void matmul(const Weights& weights, const Kernel& kernel, Accuracy accuracy, const float* x, size_t rows, float* y,
            const Parallel& parallel);

// Which activations count: those below `threshold` in magnitude are zero, except in the first row of each `sequence`
// rows, unless that is the only one.
struct Gate {
  float threshold;
  size_t sequence;
};

// The same for a matrix packed by columns. Only columns are read that one of kMostRows rows of activations needs; returns
// how many those are, added up over such rows.
size_t matmul_columns(const Columns& weights, const Kernel& kernel, Accuracy accuracy, Gate gate, const float* x,
                      size_t rows, float* y, const Parallel& parallel);

}  // namespace edgekit
