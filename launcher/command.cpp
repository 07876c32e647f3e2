#include "launcher/command.hpp"

#include <fmt/format.h>

namespace longspan::launcher {

const std::vector<Command>& commands() {
  static const std::vector<Command> all = {
      {"prepare", "turn files and folders into a dataset", prepare_command},
      {"train", "train, on every rank that runs this command", train_command},
      {"launch", "start train on several ranks, and again after a crash", launch_command},
      {"status", "show where runs and their jobs stand", status_command},
      {"stop", "ask runs to save and end", stop_command},
      {"submit", "run as a Slurm job that saves in time and goes on by itself", submit_command},
      {"verify", "prove on this machine that sharding does not change the answer", verify_command},
      {"inspect", "look into a dataset, a checkpoint or a run directory", inspect_command},
      {"convert", "reshard, merge, export or import a checkpoint", convert_command},
      {"generate", "write text with a trained model", generate_command},
      {"doctor", "say what this machine and allocation offer, and what is wrong", doctor_command},
      {"plan", "say what a run will need and take, and the best way to run it", plan_command},
      {"scale", "measure how a configuration scales over ranks, meshes and lengths", scale_command},
      {"report", "write a page about runs: curves, memory, events, settings", report_command},
      {"config", "list every setting, or show the effective configuration", config_command},
  };
  return all;
}

std::string overview() {
  std::string text = "longspan trains transformers on very long sequences across many nodes.\n\n";
  for (const Command& c : commands()) text += fmt::format("  longspan {:<9} {}\n", c.name, c.help);
  text +=
      "\nlongspan COMMAND --help explains one, with an example. Exit status: 0 done, 1 failed, 2 "
      "wrong usage or configuration,\n"
      "3 damaged or incompatible file, 75 stopped early after a good checkpoint: the same command "
      "continues.\n\n"
      "Example:\n"
      "  longspan prepare --kind text --output data/code.h5 /usr/include\n"
      "  longspan launch --ranks 2 --config configs/tiny.ini --data.path data/code.h5";
  return text;
}

}  // namespace longspan::launcher
