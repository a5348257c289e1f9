#include "matmul.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

namespace edgekit {
namespace {

constexpr size_t kTaskProducts = size_t{1} << 17;  // below this, handing a task to another thread costs more than it
constexpr size_t kMostTasks = 64;
constexpr size_t kTaskValues = size_t{1} << 15;  // activations that are worth a task

// Calls work(begin, end) over 0..count-1 in pieces of at least `least`.
void share_out(size_t count, size_t least, const Parallel& parallel, const std::function<void(Range)>& work) {
  const size_t tasks = std::clamp<size_t>(count / std::max<size_t>(least, 1), 1, kMostTasks);
  if (tasks == 1) {
    work({0, count});
    return;
  }
  const size_t each = ceil_div(count, tasks);
  parallel(ceil_div(count, each), [&](size_t task) { work({task * each, std::min(count, (task + 1) * each)}); });
}

void quantize_row(const Weights& weights, const Kernel& kernel, const float* x, int8_t* codes, Step* steps) {
  const size_t chunks = weights.chunks();
  const size_t whole = weights.columns / kChunkColumns;
  kernel.quantize(x, whole, codes, steps);
  const size_t rest = weights.columns % kChunkColumns;
  size_t done = whole;
  if (rest != 0) {
    float padded[kChunkColumns] = {};
    std::copy_n(x + whole * kChunkColumns, rest, padded);
    kernel.quantize(padded, 1, codes + whole * kChunkColumns, steps + whole);
    ++done;
  }
  std::fill(codes + done * kChunkColumns, codes + chunks * kChunkColumns, int8_t{0});
  std::fill(steps + done, steps + chunks, Step{0.0F, 0});
}

}  // namespace

void matmul(const Weights& weights, const Kernel& kernel, Accuracy accuracy, const float* x, size_t rows, float* y,
            const Parallel& parallel) {
  if (rows == 0) {
    return;
  }
  const size_t chunks = weights.chunks();
  const size_t products = kTileRows * chunks * kChunkColumns * rows;  // of one tile
  const size_t least = ceil_div(kTaskProducts, products);
  if (accuracy == Accuracy::kFloat) {
    share_out(weights.tiles(), least, parallel, [&](Range tiles) { multiply_float(weights, x, rows, tiles, y); });
    return;
  }
  const std::unique_ptr<int8_t[]> codes(new int8_t[rows * chunks * kChunkColumns]);
  const std::unique_ptr<Step[]> steps(new Step[rows * chunks]);
  share_out(rows, ceil_div(kTaskValues, weights.columns), parallel, [&](Range some) {
    for (size_t row = some.begin; row < some.end; ++row) {
      quantize_row(weights, kernel, x + row * weights.columns, codes.get() + row * chunks * kChunkColumns,
                   steps.get() + row * chunks);
    }
  });
  const Activations activations = {codes.get(), steps.get(), rows};
  share_out(weights.tiles(), least, parallel, [&](Range tiles) { kernel.multiply(weights, activations, tiles, y); });
}

namespace {

// What Chosen points to.
struct Held {
  std::vector<int8_t> codes;
  std::vector<Step> steps;
  std::vector<uint32_t> needed;
  std::vector<uint32_t> begins;
  std::vector<uint8_t> idle;
};

// Quantizes at most kMostRows rows of activations and finds the columns that they need.
Held choose(const Columns& weights, const Kernel& kernel, const float* x, size_t rows) {
  const size_t chunks = weights.chunks();
  Held held = {std::vector<int8_t>(rows * chunks * kChunkColumns), std::vector<Step>(rows * chunks),
               {}, {}, std::vector<uint8_t>(chunks)};
  std::vector<float> padded(chunks * kChunkColumns);
  for (size_t m = 0; m < rows; ++m) {
    std::copy_n(x + m * weights.columns, weights.columns, padded.data());
    kernel.quantize(padded.data(), chunks, held.codes.data() + m * padded.size(), held.steps.data() + m * chunks);
  }
  for (size_t chunk = 0; chunk < chunks; ++chunk) {
    uint8_t used[kChunkColumns] = {};
    bool finite = true;
    for (size_t m = 0; m < rows; ++m) {
      const int8_t* codes = held.codes.data() + (m * chunks + chunk) * kChunkColumns;
      int32_t sum = 0;
      for (size_t i = 0; i < kChunkColumns; ++i) {
        sum += codes[i];
        used[i] = static_cast<uint8_t>(used[i] | static_cast<uint8_t>(codes[i]));
      }
      Step& step = held.steps[m * chunks + chunk];
      step.offset = -kZeroPoint * sum;
      finite = finite && !std::isnan(step.scale);
    }
    const size_t before = held.needed.size();
    held.begins.push_back(static_cast<uint32_t>(before));
    for (size_t i = 0; i < kChunkColumns; ++i) {
      if (used[i] != 0) {
        held.needed.push_back(static_cast<uint32_t>(chunk * kChunkColumns + i));
      }
    }
    held.idle[chunk] = held.needed.size() == before && finite ? 1 : 0;
  }
  held.begins.push_back(static_cast<uint32_t>(held.needed.size()));
  held.needed.insert(held.needed.end(), 2 * kBatch, held.needed.empty() ? 0 : held.needed.back());
  return held;
}

}  // namespace

size_t matmul_columns(const Columns& weights, const Kernel& kernel, Accuracy accuracy, Gate gate, const float* x,
                      size_t rows, float* y, const Parallel& parallel) {
  std::vector<float> kept;
  size_t columns = 0;
  for (size_t first = 0; first < rows; first += kMostRows) {
    const size_t some = std::min(kMostRows, rows - first);
    const float* from = x + first * weights.columns;
    kept.assign(from, from + some * weights.columns);
    for (size_t row = 0; row < some; ++row) {
      const bool whole = gate.sequence > 1 && (first + row) % gate.sequence == 0;
      float* values = kept.data() + row * weights.columns;
      for (size_t i = 0; i < weights.columns && !whole; ++i) {
        values[i] = std::fabs(values[i]) < gate.threshold ? 0.0F : values[i];
      }
    }
    float* to = y + first * weights.rows;
    if (accuracy == Accuracy::kFloat) {
      share_out(weights.units(), 1, parallel,
                [&](Range units) { multiply_columns_float(weights, kept.data(), some, units, to); });
      continue;
    }
    const Held held = choose(weights, kernel, kept.data(), some);
    const size_t needed = held.begins.back();
    columns += needed;
    const Chosen chosen = {held.codes.data(), held.steps.data(), held.needed.data(), held.begins.data(),
                           held.idle.data(), some};
    const size_t products = std::max<size_t>(needed, 1) * kUnitRows * some;
    share_out(weights.units(), ceil_div(kTaskProducts, products), parallel,
              [&](Range units) { kernel.multiply_columns(weights, chosen, units, to); });
  }
  return columns;
}

}  // namespace edgekit
