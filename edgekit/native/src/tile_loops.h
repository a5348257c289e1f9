// The loops over tiles of all vector kernels. Who includes this has defined EDGEKIT_TARGET, the instructions that
// functions may use, and, in the unnamed namespace of edgekit: Sums (of 8 rows, float32) and no_sums(), Chunk (unpacked)
// and unpack(), scales_of(), added() and store().

#include <algorithm>

#include "rows.h"

namespace edgekit {
namespace {

template <size_t kChunksPerBlock>
EDGEKIT_TARGET void multiply_one(const Weights& weights, const int8_t* x, const Step* steps, Range tiles, float* y) {
  const size_t blocks = weights.blocks();
  const uint8_t* codes = weights.codes + tiles.begin * blocks * kChunksPerBlock * kChunkBytes;
  const uint16_t* scales = weights.scales + tiles.begin * blocks * kTileRows;
  for (size_t tile = tiles.begin; tile < tiles.end; ++tile) {
    Sums sums = no_sums();
    const int8_t* values = x;
    const Step* step = steps;
    for (size_t block = 0; block < blocks; ++block, scales += kTileRows) {
      const Sums scale = scales_of(scales);
      for (size_t i = 0; i < kChunksPerBlock; ++i, codes += kChunkBytes, values += kChunkColumns, ++step) {
        sums = added(sums, unpack(codes), values, step, scale);
      }
    }
    store(weights, sums, tile, y);
  }
}

template <size_t kChunksPerBlock>
EDGEKIT_TARGET void multiply_some(const Weights& weights, const Activations& x, size_t first, size_t count, Range tiles,
                                float* y) {
  const size_t blocks = weights.blocks();
  const size_t chunks = blocks * kChunksPerBlock;
  const uint8_t* codes = weights.codes + tiles.begin * chunks * kChunkBytes;
  const uint16_t* scales = weights.scales + tiles.begin * blocks * kTileRows;
  for (size_t tile = tiles.begin; tile < tiles.end; ++tile) {
    Sums sums[kMostRows];
    std::fill_n(sums, count, no_sums());
    for (size_t chunk = 0; chunk < chunks; ++chunk, codes += kChunkBytes) {
      const Sums scale = scales_of(scales + chunk / kChunksPerBlock * kTileRows);
      const Chunk unpacked = unpack(codes);
      const int8_t* values = x.codes + (first * chunks + chunk) * kChunkColumns;
      const Step* step = x.steps + first * chunks + chunk;
      for (size_t m = 0; m < count; ++m, values += chunks * kChunkColumns, step += chunks) {
        sums[m] = added(sums[m], unpacked, values, step, scale);
      }
    }
    scales += blocks * kTileRows;
    for (size_t m = 0; m < count; ++m) {
      store(weights, sums[m], tile, y + (first + m) * weights.rows);
    }
  }
}

void multiply(const Weights& weights, const Activations& x, Range tiles, float* y) {
  const Products products = weights.chunks_per_block() == 1 ? Products{multiply_one<1>, multiply_some<1>}
                                                            : Products{multiply_one<2>, multiply_some<2>};
  multiply_rows(products, weights, x, tiles, y);
}

}  // namespace
}  // namespace edgekit
