// edgekit's operators as ONNX Runtime wants them: tables of functions.
#pragma once

#include "onnxruntime_c_api.h"

namespace edgekit {

constexpr const char* kMatMul = "MatMul3Bits";
constexpr const char* kGather = "Gather3Bits";

OrtCustomOp matmul_operator();
OrtCustomOp gather_operator();

// What all tables have in common: one output, version 1, on the CPU.
OrtCustomOp plain_operator();

}  // namespace edgekit
