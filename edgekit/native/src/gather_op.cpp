// The operator edgekit::Gather3Bits: rows of a packed matrix, such as the embeddings of tokens.
#include "gather.h"
#include "operators.h"
#include "packed.h"

namespace edgekit {
namespace {

// One node of a graph.
class GatherNode {
 public:
  static constexpr const char* kName = "Gather3Bits";

  GatherNode(const OrtApi& api, const OrtKernelInfo& info) : packed_(api, info, Layout::kTiles) {}

  const OrtApi& api() const { return packed_.api(); }

  void compute(OrtKernelContext* context) const {
    const OrtValue* indices = input_of(api(), context, kFirst);
    std::vector<uint16_t> scales;
    const Weights weights = packed_.weights(context, scales);
    std::vector<int64_t> shape = shape_of(api(), indices);
    const size_t count = count_of(shape, shape.size());
    shape.push_back(static_cast<int64_t>(weights.columns));
    OrtValue* y = nullptr;
    check(api(), api().KernelContext_GetOutput(context, 0, shape.data(), shape.size(), &y));
    if (count == 0) {
      return;
    }
    std::vector<int64_t> copy;
    const int64_t* places = aligned(api(), indices, count, copy);
    into(api(), y, count * weights.columns, [&](float* out) {
      for (size_t i = 0; i < count; ++i) {
        gather_row(weights, row_at(places[i]), out + i * weights.columns);
      }
    });
  }

 private:
  // A negative place counts from the end, as in ONNX's Gather.
  size_t row_at(int64_t place) const {
    const auto rows = static_cast<int64_t>(packed_.rows());
    if (place < -rows || place >= rows) {
      refuse("the index " + std::to_string(place) + " names no row",
             std::to_string(-rows) + " to " + std::to_string(rows - 1));
    }
    return static_cast<size_t>(place < 0 ? place + rows : place);
  }

  Packed packed_;
};

}  // namespace

OrtCustomOp gather_operator() {
  OrtCustomOp op = operator_of<GatherNode>();
  op.GetInputTypeCount = [](const OrtCustomOp*) { return size_t{kScales + 1}; };
  op.GetInputType = [](const OrtCustomOp*, size_t index) {
    return type_of_input(index, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64);
  };
  op.GetInputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; };
  return op;
}

}  // namespace edgekit
