// Products with packed 3-bit weights whose columns lie one after the other, so that a column whose activation is zero
// is not read. docs/int3.md says how they are packed.
#pragma once

#include <algorithm>

#include "kernels.h"
#include "rows.h"

namespace edgekit {

constexpr size_t kUnitRows = 256;  // of a column, whose codes are unpacked at once
constexpr size_t kSliceRows = 64;  // rows are padded to a multiple of these
constexpr size_t kUnitBytes = kUnitRows * 3 / 8;
constexpr size_t kBatch = 4;     // columns that are added at once
constexpr size_t kMostUnits = 8;  // of one row of activations, added side by side: so much of a column is read at once

// A packed matrix W of rows x columns; weight = (code - 4) * scale.
struct Columns {
  const uint8_t* codes;    // (chunks * kChunkColumns, column_bytes)
  const uint16_t* scales;  // IEEE binary16, (blocks, padded_rows)
  const float* bias;       // (rows) or null
  size_t rows;
  size_t columns;
  size_t block;  // columns that share a scale: 32 or 64

  size_t blocks() const { return ceil_div(columns, block); }
  size_t chunks_per_block() const { return block / kChunkColumns; }
  size_t chunks() const { return blocks() * chunks_per_block(); }
  size_t padded_rows() const { return ceil_div(rows, kSliceRows) * kSliceRows; }
  size_t column_bytes() const { return padded_rows() * 3 / 8; }
  size_t units() const { return ceil_div(rows, kUnitRows); }
  // Bytes of each of the three planes of a unit; the last unit may have fewer rows.
  size_t plane_bytes(size_t unit) const { return std::min(kUnitRows, padded_rows() - unit * kUnitRows) / 8; }
};

// Activations of at most kMostRows rows, and which columns of each chunk they need.
struct Chosen {
  const int8_t* codes;     // (rows, chunks, kChunkColumns)
  const Step* steps;       // (rows, chunks); offset: -kZeroPoint times the sum of the codes
  const uint32_t* needed;  // columns, ascending, behind the last 2 * kBatch that are none
  const uint32_t* begins;  // (chunks + 1): where each chunk's columns begin among them
  const uint8_t* idle;     // (chunks): whether the chunk leaves the sums as they are
  size_t rows;
};

// The product with activations as they are, in float32: for checking, and slow. x: (rows, weights.columns).
void multiply_columns_float(const Columns& weights, const float* x, size_t rows, Range units, float* y);

// Columns::codes of one row of W in column `column`.
inline unsigned code_at(const Columns& weights, size_t row, size_t column) {
  const size_t plane = weights.plane_bytes(row / kUnitRows);
  const size_t group = row % kUnitRows / plane;
  const uint8_t* bytes =
      weights.codes + column * weights.column_bytes() + row / kUnitRows * kUnitBytes + row % kUnitRows % plane;
  const auto field = [&](size_t index, unsigned shift, unsigned mask) { return (bytes[index * plane] >> shift) & mask; };
  if (group < 6) {
    return field(group / 2, group % 2 == 0 ? 0 : 5, 7);
  }
  return field(group - 6, 3, 3) | field(2, static_cast<unsigned>(group) - 3, 1) << 2;
}

}  // namespace edgekit
