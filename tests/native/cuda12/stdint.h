// SPDX-License-Identifier: Apache-2.0

#pragma once
#include <cstdint>

using namespace cuda::std;
