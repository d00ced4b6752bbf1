// SPDX-License-Identifier: Apache-2.0
// What TensorRT looks up in the library: the creators, and a way to hand us its logger.
#include <atomic>
#include <cstdio>
#include <string>

#include "plugin.h"

#define PREDICT2_API extern "C" __attribute__((visibility("default")))

namespace predict2 {
namespace {

std::atomic<nvinfer1::ILoggerFinder*> logger_finder{nullptr};

}  // namespace

void LogError(const char* plugin, const char* message) noexcept {
  char line[512];
  std::snprintf(line, sizeof(line), "%s: %s", plugin, message);
  nvinfer1::ILoggerFinder* finder = logger_finder;
  nvinfer1::ILogger* logger = finder ? finder->findLogger() : nullptr;
  if (logger) {
    logger->log(nvinfer1::ILogger::Severity::kERROR, line);
  } else {
    std::fprintf(stderr, "%s\n", line);
  }
}

nvinfer1::IPluginCreatorInterface* const* Creators(int32_t& count) {
  static nvinfer1::IPluginCreatorInterface* const creators[] = {
      new Creator(kQkNormRope), new Creator(kQkNorm), new Creator(kModulate),
      new Creator(kGatedModulate), new Creator(kGatedAdd)};
  count = static_cast<int32_t>(std::size(creators));
  return creators;
}

}  // namespace predict2

PREDICT2_API nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
  return predict2::Creators(count);
}

PREDICT2_API void setLoggerFinder(nvinfer1::ILoggerFinder* finder) {
  predict2::logger_finder = finder;
}
