// SPDX-License-Identifier: Apache-2.0
// For ctypes: one call of a plugin as an engine makes it, linked with kernels that run on the CPU.
#include <memory>
#include <string>
#include <vector>

#include "plugin/plugin.h"

// shapes[i][0..ranks[i]] is the i-th input's; `type` the first one's, which decides for all.
// Returns what the plugin returned, or -1 where it was not made.
extern "C" int call_plugin(const char* name, const int32_t* integers, int num_integers, float real,
                           int type, int num_in, const int* ranks, const int64_t (*shapes)[4],
                           const void* const* in, void* const* out) {
  using namespace nvinfer1;
  int32_t count = 0;
  IPluginCreatorInterface* const* creators = predict2::Creators(count);
  for (int32_t i = 0; i < count; ++i) {
    auto* creator = static_cast<IPluginCreatorV3One*>(creators[i]);
    if (std::string(name) != creator->getPluginName()) continue;
    const PluginFieldCollection* names = creator->getFieldNames();
    std::vector<PluginField> fields(names->fields, names->fields + names->nbFields);
    for (int j = 0; j < names->nbFields; ++j) {
      fields[j].data = j < num_integers ? static_cast<const void*>(integers + j) : &real;
    }
    const PluginFieldCollection given{names->nbFields, fields.data()};
    std::unique_ptr<IPluginV3> plugin(creator->createPlugin("", &given, TensorRTPhase::kRUNTIME));
    if (!plugin) return -1;
    std::vector<PluginTensorDesc> inputs(num_in);
    for (int j = 0; j < num_in; ++j) {
      inputs[j].dims.nbDims = ranks[j];
      for (int axis = 0; axis < ranks[j]; ++axis) inputs[j].dims.d[axis] = shapes[j][axis];
      inputs[j].type = static_cast<DataType>(type);
    }
    auto* runtime = dynamic_cast<IPluginV3OneRuntime*>(
        plugin->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
    auto* build = dynamic_cast<IPluginV3OneBuild*>(
        plugin->getCapabilityInterface(PluginCapabilityType::kBUILD));
    const int refused =
        runtime->onShapeChange(inputs.data(), num_in, nullptr, build->getNbOutputs());
    return refused ? refused : runtime->enqueue(inputs.data(), nullptr, in, out, nullptr, nullptr);
  }
  return -1;
}
