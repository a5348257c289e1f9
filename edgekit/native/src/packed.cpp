#include "packed.h"

namespace edgekit {

Packed::Packed(const OrtApi& api, const OrtKernelInfo& info, Layout layout) : api_(api), layout_(layout) {
  weights_.columns = size_attribute(api, info, "K");
  weights_.rows = size_attribute(api, info, "N");
  if (const int64_t bits = attribute(api, info, "bits"); bits != 3) {
    refuse("bits is " + std::to_string(bits), "3");
  }
  const int64_t block = attribute(api, info, "block_size");
  if (block != 32 && block != 64) {
    refuse("block_size is " + std::to_string(block), "32 or 64");
  }
  weights_.block = static_cast<size_t>(block);
  expect_shape(api_, "B (packed weights)", constant(info, kCodes, "B (packed weights)"), codes_shape());
  const OrtValue* scales = constant(info, kScales, "scales");
  expect_shape(api_, "scales", scales, scales_shape());
  aligned(api_, scales, scale_count(), scales_);
}

std::vector<int64_t> Packed::codes_shape() const {
  if (layout_ == Layout::kColumns) {
    const Columns columns = {nullptr, nullptr, nullptr, weights_.rows, weights_.columns, weights_.block};
    return {static_cast<int64_t>(weights_.chunks() * kChunkColumns), static_cast<int64_t>(columns.column_bytes())};
  }
  return {static_cast<int64_t>(weights_.tiles()), static_cast<int64_t>(weights_.chunks()),
          static_cast<int64_t>(kChunkBytes)};
}

std::vector<int64_t> Packed::scales_shape() const {
  const auto blocks = static_cast<int64_t>(weights_.blocks());
  if (layout_ == Layout::kColumns) {
    const Columns columns = {nullptr, nullptr, nullptr, weights_.rows, weights_.columns, weights_.block};
    return {blocks, static_cast<int64_t>(columns.padded_rows())};
  }
  return {static_cast<int64_t>(weights_.tiles()), blocks, static_cast<int64_t>(kTileRows)};
}

size_t Packed::scale_count() const {
  const std::vector<int64_t> shape = scales_shape();
  return count_of(shape, shape.size());
}

Columns Packed::by_columns(const OrtKernelContext* context, std::vector<uint16_t>& scales) const {
  const Weights held = weights(context, scales);
  return {held.codes, held.scales, nullptr, held.rows, held.columns, held.block};
}

Weights Packed::weights(const OrtKernelContext* context, std::vector<uint16_t>& scales) const {
  Weights weights = weights_;
  weights.codes = static_cast<const uint8_t*>(data_of(api_, input_of(api_, context, kCodes)));
  weights.scales =
      scales_.empty() ? aligned(api_, input_of(api_, context, kScales), scale_count(), scales) : scales_.data();
  return weights;
}

const OrtValue* Packed::constant(const OrtKernelInfo& info, size_t index, const char* name) const {
  int is_constant = 0;
  const OrtValue* value = nullptr;
  check(api_, api_.KernelInfoGetConstantInput_tensor(&info, index, &is_constant, &value));
  if (is_constant == 0 || value == nullptr) {
    refuse(std::string(name) + " is computed or given from outside", "an initializer");
  }
  return value;
}

}  // namespace edgekit
