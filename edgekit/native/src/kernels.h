// Products of float activations and packed 3-bit weights, once for each kind of processor. Nothing here knows of ONNX
// Runtime. docs/int3.md says how weights are packed and why.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace edgekit {

constexpr size_t kTileRows = 8;     // rows of W whose codes lie interleaved
constexpr size_t kChunkColumns = 32;  // columns of a tile that are unpacked at once
constexpr size_t kChunkBytes = kTileRows * kChunkColumns * 3 / 8;
constexpr size_t kGroups = 8;         // of 4 columns in a chunk
constexpr size_t kPlaneBytes = kChunkBytes / 3;
constexpr int kZeroPoint = 4;  // code of the weight 0
constexpr int kMostActivation = 127;

constexpr size_t ceil_div(size_t a, size_t b) { return a / b + (a % b != 0 ? 1 : 0); }

// A packed matrix W of rows x columns; weight = (code - 4) * scale.
struct Weights {
  const uint8_t* codes;    // (tiles, chunks, kChunkBytes)
  const uint16_t* scales;  // IEEE binary16, (tiles, blocks, kTileRows)
  const float* bias;       // (rows) or null
  size_t rows;
  size_t columns;
  size_t block;  // columns that share a scale: 32 or 64

  size_t tiles() const { return ceil_div(rows, kTileRows); }
  size_t blocks() const { return ceil_div(columns, block); }
  size_t chunks_per_block() const { return block / kChunkColumns; }
  size_t chunks() const { return blocks() * chunks_per_block(); }
};

// Of one chunk of one row of activations: x = code * scale. `offset` is -kZeroPoint times the sum of the codes, in the
// form in which the kernel that made it begins its sums.
struct Step {
  float scale;
  int32_t offset;
};

// Quantized activations of `rows` rows.
struct Activations {
  const int8_t* codes;  // (rows, chunks, kChunkColumns)
  const Step* steps;    // (rows, chunks)
  size_t rows;
};

struct Range {
  size_t begin;
  size_t end;
};

struct Columns;
struct Chosen;

// All kernels yield the same bits: whole numbers are exact, and floats are summed chunk by chunk in one order, each
// step one fused multiply-add of the whole number and the rounded product of both scales.
struct Kernel {
  const char* name;
  bool (*supported)();
  // Codes and steps of whole chunks. A chunk with NaN or infinity gets the scale NaN.
  void (*quantize)(const float* x, size_t chunks, int8_t* codes, Step* steps);
  // y (activations.rows, weights.rows), the columns of the given tiles of W.
  void (*multiply)(const Weights& weights, const Activations& activations, Range tiles, float* y);
  // The same for a matrix that is packed by columns (columns.h), the given units of its rows.
  void (*multiply_columns)(const Columns& weights, const Chosen& activations, Range units, float* y);
};

// Those that this processor runs, the fastest first.
std::vector<const Kernel*> kernels_here();

// The kernel of that name, empty for the fastest; throws std::invalid_argument where there is none.
const Kernel& kernel_named(const std::string& name);

// The same product with activations as they are, in float32: for checking, and slow.
void multiply_float(const Weights& weights, const float* x, size_t rows, Range tiles, float* y);

// float32 of an IEEE binary16.
float half_to_float(uint16_t half);

// Codes 0..7 of one chunk, (kGroups, kTileRows, 4 columns), in portable C++.
void unpack_chunk(const uint8_t* chunk, uint8_t* codes);

}  // namespace edgekit
