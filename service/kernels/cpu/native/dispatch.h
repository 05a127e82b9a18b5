// Which instruction sets this build holds and this processor runs.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace serpentine {

// Names, slowest first; the last is what a program takes unless told otherwise.
std::vector<std::string> instruction_sets();

// Throws std::invalid_argument where there is none of that name here.
const Kernels& kernels_named(const std::string& name);

}  // namespace serpentine
