// SPDX-License-Identifier: Apache-2.0
//
// The few parts of TensorRT that a plugin meets, on the host: a loaded plugin library, a logger and
// an expression builder. No TensorRT library is needed.
#ifndef TC_TESTS_HOST_API_H
#define TC_TESTS_HOST_API_H

#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

namespace tc_test {

inline int failures = 0;

#define CHECK(condition)                                                             \
  do {                                                                               \
    if (!(condition)) {                                                              \
      std::fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition);   \
      ++::tc_test::failures;                                                         \
    }                                                                                \
  } while (false)

// Keeps what was logged, so that a test can ask for it.
class Logger final : public nvinfer1::ILogger, public nvinfer1::ILoggerFinder {
 public:
  void log(Severity severity, const char* message) noexcept override {
    CHECK(severity == Severity::kERROR);
    text_ += std::string(message) + "\n";
  }
  nvinfer1::ILogger* findLogger() override { return this; }

  // True where all of the words were logged since the last call; forgets them.
  bool Said(const std::vector<std::string>& words) {
    const std::string text = std::move(text_);
    text_.clear();
    for (const std::string& word : words) {
      if (text.find(word) == std::string::npos) {
        std::fprintf(stderr, "'%s' was not logged, but: %s\n", word.c_str(), text.c_str());
        return false;
      }
    }
    return true;
  }
  // True where nothing was logged since the last call of Said; else shows what was.
  bool Silent() const {
    std::fputs(text_.c_str(), stderr);
    return text_.empty();
  }

 private:
  std::string text_;
};

class Expression final : public nvinfer1::IDimensionExpr {
 public:
  Expression(int64_t value, bool is_constant) : impl_(value, is_constant) { mImpl = &impl_; }
  ~Expression() override = default;

 private:
  struct Impl final : nvinfer1::apiv::VDimensionExpr {
    Impl(int64_t v, bool c) : value(v), is_constant(c) {}
    bool isConstant() const override { return is_constant; }
    int64_t getConstantValue() const override { return value; }
    bool isSizeTensor() const override { return false; }
    int64_t value;
    bool is_constant;
  };
  Impl impl_;
};

// Makes shapes in which -1 is a size that is known at run time only: asked for its value all the
// same, each gives another number that means nothing.
class ExpressionBuilder final : public nvinfer1::IExprBuilder {
 public:
  ExpressionBuilder() { mImpl = &impl_; }

  nvinfer1::DimsExprs Shape(const std::vector<int64_t>& sizes) {
    nvinfer1::DimsExprs shape{};
    shape.nbDims = static_cast<int32_t>(sizes.size());
    for (size_t i = 0; i < sizes.size(); ++i) {
      const bool is_known = sizes[i] >= 0;
      const auto nonsense = static_cast<int64_t>(1000 + impl_.pool.size());
      shape.d[i] = impl_.Make(is_known ? sizes[i] : nonsense, is_known);
    }
    return shape;
  }

 private:
  struct Impl final : nvinfer1::apiv::VExprBuilder {
    const nvinfer1::IDimensionExpr* Make(int64_t value, bool is_constant) {
      pool.push_back(std::make_unique<Expression>(value, is_constant));
      return pool.back().get();
    }
    const nvinfer1::IDimensionExpr* constant(int64_t value) override { return Make(value, true); }
    const nvinfer1::IDimensionExpr* operation(nvinfer1::DimensionOperation,
                                              const nvinfer1::IDimensionExpr&,
                                              const nvinfer1::IDimensionExpr&) override {
      CHECK(!"our outputs' shapes need no arithmetic");
      return nullptr;
    }
    const nvinfer1::IDimensionExpr* declareSizeTensor(int32_t, const nvinfer1::IDimensionExpr&,
                                                      const nvinfer1::IDimensionExpr&) override {
      CHECK(!"no output's size depends on data");
      return nullptr;
    }
    std::vector<std::unique_ptr<Expression>> pool;
  };
  Impl impl_;
};

// A plugin and its three capabilities.
class LivePlugin {
 public:
  explicit LivePlugin(nvinfer1::IPluginV3* plugin) : plugin_(plugin) {
    if (plugin == nullptr) {
      std::fprintf(stderr, "no plugin was created\n");
      std::exit(1);
    }
  }

  nvinfer1::IPluginV3& plugin() const { return *plugin_; }
  nvinfer1::IPluginV3OneCore& core() const {
    return As<nvinfer1::IPluginV3OneCore>(nvinfer1::PluginCapabilityType::kCORE);
  }
  nvinfer1::IPluginV3OneBuildV2& build() const {
    return As<nvinfer1::IPluginV3OneBuildV2>(nvinfer1::PluginCapabilityType::kBUILD);
  }
  nvinfer1::IPluginV3OneRuntime& runtime() const {
    return As<nvinfer1::IPluginV3OneRuntime>(nvinfer1::PluginCapabilityType::kRUNTIME);
  }

 private:
  template <typename Capability>
  Capability& As(nvinfer1::PluginCapabilityType type) const {
    return *static_cast<Capability*>(plugin_->getCapabilityInterface(type));
  }
  std::unique_ptr<nvinfer1::IPluginV3> plugin_;
};

class Library {
 public:
  explicit Library(const char* path) : handle_(dlopen(path, RTLD_NOW | RTLD_LOCAL)) {
    if (handle_ == nullptr) {
      std::fprintf(stderr, "%s\n", dlerror());
      std::exit(1);
    }
    Symbol<void (*)(nvinfer1::ILoggerFinder*)>("setLoggerFinder")(&logger);
  }

  std::vector<nvinfer1::IPluginCreatorV3One*> Creators(const char* entry_point) const {
    using List = nvinfer1::IPluginCreatorInterface* const*;
    int32_t count = 0;
    List list = Symbol<List (*)(int32_t&)>(entry_point)(count);
    std::vector<nvinfer1::IPluginCreatorV3One*> creators;
    for (int32_t i = 0; i < count; ++i) {
      creators.push_back(static_cast<nvinfer1::IPluginCreatorV3One*>(list[i]));
    }
    return creators;
  }

  nvinfer1::IPluginCreatorV3One& Creator(const std::string& name) const {
    for (nvinfer1::IPluginCreatorV3One* creator : Creators("getCreators")) {
      if (creator->getPluginName() == name) {
        return *creator;
      }
    }
    std::fprintf(stderr, "no creator %s\n", name.c_str());
    std::exit(1);
  }

  nvinfer1::IPluginV3* TryCreate(const std::string& name,
                                 const std::vector<nvinfer1::PluginField>& fields) const {
    const nvinfer1::PluginFieldCollection collection{static_cast<int32_t>(fields.size()),
                                                     fields.data()};
    return Creator(name).createPlugin("node", &collection, nvinfer1::TensorRTPhase::kBUILD);
  }

  mutable Logger logger;

 private:
  template <typename Function>
  Function Symbol(const char* name) const {
    void* symbol = dlsym(handle_, name);
    if (symbol == nullptr) {
      std::fprintf(stderr, "%s\n", dlerror());
      std::exit(1);
    }
    return reinterpret_cast<Function>(symbol);
  }
  void* handle_;
};

}  // namespace tc_test

#endif  // TC_TESTS_HOST_API_H
