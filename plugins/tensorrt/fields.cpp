// SPDX-License-Identifier: Apache-2.0
#include "fields.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <stdexcept>
#include <string>

namespace tc {

namespace {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

float ReadFloat(const PluginField& field) {
  if (field.type != PluginFieldType::kFLOAT32 || field.length != 1 || field.data == nullptr) {
    throw std::invalid_argument(std::string(field.name) + " must be one float32, but has type " +
                                std::to_string(static_cast<int32_t>(field.type)) +
                                " (PluginFieldType) and length " + std::to_string(field.length));
  }
  float value;
  std::memcpy(&value, field.data, sizeof value);  // the data need not be aligned
  if (!std::isfinite(value)) {
    throw std::invalid_argument(std::string(field.name) + " is not a finite number");
  }
  return value;
}

// A string ends at its NUL, which some versions count in the length and others do not.
std::string ReadString(const PluginField& field) {
  if (field.type != PluginFieldType::kCHAR || field.length < 0 || field.data == nullptr) {
    throw std::invalid_argument(std::string(field.name) + " must be a string");
  }
  const auto* begin = static_cast<const char*>(field.data);
  return std::string(begin, std::find(begin, begin + field.length, '\0'));
}

void RequireString(const PluginField& field, const char* expected) {
  const std::string found = ReadString(field);
  if (found != expected) {
    throw std::invalid_argument(std::string(field.name) + " is '" + found +
                                "', but this library has '" + expected + "'");
  }
}

std::string KnownNames(const Op& op) {
  std::string names;
  for (const contract::Attribute& attribute : op.attributes) {
    names += (names.empty() ? "" : ", ") + std::string(attribute.name);
  }
  return names;
}

size_t AttributeIndex(const Op& op, const char* name) {
  for (size_t i = 0; i < op.attributes.size(); ++i) {
    if (std::strcmp(op.attributes[i].name, name) == 0) {
      return i;
    }
  }
  throw std::invalid_argument(std::string(name) + " is no attribute; known: " + KnownNames(op));
}

}  // namespace

std::vector<PluginField> MakeFields(const Op& op, const float* values) {
  std::vector<PluginField> fields;
  for (size_t i = 0; i < op.attributes.size(); ++i) {
    const float* data = values != nullptr ? values + i : nullptr;
    fields.emplace_back(op.attributes[i].name, data, PluginFieldType::kFLOAT32, 1);
  }
  return fields;
}

std::vector<float> ReadAttributes(const Op& op, const nvinfer1::PluginFieldCollection& fields) {
  std::vector<std::optional<float>> found(op.attributes.size());
  for (int32_t i = 0; i < fields.nbFields; ++i) {
    const PluginField& field = fields.fields[i];
    if (std::strcmp(field.name, "plugin_namespace") == 0) {
      RequireString(field, contract::kPluginNamespace);
    } else if (std::strcmp(field.name, "plugin_version") == 0) {
      RequireString(field, contract::kPluginVersion);
    } else {
      std::optional<float>& value = found[AttributeIndex(op, field.name)];
      if (value.has_value()) {
        throw std::invalid_argument(std::string(field.name) + " is given twice");
      }
      value = ReadFloat(field);
    }
  }

  std::vector<float> values;
  for (size_t i = 0; i < found.size(); ++i) {
    const contract::Attribute& attribute = op.attributes[i];
    if (attribute.required && !found[i].has_value()) {
      throw std::invalid_argument(std::string(attribute.name) + " is missing; the attributes are " +
                                  KnownNames(op));
    }
    values.push_back(found[i].value_or(attribute.fallback));
    if (attribute.positive && !(values.back() > 0.0f)) {
      throw std::invalid_argument(std::string(attribute.name) + " is " +
                                  std::to_string(values.back()) + ", but must be above 0");
    }
  }
  return values;
}

}  // namespace tc
