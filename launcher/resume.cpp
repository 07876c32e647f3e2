#include "launcher/resume.hpp"

#include <fmt/ranges.h>

#include <filesystem>

#include "io/checkpoint_index.hpp"
#include "io/checkpoint_reader.hpp"
#include "launcher/options.hpp"
#include "parallel/agree.hpp"
#include "parallel/log.hpp"

namespace longspan::launcher {
namespace {

/// Where checkpoint.resume=PATH leads. The same command continues what it has begun: once the run
/// directory has checkpoints of its own, from the newest of these. Checkpoints of another history
/// would be taken for this run's.
std::string resume_from_path(const std::string& path, const std::string& newest) {
  if (newest.empty()) return path;
  std::error_code none;
  if (std::filesystem::equivalent(path, newest, none)) return path;
  if (parse_ini(io::CheckpointReader(newest).facts().config).checkpoint.resume == path)
    return newest;
  fail_usage(
      "checkpoint.resume={} but {} exists, which did not come from it: set another run.directory, "
      "or remove the "
      "checkpoints that are not to count",
      path, newest);
}

}  // namespace

std::string checkpoint_at(const std::string& path) {
  for (const std::string& folder : {path + "/checkpoints", path})
    if (const std::string newest = io::newest_checkpoint(folder); !newest.empty()) return newest;
  return path;
}

ResumeChoice::ResumeChoice(const std::string& resume, const std::string& directory,
                           const Communicator& world)
    : world_(world), directory_(directory) {
  agree(world_, [&] {
    if (world_.rank() == 0) look(resume);
  });
  path_ = world_.broadcast(path_, 0);
  own_ = world_.broadcast(std::int64_t{own_}, 0) != 0;
}

void ResumeChoice::look(const std::string& resume) {
  for (const auto& stored : io::restart_order(directory_)) candidates_.push_back(stored.path);
  const std::string newest = next_complete();
  // A fresh run among the checkpoints of another: one could not tell later which step belongs to
  // which.
  if (resume == "never" && !newest.empty())
    fail_usage(
        "checkpoint.resume=never but {} exists: set another run.directory, or remove that one, "
        "or continue with "
        "checkpoint.resume=auto",
        newest);
  if (newest.empty() && !candidates_.empty())
    fail_damaged(
        "every checkpoint of {} is damaged ({}): restore one from a copy, or remove them to begin "
        "again",
        directory_, fmt::join(damages_, "; "));
  if (resume == "never") return;
  path_ = resume == "auto" ? newest : resume_from_path(resume, newest);
  own_ = path_ == newest;
}

std::string ResumeChoice::next_complete() {
  for (; next_ < candidates_.size(); ++next_) {
    const std::string why = io::why_incomplete(candidates_[next_]);
    if (why.empty()) return candidates_[next_++];
    damages_.push_back(why);
  }
  return "";
}

void ResumeChoice::reject(const std::string& why) {
  if (!own_) throw AgreedError(why, ExitStatus::kDamaged);
  agree(world_, [&] {
    if (world_.rank() != 0) return;
    damages_.push_back(why);
    path_ = next_complete();
    if (path_.empty())
      fail_damaged(
          "every checkpoint of {} is damaged ({}): restore one from a copy, or remove them to "
          "begin again",
          directory_, fmt::join(damages_, "; "));
  });
  path_ = world_.broadcast(path_, 0);
}

void ResumeChoice::settle() const {
  for (const std::string& why : damages_) log::warn("{}; {} is taken instead", why, path_);
}

}  // namespace longspan::launcher
