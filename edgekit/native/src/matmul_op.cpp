// The operators edgekit::MatMul3Bits and edgekit::SparseMatMul3Bits.
#include <cmath>
#include <cstdlib>

#include "matmul.h"
#include "operators.h"
#include "packed.h"

namespace edgekit {
namespace {

constexpr const char* kKernelVariable = "EDGEKIT_OPS_KERNEL";

const Kernel& chosen_kernel() {
  const char* name = std::getenv(kKernelVariable);
  return kernel_named(name == nullptr ? "" : name);
}

// How a node multiplies, and what it has besides.
struct Dense {
  static constexpr const char* kName = "MatMul3Bits";
  static constexpr Layout kLayout = Layout::kTiles;
  using Matrix = Weights;

  Dense(const OrtApi& /*api*/, const OrtKernelInfo& /*info*/) {}

  static Matrix matrix(const Packed& packed, const OrtKernelContext* context, std::vector<uint16_t>& scales) {
    return packed.weights(context, scales);
  }

  void multiply(const Matrix& weights, const Kernel& kernel, Accuracy accuracy, const float* x, size_t rows,
                size_t /*sequence*/, float* y, const Parallel& parallel) const {
    matmul(weights, kernel, accuracy, x, rows, y, parallel);
  }
};

struct Sparse {
  static constexpr const char* kName = "SparseMatMul3Bits";
  static constexpr Layout kLayout = Layout::kColumns;
  using Matrix = Columns;

  Sparse(const OrtApi& api, const OrtKernelInfo& info) : threshold(float_or(api, info, "threshold", 0)) {
    if (!(threshold >= 0) || std::isinf(threshold)) {
      refuse("threshold is " + std::to_string(threshold), "0 or a positive number");
    }
  }

  static Matrix matrix(const Packed& packed, const OrtKernelContext* context, std::vector<uint16_t>& scales) {
    return packed.by_columns(context, scales);
  }

  void multiply(const Matrix& weights, const Kernel& kernel, Accuracy accuracy, const float* x, size_t rows,
                size_t sequence, float* y, const Parallel& parallel) const {
    matmul_columns(weights, kernel, accuracy, {threshold, sequence}, x, rows, y, parallel);
  }

  float threshold;  // activations of smaller magnitude are zero
};

// One node of a graph.
template <typename Form>
class MatMulNode {
 public:
  static constexpr const char* kName = Form::kName;

  MatMulNode(const OrtApi& api, const OrtKernelInfo& info)
      : packed_(api, info, Form::kLayout), form_(api, info), kernel_(chosen_kernel()) {
    const int64_t level = integer_or(api, info, "accuracy_level", 4);
    if (level != 0 && level != 4) {
      refuse("accuracy_level is " + std::to_string(level), "0 (float32 activations) or 4 (activations in 8 bits)");
    }
    accuracy_ = level == 0 ? Accuracy::kFloat : Accuracy::kInt8;
    size_t inputs = 0;
    check(api, api.KernelInfo_GetInputCount(&info, &inputs));
    if (inputs > kBias && present(info, kBias)) {
      const OrtValue* bias = packed_.constant(info, kBias, "bias");
      expect_shape(api, "bias", bias, {static_cast<int64_t>(packed_.rows())});
      aligned(api, bias, packed_.rows(), bias_);
      biased_ = true;
    }
  }

  const OrtApi& api() const { return packed_.api(); }

  void compute(OrtKernelContext* context) const {
    const OrtValue* x = input_of(api(), context, kFirst);
    std::vector<uint16_t> scales;
    std::vector<float> bias;
    typename Form::Matrix weights = Form::matrix(packed_, context, scales);
    if (biased_) {
      weights.bias = bias_.empty() ? aligned(api(), input_of(api(), context, kBias), weights.rows, bias) : bias_.data();
    }
    std::vector<int64_t> shape = shape_of(api(), x);
    if (shape.empty() || shape.back() != static_cast<int64_t>(weights.columns)) {
      refuse("the activations have shape " + text_of(shape), "K = " + std::to_string(weights.columns) + " at its end");
    }
    const size_t rows = count_of(shape, shape.size() - 1);
    const size_t sequence = shape.size() < 2 ? 1 : static_cast<size_t>(shape[shape.size() - 2]);
    shape.back() = static_cast<int64_t>(weights.rows);
    OrtValue* y = nullptr;
    check(api(), api().KernelContext_GetOutput(context, 0, shape.data(), shape.size(), &y));
    if (rows == 0) {
      return;
    }
    std::vector<float> activations;
    const float* from = aligned(api(), x, rows * weights.columns, activations);
    const auto parallel = [&](size_t count, const std::function<void(size_t)>& work) {
      parallel_for(api(), context, count, work);
    };
    into(api(), y, rows * weights.rows,
         [&](float* out) { form_.multiply(weights, kernel_, accuracy_, from, rows, sequence, out, parallel); });
  }

 private:
  // Whether an optional input has a name.
  bool present(const OrtKernelInfo& info, size_t index) const {
    size_t size = 0;
    check(api(), api().KernelInfo_GetInputName(&info, index, nullptr, &size));
    return size > 1;  // with the zero at its end
  }

  Packed packed_;
  Form form_;
  const Kernel& kernel_;
  Accuracy accuracy_ = Accuracy::kInt8;
  bool biased_ = false;
  std::vector<float> bias_;  // empty where the initializer lies aligned
};

template <typename Form>
OrtCustomOp operator_in() {
  OrtCustomOp op = operator_of<MatMulNode<Form>>();
  op.GetInputTypeCount = [](const OrtCustomOp*) { return size_t{kBias + 1}; };
  op.GetInputType = [](const OrtCustomOp*, size_t index) {
    return type_of_input(index, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT);
  };
  op.GetInputCharacteristic = [](const OrtCustomOp*, size_t index) {
    return index == kBias ? INPUT_OUTPUT_OPTIONAL : INPUT_OUTPUT_REQUIRED;
  };
  return op;
}

}  // namespace

OrtCustomOp matmul_operator() { return operator_in<Dense>(); }

OrtCustomOp sparse_matmul_operator() { return operator_in<Sparse>(); }

}  // namespace edgekit
