// SPDX-License-Identifier: Apache-2.0
#ifndef TC_TENSORRT_LOG_H
#define TC_TENSORRT_LOG_H

#include <NvInferRuntime.h>

#include <string>

namespace tc {

// TensorRT hands the finder over when it loads the library, and null when it unloads it.
void SetLoggerFinder(nvinfer1::ILoggerFinder* finder) noexcept;

// Reports an error to the logger of whoever called the plugin; to stderr where there is none.
void LogError(const std::string& message) noexcept;

}  // namespace tc

#endif  // TC_TENSORRT_LOG_H
