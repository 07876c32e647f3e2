/// What a run says of itself before its first step.
#pragma once

#include "launcher/training_run.hpp"

namespace longspan::launcher {

/// Logs version, mesh, model, work of a step, memory predicted, and why what was chosen was chosen;
/// warns of settings that are allowed and hardly meant. `peak_flops`: of all ranks together. Every
/// rank may call it; does not communicate.
/// `device`: Compute::line.
void print_header(const TrainingRun& run, double peak_flops, const std::string& device);

}  // namespace longspan::launcher
