/// Which of the compiled instruction sets the CPU's operations use. Tests go through all of them on
/// one machine; nobody else need care, as the best one is the default.
#pragma once

#include <string>
#include <vector>

namespace longspan::model::cpu {

/// Those this CPU can run, best first, in Highway's names: "AVX3" (AVX-512), "AVX2", "SCALAR".
std::vector<std::string> instruction_sets();

/// From now on, all threads use `name`, one of instruction_sets(). Throws Error if it is none of
/// them. Not to be called while operations run.
void use_instruction_set(const std::string& name);

/// Whether products of bfloat16 numbers that are not oneDNN's run on AMX: where it works, unless
/// use_amx(false) was called, or use_instruction_set() with another than the best one.
bool uses_amx();
void use_amx(bool allowed);

}  // namespace longspan::model::cpu
