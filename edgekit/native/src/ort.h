// What edgekit's operators say to ONNX Runtime, and hear from it, through its C interface. Everything that ONNX Runtime
// calls catches all exceptions and hands them back as a status.
#pragma once

#include <cstdint>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "onnxruntime_c_api.h"

namespace edgekit {

constexpr uint32_t kApi = 21;  // the interface that this is written against; later ones only add to it
constexpr int64_t kMostSize = int64_t{1} << 30;

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

inline void check(const OrtApi& api, OrtStatus* status) {
  if (status != nullptr) {
    throw Failure(api, status);
  }
}

// A status with the operator's name before the words. There may be no memory for them: then the name alone.
inline OrtStatus* told(const OrtApi& api, OrtErrorCode code, const char* name, const char* words) noexcept {
  try {
    return api.CreateStatus(code, ("edgekit::" + std::string(name) + ": " + words).c_str());
  } catch (...) {
    return api.CreateStatus(code, name);
  }
}

// Runs `work` of an operator; whatever it throws becomes a status, and says whose it is.
template <typename Work>
OrtStatus* guarded(const OrtApi& api, const char* name, const Work& work) noexcept {
  try {
    work();
    return nullptr;
  } catch (Failure& failure) {
    return failure.release();
  } catch (const std::invalid_argument& error) {
    return told(api, ORT_INVALID_ARGUMENT, name, error.what());
  } catch (const std::bad_alloc&) {
    return told(api, ORT_RUNTIME_EXCEPTION, name, "out of memory (bad_alloc)");
  } catch (const std::exception& error) {
    return told(api, ORT_RUNTIME_EXCEPTION, name, error.what());
  } catch (...) {
    return told(api, ORT_RUNTIME_EXCEPTION, name, "unknown error");
  }
}

[[noreturn]] inline void refuse(const std::string& found, const std::string& expected) {
  throw std::invalid_argument(found + "; expected " + expected);
}

inline std::string text_of(const std::vector<int64_t>& shape) {
  std::string text = "(";
  for (size_t i = 0; i < shape.size(); ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  }
  return text + ")";
}

inline std::vector<int64_t> shape_of(const OrtApi& api, const OrtValue* value) {
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

inline void expect_shape(const OrtApi& api, const char* name, const OrtValue* value, const std::vector<int64_t>& expected) {
  const std::vector<int64_t> found = shape_of(api, value);
  if (found != expected) {
    refuse(std::string(name) + " has shape " + text_of(found), text_of(expected));
  }
}

inline void* data_of(const OrtApi& api, OrtValue* value) {
  void* data = nullptr;
  check(api, api.GetTensorMutableData(value, &data));
  return data;
}

inline const void* data_of(const OrtApi& api, const OrtValue* value) {
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

inline int64_t attribute(const OrtApi& api, const OrtKernelInfo& info, const char* name) {
  int64_t value = 0;
  if (OrtStatus* status = api.KernelInfoGetAttribute_int64(&info, name, &value); status != nullptr) {
    api.ReleaseStatus(status);
    refuse(std::string("the attribute ") + name + " is missing or no integer", "an integer");
  }
  return value;
}

// Whether the node has an attribute of that name, whatever its type. The interface only tells by attempts.
inline bool has(const OrtApi& api, const OrtKernelInfo& info, const char* name) {
  int64_t whole = 0;
  float number = 0;
  size_t size = 0;
  OrtStatus* const attempts[] = {
      api.KernelInfoGetAttribute_int64(&info, name, &whole),
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

// What `get` finds, `fallback` where there is no attribute of that name; `kind` is what it has to be, in words.
template <typename Value, typename Get>
Value attribute_or(const OrtApi& api, const OrtKernelInfo& info, const char* name, Value fallback, const Get& get,
                   const std::string& kind) {
  Value value = fallback;
  OrtStatus* status = get(&info, name, &value);
  if (status == nullptr) {
    return value;
  }
  api.ReleaseStatus(status);
  if (has(api, info, name)) {
    refuse(std::string("the attribute ") + name + " is no " + kind, kind);
  }
  return fallback;
}

inline int64_t integer_or(const OrtApi& api, const OrtKernelInfo& info, const char* name, int64_t fallback) {
  return attribute_or(api, info, name, fallback, api.KernelInfoGetAttribute_int64, "integer");
}

inline float float_or(const OrtApi& api, const OrtKernelInfo& info, const char* name, float fallback) {
  return attribute_or(api, info, name, fallback, api.KernelInfoGetAttribute_float, "float");
}

inline size_t size_attribute(const OrtApi& api, const OrtKernelInfo& info, const char* name) {
  const int64_t value = attribute(api, info, name);
  if (value < 1 || value > kMostSize) {
    refuse(std::string(name) + " is " + std::to_string(value), "1 to " + std::to_string(kMostSize));
  }
  return static_cast<size_t>(value);
}

// Lets ONNX Runtime's own threads call `work`.
inline void parallel_for(const OrtApi& api, OrtKernelContext* context, size_t count, const std::function<void(size_t)>& work) {
  const auto call = [](void* held, size_t index) { (*static_cast<const std::function<void(size_t)>*>(held))(index); };
  check(api, api.KernelContext_ParallelFor(context, call, count, count, const_cast<std::function<void(size_t)>*>(&work)));
}

// Product of the first `dimensions` of a shape.
inline size_t count_of(const std::vector<int64_t>& shape, size_t dimensions) {
  size_t count = 1;
  for (size_t i = 0; i < dimensions; ++i) {
    count *= static_cast<size_t>(shape[i]);
  }
  return count;
}

// Lets `work` write the tensor's `count` values: where they lie, or beside where that is not aligned for floats.
template <typename Work>
void into(const OrtApi& api, OrtValue* value, size_t count, const Work& work) {
  void* out = data_of(api, value);
  if (is_aligned<float>(out)) {
    work(static_cast<float*>(out));
    return;
  }
  std::vector<float> results(count);
  work(results.data());
  std::memcpy(out, results.data(), count * sizeof(float));
}

inline const OrtValue* input_of(const OrtApi& api, const OrtKernelContext* context, size_t index) {
  const OrtValue* value = nullptr;
  check(api, api.KernelContext_GetInput(context, index, &value));
  if (value == nullptr) {
    refuse("input " + std::to_string(index) + " is missing", "a tensor");
  }
  return value;
}

}  // namespace edgekit
