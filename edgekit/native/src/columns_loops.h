// The loops over columns of all kernels. Who includes this has defined EDGEKIT_TARGET, the instructions that functions
// may use, and, in the unnamed namespace of edgekit: kSlots, where each eight rows of a group lie among its sums,
// add_columns() and add_scaled().

#include <cstring>

#include "columns.h"

namespace edgekit {
namespace {

// The planes of a unit in four columns, each kUnitBytes; a short unit is copied and its rest left zero.
struct Planes {
  EDGEKIT_TARGET Planes(const Columns& weights, const uint8_t* const* columns, size_t unit) {
    const size_t plane = weights.plane_bytes(unit);
    for (size_t i = 0; i < kBatch; ++i) {
      at[i] = columns[i] + unit * kUnitBytes;
      if (plane < kPlaneBytes) {
        for (size_t each = 0; each < 3; ++each) {
          std::memcpy(copies + i * kUnitBytes + each * kPlaneBytes, at[i] + each * plane, plane);
        }
        at[i] = copies + i * kUnitBytes;
      }
    }
  }

  const uint8_t* at[kBatch];
  uint8_t copies[kBatch * kUnitBytes] = {};
};

// Scales a chunk's sums (rows, kUnitRows) of a unit and adds them to `values` (rows, kUnitRows), there in their order.
EDGEKIT_TARGET void add_unit(const Columns& weights, const Chosen& x, size_t chunk, size_t unit, const int16_t* sums,
                             float* values) {
  const size_t plane = weights.plane_bytes(unit);
  const uint16_t* scales =
      weights.scales + chunk / weights.chunks_per_block() * weights.padded_rows() + unit * kUnitRows;
  for (size_t m = 0; m < x.rows; ++m) {
    const Step step = x.steps[m * weights.chunks() + chunk];
    for (size_t group = 0; group < kGroups; ++group) {
      for (size_t eight = 0; eight < plane / 8; ++eight) {
        const size_t row = group * plane + 8 * eight;
        add_scaled(sums + m * kUnitRows + group * kPlaneBytes + 8 * kSlots[eight], step, scales + row,
                   values + m * kUnitRows + row);
      }
    }
  }
}

template <bool kOneRow>
EDGEKIT_TARGET void add_chunk(const Columns& weights, const Chosen& x, size_t chunk, Range units, int16_t* sums) {
  const size_t size = weights.column_bytes();
  for (size_t at = x.begins[chunk]; at < x.begins[chunk + 1]; at += kBatch) {
    const uint8_t* columns[kBatch];
    const uint8_t* next[kBatch];  // columns are short: no prefetcher knows where the next ones are
    int8_t codes[kMostRows][kBatch] = {};
    for (size_t i = 0; i < kBatch; ++i) {
      const bool more = at + i < x.begins[chunk + 1];
      const size_t column = x.needed[more ? at + i : at];
      columns[i] = weights.codes + column * size;
      next[i] = weights.codes + x.needed[at + kBatch + i] * size;
      for (size_t m = 0; more && m < x.rows; ++m) {
        codes[m][i] = x.codes[m * weights.chunks() * kChunkColumns + column];
      }
    }
    for (size_t i = 0; i < kBatch; ++i) {
      for (size_t byte = units.begin * kUnitBytes; byte < std::min(units.end * kUnitBytes, size); byte += 64) {
        __builtin_prefetch(next[i] + byte);
      }
    }
    for (size_t unit = units.begin; unit < units.end; ++unit) {
      int16_t* to = sums + (unit - units.begin) * x.rows * kUnitRows;
      if (weights.plane_bytes(unit) == kPlaneBytes) {
        const uint8_t* const at_unit[kBatch] = {columns[0] + unit * kUnitBytes, columns[1] + unit * kUnitBytes,
                                                columns[2] + unit * kUnitBytes, columns[3] + unit * kUnitBytes};
        add_columns<kOneRow>(at_unit, codes, x.rows, to);
      } else {
        const Planes planes(weights, columns, unit);
        add_columns<kOneRow>(planes.at, codes, x.rows, to);
      }
    }
  }
}

EDGEKIT_TARGET void multiply_units(const Columns& weights, const Chosen& x, Range units, float* y) {
  const size_t cells = x.rows * kUnitRows;  // of a unit
  alignas(64) int16_t sums[kMostRows * kUnitRows];
  alignas(64) float values[kMostRows * kUnitRows];
  std::fill_n(values, (units.end - units.begin) * cells, 0.0F);
  for (size_t chunk = 0; chunk < weights.chunks(); ++chunk) {
    if (x.idle[chunk] != 0) {
      continue;
    }
    std::fill_n(sums, (units.end - units.begin) * cells, int16_t{0});
    (x.rows == 1 ? add_chunk<true> : add_chunk<false>)(weights, x, chunk, units, sums);
    for (size_t unit = units.begin; unit < units.end; ++unit) {
      const size_t at = (unit - units.begin) * cells;
      add_unit(weights, x, chunk, unit, sums + at, values + at);
    }
  }
  for (size_t unit = units.begin; unit < units.end; ++unit) {
    const size_t first = unit * kUnitRows;
    for (size_t m = 0; m < x.rows; ++m) {
      const float* from = values + (unit - units.begin) * cells + m * kUnitRows;
      for (size_t row = first; row < std::min(first + kUnitRows, weights.rows); ++row) {
        y[m * weights.rows + row] = from[row - first] + (weights.bias == nullptr ? 0.0F : weights.bias[row]);
      }
    }
  }
}

void multiply_columns(const Columns& weights, const Chosen& x, Range units, float* y) {
  const size_t most = std::clamp<size_t>(kMostRows / x.rows, 1, kMostUnits);
  for (size_t first = units.begin; first < units.end; first += most) {
    multiply_units(weights, x, {first, std::min(first + most, units.end)}, y);
  }
}

}  // namespace
}  // namespace edgekit
