#include "kernel_portable.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

namespace edgekit {
namespace {

constexpr uint32_t kMagnitude = 0x7fffffffU;
constexpr uint32_t kInfinity = 0x7f800000U;

uint32_t bits_of(float value) {
  uint32_t bits = 0;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

float float_of(uint32_t bits) {
  float value = 0;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

void quantize(const float* x, size_t chunks, int8_t* codes, Step* steps) {
  for (size_t chunk = 0; chunk < chunks; ++chunk, x += kChunkColumns, codes += kChunkColumns) {
    uint32_t most = 0;
    for (size_t i = 0; i < kChunkColumns; ++i) {
      most = std::max(most, bits_of(x[i]) & kMagnitude);
    }
    const Scaling scaling = scaling_of(most);
    int32_t sum = 0;
    for (size_t i = 0; i < kChunkColumns; ++i) {
      // What is not finite is never converted: that would be undefined.
      const float scaled = scaling.inverse == 0.0F ? 0.0F : std::nearbyint(x[i] * scaling.inverse);
      codes[i] = static_cast<int8_t>(scaled);
      sum += codes[i];
    }
    steps[chunk] = {scaling.scale, -kZeroPoint * sum};
  }
}

void multiply(const Weights& weights, const Activations& activations, Range tiles, float* y) {
  const size_t chunks = weights.chunks();
  const size_t blocks = weights.blocks();
  uint8_t codes[kChunkColumns * kTileRows];
  for (size_t tile = tiles.begin; tile < tiles.end; ++tile) {
    const size_t first = tile * kTileRows;
    const size_t rows = std::min(kTileRows, weights.rows - first);
    for (size_t m = 0; m < activations.rows; ++m) {
      float sums[kTileRows] = {};
      for (size_t chunk = 0; chunk < chunks; ++chunk) {
        unpack_chunk(weights.codes + (tile * chunks + chunk) * kChunkBytes, codes);
        const int8_t* x = activations.codes + (m * chunks + chunk) * kChunkColumns;
        const Step step = activations.steps[m * chunks + chunk];
        const uint16_t* scales = weights.scales + (tile * blocks + chunk / weights.chunks_per_block()) * kTileRows;
        for (size_t row = 0; row < kTileRows; ++row) {
          int32_t dot = step.offset;
          for (size_t group = 0; group < kGroups; ++group) {
            const uint8_t* four = codes + (group * kTileRows + row) * 4;
            for (size_t i = 0; i < 4; ++i) {
              dot += four[i] * x[group * 4 + i];
            }
          }
          sums[row] = std::fma(static_cast<float>(dot), half_to_float(scales[row]) * step.scale, sums[row]);
        }
      }
      store_rows(weights, sums, first, rows, y + m * weights.rows);
    }
  }
}

bool always() { return true; }

}  // namespace
}  // namespace edgekit

#include "columns_portable.h"

namespace edgekit {

const Kernel kPortable = {"portable", always, quantize, multiply, multiply_columns};

Scaling scaling_of(uint32_t most_bits) {
  if (most_bits >= kInfinity) {
    return {std::numeric_limits<float>::quiet_NaN(), 0.0F};
  }
  const float most = float_of(most_bits);
  const float inverse = static_cast<float>(kMostActivation) / most;
  if (!(inverse <= std::numeric_limits<float>::max())) {  // zeros, or so small that their product is nothing
    return {0.0F, 0.0F};
  }
  return {most / static_cast<float>(kMostActivation), inverse};
}

void store_rows(const Weights& weights, const float* sums, size_t first, size_t rows, float* y) {
  for (size_t row = 0; row < rows; ++row) {
    y[first + row] = weights.bias == nullptr ? sums[row] : sums[row] + weights.bias[first + row];
  }
}

float half_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000U) << 16;
  const uint32_t exponent = (half >> 10) & 0x1fU;
  const uint32_t fraction = half & 0x3ffU;
  if (exponent == 0x1fU) {
    return float_of(sign | kInfinity | (fraction << 13));
  }
  if (exponent == 0) {
    const float magnitude = static_cast<float>(fraction) * 0x1p-24F;
    return sign != 0 ? -magnitude : magnitude;
  }
  return float_of(sign | ((exponent + 112U) << 23) | (fraction << 13));
}

void unpack_chunk(const uint8_t* chunk, uint8_t* codes) {
  const uint8_t* p0 = chunk;
  const uint8_t* p1 = chunk + kPlaneBytes;
  const uint8_t* p2 = chunk + 2 * kPlaneBytes;
  for (size_t i = 0; i < kPlaneBytes; ++i) {
    const unsigned a = p0[i];
    const unsigned b = p1[i];
    const unsigned c = p2[i];
    const unsigned groups[kGroups] = {
        a & 7U, a >> 5, b & 7U, b >> 5, c & 7U, c >> 5,
        ((a >> 3) & 3U) | ((c >> 1) & 4U),
        ((b >> 3) & 3U) | ((c >> 2) & 4U),
    };
    for (size_t group = 0; group < kGroups; ++group) {
      codes[group * kPlaneBytes + i] = static_cast<uint8_t>(groups[group]);
    }
  }
}

void multiply_float(const Weights& weights, const float* x, size_t rows, Range tiles, float* y) {
  const size_t chunks = weights.chunks();
  const size_t blocks = weights.blocks();
  uint8_t codes[kChunkColumns * kTileRows];
  for (size_t tile = tiles.begin; tile < tiles.end; ++tile) {
    const size_t first = tile * kTileRows;
    for (size_t m = 0; m < rows; ++m) {
      float sums[kTileRows] = {};
      for (size_t chunk = 0; chunk < chunks && chunk * kChunkColumns < weights.columns; ++chunk) {
        unpack_chunk(weights.codes + (tile * chunks + chunk) * kChunkBytes, codes);
        const size_t begin = chunk * kChunkColumns;
        const size_t count = std::min(kChunkColumns, weights.columns - begin);
        const uint16_t* scales = weights.scales + (tile * blocks + chunk / weights.chunks_per_block()) * kTileRows;
        for (size_t row = 0; row < kTileRows; ++row) {
          float dot = 0;
          for (size_t i = 0; i < count; ++i) {
            const int code = codes[(i / 4 * kTileRows + row) * 4 + i % 4];
            dot += static_cast<float>(code - kZeroPoint) * x[m * weights.columns + begin + i];
          }
          sums[row] += half_to_float(scales[row]) * dot;
        }
      }
      store_rows(weights, sums, first, std::min(kTileRows, weights.rows - first), y + m * weights.rows);
    }
  }
}

void multiply_columns_float(const Columns& weights, const float* x, size_t rows, Range units, float* y) {
  for (size_t unit = units.begin; unit < units.end; ++unit) {
    const size_t first = unit * kUnitRows;
    const size_t count = std::min(kUnitRows, weights.rows - first);
    std::vector<float> sums(rows * kUnitRows);
    float column_of_w[kUnitRows];
    for (size_t column = 0; column < weights.columns; ++column) {
      const uint16_t* scales = weights.scales + column / weights.block * weights.padded_rows() + first;
      const auto fires = [&](size_t m) { return x[m * weights.columns + column] != 0.0F; };
      size_t row = 0;
      while (row < rows && !fires(row)) {
        ++row;
      }
      if (row == rows) {
        continue;
      }
      for (size_t i = 0; i < count; ++i) {
        const int code = static_cast<int>(code_at(weights, first + i, column)) - kZeroPoint;
        column_of_w[i] = static_cast<float>(code) * half_to_float(scales[i]);
      }
      for (size_t m = row; m < rows; ++m) {
        const float value = x[m * weights.columns + column];
        for (size_t i = 0; i < count; ++i) {
          sums[m * kUnitRows + i] += column_of_w[i] * value;
        }
      }
    }
    for (size_t m = 0; m < rows; ++m) {
      for (size_t i = 0; i < count; ++i) {
        y[m * weights.rows + first + i] =
            sums[m * kUnitRows + i] + (weights.bias == nullptr ? 0.0F : weights.bias[first + i]);
      }
    }
  }
}

}  // namespace edgekit
