// How a kernel that has one product for a single row of activations, and one for a few, goes through many.
#pragma once

#include <algorithm>

#include "kernels.h"

namespace edgekit {

using MultiplyOne = void (*)(const Weights& weights, const int8_t* x, const Step* steps, Range tiles, float* y);
using MultiplySome = void (*)(const Weights& weights, const Activations& x, size_t first, size_t count, Range tiles,
                              float* y);

constexpr size_t kMostRows = 16;  // rows of activations for which a chunk is unpacked once

// Products of one block size.
struct Products {
  MultiplyOne one;
  MultiplySome some;  // at most kMostRows rows
};

inline void multiply_rows(const Products& products, const Weights& weights, const Activations& x, Range tiles,
                          float* y) {
  if (x.rows == 1) {
    products.one(weights, x.codes, x.steps, tiles, y);
    return;
  }
  for (size_t first = 0; first < x.rows; first += kMostRows) {
    products.some(weights, x, first, std::min(kMostRows, x.rows - first), tiles, y);
  }
}

}  // namespace edgekit
