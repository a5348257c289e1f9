// Compares the kernels with the definition of the product and with each other.
//
//   kernels_test                       compares every kernel that runs here; returns 0 when all agree
//   kernels_test names                 prints the kernels that run here
//   kernels_test run KERNEL M N K B T  computes T products of M rows with a matrix (N, K) in blocks of B, for counting
//   kernels_test run KERNEL M N K B T SHARE  the same by columns, of which so great a share has activations
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "columns.h"
#include "gather.h"
#include "matmul.h"

namespace edgekit {
namespace {

int failures = 0;

void expect(bool right, const char* what, const std::string& which) {
  if (!right) {
    std::printf("FAILED: %s: %s\n", which.c_str(), what);
    ++failures;
  }
}

// Marsaglia's xorshift64: the same numbers everywhere.
class Random {
 public:
  uint32_t next() {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return static_cast<uint32_t>(state_ >> 32);
  }
  float uniform() { return static_cast<float>(next()) * 0x1p-31F - 1.0F; }

 private:
  uint64_t state_ = 0x9e3779b97f4a7c15U;
};

// A matrix as codes, and as the bytes that the kernels read: packed here once more, straight from docs/int3.md.
struct Matrix {
  Matrix(size_t n, size_t k, size_t b, bool with_bias, Random& random) : rows(n), columns(k), block(b) {
    weights = {nullptr, nullptr, nullptr, rows, columns, block};
    const size_t tiles = weights.tiles();
    packed.assign(tiles * weights.chunks() * kChunkBytes, 0);
    halves.assign(tiles * weights.blocks() * kTileRows, 0);
    codes.resize(rows * columns);
    for (size_t row = 0; row < tiles * kTileRows; ++row) {
      for (size_t column = 0; column < weights.chunks() * kChunkColumns; ++column) {
        unsigned code = static_cast<unsigned>(kZeroPoint);
        if (row < rows && column < columns) {
          code = random.next() % 8;
          codes[row * columns + column] = static_cast<uint8_t>(code);
        }
        put(row, column, code);
      }
      for (size_t each = 0; each < weights.blocks() && row < rows; ++each) {
        halves[scale_index(row, each)] = some_half(random);
      }
    }
    for (size_t row = 0; with_bias && row < rows; ++row) {
      bias.push_back(random.uniform());
    }
    weights.codes = packed.data();
    weights.scales = halves.data();
    weights.bias = with_bias ? bias.data() : nullptr;
  }

  size_t scale_index(size_t row, size_t each) const {
    return (row / kTileRows * weights.blocks() + each) * kTileRows + row % kTileRows;
  }

  double weight(size_t row, size_t column) const {
    return (codes[row * columns + column] - kZeroPoint) *
           static_cast<double>(half_to_float(halves[scale_index(row, column / block)]));
  }

  // Any finite number: subnormal, zero, negative.
  static uint16_t some_half(Random& random) {
    const auto half = static_cast<uint16_t>(random.next());
    return (half & 0x7c00U) > 0x4400U ? static_cast<uint16_t>(half & 0x83ffU) : half;
  }

  void put(size_t row, size_t column, unsigned code) {
    uint8_t* chunk = packed.data() + (row / kTileRows * weights.chunks() + column / kChunkColumns) * kChunkBytes;
    const size_t group = column % kChunkColumns / 4;
    const size_t at = row % kTileRows * 4 + column % 4;
    const auto add = [&](size_t plane, unsigned bits) {
      chunk[plane * kPlaneBytes + at] = static_cast<uint8_t>(chunk[plane * kPlaneBytes + at] | bits);
    };
    if (group < 6) {
      add(group / 2, group % 2 == 0 ? code : code << 5);
      return;
    }
    add(group - 6, (code & 3U) << 3);
    add(2, (code >> 2) << (group - 3));
  }

  size_t rows, columns, block;
  std::vector<uint8_t> packed, codes;
  std::vector<uint16_t> halves;
  std::vector<float> bias;
  Weights weights = {};
};

// The same matrix packed by columns, straight from docs/int3.md.
struct ByColumns {
  explicit ByColumns(const Matrix& matrix) {
    weights = {nullptr, nullptr, matrix.weights.bias, matrix.rows, matrix.columns, matrix.block};
    packed.assign(weights.chunks() * kChunkColumns * weights.column_bytes(), 0);
    halves.assign(weights.blocks() * weights.padded_rows(), 0);
    for (size_t column = 0; column < weights.chunks() * kChunkColumns; ++column) {
      for (size_t row = 0; row < weights.padded_rows(); ++row) {
        const bool inside = row < matrix.rows && column < matrix.columns;
        put(row, column, inside ? matrix.codes[row * matrix.columns + column] : static_cast<unsigned>(kZeroPoint));
      }
    }
    for (size_t row = 0; row < matrix.rows; ++row) {
      for (size_t each = 0; each < weights.blocks(); ++each) {
        halves[each * weights.padded_rows() + row] = matrix.halves[matrix.scale_index(row, each)];
      }
    }
    weights.codes = packed.data();
    weights.scales = halves.data();
  }

  void put(size_t row, size_t column, unsigned code) {
    const size_t unit = row / 256;
    const size_t plane = std::min<size_t>(256, weights.padded_rows() - unit * 256) / 8;
    const size_t group = row % 256 / plane;
    uint8_t* bytes = packed.data() + column * weights.column_bytes() + unit * 96 + row % 256 % plane;
    const auto add = [&](size_t index, unsigned bits) {
      bytes[index * plane] = static_cast<uint8_t>(bytes[index * plane] | bits);
    };
    if (group < 6) {
      add(group / 2, group % 2 == 0 ? code : code << 5);
      return;
    }
    add(group - 6, (code & 3U) << 3);
    add(2, (code >> 2) << (group - 3));
  }

  std::vector<uint8_t> packed;
  std::vector<uint16_t> halves;
  Columns weights = {};
};

void serial(size_t count, const std::function<void(size_t)>& work) {
  for (size_t i = count; i-- > 0;) {
    work(i);
  }
}

std::vector<float> product(const Matrix& matrix, const Kernel& kernel, Accuracy accuracy, const std::vector<float>& x) {
  const size_t rows = x.size() / matrix.columns;
  std::vector<float> y(rows * matrix.rows, std::numeric_limits<float>::quiet_NaN());
  matmul(matrix.weights, kernel, accuracy, x.data(), rows, y.data(), serial);
  return y;
}

std::vector<float> product_by_columns(const ByColumns& matrix, const Kernel& kernel, Accuracy accuracy, float threshold,
                                      const std::vector<float>& x, size_t sequence = 1) {
  const size_t rows = x.size() / matrix.weights.columns;
  std::vector<float> y(rows * matrix.weights.rows, std::numeric_limits<float>::quiet_NaN());
  matmul_columns(matrix.weights, kernel, accuracy, {threshold, sequence}, x.data(), rows, y.data(), serial);
  return y;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// Whether y is x * W^T within the error of 8-bit activations, half a step each, or of float32.
bool close(const Matrix& matrix, const std::vector<float>& x, const std::vector<float>& y, bool quantized) {
  for (size_t m = 0; m * matrix.columns < x.size(); ++m) {
    const float* row_x = x.data() + m * matrix.columns;
    for (size_t row = 0; row < matrix.rows; ++row) {
      double sum = matrix.bias.empty() ? 0.0 : static_cast<double>(matrix.bias[row]);
      double error = 0;
      double size = std::fabs(sum);
      for (size_t begin = 0; begin < matrix.columns; begin += kChunkColumns) {
        double most = 0;
        double weights = 0;
        for (size_t i = begin; i < matrix.columns && i < begin + kChunkColumns; ++i) {
          const double weight = matrix.weight(row, i);
          sum += weight * static_cast<double>(row_x[i]);
          size += std::fabs(weight * static_cast<double>(row_x[i]));
          weights += std::fabs(weight);
          most = std::fmax(most, std::fabs(static_cast<double>(row_x[i])));
        }
        error += quantized ? weights * most / kMostActivation / 2 : 0.0;
      }
      if (!(std::fabs(static_cast<double>(y[m * matrix.rows + row]) - sum) <= error * 1.0001 + size * 1e-5)) {
        return false;
      }
    }
  }
  return true;
}

// Whether every row is looked up as the definition says: a product of float32, so bit for bit.
bool rows_are_right(const Matrix& matrix) {
  std::vector<float> row(matrix.columns);
  std::vector<float> expected(matrix.columns);
  for (size_t i = 0; i < matrix.rows; ++i) {
    gather_row(matrix.weights, i, row.data());
    for (size_t column = 0; column < matrix.columns; ++column) {
      const float scale = half_to_float(matrix.halves[matrix.scale_index(i, column / matrix.block)]);
      expected[column] = static_cast<float>(matrix.codes[i * matrix.columns + column] - kZeroPoint) * scale;
    }
    if (!same_bits(row, expected)) {
      return false;
    }
  }
  return true;
}

void compare(const Matrix& matrix, const std::vector<float>& x, const std::string& which) {
  const Kernel& portable = kernel_named("portable");
  const std::vector<float> expected = product(matrix, portable, Accuracy::kInt8, x);
  expect(close(matrix, x, expected, true), "portable, 8-bit activations, against the definition", which);
  const std::vector<float> exact = product(matrix, portable, Accuracy::kFloat, x);
  expect(close(matrix, x, exact, false), "float activations, against the definition", which);
  for (const Kernel* kernel : kernels_here()) {
    const bool same = same_bits(product(matrix, *kernel, Accuracy::kInt8, x), expected);
    expect(same, (std::string(kernel->name) + " against portable").c_str(), which);
  }
}

std::vector<float> activations(size_t rows, size_t columns, Random& random) {
  std::vector<float> x(rows * columns);
  for (float& value : x) {
    value = random.uniform();
    if (random.next() % 64 == 0) {
      value *= 50;  // an outlier
    }
  }
  return x;
}

// By columns, activations below the threshold are zero, and everything else is as by rows, bit for bit.
void compare_columns(const Matrix& matrix, const std::vector<float>& x, const std::string& which) {
  const ByColumns columns(matrix);
  for (const float threshold : {0.0F, 0.5F, 1000.0F}) {
    std::vector<float> kept = x;
    for (float& value : kept) {
      value = std::fabs(value) < threshold ? 0.0F : value;
    }
    const std::vector<float> expected = product(matrix, kernel_named("portable"), Accuracy::kInt8, kept);
    for (const Kernel* kernel : kernels_here()) {
      const bool same =
          same_bits(product_by_columns(columns, *kernel, Accuracy::kInt8, threshold, x), expected);
      expect(same, (std::string(kernel->name) + " by columns against rows").c_str(), which);
    }
    const Kernel& portable = kernel_named("portable");
    expect(close(matrix, kept, product_by_columns(columns, portable, Accuracy::kFloat, threshold, x), false),
           "float activations by columns, against the definition", which);
  }
}

// The first row of a sequence is left whole, unless it is the only one.
void check_first_rows(Random& random) {
  const Matrix matrix(70, 64, 32, false, random);
  const std::vector<float> x = activations(34, 64, random);
  for (const size_t sequence : {size_t{1}, size_t{2}, size_t{17}, size_t{34}}) {
    std::vector<float> kept = x;
    for (size_t i = 0; i < kept.size(); ++i) {
      const bool whole = sequence > 1 && i / 64 % sequence == 0;
      kept[i] = !whole && std::fabs(kept[i]) < 0.5F ? 0.0F : kept[i];
    }
    const std::vector<float> expected = product(matrix, kernel_named("portable"), Accuracy::kInt8, kept);
    const std::vector<float> found =
        product_by_columns(ByColumns(matrix), kernel_named(""), Accuracy::kInt8, 0.5F, x, sequence);
    expect(same_bits(found, expected), "the first row of a sequence", std::to_string(sequence));
  }
}

// Only columns are read whose activation is not zero: all others hold codes that would be seen in the sum.
void check_skipping(Random& random) {
  const Matrix matrix(300, 70, 32, true, random);
  ByColumns columns(matrix);
  std::vector<float> x(70, 0.0F);
  for (const size_t column : {3, 31, 69}) {
    x[column] = 1.0F;
  }
  const std::vector<float> expected = product(matrix, kernel_named("portable"), Accuracy::kInt8, x);
  std::vector<uint8_t> read = columns.packed;
  for (size_t column = 0; column < columns.weights.chunks() * kChunkColumns; ++column) {
    if (column >= 70 || x[column] == 0.0F) {
      const auto at = static_cast<std::ptrdiff_t>(column * columns.weights.column_bytes());
      std::fill_n(read.begin() + at, columns.weights.column_bytes(), static_cast<uint8_t>(0xff));
    }
  }
  columns.weights.codes = read.data();
  for (const Kernel* kernel : kernels_here()) {
    std::vector<float> y(300);
    const size_t needed = matmul_columns(columns.weights, *kernel, Accuracy::kInt8, {0, 1}, x.data(), 1, y.data(), serial);
    expect(same_bits(y, expected), "columns without activations are not read", kernel->name);
    expect(needed == 3, "columns that are needed", kernel->name);
  }
}

void compare_shapes(Random& random) {
  const size_t rows[] = {1, 2, 3, 15, 16, 17, 33};
  const size_t shapes[][2] = {{1, 1},  {8, 32},  {7, 31},   {9, 33},   {16, 64},  {24, 96},
                              {5, 65}, {64, 100}, {33, 127}, {40, 576}, {17, 1000},
                              {256, 40}, {257, 33}, {448, 64}};
  for (const auto& shape : shapes) {
    for (const size_t block : {size_t{32}, size_t{64}}) {
      for (const size_t m : rows) {
        const Matrix matrix(shape[0], shape[1], block, m % 2 == 0, random);
        const std::vector<float> x = activations(m, shape[1], random);
        const std::string which = std::to_string(m) + " x (" + std::to_string(shape[0]) + ", " +
                                  std::to_string(shape[1]) + "), block " + std::to_string(block);
        compare(matrix, x, which);
        compare_columns(matrix, x, which);
      }
    }
  }
  for (const auto& shape : shapes) {
    for (const size_t block : {size_t{32}, size_t{64}}) {
      expect(rows_are_right(Matrix(shape[0], shape[1], block, false, random)), "rows that are looked up",
             "(" + std::to_string(shape[0]) + ", " + std::to_string(shape[1]) + "), block " + std::to_string(block));
    }
  }
  const Matrix large(100, 2048, 32, false, random);  // enough work to be shared out
  compare(large, activations(20, 2048, random), "20 x (100, 2048)");
  compare_columns(Matrix(2500, 96, 32, true, random), activations(1, 96, random), "1 x (2500, 96)");
}

// The largest whole numbers that can come up, and activations that are no ordinary numbers.
void compare_extremes(Random& random) {
  for (const unsigned code : {0U, 7U}) {
    Matrix matrix(8, 64, 64, false, random);
    std::fill(matrix.packed.begin(), matrix.packed.end(), static_cast<uint8_t>(code == 0 ? 0 : 0xff));
    std::fill(matrix.codes.begin(), matrix.codes.end(), static_cast<uint8_t>(code));
    std::fill(matrix.halves.begin(), matrix.halves.end(), static_cast<uint16_t>(0x3c00));
    for (const float value : {1.0F, -1.0F}) {
      compare(matrix, std::vector<float>(64, value), "codes " + std::to_string(code));
      compare_columns(matrix, std::vector<float>(64, value), "codes " + std::to_string(code));
    }
    for (const size_t lane : {size_t{0}, size_t{1}}) {  // the sums of even and of odd columns part farthest
      std::vector<float> x(64);
      for (size_t i = 0; i < x.size(); ++i) {
        x[i] = i / 2 % 2 == lane ? 1.0F : -1.0F;
      }
      compare(matrix, x, "alternating, codes " + std::to_string(code));
    }
  }
  const float infinity = std::numeric_limits<float>::infinity();
  const Matrix matrix(9, 70, 32, true, random);
  for (const float odd : {infinity, -infinity, std::numeric_limits<float>::quiet_NaN()}) {
    std::vector<float> x = activations(2, 70, random);
    x[3] = odd;
    for (const Kernel* kernel : kernels_here()) {
      for (const std::vector<float>& y : {product(matrix, *kernel, Accuracy::kInt8, x),
                                          product_by_columns(ByColumns(matrix), *kernel, Accuracy::kInt8, 100, x)}) {
        bool right = true;
        for (size_t row = 0; row < 9; ++row) {
          right = right && std::isnan(y[row]) && !std::isnan(y[9 + row]);
        }
        expect(right, "one row of activations is not finite", kernel->name);
      }
    }
  }
  for (const float small : {0.0F, -0.0F, 1e-45F, 1e-38F, 1e-36F, 3e38F}) {
    std::vector<float> x(140, small);
    x[5] = -small;
    const std::vector<float> expected = product(matrix, kernel_named("portable"), Accuracy::kInt8, x);
    for (const Kernel* kernel : kernels_here()) {
      expect(same_bits(product(matrix, *kernel, Accuracy::kInt8, x), expected), kernel->name,
             "activations of " + std::to_string(small));
    }
  }
}

void check_unpacking(Random& random) {
  const Matrix matrix(8, 32, 32, false, random);
  uint8_t codes[kTileRows * kChunkColumns];
  unpack_chunk(matrix.packed.data(), codes);
  bool right = true;
  for (size_t row = 0; row < kTileRows; ++row) {
    for (size_t column = 0; column < kChunkColumns; ++column) {
      right = right && codes[(column / 4 * kTileRows + row) * 4 + column % 4] == matrix.codes[row * 32 + column];
    }
  }
  expect(right, "unpacked codes", "chunk");
  expect(half_to_float(0x3555) == 0.333251953125F && half_to_float(0x8001) == -0x1p-24F &&
             half_to_float(0xfbff) == -65504.0F && std::isinf(half_to_float(0x7c00)) && std::isnan(half_to_float(0x7e00)),
         "half precision", "numbers");
}

// `share`: empty for a product by rows.
int run(char** arguments, const std::string& share) {
  size_t numbers[5];
  for (size_t i = 0; i < 5; ++i) {
    numbers[i] = std::strtoul(arguments[i + 1], nullptr, 10);
  }
  Random random;
  const Kernel& kernel = kernel_named(arguments[0]);
  const Matrix matrix(numbers[1], numbers[2], numbers[3], false, random);
  std::vector<float> x = activations(numbers[0], numbers[2], random);
  const ByColumns columns(matrix);
  if (!share.empty()) {
    const float least = std::strtof(share.c_str(), nullptr);
    for (float& value : x) {
      value = random.uniform() * 0.5F + 0.5F < least ? value : 0.0F;
    }
  }
  double sum = 0;
  for (size_t i = 0; i < numbers[4]; ++i) {
    sum += static_cast<double>((share.empty() ? product(matrix, kernel, Accuracy::kInt8, x)
                                              : product_by_columns(columns, kernel, Accuracy::kInt8, 0, x))[0]);
  }
  std::printf("%g\n", sum);
  return 0;
}

int all() {
  Random random;
  check_unpacking(random);
  check_first_rows(random);
  check_skipping(random);
  compare_shapes(random);
  compare_extremes(random);
  std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace edgekit

int main(int count, char** arguments) {
  if ((count == 8 || count == 9) && std::strcmp(arguments[1], "run") == 0) {
    return edgekit::run(arguments + 2, count == 9 ? arguments[8] : "");
  }
  if (count == 2 && std::strcmp(arguments[1], "names") == 0) {
    for (const edgekit::Kernel* kernel : edgekit::kernels_here()) {
      std::printf("%s\n", kernel->name);
    }
    return 0;
  }
  return edgekit::all();
}
