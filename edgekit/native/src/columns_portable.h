// Adding up columns in portable C++, for columns_loops.h.

#include <cmath>

#include "columns.h"

#define EDGEKIT_TARGET

namespace edgekit {
namespace {

constexpr size_t kSlots[] = {0, 1, 2, 3};

template <bool kOneRow>
void add_columns(const uint8_t* const* columns, const int8_t (*x)[kBatch], size_t rows, int16_t* sums) {
  for (size_t i = 0; i < kBatch; ++i) {
    uint8_t codes[kUnitRows];
    unpack_chunk(columns[i], codes);
    for (size_t m = 0; m < (kOneRow ? 1 : rows); ++m) {
      for (size_t row = 0; row < kUnitRows; ++row) {
        sums[m * kUnitRows + row] = static_cast<int16_t>(sums[m * kUnitRows + row] + codes[row] * x[m][i]);
      }
    }
  }
}

inline void add_scaled(const int16_t* sums, Step step, const uint16_t* scales, float* values) {
  for (size_t row = 0; row < 8; ++row) {
    const auto dot = static_cast<float>(sums[row] + step.offset);
    values[row] = std::fma(dot, half_to_float(scales[row]) * step.scale, values[row]);
  }
}

}  // namespace
}  // namespace edgekit

#include "columns_loops.h"
