// SPDX-License-Identifier: Apache-2.0
//
// Typed reading of plugin fields: the only place that looks inside a PluginField.
#ifndef TC_TENSORRT_FIELDS_H
#define TC_TENSORRT_FIELDS_H

#include <NvInferRuntime.h>

#include <vector>

#include "op.h"

namespace tc {

// The fields that describe an op's attributes, with `values` as their data, or with none.
std::vector<nvinfer1::PluginField> MakeFields(const Op& op, const float* values);

// The values of an op's attributes, in its order. `fields` may also hold the two that every node
// carries, plugin_namespace and plugin_version: they must be ours.
//
// Throws std::invalid_argument where a field is missing, unknown, given twice, of another type, not
// finite, or not above 0 where it must be.
std::vector<float> ReadAttributes(const Op& op, const nvinfer1::PluginFieldCollection& fields);

}  // namespace tc

#endif  // TC_TENSORRT_FIELDS_H
