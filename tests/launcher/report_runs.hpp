/// Run directories as training leaves them, without training: for the tests of `longspan report`.
#pragma once

#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "launcher/metrics.hpp"
#include "launcher/run_history.hpp"

namespace longspan::launcher {

inline void write_text(const std::string& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

/// A number that looks random, 0 to 1, the same every time.
inline double noise(std::int64_t i) {
  return static_cast<double>((static_cast<std::uint64_t>(i) * 2654435761u >> 8) % 1000) / 1000;
}

inline StepMetrics invented_step(std::int64_t step, double scale, std::int64_t tokens = 1024) {
  StepMetrics m;
  m.step = step;
  m.tokens = tokens * step;
  m.loss = scale * (2 + 6 * std::exp(-static_cast<double>(step) / 9000) + 0.3 * noise(step));
  m.grad_norm = 0.5 + noise(step + 7);
  m.learning_rate = 1e-3;
  m.step_seconds = 0.1 + 0.02 * noise(step + 1);
  m.tokens_per_second = static_cast<double>(tokens) / m.step_seconds;
  m.mfu = 0.4;
  m.comm_seconds = 0.25 * m.step_seconds;
  m.data_seconds = 0.02 * m.step_seconds;
  m.peak_memory_bytes = std::int64_t{300} << 20;
  if (step % 1000 == 0) m.validation_loss = m.loss + 0.1;
  return m;
}

/// All files that a finished run has. `note` goes where texts of others go.
inline void invent_run(const std::string& directory, std::int64_t steps, double scale,
                       const std::string& note = "", std::int64_t tokens = 1024) {
  std::filesystem::create_directories(directory + "/checkpoints/step-0000000200");
  std::string lines;
  for (std::int64_t step = 1; step <= steps; ++step)
    lines += to_json(invented_step(step, scale, tokens)) + "\n";
  write_text(directory + "/metrics.jsonl", lines);
  write_text(directory + "/config.ini",
             "# effective configuration; longspan 0.1.0 (abc), HDF5 1.10.8\n[run]\nname = x\n"
             "directory = " +
                 directory + "\n[train]\nsteps = " + std::to_string(steps) +
                 "\n[optimizer]\nlearning-rate = " + std::to_string(scale) + "\n[data]\npath = \"" +
                 note + "\"\n");
  write_text(directory + "/log.txt",
             "longspan 0.1.0 (old)\n9 ranks (mesh.data=9), 1 thread each; 5 parameters; d.h5\n"
             "longspan 0.1.0 (abc)\n2 ranks (mesh.data=2 mesh.context=1), 1 thread each; 246240 "
             "parameters; d.h5\ndevice: cpu\npeak: 18.5 GFLOP/s (fp32)\n"
             "saved " +
                 directory + "/checkpoints/step-0000000100 in 1.50 s, 0.36 s of it in the way\n" +
                 "saved " + directory + "/checkpoints/step-0000000200 in 0.25 s\n");
  const nlohmann::ordered_json plan = {
      {"memory_per_rank_bytes",
       {{"predicted", 104857600},
        {"allocated", 110100480},
        {"predicted_resident", nullptr},
        {"resident", 314572800}}},
      {"step_seconds", {{"predicted", 0.08}, {"measured", 0.1}}},
      {"processor", "Test Processor 3000"},
      {"calibration", "local.ini"},
      {"memory", {{"weights", 52428800}, {"kept_activations", 52428800}, {"program", 9}}},
      {"seconds", {{"linear", 0.05}, {"attention", 0.03}}}};
  write_text(directory + "/plan.json", plan.dump());
  write_text(directory + "/profile.json",
             R"({"steps": 10, "seconds": 1.0, "comm_seconds": 0.25, "data_seconds": 0.05,)"
             R"( "operations": [{"name": "linear", "seconds": 0.4},)"
             R"( {"name": "attention", "seconds": 0.2}]})");
  append_event(directory,
               {.time = 1.8e9, .event = "started", .step = 0, .ranks = 2, .where = "node01:17"});
  append_event(
      directory,
      {.time = 1.8e9 + 60, .event = "ended", .step = 150, .ranks = 2, .status = 1, .note = note});
  append_event(directory, {.time = 1.8e9 + 70,
                           .event = "started",
                           .restart = 1,
                           .step = 100,
                           .ranks = 2,
                           .where = "node02:18"});
  append_event(directory, {.time = 1.8e9 + 600,
                           .event = "ended",
                           .restart = 1,
                           .step = steps,
                           .ranks = 2,
                           .status = 0});
}

}  // namespace longspan::launcher
