#include "launcher/command.hpp"

namespace longspan::launcher {

const std::vector<Command>& commands() {
  static const std::vector<Command> all = {
      {"prepare", "turns files and folders into a dataset", prepare_command},
      {"train", "trains, on every rank that runs this command", train_command},
      {"launch", "starts train on several ranks of this machine", launch_command},
      {"inspect", "looks into a dataset, a checkpoint or a run directory", inspect_command},
      {"generate", "writes text with the model of a checkpoint", generate_command},
      {"config", "lists every setting, or the effective configuration of a file", config_command},
  };
  return all;
}

}  // namespace longspan::launcher
