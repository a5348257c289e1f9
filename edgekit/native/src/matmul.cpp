#include "matmul.h"

#include <algorithm>
#include <memory>

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

}  // namespace edgekit
