// SPDX-License-Identifier: Apache-2.0
// Takes every plugin through its life as TensorRT would, without TensorRT and without a GPU:
//   plugin_harness LIBRARY
// Compiled against our declarations, it also tells whether a library built with NVIDIA's own
// headers has the layout that these claim. Ends with "ok", or says what was expected where.
#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

using namespace nvinfer1;

#define EXPECT(condition)                                          \
  do {                                                             \
    if (!(condition)) {                                            \
      std::printf("line %d: expected %s\n", __LINE__, #condition); \
      std::exit(1);                                                \
    }                                                              \
  } while (false)

namespace {

// A dimension that is a number, or one that only a call decides and that has a name.
struct Dimension final : IDimensionExpr, apiv::VDimensionExpr {
  std::string name;
  int64_t value;
  Dimension(std::string of, int64_t number) : name(std::move(of)), value(number) { mImpl = this; }
  bool isConstant() const override { return name.empty(); }
  int64_t getConstantValue() const override { return value; }
  bool isSizeTensor() const override { return false; }
};

struct Builder final : IExprBuilder, apiv::VExprBuilder {
  std::vector<std::unique_ptr<Dimension>> owned;
  Builder() { mImpl = this; }
  const IDimensionExpr* Add(std::string name, int64_t value) {
    owned.push_back(std::make_unique<Dimension>(std::move(name), value));
    return owned.back().get();
  }
  const IDimensionExpr* constant(int64_t value) override { return Add("", value); }
  const IDimensionExpr* operation(DimensionOperation, const IDimensionExpr&,
                                  const IDimensionExpr&) override {
    return nullptr;
  }
  const IDimensionExpr* declareSizeTensor(int32_t, const IDimensionExpr&,
                                          const IDimensionExpr&) override {
    return nullptr;
  }
};

struct Logger final : ILogger {
  std::vector<std::string> lines;
  void log(Severity severity, const AsciiChar* message) noexcept override {
    EXPECT(severity == Severity::kERROR);
    lines.push_back(message);
  }
} logger;

struct Finder final : ILoggerFinder {
  ILogger* findLogger() override { return &logger; }
} finder;

bool Logged(const std::string& part) {
  const bool found = !logger.lines.empty() && logger.lines.back().find(part) != std::string::npos;
  if (!found)
    std::printf("last log: %s\n", logger.lines.empty() ? "" : logger.lines.back().c_str());
  return found;
}

using Shape = std::vector<int64_t>;  // -1: decided by a call

Dims ToDims(const Shape& shape) {
  Dims dims{static_cast<int32_t>(shape.size()), {}};
  for (size_t i = 0; i < shape.size(); ++i) dims.d[i] = shape[i];
  return dims;
}

struct Tensor {
  Shape shape;
  DataType type = DataType::kBF16;
  TensorFormat format = TensorFormat::kLINEAR;
  PluginTensorDesc Description() const { return {ToDims(shape), type, format, -1.0f}; }
};

struct Case {
  const char* name;
  std::map<std::string, double> attributes;
  std::vector<Tensor> in;
  std::vector<Shape> called;     // the inputs' shapes in a call
  Shape wrong;                   // of the first input, to be refused then; or none
  std::vector<std::string> out;  // a dimension is a number, or "input.axis"
};

struct Fields {  // alive as long as the collection
  std::vector<PluginField> fields;
  std::map<std::string, int32_t> integers;
  std::map<std::string, float> reals;
  PluginFieldCollection collection;
  explicit Fields(const std::map<std::string, double>& attributes) {
    for (const auto& [name, value] : attributes) {
      if (name == "q_scale") {
        reals[name] = static_cast<float>(value);
        fields.emplace_back(name.c_str(), &reals[name], PluginFieldType::kFLOAT32, 1);
      } else {
        integers[name] = static_cast<int32_t>(value);
        fields.emplace_back(name.c_str(), &integers[name], PluginFieldType::kINT32, 1);
      }
    }
    collection = {static_cast<int32_t>(fields.size()), fields.data()};
  }
};

std::map<std::string, double> Read(const PluginFieldCollection& collection) {
  std::map<std::string, double> values;
  for (int i = 0; i < collection.nbFields; ++i) {
    const PluginField& field = collection.fields[i];
    EXPECT(field.length == 1);
    const bool real = field.type == PluginFieldType::kFLOAT32;
    EXPECT(real || field.type == PluginFieldType::kINT32);
    values[field.name] =
        real ? *static_cast<const float*>(field.data) : *static_cast<const int32_t*>(field.data);
  }
  return values;
}

template <typename Capability>
Capability* Get(IPluginV3* plugin, PluginCapabilityType type) {
  auto* found = dynamic_cast<Capability*>(plugin->getCapabilityInterface(type));
  EXPECT(found != nullptr);
  return found;
}

void CheckShapes(IPluginV3OneBuild* build, const Case& of) {
  Builder builder;
  std::vector<DimsExprs> in;
  for (size_t i = 0; i < of.in.size(); ++i) {
    DimsExprs dims{static_cast<int32_t>(of.in[i].shape.size()), {}};
    for (int axis = 0; axis < dims.nbDims; ++axis) {
      const int64_t value = of.in[i].shape[axis];
      const std::string name = std::to_string(i) + "." + std::to_string(axis);
      dims.d[axis] = value < 0 ? builder.Add(name, 0) : builder.constant(value);
    }
    in.push_back(dims);
  }
  const auto num_in = static_cast<int32_t>(in.size());
  const int32_t num_out = build->getNbOutputs();
  EXPECT(num_out == static_cast<int32_t>(of.out.size()));
  std::vector<DimsExprs> out(num_out);
  EXPECT(build->getOutputShapes(in.data(), num_in, nullptr, 0, out.data(), num_out, builder) == 0);
  for (int i = 0; i < num_out; ++i) {
    std::string text;
    for (int axis = 0; axis < out[i].nbDims; ++axis) {
      const auto* dimension = static_cast<const Dimension*>(out[i].d[axis]);
      text += (axis ? " " : "") +
              (dimension->name.empty() ? std::to_string(dimension->value) : dimension->name);
    }
    if (text != of.out[i]) std::printf("%s: output %d is %s\n", of.name, i, text.c_str());
    EXPECT(text == of.out[i]);
  }
  EXPECT(build->getOutputShapes(in.data(), num_in - 1, nullptr, 0, out.data(), num_out, builder));
  EXPECT(Logged("wrong number of tensors"));
}

// Asks position by position, as TensorRT does, with the inputs' own and the outputs' alike types.
bool Supported(IPluginV3OneBuild* build, const std::vector<Tensor>& in, DataType type) {
  std::vector<DynamicPluginTensorDesc> tensors;
  for (const Tensor& tensor : in) tensors.push_back({tensor.Description(), {}, {}, {}});
  const auto num_in = static_cast<int32_t>(in.size());
  const int32_t num_out = build->getNbOutputs();
  for (int i = 0; i < num_out; ++i) tensors.push_back({Tensor{{}, type}.Description(), {}, {}, {}});
  for (int position = 0; position < num_in + num_out; ++position) {
    if (!build->supportsFormatCombination(position, tensors.data(), num_in, num_out)) return false;
  }
  return true;
}

void CheckFormats(IPluginV3OneBuild* build, const Case& of) {
  EXPECT(Supported(build, of.in, DataType::kBF16));
  EXPECT(!Supported(build, of.in, DataType::kFLOAT));  // an output of another type
  std::vector<Tensor> floats = of.in, halves = of.in;
  for (Tensor& tensor : floats) tensor.type = DataType::kFLOAT;
  EXPECT(Supported(build, floats, DataType::kFLOAT));
  for (Tensor& tensor : halves) tensor.type = DataType::kHALF;
  EXPECT(!Supported(build, halves, DataType::kHALF));
  for (size_t i = 0; i < of.in.size(); ++i) {
    std::vector<Tensor> changed = of.in;
    changed[i].format = TensorFormat::kCHW2;
    EXPECT(!Supported(build, changed, DataType::kBF16));
    changed = of.in;  // a type of its own; float tables become bf16
    changed[i].type = changed[i].type == DataType::kBF16 ? DataType::kFLOAT : DataType::kBF16;
    EXPECT(!Supported(build, changed, DataType::kBF16));
    changed = of.in;
    changed[i].shape.assign(8, 7);
    EXPECT(!Supported(build, changed, DataType::kBF16));
    changed = of.in;
    changed[i].shape.back() = -1;  // channels must be known when the engine is built
    EXPECT(!Supported(build, changed, DataType::kBF16));
  }
  std::vector<Tensor> more = of.in;
  more.push_back(of.in[0]);
  EXPECT(!Supported(build, more, DataType::kBF16));
}

void CheckTypes(IPluginV3OneBuild* build, const Case& of) {
  std::vector<DataType> in, out(build->getNbOutputs(), DataType::kINT32);
  for (const Tensor& tensor : of.in) in.push_back(tensor.type);
  const auto num_in = static_cast<int32_t>(in.size()), num_out = static_cast<int32_t>(out.size());
  EXPECT(build->getOutputDataTypes(out.data(), num_out, in.data(), num_in) == 0);
  for (DataType type : out) EXPECT(type == DataType::kBF16);
  EXPECT(build->getOutputDataTypes(out.data(), num_out, in.data(), num_in + 1) != 0);
}

void CheckConfiguration(IPluginV3OneBuild* build, const Case& of) {
  std::vector<DynamicPluginTensorDesc> in, out(build->getNbOutputs());
  for (const Tensor& tensor : of.in) in.push_back({tensor.Description(), {}, {}, {}});
  const auto num_in = static_cast<int32_t>(in.size()), num_out = static_cast<int32_t>(out.size());
  EXPECT(build->configurePlugin(in.data(), num_in, out.data(), num_out) == 0);
  in[0].desc.dims.nbDims = -1;
  EXPECT(build->configurePlugin(in.data(), num_in, out.data(), num_out) != 0);
  EXPECT(Logged("no known rank"));
  EXPECT(build->getWorkspaceSize(in.data(), num_in, out.data(), num_out) == 0);
  EXPECT(build->getNbTactics() == 0);
  EXPECT(build->getFormatCombinationLimit() > 0);
}

void CheckCalls(IPluginV3OneRuntime* runtime, const Case& of, int32_t num_out) {
  std::vector<PluginTensorDesc> in, out(num_out);
  for (size_t i = 0; i < of.in.size(); ++i) {
    in.push_back(Tensor{of.called[i], of.in[i].type}.Description());
  }
  const auto num_in = static_cast<int32_t>(in.size());
  EXPECT(runtime->setTactic(0) == 0);
  EXPECT(runtime->onShapeChange(in.data(), num_in, out.data(), num_out) == 0);
  if (!of.wrong.empty()) {
    std::vector<PluginTensorDesc> wrong = in;
    wrong[0].dims = ToDims(of.wrong);
    EXPECT(runtime->onShapeChange(wrong.data(), num_in, out.data(), num_out) != 0);
  }
  // Refused by the launcher, as the pointers are null, and said by its name.
  std::vector<const void*> from(in.size(), nullptr);
  std::vector<void*> to(num_out, nullptr);
  EXPECT(runtime->enqueue(in.data(), out.data(), from.data(), to.data(), nullptr, nullptr) != 0);
  EXPECT(Logged(std::string(of.name) + ": cudaErrorInvalidValue"));
  for (PluginTensorDesc& tensor : in) {  // an empty batch is no work
    if (tensor.type == DataType::kBF16 && tensor.dims.nbDims > 1) tensor.dims.d[0] = 0;
  }
  EXPECT(runtime->enqueue(in.data(), out.data(), from.data(), to.data(), nullptr, nullptr) == 0);
}

std::map<std::string, double> Defaults(const std::map<std::string, double>& given) {
  std::map<std::string, double> all = {
      {"num_heads", 0}, {"packed", 0}, {"heads_first", 0}, {"q_scale", 1}};
  for (const auto& [name, value] : given) all[name] = value;
  return given.empty() ? given : all;
}

void CheckLife(IPluginCreatorV3One* creator, const Case& of) {
  EXPECT(std::string(creator->getPluginName()) == of.name);
  EXPECT(std::string(creator->getPluginVersion()) == "1");
  EXPECT(std::string(creator->getPluginNamespace()) == "predict2");
  EXPECT(std::string(creator->getInterfaceInfo().kind) == "PLUGIN CREATOR_V3ONE");
  std::unique_ptr<IPluginV3> copy;
  {
    Fields fields(of.attributes);
    std::unique_ptr<IPluginV3> plugin(
        creator->createPlugin("layer", &fields.collection, TensorRTPhase::kBUILD));
    EXPECT(plugin != nullptr);
    auto* core = Get<IPluginV3OneCore>(plugin.get(), PluginCapabilityType::kCORE);
    EXPECT(std::string(core->getPluginName()) == of.name);
    EXPECT(std::string(core->getPluginVersion()) == "1");
    EXPECT(std::string(core->getPluginNamespace()) == "predict2");
    auto* build = Get<IPluginV3OneBuild>(plugin.get(), PluginCapabilityType::kBUILD);
    auto* runtime = Get<IPluginV3OneRuntime>(plugin.get(), PluginCapabilityType::kRUNTIME);
    CheckShapes(build, of);
    CheckTypes(build, of);
    CheckFormats(build, of);
    CheckConfiguration(build, of);
    CheckCalls(runtime, of, build->getNbOutputs());
    const PluginFieldCollection* saved = runtime->getFieldsToSerialize();
    EXPECT(Read(*saved) == Defaults(of.attributes));
    EXPECT(of.attributes.empty() ||
           std::string(build->getTimingCacheID()).find("num_heads=") != std::string::npos);
    std::unique_ptr<IPluginV3> loaded(
        creator->createPlugin("layer", saved, TensorRTPhase::kRUNTIME));
    EXPECT(loaded != nullptr);
    copy.reset(loaded->clone());
  }  // what the copy came from is gone, and so are the fields
  EXPECT(copy != nullptr);
  auto* runtime = Get<IPluginV3OneRuntime>(copy.get(), PluginCapabilityType::kRUNTIME);
  std::unique_ptr<IPluginV3> attached(runtime->attachToContext(nullptr));
  EXPECT(attached != nullptr && attached != copy);
  auto* of_attached = Get<IPluginV3OneRuntime>(attached.get(), PluginCapabilityType::kRUNTIME);
  const PluginFieldCollection* saved = of_attached->getFieldsToSerialize();
  const PluginFieldCollection* others = runtime->getFieldsToSerialize();
  EXPECT(Read(*saved) == Defaults(of.attributes));
  for (int i = 0; i < saved->nbFields; ++i) EXPECT(saved->fields[i].data != others->fields[i].data);
  CheckCalls(of_attached, of, static_cast<int32_t>(of.out.size()));
}

void CheckRefusedFields(IPluginCreatorV3One* creator) {
  const auto refused = [&](const PluginField& field, const char* reason) {
    const PluginFieldCollection collection{1, &field};
    EXPECT(!creator->createPlugin("layer", &collection, TensorRTPhase::kBUILD));
    EXPECT(Logged(reason));
  };
  const int32_t integers[2] = {4, 4};
  const float real = 4.0f;
  refused({"heads", integers, PluginFieldType::kINT32, 1}, "no attribute is called heads");
  refused({nullptr, integers, PluginFieldType::kINT32, 1}, "no attribute is called");
  refused({"num_heads", &real, PluginFieldType::kFLOAT32, 1}, "num_heads is not one number");
  refused({"num_heads", integers, PluginFieldType::kINT32, 2}, "num_heads is not one number");
  refused({"num_heads", nullptr, PluginFieldType::kINT32, 1}, "num_heads is not one number");
  refused({"packed", integers, PluginFieldType::kINT32, 1}, "missing");  // without num_heads
  EXPECT(!creator->createPlugin("layer", nullptr, TensorRTPhase::kBUILD));
}

const Tensor kTables[3] = {{{2, -1, 12}, DataType::kFLOAT},
                           {{2, -1, 10}, DataType::kFLOAT},
                           {{2, -1, 10}, DataType::kFLOAT}};
const Shape kGrid[3] = {{2, 3, 12}, {2, 2, 10}, {2, 5, 10}};

const std::vector<Case> kCases = {
    {"Predict2QkNormRope",
     {{"num_heads", 4}, {"packed", 1}, {"heads_first", 1}, {"q_scale", 0.125}},
     {{{-1, -1, 768}}, {{64}}, {{64}}, kTables[0], kTables[1], kTables[2]},
     {{1, 30, 768}, {64}, {64}, kGrid[0], kGrid[1], kGrid[2]},
     {1, 31, 768},
     {"0.0 4 0.1 64", "0.0 4 0.1 64", "0.0 4 0.1 64"}},
    {"Predict2QkNormRope",
     {{"num_heads", 4}},
     {{{-1, -1, 256}}, {{-1, -1, 256}}, {{64}}, {{64}}, kTables[0], kTables[1], kTables[2]},
     {{1, 30, 256}, {1, 30, 256}, {64}, {64}, kGrid[0], kGrid[1], kGrid[2]},
     {1, 31, 256},
     {"0.0 0.1 4 64", "1.0 1.1 4 64"}},
    {"Predict2QkNorm",
     {{"num_heads", 2}, {"heads_first", 1}},
     {{{-1, -1, 256}}, {{-1, 512, 256}}, {{128}}, {{128}}},
     {{1, 30, 256}, {1, 512, 256}, {128}, {128}},
     {2, 30, 256},
     {"0.0 2 0.1 128", "1.0 2 512 128"}},
    {"Predict2Modulate",
     {},
     {{{-1, -1, -1, 256}}, {{-1, -1, 1, 768}}},
     {{1, 3, 10, 256}, {1, 3, 1, 768}},
     {1, 2, 10, 256},
     {"0.0 0.1 0.2 256"}},
    {"Predict2GatedModulate",
     {},
     {{{-1, -1, 256}}, {{-1, -1, 256}}, {{-1, -1, 768}}, {{-1, -1, 512}}},
     {{1, 30, 256}, {1, 30, 256}, {1, 3, 768}, {1, 3, 512}},
     {1, 31, 256},
     {"0.0 0.1 256", "0.0 0.1 256"}},
    {"Predict2GatedAdd",
     {},
     {{{-1, -1, 256}}, {{-1, -1, 256}}, {{-1, -1, 1, 768}}},
     {{1, 30, 256}, {1, 30, 256}, {1, 3, 1, 768}},
     {1, 33, 256},
     {"0.0 0.1 256"}},
};

}  // namespace

int main(int, char** arguments) {
  void* library = dlopen(arguments[1], RTLD_NOW | RTLD_LOCAL);
  if (!library) std::printf("%s\n", dlerror());
  EXPECT(library != nullptr);
  using GetCreators = IPluginCreatorInterface* const* (*)(int32_t&);
  const auto get = reinterpret_cast<GetCreators>(dlsym(library, "getCreators"));
  const auto set = reinterpret_cast<void (*)(ILoggerFinder*)>(dlsym(library, "setLoggerFinder"));
  EXPECT(get && set);
  set(&finder);
  int32_t count = 0;
  IPluginCreatorInterface* const* creators = get(count);
  EXPECT(count == 5);
  std::map<std::string, IPluginCreatorV3One*> by_name;
  for (int32_t i = 0; i < count; ++i) {
    auto* creator = dynamic_cast<IPluginCreatorV3One*>(creators[i]);
    EXPECT(creator != nullptr);
    by_name[creator->getPluginName()] = creator;
  }
  for (const Case& of : kCases) {
    EXPECT(by_name.count(of.name) == 1);
    CheckLife(by_name[of.name], of);
  }
  const PluginFieldCollection* names = by_name["Predict2QkNormRope"]->getFieldNames();
  EXPECT(names->nbFields == 4 && std::string(names->fields[0].name) == "num_heads");
  EXPECT(by_name["Predict2Modulate"]->getFieldNames()->nbFields == 0);
  CheckRefusedFields(by_name["Predict2QkNormRope"]);
  std::puts("ok");
}
