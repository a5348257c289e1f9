// The packed matrix of a node: its attributes and its initializers, checked once.
#pragma once

#include "kernels.h"
#include "ort.h"

namespace edgekit {

// Inputs that both operators have; the first one differs.
enum Input : size_t { kFirst, kCodes, kScales, kBias };

// Type of an input: that of the packed matrix's parts, `other` for the rest.
inline ONNXTensorElementDataType type_of_input(size_t index, ONNXTensorElementDataType other) {
  return index == kCodes    ? ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8
         : index == kScales ? ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16
                            : other;
}

class Packed {
 public:
  // Throws std::invalid_argument where an attribute or an initializer is not what docs/int3.md says.
  Packed(const OrtApi& api, const OrtKernelInfo& info);

  const OrtApi& api() const { return api_; }
  size_t rows() const { return weights_.rows; }
  size_t columns() const { return weights_.columns; }

  // The matrix without a bias; `scales` holds a copy of what does not lie aligned.
  Weights weights(const OrtKernelContext* context, std::vector<uint16_t>& scales) const;

  // A tensor that must be stored in the model.
  const OrtValue* constant(const OrtKernelInfo& info, size_t index, const char* name) const;

 private:
  size_t scale_count() const { return weights_.tiles() * weights_.blocks() * kTileRows; }

  const OrtApi& api_;
  Weights weights_ = {};
  std::vector<uint16_t> scales_;  // empty where the initializer lies aligned
};

}  // namespace edgekit
