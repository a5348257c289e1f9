// Compares the kernels with the definition of the product and with each other.
//
//   kernels_test                       compares every kernel that runs here; returns 0 when all agree
//   kernels_test names                 prints the kernels that run here
//   kernels_test run KERNEL M N K B T  computes T products of M rows with a matrix (N, K) in blocks of B, for counting
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

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

void compare_shapes(Random& random) {
  const size_t rows[] = {1, 2, 3, 15, 16, 17, 33};
  const size_t shapes[][2] = {{1, 1},  {8, 32},  {7, 31},   {9, 33},   {16, 64},  {24, 96},
                              {5, 65}, {64, 100}, {33, 127}, {40, 576}, {17, 1000}};
  for (const auto& shape : shapes) {
    for (const size_t block : {size_t{32}, size_t{64}}) {
      for (const size_t m : rows) {
        const Matrix matrix(shape[0], shape[1], block, m % 2 == 0, random);
        compare(matrix, activations(m, shape[1], random),
                std::to_string(m) + " x (" + std::to_string(shape[0]) + ", " + std::to_string(shape[1]) + "), block " +
                    std::to_string(block));
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
      const std::vector<float> y = product(matrix, *kernel, Accuracy::kInt8, x);
      bool right = true;
      for (size_t row = 0; row < 9; ++row) {
        right = right && std::isnan(y[row]) && !std::isnan(y[9 + row]);
      }
      expect(right, "one row of activations is not finite", kernel->name);
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

int run(char** arguments) {
  size_t numbers[5];
  for (size_t i = 0; i < 5; ++i) {
    numbers[i] = std::strtoul(arguments[i + 1], nullptr, 10);
  }
  Random random;
  const Kernel& kernel = kernel_named(arguments[0]);
  const Matrix matrix(numbers[1], numbers[2], numbers[3], false, random);
  const std::vector<float> x = activations(numbers[0], numbers[2], random);
  double sum = 0;
  for (size_t i = 0; i < numbers[4]; ++i) {
    sum += static_cast<double>(product(matrix, kernel, Accuracy::kInt8, x)[0]);
  }
  std::printf("%g\n", sum);
  return 0;
}

int all() {
  Random random;
  check_unpacking(random);
  compare_shapes(random);
  compare_extremes(random);
  std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace edgekit

int main(int count, char** arguments) {
  if (count == 8 && std::strcmp(arguments[1], "run") == 0) {
    return edgekit::run(arguments + 2);
  }
  if (count == 2 && std::strcmp(arguments[1], "names") == 0) {
    for (const edgekit::Kernel* kernel : edgekit::kernels_here()) {
      std::printf("%s\n", kernel->name);
    }
    return 0;
  }
  return edgekit::all();
}
