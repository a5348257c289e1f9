#include "gather.h"

#include <algorithm>

namespace edgekit {

void gather_row(const Weights& weights, size_t row, float* out) {
  const size_t chunks = weights.chunks();
  const size_t tile = row / kTileRows;
  const size_t lane = row % kTileRows;
  uint8_t codes[kChunkColumns * kTileRows];
  for (size_t chunk = 0; chunk * kChunkColumns < weights.columns; ++chunk) {
    // All eight rows of the tile: a lookup is a few thousand instructions either way, next to none of a token's.
    unpack_chunk(weights.codes + (tile * chunks + chunk) * kChunkBytes, codes);
    const size_t block = chunk / weights.chunks_per_block();
    const float scale = half_to_float(weights.scales[(tile * weights.blocks() + block) * kTileRows + lane]);
    const size_t begin = chunk * kChunkColumns;
    const size_t count = std::min(kChunkColumns, weights.columns - begin);
    for (size_t i = 0; i < count; ++i) {
      const int code = codes[(i / 4 * kTileRows + lane) * 4 + i % 4];
      out[begin + i] = static_cast<float>(code - kZeroPoint) * scale;
    }
  }
}

}  // namespace edgekit
