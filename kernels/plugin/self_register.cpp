// SPDX-License-Identifier: Apache-2.0
// For hosts that only dlopen a plugin library, as Triton does: registers the creators when loaded.
// Only in libpredict2_trt_plugin_triton.so: a registry refuses the same creators a second time.
#include <dlfcn.h>

#include "plugin.h"

#define PREDICT2_QUOTE(text) #text
#define PREDICT2_TEXT(macro) PREDICT2_QUOTE(macro)  // its value, not its name

namespace {

// The TensorRT this was compiled for, or its sibling TensorRT-RTX, which shares the interface
// of 11. Only one that is in the process already: ours may not be the one to load it, nor a second
// one.
void* LoadedTensorRT() {
  constexpr const char* kNames[] = {
      "libnvinfer.so." PREDICT2_TEXT(NV_TENSORRT_MAJOR),
#if NV_TENSORRT_MAJOR == 11
      "libtensorrt_rtx.so.1",
#endif
  };
  for (const char* name : kNames) {
    if (void* library = dlopen(name, RTLD_NOW | RTLD_NOLOAD)) return library;
  }
  return nullptr;
}

__attribute__((constructor)) void RegisterCreators() {
  using GetRegistry = nvinfer1::IPluginRegistry* (*)();
  void* library = LoadedTensorRT();
  const auto get = library ? reinterpret_cast<GetRegistry>(dlsym(library, "getPluginRegistry"))
                           : GetRegistry{nullptr};
  nvinfer1::IPluginRegistry* registry = get ? get() : nullptr;
  if (!registry) {
    predict2::LogError("predict2", "no TensorRT of this library's major version is loaded");
    return;
  }
  int32_t count = 0;
  nvinfer1::IPluginCreatorInterface* const* creators = predict2::Creators(count);
  for (int32_t i = 0; i < count; ++i) {
    if (!registry->registerCreator(*creators[i], predict2::kPluginNamespace)) {
      predict2::LogError("predict2", "a plugin creator could not be registered");
    }
  }
}

}  // namespace
