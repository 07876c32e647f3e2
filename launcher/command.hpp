/// The table of subcommands, one file each: train.cpp, launch.cpp, submit.cpp, status.cpp,
/// stop.cpp, prepare.cpp, convert.cpp, verify.cpp, inspect.cpp, generate.cpp, doctor.cpp,
/// plan_command.cpp, scale.cpp, report.cpp, config_command.cpp.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "parallel/error.hpp"

namespace longspan::launcher {

/// Arguments after the subcommand's name. Throws Error; returns what the process should.
using CommandFunction = ExitStatus (*)(const std::vector<std::string>& arguments);

struct Command {
  std::string_view name;
  std::string_view help;  ///< one line for the overview
  CommandFunction run;
};

const std::vector<Command>& commands();
/// The help of longspan itself: all commands, what the exit status means, an example.
std::string overview();

ExitStatus train_command(const std::vector<std::string>& arguments);
ExitStatus launch_command(const std::vector<std::string>& arguments);
ExitStatus status_command(const std::vector<std::string>& arguments);
ExitStatus stop_command(const std::vector<std::string>& arguments);
ExitStatus submit_command(const std::vector<std::string>& arguments);
ExitStatus prepare_command(const std::vector<std::string>& arguments);
ExitStatus verify_command(const std::vector<std::string>& arguments);
ExitStatus inspect_command(const std::vector<std::string>& arguments);
ExitStatus convert_command(const std::vector<std::string>& arguments);
ExitStatus generate_command(const std::vector<std::string>& arguments);
ExitStatus doctor_command(const std::vector<std::string>& arguments);
ExitStatus plan_command(const std::vector<std::string>& arguments);
ExitStatus scale_command(const std::vector<std::string>& arguments);
ExitStatus report_command(const std::vector<std::string>& arguments);
ExitStatus config_command(const std::vector<std::string>& arguments);

}  // namespace longspan::launcher
