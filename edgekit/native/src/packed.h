// The packed matrix of a node: its attributes and its initializers, checked once.
#pragma once

#include "columns.h"
#include "kernels.h"
#include "ort.h"

namespace edgekit {

// Inputs that the operators have; the first one differs.
enum Input : size_t { kFirst, kCodes, kScales, kBias };

// Type of an input: that of the packed matrix's parts, `other` for the rest.
inline ONNXTensorElementDataType type_of_input(size_t index, ONNXTensorElementDataType other) {
  return index == kCodes    ? ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8
         : index == kScales ? ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16
                            : other;
}

// How a matrix lies in the file: tiles of rows (Weights), or its columns one after the other (Columns).
enum class Layout { kTiles, kColumns };

class Packed {
 public:
  // Throws std::invalid_argument where an attribute or an initializer is not what docs/int3.md says.
  Packed(const OrtApi& api, const OrtKernelInfo& info, Layout layout);

  const OrtApi& api() const { return api_; }
  size_t rows() const { return weights_.rows; }
  size_t columns() const { return weights_.columns; }

  // The matrix without a bias; `scales` holds a copy of what does not lie aligned.
  Weights weights(const OrtKernelContext* context, std::vector<uint16_t>& scales) const;

  // The same for Layout::kColumns.
  Columns by_columns(const OrtKernelContext* context, std::vector<uint16_t>& scales) const;

  // A tensor that must be stored in the model.
  const OrtValue* constant(const OrtKernelInfo& info, size_t index, const char* name) const;

 private:
  std::vector<int64_t> codes_shape() const;
  std::vector<int64_t> scales_shape() const;
  size_t scale_count() const;

  const OrtApi& api_;
  const Layout layout_;
  Weights weights_ = {};
  std::vector<uint16_t> scales_;  // empty where the initializer lies aligned
};

}  // namespace edgekit
