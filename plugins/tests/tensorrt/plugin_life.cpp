// SPDX-License-Identifier: Apache-2.0
//
// The life of a plugin up to its launch, without TensorRT: entry points, creators, good and bad
// fields, shapes, types and formats, serialisation. Usage: plugin_life LIBRARY
#include <cmath>
#include <cstring>
#include <limits>

#include "host_api.h"
#include "ops_under_test.h"

namespace tc_test {

namespace {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;
using nvinfer1::TensorFormat;

std::vector<OpUnderTest> AllOps(DataType type) {
  return {DualRopeUnderTest(type), AttentionUnderTest(type), AttentionInt8UnderTest(type)};
}

void TestEntryPoints(const Library& library) {
  for (const char* entry_point : {"getCreators", "getPluginCreators"}) {
    const auto creators = library.Creators(entry_point);
    CHECK(creators.size() == 3);
    for (nvinfer1::IPluginCreatorV3One* creator : creators) {
      CHECK(std::string(creator->getInterfaceInfo().kind) == "PLUGIN CREATOR_V3ONE");
      CHECK(std::string(creator->getPluginNamespace()) == "tc");
      CHECK(std::string(creator->getPluginVersion()) == "1");
    }
  }
  const nvinfer1::PluginFieldCollection* names = library.Creator("TcDualRope").getFieldNames();
  CHECK(names->nbFields == 2);
  CHECK(std::string(names->fields[0].name) == "gamma");
  CHECK(std::string(names->fields[1].name) == "attention_factor");
  names = library.Creator("TcBlockCausalAttention").getFieldNames();
  CHECK(names->nbFields == 1 && std::string(names->fields[0].name) == "scale");
  CHECK(names->fields[0].type == PluginFieldType::kFLOAT32);
}

void Refuses(const Library& library, const std::vector<PluginField>& fields,
             const std::vector<std::string>& words) {
  CHECK(library.TryCreate("TcDualRope", fields) == nullptr);
  CHECK(library.logger.Said(words));
}

void TestBadFields(const Library& library) {
  const float zero = 0.0f, one = 1.0f;
  const float not_a_number = std::numeric_limits<float>::quiet_NaN();
  const int32_t integer = 1;
  const float pair[2] = {1.0f, 2.0f};
  const PluginField gamma = Float("gamma", one);
  Refuses(library, {}, {"TcDualRope", "'node'", "gamma is missing", "attention_factor"});
  Refuses(library, {gamma, Float("theta", one)}, {"theta is no attribute", "known: gamma"});
  Refuses(library, {gamma, gamma}, {"gamma is given twice"});
  Refuses(library, {Float("gamma", not_a_number)}, {"gamma is not a finite number"});
  Refuses(library, {{"gamma", &integer, PluginFieldType::kINT32, 1}}, {"must be one float32"});
  Refuses(library, {{"gamma", pair, PluginFieldType::kFLOAT32, 2}}, {"length 2"});
  Refuses(library, {{"gamma", nullptr, PluginFieldType::kFLOAT32, 1}}, {"must be one float32"});
  Refuses(library, {gamma, Float("attention_factor", zero)}, {"attention_factor is 0", "above 0"});
  Refuses(library, {gamma, {"plugin_version", "2", PluginFieldType::kCHAR, 2}},
          {"plugin_version is '2'", "has '1'"});
  Refuses(library, {gamma, {"plugin_namespace", &integer, PluginFieldType::kINT32, 1}},
          {"plugin_namespace must be a string"});
  CHECK(library.Creator("TcDualRope")
            .createPlugin(nullptr, nullptr, nvinfer1::TensorRTPhase::kBUILD) == nullptr);
  CHECK(library.logger.Said({"gamma is missing"}));
}

// A string's length counts its NUL in some versions, and not in others; what follows it is noise.
void TestStringFields(const Library& library) {
  const float one = 1.0f;
  for (int32_t length : {2, 3, 5}) {
    const PluginField name{"plugin_namespace", "tc\0xy", PluginFieldType::kCHAR, length};
    const PluginField version{"plugin_version", "1", PluginFieldType::kCHAR, 2};
    LivePlugin plugin(library.TryCreate("TcDualRope", {Float("gamma", one), name, version}));
  }
  CHECK(library.logger.Silent());
}

float Serialised(const LivePlugin& plugin, const std::string& name) {
  const nvinfer1::PluginFieldCollection* fields = plugin.runtime().getFieldsToSerialize();
  for (int32_t i = 0; i < fields->nbFields; ++i) {
    const PluginField& field = fields->fields[i];
    if (field.name == name) {
      CHECK(field.type == PluginFieldType::kFLOAT32 && field.length == 1);
      return *static_cast<const float*>(field.data);
    }
  }
  CHECK(!"the field is not serialised");
  return 0;
}

// Build time to run time: what is serialised makes the same plugin again, as do copies of it.
void TestSerialisation(const Library& library) {
  const float gamma = 0.375f, factor = 1.25f;
  LivePlugin built(library.TryCreate("TcDualRope", {Float("gamma", gamma)}));
  CHECK(Serialised(built, "attention_factor") == 1.0f);  // its default

  LivePlugin yarn(library.TryCreate(
      "TcDualRope", {Float("attention_factor", factor), Float("gamma", gamma)}));
  LivePlugin loaded(library.Creator("TcDualRope")
                        .createPlugin("node", yarn.runtime().getFieldsToSerialize(),
                                      nvinfer1::TensorRTPhase::kRUNTIME));
  LivePlugin copied(loaded.plugin().clone());
  LivePlugin attached(copied.runtime().attachToContext(nullptr));
  for (const LivePlugin* plugin : {&yarn, &loaded, &copied, &attached}) {
    CHECK(Serialised(*plugin, "gamma") == gamma);
    CHECK(Serialised(*plugin, "attention_factor") == factor);
    CHECK(plugin->runtime().getFieldsToSerialize()->nbFields == 2);
  }

  for (const char* name : {"TcBlockCausalAttention", "TcBlockCausalAttentionInt8"}) {
    LivePlugin attention(library.TryCreate(name, {Float("scale", factor)}));
    LivePlugin again(library.Creator(name).createPlugin(
        "node", attention.runtime().getFieldsToSerialize(), nvinfer1::TensorRTPhase::kRUNTIME));
    CHECK(again.core().getPluginName() == std::string(name));
    CHECK(Serialised(again, "scale") == factor);
    CHECK(again.runtime().getFieldsToSerialize()->nbFields == 1);
  }
}

void TestCapabilities(const Library& library, const OpUnderTest& op) {
  LivePlugin plugin(library.TryCreate(op.name, GoodFields(op.name)));
  CHECK(plugin.core().getPluginName() == op.name);
  CHECK(std::string(plugin.core().getPluginVersion()) == "1");
  CHECK(std::string(plugin.core().getPluginNamespace()) == "tc");
  CHECK(std::string(plugin.build().getInterfaceInfo().kind) == "PLUGIN_V3ONE_BUILD");
  CHECK(plugin.build().getInterfaceInfo().major == 2);
  CHECK(std::string(plugin.runtime().getInterfaceInfo().kind) == "PLUGIN_V3ONE_RUNTIME");
  const auto none = static_cast<nvinfer1::PluginCapabilityType>(99);
  CHECK(plugin.plugin().getCapabilityInterface(none) == nullptr);

  CHECK(plugin.build().getNbOutputs() == static_cast<int32_t>(op.outputs.size()));
  for (size_t i = 0; i < op.aliases.size(); ++i) {
    CHECK(plugin.build().getAliasedInput(static_cast<int32_t>(i)) == op.aliases[i]);
  }
  CHECK(plugin.build().getAliasedInput(-1) == -1);
  CHECK(plugin.build().getAliasedInput(plugin.build().getNbOutputs()) == -1);
}

void TestOutputs(const Library& library, const OpUnderTest& op) {
  LivePlugin plugin(library.TryCreate(op.name, GoodFields(op.name)));
  const auto inputs = static_cast<int32_t>(op.inputs.size());
  const auto outputs = static_cast<int32_t>(op.outputs.size());

  std::vector<DataType> input_types;
  std::vector<DataType> types(op.outputs.size());
  ExpressionBuilder builder;
  std::vector<nvinfer1::DimsExprs> input_shapes;
  std::vector<nvinfer1::DimsExprs> shapes(op.outputs.size());
  for (const Tensor& input : op.inputs) {
    input_types.push_back(input.type);
    Shape shape = input.shape;
    shape[0] = shape.size() > 1 ? -1 : shape[0];  // B is known at run time only
    input_shapes.push_back(builder.Shape(shape));
  }
  CHECK(plugin.build().getOutputDataTypes(types.data(), outputs, input_types.data(), inputs) == 0);
  CHECK(plugin.build().getOutputShapes(input_shapes.data(), inputs, nullptr, 0, shapes.data(),
                                       outputs, builder) == 0);
  for (size_t i = 0; i < op.outputs.size(); ++i) {
    CHECK(types[i] == op.outputs[i].type);
    const int axes = static_cast<int>(op.outputs[i].shape.size());
    CHECK(shapes[i].nbDims == axes);
    CHECK(!shapes[i].d[0]->isConstant());
    for (int axis = 1; axis < axes; ++axis) {
      CHECK(shapes[i].d[axis]->getConstantValue() == op.outputs[i].shape[axis]);
    }
  }
  CHECK(library.logger.Silent());
  CHECK(plugin.build().getOutputShapes(input_shapes.data(), inputs - 1, nullptr, 0, shapes.data(),
                                       outputs, builder) != 0);
  CHECK(library.logger.Said({op.name, "inputs and", "but must have"}));
  CHECK(plugin.build().getOutputDataTypes(types.data(), 0, input_types.data(), inputs) != 0);
  CHECK(library.logger.Said({op.name, " 0 outputs"}));
  input_types[1] = DataType::kINT8;
  CHECK(plugin.build().getOutputDataTypes(types.data(), outputs, input_types.data(), inputs) != 0);
  CHECK(library.logger.Said({op.name, " is int8, but must be "}));
  input_types[0] = DataType::kFLOAT;
  CHECK(plugin.build().getOutputDataTypes(types.data(), outputs, input_types.data(), inputs) != 0);
  CHECK(library.logger.Said({" is float32, but must be float16 or bfloat16"}));
}

int Supported(const LivePlugin& plugin, const OpUnderTest& op,
              const std::vector<nvinfer1::DynamicPluginTensorDesc>& descs) {
  int supported = 0;
  for (size_t position = 0; position < descs.size(); ++position) {
    supported += plugin.build().supportsFormatCombination(
        static_cast<int32_t>(position), descs.data(), static_cast<int32_t>(op.inputs.size()),
        static_cast<int32_t>(op.outputs.size()));
  }
  return supported;
}

// Every tensor in turn with another type or layout: exactly it, or all that follow input 0, fail.
void TestFormats(const Library& library, const OpUnderTest& op) {
  LivePlugin plugin(library.TryCreate(op.name, GoodFields(op.name)));
  const auto good = DynamicDescs(op);
  const int all = static_cast<int>(good.size());
  CHECK(Supported(plugin, op, good) == all);
  for (int i = 1; i < all; ++i) {
    auto descs = good;
    descs[i].desc.format = TensorFormat::kCHW32;
    CHECK(Supported(plugin, op, descs) == all - 1);
    descs = good;
    const DataType others[] = {DataType::kHALF,  DataType::kBF16,  DataType::kFLOAT,
                               DataType::kINT32, DataType::kINT64, DataType::kINT8};
    for (DataType other : others) {
      descs[i].desc.type = other;
      CHECK(Supported(plugin, op, descs) == all - (other != good[i].desc.type));
    }
  }
  for (DataType type : {DataType::kFLOAT, DataType::kINT8, DataType::kFP8}) {
    auto descs = good;
    descs[0].desc.type = type;
    CHECK(!plugin.build().supportsFormatCombination(0, descs.data(), int(op.inputs.size()),
                                                    int(op.outputs.size())));
  }
}

struct BadShape {
  size_t input;
  Shape shape;
  std::vector<std::string> words;
};

// The builder's checks and the runtime's are the same, and say what they found.
void TestShapes(const Library& library, const OpUnderTest& op, const std::vector<BadShape>& bad) {
  LivePlugin plugin(library.TryCreate(op.name, GoodFields(op.name)));
  const auto inputs = static_cast<int32_t>(op.inputs.size());
  const auto outputs = static_cast<int32_t>(op.outputs.size());
  const auto out = Descs(op.outputs);

  auto dynamic = DynamicDescs(op);
  CHECK(plugin.build().configurePlugin(dynamic.data(), inputs, &dynamic[inputs], outputs) == 0);
  CHECK(plugin.runtime().onShapeChange(Descs(op.inputs).data(), inputs, out.data(), outputs) == 0);
  for (auto& desc : dynamic) {  // nothing is known: nothing to complain about
    std::fill(desc.desc.dims.d, desc.desc.dims.d + desc.desc.dims.nbDims, -1);
  }
  CHECK(plugin.build().configurePlugin(dynamic.data(), inputs, &dynamic[inputs], outputs) == 0);
  CHECK(library.logger.Silent());

  for (const BadShape& change : bad) {
    OpUnderTest wrong = op;
    wrong.inputs[change.input].shape = change.shape;
    const auto descs = Descs(wrong.inputs);
    dynamic = DynamicDescs(wrong);
    CHECK(plugin.build().configurePlugin(dynamic.data(), inputs, &dynamic[inputs], outputs) != 0);
    CHECK(library.logger.Said(change.words));
    CHECK(plugin.runtime().onShapeChange(descs.data(), inputs, out.data(), outputs) != 0);
    CHECK(library.logger.Said(change.words));
    // enqueue refuses before it looks at a pointer.
    CHECK(plugin.runtime().enqueue(descs.data(), out.data(), nullptr, nullptr, nullptr, nullptr) !=
          0);
    CHECK(library.logger.Said(change.words));
  }
}

void TestAllShapes(const Library& library) {
  TestShapes(library, DualRopeUnderTest(DataType::kHALF),
             {{0, {kB, kS, kD}, {"TcDualRope", "x is [2, 3, 64]", "4 axes: BHSD"}},
              {1, {kB, kS + 1}, {"position_ids is [2, 4]", "axis S is 3"}},
              {2, {kB + 1, kS}, {"temporal_ids", "axis B is 2"}},
              {3, {kD}, {"rotate 128 channels", "x has 64"}}});
  TestShapes(library, AttentionUnderTest(DataType::kHALF),
             {{0, {kB, kH + 1, kS, kD}, {"q has 5 heads", "the 2 of k and v"}},
              {2, {kB, kK + 1, kS, kD}, {"v is [2, 3, 3, 64]", "axis K is 2"}},
              {3, {kB, kS, 1}, {"kv_end", "2 axes: BS"}},
              {4, {kB, kS + 2}, {"slots is [2, 5]", "axis S is 3"}},
              {5, {kB, kK, kC, kD / 2}, {"past_key", "axis D is 64"}},
              {6, {kB, kK, kC + 1, kD}, {"past_value", "axis C is 8"}}});
  TestShapes(library, AttentionInt8UnderTest(DataType::kHALF),
             {{0, {kB, kH + 1, kS, kD}, {"q has 5 heads", "the 2 of k and v"}},
              {5, {kB, kK, kC, kD / 2}, {"past_key", "axis D is 64"}},
              {7, {kB, kK, kC + 1}, {"past_key_scale is [2, 2, 9]", "axis C is 8"}},
              {8, {kB, kK, kC, 1}, {"past_value_scale", "3 axes: BKC"}}});
}

}  // namespace

}  // namespace tc_test

int main(int argc, char** argv) {
  using namespace tc_test;
  if (argc != 2) {
    std::fprintf(stderr, "usage: plugin_life LIBRARY\n");
    return 2;
  }
  const Library library(argv[1]);
  TestEntryPoints(library);
  TestBadFields(library);
  TestStringFields(library);
  TestSerialisation(library);
  for (DataType type : {DataType::kHALF, DataType::kBF16}) {
    for (const OpUnderTest& op : AllOps(type)) {
      TestCapabilities(library, op);
      TestOutputs(library, op);
      TestFormats(library, op);
    }
  }
  TestAllShapes(library);
  std::printf("plugin_life: %d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
