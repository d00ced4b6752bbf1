// SPDX-License-Identifier: Apache-2.0
// An operator of ours as TensorRT sees it. What differs between operators is an `Operator`, a table
// of facts and four functions; everything TensorRT asks beyond that is answered here, once.
#pragma once

#include <NvInferRuntime.h>
#include <cuda_runtime_api.h>

#include <array>
#include <string>

#include "predict2/dtype.h"

namespace predict2 {

constexpr const char* kPluginNamespace = "predict2";
constexpr const char* kPluginVersion =
    "1";  // of the attributes: another set of them, another version
constexpr int kMaxAttributes = 4;
constexpr int kMaxInputs = 7;

union Value {
  int32_t integer;
  float real;
  constexpr Value() : integer(0) {}
  constexpr Value(int32_t value) : integer(value) {}
  constexpr Value(float value) : real(value) {}
};
using Values = std::array<Value, kMaxAttributes>;

struct Attribute {
  const char* name;
  bool is_real;
  Value initial;  // where a node doesn't give it
};

// Inputs are `alike` tensors of one type, bf16 or float, then `floats` float tensors; outputs are
// of the one type. 0 outputs mean that the attributes contradict each other.
struct Signature {
  int alike, floats, outputs;
};

struct Call {
  DType dtype;
  const nvinfer1::PluginTensorDesc* descriptions;  // of the inputs
  const void* const* in;
  void* const* out;
  cudaStream_t stream;

  const nvinfer1::Dims& dims(int input) const { return descriptions[input].dims; }
};

struct Operator {
  const char* name;
  int num_attributes;
  Attribute attributes[kMaxAttributes];
  Signature (*signature)(const Values&);
  // Says what is wrong with the first `count` inputs, or null; dimensions may still be -1.
  const char* (*refuse)(const Values&, const nvinfer1::Dims* in, int count);
  void (*shapes)(const Values&, const nvinfer1::DimsExprs* in, nvinfer1::DimsExprs* out,
                 nvinfer1::IExprBuilder&);
  cudaError_t (*run)(const Values&, const Call&);
};

// Constants without initialisation at run time: a library may register itself while it is loaded.
extern const Operator kQkNormRope, kQkNorm, kModulate, kGatedModulate, kGatedAdd;

class Plugin final : public nvinfer1::IPluginV3,
                     public nvinfer1::IPluginV3OneCore,
                     public nvinfer1::IPluginV3OneBuild,
                     public nvinfer1::IPluginV3OneRuntime {
 public:
  Plugin(const Operator& op, const Values& values);

  nvinfer1::IPluginCapability* getCapabilityInterface(
      nvinfer1::PluginCapabilityType type) noexcept override;
  nvinfer1::IPluginV3* clone() noexcept override;

  const char* getPluginName() const noexcept override { return op_->name; }
  const char* getPluginVersion() const noexcept override { return kPluginVersion; }
  const char* getPluginNamespace() const noexcept override { return kPluginNamespace; }

  int32_t getNbOutputs() const noexcept override { return signature_.outputs; }
  int32_t getOutputDataTypes(nvinfer1::DataType* out, int32_t num_out, const nvinfer1::DataType* in,
                             int32_t num_in) const noexcept override;
  int32_t getOutputShapes(const nvinfer1::DimsExprs* in, int32_t num_in,
                          const nvinfer1::DimsExprs* values, int32_t num_values,
                          nvinfer1::DimsExprs* out, int32_t num_out,
                          nvinfer1::IExprBuilder& builder) noexcept override;
  bool supportsFormatCombination(int32_t position, const nvinfer1::DynamicPluginTensorDesc* tensors,
                                 int32_t num_in, int32_t num_out) noexcept override;
  int32_t configurePlugin(const nvinfer1::DynamicPluginTensorDesc* in, int32_t num_in,
                          const nvinfer1::DynamicPluginTensorDesc* out,
                          int32_t num_out) noexcept override;
  const char* getTimingCacheID() noexcept override { return text_.c_str(); }
  const char* getMetadataString() noexcept override { return text_.c_str(); }

  int32_t onShapeChange(const nvinfer1::PluginTensorDesc* in, int32_t num_in,
                        const nvinfer1::PluginTensorDesc* out, int32_t num_out) noexcept override;
  int32_t enqueue(const nvinfer1::PluginTensorDesc* in_descriptions,
                  const nvinfer1::PluginTensorDesc* out_descriptions, const void* const* in,
                  void* const* out, void* workspace, cudaStream_t stream) noexcept override;
  nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext*) noexcept override {
    return clone();
  }
  const nvinfer1::PluginFieldCollection* getFieldsToSerialize() noexcept override;

 private:
  bool Fits(int32_t num_in, int32_t num_out) const;

  const Operator* op_;
  Values values_;
  Signature signature_;
  std::string text_;  // the attributes, for profiles and for the key of the timing cache
  std::array<nvinfer1::PluginField, kMaxAttributes> fields_;  // into values_; set where returned
  nvinfer1::PluginFieldCollection collection_;
};

class Creator final : public nvinfer1::IPluginCreatorV3One {
 public:
  explicit Creator(const Operator& op);

  nvinfer1::IPluginV3* createPlugin(const char* name, const nvinfer1::PluginFieldCollection* given,
                                    nvinfer1::TensorRTPhase phase) noexcept override;
  const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override { return &collection_; }
  const char* getPluginName() const noexcept override { return op_->name; }
  const char* getPluginVersion() const noexcept override { return kPluginVersion; }
  const char* getPluginNamespace() const noexcept override { return kPluginNamespace; }

 private:
  const Operator* op_;
  std::array<nvinfer1::PluginField, kMaxAttributes> fields_;
  nvinfer1::PluginFieldCollection collection_;
};

// To the logger that TensorRT lent us, or to stderr where it lent none.
void LogError(const char* plugin, const char* message) noexcept;

// The creators of all operators; they live as long as the process, as a registry keeps pointers.
nvinfer1::IPluginCreatorInterface* const* Creators(int32_t& count);

}  // namespace predict2
