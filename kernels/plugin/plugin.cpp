// SPDX-License-Identifier: Apache-2.0
#include "plugin.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace predict2 {
namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

constexpr int32_t kFailed = 1;

PluginFieldType FieldType(const Attribute& attribute) {
  return attribute.is_real ? PluginFieldType::kFLOAT32 : PluginFieldType::kINT32;
}

// Nothing that is thrown may cross into TensorRT.
template <typename Result, typename Body>
Result Guarded(const char* plugin, Result otherwise, Body body) noexcept {
  try {
    return body();
  } catch (const std::exception& error) {
    LogError(plugin, error.what());
  } catch (...) {
    LogError(plugin, "unknown exception");
  }
  return otherwise;
}

// As `refuse`, from descriptions of either kind.
template <typename Description, typename ToDims>
const char* Refuse(const Operator& op, const Values& values, const Description* in, int count,
                   ToDims to_dims) {
  Dims dims[kMaxInputs];
  for (int i = 0; i < count; ++i) {
    dims[i] = to_dims(in[i]);
    if (dims[i].nbDims < 1) return "an input has no known rank";
  }
  return op.refuse(values, dims, count);
}

}  // namespace

Plugin::Plugin(const Operator& op, const Values& values)
    : op_(&op), values_(values), signature_(op.signature(values)) {
  for (int i = 0; i < op.num_attributes; ++i) {
    const Attribute& attribute = op.attributes[i];
    text_ += std::string(text_.empty() ? "" : ";") + attribute.name + "=";
    text_ += attribute.is_real ? std::to_string(values[i].real) : std::to_string(values[i].integer);
  }
}

bool Plugin::Fits(int32_t num_in, int32_t num_out) const {
  return num_in == signature_.alike + signature_.floats && num_out == signature_.outputs;
}

nvinfer1::IPluginCapability* Plugin::getCapabilityInterface(
    nvinfer1::PluginCapabilityType type) noexcept {
  switch (type) {
    case nvinfer1::PluginCapabilityType::kCORE:
      return static_cast<IPluginV3OneCore*>(this);
    case nvinfer1::PluginCapabilityType::kBUILD:
      return static_cast<IPluginV3OneBuild*>(this);
    case nvinfer1::PluginCapabilityType::kRUNTIME:
      return static_cast<IPluginV3OneRuntime*>(this);
  }
  return nullptr;
}

nvinfer1::IPluginV3* Plugin::clone() noexcept {
  return Guarded<IPluginV3*>(op_->name, nullptr, [&] { return new Plugin(*op_, values_); });
}

int32_t Plugin::getOutputDataTypes(DataType* out, int32_t num_out, const DataType* in,
                                   int32_t num_in) const noexcept {
  if (!Fits(num_in, num_out)) return LogError(op_->name, "wrong number of tensors"), kFailed;
  std::fill_n(out, num_out, in[0]);
  return 0;
}

int32_t Plugin::getOutputShapes(const nvinfer1::DimsExprs* in, int32_t num_in,
                                const nvinfer1::DimsExprs*, int32_t, nvinfer1::DimsExprs* out,
                                int32_t num_out, nvinfer1::IExprBuilder& builder) noexcept {
  return Guarded(op_->name, kFailed, [&] {
    if (!Fits(num_in, num_out)) return LogError(op_->name, "wrong number of tensors"), kFailed;
    const auto constants = [](const nvinfer1::DimsExprs& expressions) {
      Dims dims{expressions.nbDims, {}};
      for (int i = 0; i < dims.nbDims; ++i) {
        const auto& expression = *expressions.d[i];
        dims.d[i] = expression.isConstant() ? expression.getConstantValue() : -1;
      }
      return dims;
    };
    const char* reason = Refuse(*op_, values_, in, num_in, constants);
    if (reason) return LogError(op_->name, reason), kFailed;
    op_->shapes(values_, in, out, builder);
    return 0;
  });
}

bool Plugin::supportsFormatCombination(int32_t position,
                                       const nvinfer1::DynamicPluginTensorDesc* tensors,
                                       int32_t num_in, int32_t num_out) noexcept {
  return Guarded(op_->name, false, [&] {
    if (!Fits(num_in, num_out) || position < 0 || position >= num_in + num_out) return false;
    const auto& tensor = tensors[position].desc;
    const bool is_float = position >= signature_.alike && position < num_in;
    const bool typed = is_float ? tensor.type == DataType::kFLOAT
                       : position == 0
                           ? tensor.type == DataType::kFLOAT || tensor.type == DataType::kBF16
                           : tensor.type == tensors[0].desc.type;
    if (!typed || tensor.format != nvinfer1::TensorFormat::kLINEAR) return false;
    return !Refuse(*op_, values_, tensors, std::min(position + 1, num_in),
                   [](const auto& description) { return description.desc.dims; });
  });
}

int32_t Plugin::configurePlugin(const nvinfer1::DynamicPluginTensorDesc* in, int32_t num_in,
                                const nvinfer1::DynamicPluginTensorDesc*,
                                int32_t num_out) noexcept {
  return Guarded(op_->name, kFailed, [&] {
    if (!Fits(num_in, num_out)) return LogError(op_->name, "wrong number of tensors"), kFailed;
    const char* reason = Refuse(*op_, values_, in, num_in,
                                [](const auto& description) { return description.desc.dims; });
    return reason ? (LogError(op_->name, reason), kFailed) : 0;
  });
}

int32_t Plugin::onShapeChange(const nvinfer1::PluginTensorDesc* in, int32_t num_in,
                              const nvinfer1::PluginTensorDesc*, int32_t num_out) noexcept {
  return Guarded(op_->name, kFailed, [&] {
    if (!Fits(num_in, num_out)) return LogError(op_->name, "wrong number of tensors"), kFailed;
    const char* reason =
        Refuse(*op_, values_, in, num_in, [](const auto& description) { return description.dims; });
    return reason ? (LogError(op_->name, reason), kFailed) : 0;
  });
}

int32_t Plugin::enqueue(const nvinfer1::PluginTensorDesc* in_descriptions,
                        const nvinfer1::PluginTensorDesc*, const void* const* in, void* const* out,
                        void*, cudaStream_t stream) noexcept {
  return Guarded(op_->name, kFailed, [&] {
    const DType dtype =
        in_descriptions[0].type == DataType::kFLOAT ? DType::kFloat : DType::kBFloat16;
    const cudaError_t error = op_->run(values_, {dtype, in_descriptions, in, out, stream});
    return error ? (LogError(op_->name, cudaGetErrorName(error)), kFailed) : 0;
  });
}

const nvinfer1::PluginFieldCollection* Plugin::getFieldsToSerialize() noexcept {
  for (int i = 0; i < op_->num_attributes; ++i) {
    fields_[i] =
        PluginField(op_->attributes[i].name, &values_[i], FieldType(op_->attributes[i]), 1);
  }
  collection_ = {op_->num_attributes, fields_.data()};
  return &collection_;
}

Creator::Creator(const Operator& op) : op_(&op) {
  for (int i = 0; i < op.num_attributes; ++i) {
    fields_[i] = PluginField(op.attributes[i].name, nullptr, FieldType(op.attributes[i]), 1);
  }
  collection_ = {op.num_attributes, fields_.data()};
}

nvinfer1::IPluginV3* Creator::createPlugin(const char*,
                                           const nvinfer1::PluginFieldCollection* given,
                                           nvinfer1::TensorRTPhase) noexcept {
  return Guarded<nvinfer1::IPluginV3*>(op_->name, nullptr, [&]() -> nvinfer1::IPluginV3* {
    Values values{};
    for (int i = 0; i < op_->num_attributes; ++i) values[i] = op_->attributes[i].initial;
    for (int i = 0; given && i < given->nbFields; ++i) {
      const PluginField& field = given->fields[i];
      const auto* end = op_->attributes + op_->num_attributes;
      const auto* found = std::find_if(op_->attributes, end, [&](const Attribute& attribute) {
        return field.name && std::strcmp(attribute.name, field.name) == 0;
      });
      const std::string name = field.name ? field.name : "(no name)";
      if (found == end) throw std::invalid_argument("no attribute is called " + name);
      if (field.type != FieldType(*found) || field.length != 1 || !field.data) {
        throw std::invalid_argument("attribute " + name + " is not one number of its type");
      }
      std::memcpy(&values[found - op_->attributes], field.data, sizeof(Value));
    }
    if (op_->signature(values).outputs == 0) {
      throw std::invalid_argument("an attribute is missing or out of range");
    }
    return new Plugin(*op_, values);
  });
}

}  // namespace predict2
