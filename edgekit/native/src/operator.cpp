// The operator edgekit::MatMul3Bits for ONNX Runtime, through its C interface. Everything that ONNX Runtime calls here
// catches all exceptions and hands them back as a status.
#include <cstdlib>
#include <cstring>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "matmul.h"
#include "onnxruntime_c_api.h"

namespace edgekit {
namespace {

constexpr uint32_t kApi = 21;  // the interface that this is written against; later ones only add to it
constexpr const char* kDomain = "edgekit";
constexpr const char* kName = "MatMul3Bits";
constexpr const char* kKernelVariable = "EDGEKIT_OPS_KERNEL";
constexpr int64_t kMostSize = int64_t{1} << 30;

enum Input : size_t { kActivations, kCodes, kScales, kBias, kInputs };

// An error of ONNX Runtime's own on its way back to it.
class Failure : public std::exception {
 public:
  Failure(const OrtApi& api, OrtStatus* status) : status_(status, Release{&api}) {}
  OrtStatus* release() { return status_.release(); }
  const char* what() const noexcept override { return "ONNX Runtime returned an error"; }
  Failure(Failure&&) = default;

 private:
  struct Release {
    const OrtApi* api;
    void operator()(OrtStatus* status) const { api->ReleaseStatus(status); }
  };
  std::unique_ptr<OrtStatus, Release> status_;
};

void check(const OrtApi& api, OrtStatus* status) {
  if (status != nullptr) {
    throw Failure(api, status);
  }
}

// Runs `work`; whatever it throws becomes a status.
template <typename Work>
OrtStatus* guarded(const OrtApi& api, const Work& work) noexcept {
  try {
    work();
    return nullptr;
  } catch (Failure& failure) {
    return failure.release();
  } catch (const std::invalid_argument& error) {
    return api.CreateStatus(ORT_INVALID_ARGUMENT, error.what());
  } catch (const std::bad_alloc&) {
    return api.CreateStatus(ORT_RUNTIME_EXCEPTION, "edgekit::MatMul3Bits: out of memory (bad_alloc)");
  } catch (const std::exception& error) {
    return api.CreateStatus(ORT_RUNTIME_EXCEPTION, error.what());
  } catch (...) {
    return api.CreateStatus(ORT_RUNTIME_EXCEPTION, "edgekit::MatMul3Bits: unknown error");
  }
}

[[noreturn]] void refuse(const std::string& found, const std::string& expected) {
  throw std::invalid_argument("edgekit::MatMul3Bits: " + found + "; expected " + expected);
}

std::string text_of(const std::vector<int64_t>& shape) {
  std::string text = "(";
  for (size_t i = 0; i < shape.size(); ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  }
  return text + ")";
}

std::vector<int64_t> shape_of(const OrtApi& api, const OrtValue* value) {
  OrtTensorTypeAndShapeInfo* info = nullptr;
  check(api, api.GetTensorTypeAndShape(value, &info));
  const auto release = [&api](OrtTensorTypeAndShapeInfo* each) { api.ReleaseTensorTypeAndShapeInfo(each); };
  const std::unique_ptr<OrtTensorTypeAndShapeInfo, decltype(release)> held(info, release);
  size_t count = 0;
  check(api, api.GetDimensionsCount(info, &count));
  std::vector<int64_t> shape(count);
  check(api, api.GetDimensions(info, shape.data(), count));
  return shape;
}

void expect_shape(const OrtApi& api, const char* name, const OrtValue* value, const std::vector<int64_t>& expected) {
  const std::vector<int64_t> found = shape_of(api, value);
  if (found != expected) {
    refuse(std::string(name) + " has shape " + text_of(found), text_of(expected));
  }
}

void* data_of(const OrtApi& api, OrtValue* value) {
  void* data = nullptr;
  check(api, api.GetTensorMutableData(value, &data));
  return data;
}

const void* data_of(const OrtApi& api, const OrtValue* value) {
  // The interface has no reading access; nothing is written through it.
  return data_of(api, const_cast<OrtValue*>(value));
}

template <typename Value>
bool is_aligned(const void* data) {
  return reinterpret_cast<uintptr_t>(data) % alignof(Value) == 0;
}

// The tensor's `count` values: where they lie, or in `copy` where that is not aligned for their type. A file may store
// tensors one right after the other, whatever their types, and ONNX Runtime maps it as it is.
template <typename Value>
const Value* aligned(const OrtApi& api, const OrtValue* value, size_t count, std::vector<Value>& copy) {
  const void* data = data_of(api, value);
  if (is_aligned<Value>(data)) {
    return static_cast<const Value*>(data);
  }
  copy.resize(count);
  if (count != 0) {
    std::memcpy(copy.data(), data, count * sizeof(Value));
  }
  return copy.data();
}

int64_t attribute(const OrtApi& api, const OrtKernelInfo& info, const char* name) {
  int64_t value = 0;
  if (OrtStatus* status = api.KernelInfoGetAttribute_int64(&info, name, &value); status != nullptr) {
    api.ReleaseStatus(status);
    refuse(std::string("the attribute ") + name + " is missing or no integer", "an integer");
  }
  return value;
}

// Whether the node has an attribute of that name that is no integer. The interface only tells by attempts.
bool has_other(const OrtApi& api, const OrtKernelInfo& info, const char* name) {
  float number = 0;
  size_t size = 0;
  OrtStatus* const attempts[] = {
      api.KernelInfoGetAttribute_float(&info, name, &number),
      api.KernelInfoGetAttribute_string(&info, name, nullptr, &size),
      api.KernelInfoGetAttributeArray_int64(&info, name, nullptr, &size),
      api.KernelInfoGetAttributeArray_float(&info, name, nullptr, &size),
  };
  bool found = false;
  for (OrtStatus* status : attempts) {
    found = found || status == nullptr;
    api.ReleaseStatus(status);
  }
  return found;
}

// As `attribute`, `fallback` where there is none.
int64_t attribute_or(const OrtApi& api, const OrtKernelInfo& info, const char* name, int64_t fallback) {
  int64_t value = 0;
  OrtStatus* status = api.KernelInfoGetAttribute_int64(&info, name, &value);
  if (status == nullptr) {
    return value;
  }
  api.ReleaseStatus(status);
  if (has_other(api, info, name)) {
    refuse(std::string("the attribute ") + name + " is no integer", "an integer");
  }
  return fallback;
}

size_t size_attribute(const OrtApi& api, const OrtKernelInfo& info, const char* name) {
  const int64_t value = attribute(api, info, name);
  if (value < 1 || value > kMostSize) {
    refuse(std::string(name) + " is " + std::to_string(value), "1 to " + std::to_string(kMostSize));
  }
  return static_cast<size_t>(value);
}

const Kernel& chosen_kernel() {
  const char* name = std::getenv(kKernelVariable);
  return kernel_named(name == nullptr ? "" : name);
}

// Lets ONNX Runtime's own threads call `work`.
void parallel_for(const OrtApi& api, OrtKernelContext* context, size_t count, const std::function<void(size_t)>& work) {
  const auto call = [](void* held, size_t index) { (*static_cast<const std::function<void(size_t)>*>(held))(index); };
  check(api, api.KernelContext_ParallelFor(context, call, count, 0, const_cast<std::function<void(size_t)>*>(&work)));
}

// One node of a graph.
class Node {
 public:
  Node(const OrtApi& api, const OrtKernelInfo& info) : api_(api), kernel_(chosen_kernel()) {
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
    const int64_t level = attribute_or(api, info, "accuracy_level", 4);
    if (level != 0 && level != 4) {
      refuse("accuracy_level is " + std::to_string(level), "0 (float32 activations) or 4 (activations in 8 bits)");
    }
    accuracy_ = level == 0 ? Accuracy::kFloat : Accuracy::kInt8;
    check_constants(info);
  }

  const OrtApi& api() const { return api_; }

  void compute(OrtKernelContext* context) const {
    const OrtValue* x = input(context, kActivations);
    std::vector<uint16_t> scales;
    std::vector<float> bias;
    Weights weights = weights_;
    weights.codes = static_cast<const uint8_t*>(data_of(api_, input(context, kCodes)));
    weights.scales =
        scales_.empty() ? aligned(api_, input(context, kScales), scale_count(), scales) : scales_.data();
    if (biased_) {
      weights.bias = bias_.empty() ? aligned(api_, input(context, kBias), weights.rows, bias) : bias_.data();
    }

    std::vector<int64_t> shape = shape_of(api_, x);
    if (shape.empty() || shape.back() != static_cast<int64_t>(weights.columns)) {
      refuse("the activations have shape " + text_of(shape), "K = " + std::to_string(weights.columns) + " at its end");
    }
    size_t rows = 1;
    for (size_t i = 0; i + 1 < shape.size(); ++i) {
      rows *= static_cast<size_t>(shape[i]);
    }
    shape.back() = static_cast<int64_t>(weights.rows);
    OrtValue* y = nullptr;
    check(api_, api_.KernelContext_GetOutput(context, 0, shape.data(), shape.size(), &y));
    if (rows == 0) {
      return;
    }
    std::vector<float> activations;
    const float* from = aligned(api_, x, rows * weights.columns, activations);
    const auto parallel = [&](size_t count, const std::function<void(size_t)>& work) {
      parallel_for(api_, context, count, work);
    };
    void* out = data_of(api_, y);
    if (is_aligned<float>(out)) {
      matmul(weights, kernel_, accuracy_, from, rows, static_cast<float*>(out), parallel);
      return;
    }
    std::vector<float> results(rows * weights.rows);
    matmul(weights, kernel_, accuracy_, from, rows, results.data(), parallel);
    std::memcpy(out, results.data(), results.size() * sizeof(float));
  }

 private:
  // What is the same in every call is checked once: it must be stored in the model.
  void check_constants(const OrtKernelInfo& info) {
    const auto tiles = static_cast<int64_t>(weights_.tiles());
    const auto rows = static_cast<int64_t>(kTileRows);
    expect_shape(api_, "B (packed weights)", constant(info, kCodes, "B (packed weights)"),
                 {tiles, static_cast<int64_t>(weights_.chunks()), static_cast<int64_t>(kChunkBytes)});
    const OrtValue* scales = constant(info, kScales, "scales");
    expect_shape(api_, "scales", scales, {tiles, static_cast<int64_t>(weights_.blocks()), rows});
    aligned(api_, scales, scale_count(), scales_);
    size_t inputs = 0;
    check(api_, api_.KernelInfo_GetInputCount(&info, &inputs));
    if (inputs > kBias && present(info, kBias)) {
      const OrtValue* bias = constant(info, kBias, "bias");
      expect_shape(api_, "bias", bias, {static_cast<int64_t>(weights_.rows)});
      aligned(api_, bias, weights_.rows, bias_);
      biased_ = true;
    }
  }

  size_t scale_count() const { return weights_.tiles() * weights_.blocks() * kTileRows; }

  // Whether an optional input has a name.
  bool present(const OrtKernelInfo& info, size_t index) const {
    size_t size = 0;
    check(api_, api_.KernelInfo_GetInputName(&info, index, nullptr, &size));
    return size > 1;  // with the zero at its end
  }

  const OrtValue* constant(const OrtKernelInfo& info, size_t index, const char* name) const {
    int is_constant = 0;
    const OrtValue* value = nullptr;
    check(api_, api_.KernelInfoGetConstantInput_tensor(&info, index, &is_constant, &value));
    if (is_constant == 0 || value == nullptr) {
      refuse(std::string(name) + " is computed or given from outside", "an initializer");
    }
    return value;
  }

  const OrtValue* input(const OrtKernelContext* context, size_t index) const {
    const OrtValue* value = nullptr;
    check(api_, api_.KernelContext_GetInput(context, index, &value));
    if (value == nullptr) {
      refuse("input " + std::to_string(index) + " is missing", "a tensor");
    }
    return value;
  }

  const OrtApi& api_;
  const Kernel& kernel_;
  Weights weights_ = {};
  Accuracy accuracy_ = Accuracy::kInt8;
  bool biased_ = false;
  // Empty where the initializers lie aligned.
  std::vector<uint16_t> scales_;
  std::vector<float> bias_;
};

OrtCustomOp operator_table() {
  OrtCustomOp op = {};
  op.version = kApi;
  op.GetName = [](const OrtCustomOp*) { return kName; };
  op.GetExecutionProviderType = [](const OrtCustomOp*) { return "CPUExecutionProvider"; };
  op.GetInputTypeCount = [](const OrtCustomOp*) { return size_t{kInputs}; };
  op.GetInputType = [](const OrtCustomOp*, size_t index) {
    return index == kCodes    ? ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8
           : index == kScales ? ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16
                              : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  };
  op.GetInputCharacteristic = [](const OrtCustomOp*, size_t index) {
    return index == kBias ? INPUT_OUTPUT_OPTIONAL : INPUT_OUTPUT_REQUIRED;
  };
  op.GetInputMemoryType = [](const OrtCustomOp*, size_t) { return OrtMemTypeDefault; };
  op.GetOutputTypeCount = [](const OrtCustomOp*) { return size_t{1}; };
  op.GetOutputType = [](const OrtCustomOp*, size_t) { return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT; };
  op.GetOutputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; };
  op.GetVariadicInputMinArity = [](const OrtCustomOp*) { return 1; };
  op.GetVariadicInputHomogeneity = [](const OrtCustomOp*) { return 1; };
  op.GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 1; };
  op.GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 1; };
  op.GetStartVersion = [](const OrtCustomOp*) { return 1; };
  op.GetEndVersion = [](const OrtCustomOp*) { return 1; };
  op.CreateKernelV2 = [](const OrtCustomOp*, const OrtApi* api, const OrtKernelInfo* info, void** kernel) {
    return guarded(*api, [&] { *kernel = new Node(*api, *info); });
  };
  op.KernelComputeV2 = [](void* kernel, OrtKernelContext* context) {
    const auto& node = *static_cast<const Node*>(kernel);
    return guarded(node.api(), [&] { node.compute(context); });
  };
  op.KernelDestroy = [](void* kernel) { delete static_cast<Node*>(kernel); };
  return op;
}

// The domain with its operator, one for each ONNX Runtime in the process: a domain is an object of the one that made it,
// and each has an interface of its own. It keeps pointers into the domain as long as any session lives, and may be
// unloaded before this library: so domains are never released, nor is what holds them.
OrtCustomOpDomain* domain_of(const OrtApi& api) {
  static const OrtCustomOp op = operator_table();
  static std::mutex lock;
  static auto& domains = *new std::map<const OrtApi*, OrtCustomOpDomain*>();
  const std::lock_guard<std::mutex> held(lock);
  if (const auto found = domains.find(&api); found != domains.end()) {
    return found->second;
  }
  OrtCustomOpDomain* made = nullptr;
  check(api, api.CreateCustomOpDomain(kDomain, &made));
  const auto release = [&api](OrtCustomOpDomain* each) { api.ReleaseCustomOpDomain(each); };
  std::unique_ptr<OrtCustomOpDomain, decltype(release)> owned(made, release);
  check(api, api.CustomOpDomain_Add(made, &op));
  domains.emplace(&api, made);
  return owned.release();
}

}  // namespace
}  // namespace edgekit

#define EDGEKIT_EXPORT __attribute__((visibility("default")))

extern "C" EDGEKIT_EXPORT OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  const OrtApi* api = base->GetApi(edgekit::kApi);
  if (api == nullptr) {
    return base->GetApi(1)->CreateStatus(ORT_NOT_IMPLEMENTED, "edgekit's operators need ONNX Runtime 1.21 or newer");
  }
  return edgekit::guarded(
      *api, [&] { edgekit::check(*api, api->AddCustomOpDomain(options, edgekit::domain_of(*api))); });
}

// Names of the kernels that this processor runs, the fastest first, with commas between them.
extern "C" EDGEKIT_EXPORT const char* edgekit_ops_kernels() noexcept {
  try {
    static const std::string names = [] {
      std::string joined;
      for (const edgekit::Kernel* kernel : edgekit::kernels_here()) {
        joined += (joined.empty() ? "" : ",") + std::string(kernel->name);
      }
      return joined;
    }();
    return names.c_str();
  } catch (...) {
    return "";
  }
}
