#include "io/fence.hpp"

#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string_view>
#include <thread>
#include <vector>

#include "io/file.hpp"
#include "parallel/error.hpp"

namespace longspan::io {
namespace {

/// Another start has the right: no error of the file system.
class Refused : public Error {
 public:
  using Error::Error;
};

constexpr std::string_view kOwner = ".owner-", kDraft = ".claim-", kFormer = ".former-";

std::string owner_name(std::int64_t number) {
  return fmt::format("{}{:010}", kOwner, number);
}

/// Numbers of the owners' folders, rising. There is more than one only while one takes over.
std::vector<std::int64_t> owners_of(const std::string& checkpoints) {
  std::vector<std::int64_t> numbers;
  for (const std::string& name : list_directory(checkpoints)) {
    if (!name.starts_with(kOwner)) continue;
    std::int64_t number = 0;
    const char* begin = name.data() + kOwner.size();
    const auto [end, error] = std::from_chars(begin, name.data() + name.size(), number);
    if (error == std::errc() && end == name.data() + name.size()) numbers.push_back(number);
  }
  std::sort(numbers.begin(), numbers.end());
  return numbers;
}

std::string text_of(const std::string& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

Attempt claim_of(const std::string& checkpoints, std::int64_t number) {
  return attempt_from(text_of(fmt::format("{}/{}/claim", checkpoints, owner_name(number))));
}

Refused overtaken(const std::string& checkpoints) {
  return Refused("another start of this run has taken " + checkpoints +
                 " at the same moment: start one only");
}

/// A folder with the claim in it, under a name that nobody else uses; the claim's second line is
/// that name, so that no two claims are the same.
std::string make_draft(const std::string& checkpoints, const Attempt& attempt) {
  std::array<char, 256> node = {};
  ::gethostname(node.data(), node.size() - 1);
  const std::string draft = fmt::format(
      "{}/{}{}-{}-{}", checkpoints, kDraft, node.data(), ::getpid(),
      std::chrono::system_clock::now().time_since_epoch().count());  // for a unique name only
  make_directory(draft);
  const std::string claim = draft + "/claim", text = to_text(attempt) + base_name(draft) + "\n";
  try {
    std::FILE* file = std::fopen(claim.c_str(), "we");
    bool good = file != nullptr && std::fwrite(text.data(), 1, text.size(), file) == text.size();
    const int failure = errno;
    if (file != nullptr) good = std::fclose(file) == 0 && good;
    if (!good) fail_errno(claim, "cannot write", failure);
    sync_file(claim);
    sync_directory(draft);
  } catch (const Error&) {
    // Another start throws away the drafts that it finds.
    if (!path_exists(draft)) throw overtaken(checkpoints);
    remove_path(draft);
    throw;
  }
  return draft;
}

/// Away with a folder that its owner may still be writing into.
void remove_stubbornly(const std::string& path) {
  for (int tries = 1;; ++tries) {
    try {
      return remove_path(path);
    } catch (const Error&) {
      constexpr int kTries = 50;
      if (tries == kTries) throw;
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
    }
  }
}

void remove_predecessors(const std::string& checkpoints, std::int64_t number) {
  for (const std::int64_t owner : owners_of(checkpoints)) {
    if (owner >= number) continue;
    // The first rename is the fence: from here on nothing leaves or enters by the old name.
    const std::string former = fmt::format("{}/{}{:010}", checkpoints, kFormer, owner);
    const std::string current = checkpoints + "/" + owner_name(owner);
    if (path_exists(former)) remove_stubbornly(former);
    if (std::rename(current.c_str(), former.c_str()) != 0 && errno != ENOENT)
      fail_errno(current, "cannot take over", errno);
  }
  sync_directory(checkpoints);
  // A draft is moved away before it is emptied: its owner, if it still lives, can then no longer
  // rename it. An empty folder under an owner's name could be taken by two.
  for (const std::string& name : list_directory(checkpoints))
    if (name.starts_with(kDraft))
      std::rename((checkpoints + "/" + name).c_str(),
                  fmt::format("{}/{}{}", checkpoints, kFormer, name).c_str());
  for (const std::string& name : list_directory(checkpoints))
    if (name.starts_with(kFormer)) remove_stubbornly(checkpoints + "/" + name);
}

}  // namespace

bool is_later_restart(const Attempt& a, const Attempt& b) {
  if (a.job != b.job) return false;
  if (!a.job.empty() && a.restart != b.restart) return a.restart > b.restart;
  return !a.launch.empty() && a.launch == b.launch && a.launch_restart > b.launch_restart;
}

std::string describe(const Attempt& attempt) {
  const std::string process = attempt.process.empty() ? "another process" : attempt.process;
  if (!attempt.job.empty() && (attempt.restart > 0 || attempt.launch.empty()))
    return fmt::format("{} (restart {} of Slurm job {})", process, attempt.restart, attempt.job);
  if (!attempt.launch.empty())
    return fmt::format("{} (restart {} of launch {})", process, attempt.launch_restart,
                       attempt.launch);
  return process;
}

std::string to_text(const Attempt& attempt) {
  const nlohmann::ordered_json object = {{"process", attempt.process},
                                         {"job", attempt.job},
                                         {"restart", attempt.restart},
                                         {"launch", attempt.launch},
                                         {"launch_restart", attempt.launch_restart}};
  return object.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

Attempt attempt_from(const std::string& text) {
  const auto object = nlohmann::json::parse(text.substr(0, text.find('\n')), nullptr,
                                            /*allow_exceptions=*/false);
  Attempt attempt;
  if (!object.is_object()) return attempt;
  const auto word = [&](const char* key) {
    const auto at = object.find(key);
    return at != object.end() && at->is_string() ? at->get<std::string>() : std::string();
  };
  const auto number = [&](const char* key) {
    const auto at = object.find(key);
    return at != object.end() && at->is_number_integer() ? at->get<int>() : 0;
  };
  attempt.process = word("process");
  attempt.job = word("job"), attempt.restart = number("restart");
  attempt.launch = word("launch"), attempt.launch_restart = number("launch_restart");
  return attempt;
}

Fence::Fence(const std::string& checkpoints, const Attempt& attempt)
    : checkpoints_(checkpoints), attempt_(attempt) {
  try {
    claim_ = take();
  } catch (const Refused&) {
    throw;
  } catch (const Error&) {
    // A disk that cannot be written now costs saves, not the run: the first save says so.
  }
}

Fence::Claim Fence::take() const {
  make_directories(checkpoints_);
  const std::string draft = make_draft(checkpoints_, attempt_);
  Claim claim;
  claim.text = text_of(draft + "/claim");
  // What another start has thrown away with its predecessor's is as good as overtaken.
  const auto leave = [&](const std::string& remains) {
    try {
      remove_stubbornly(remains);
    } catch (const Error&) {
      // Whoever was faster removes it as well.
    }
    throw overtaken(checkpoints_);
  };
  for (;;) {
    const auto owners = owners_of(checkpoints_);
    const std::int64_t newest = owners.empty() ? 0 : owners.back();
    if (const Attempt owner = claim_of(checkpoints_, newest); is_later_restart(owner, attempt_)) {
      remove_path(draft);
      throw Refused(
          fmt::format("{} belongs to {}: this one, {}, was replaced and may not write "
                      "there",
                      checkpoints_, describe(owner), describe(attempt_)));
    }
    claim.number = newest + 1;
    claim.folder = checkpoints_ + "/" + owner_name(claim.number);
    if (std::rename(draft.c_str(), claim.folder.c_str()) == 0) break;
    if (errno == ENOENT) leave(draft);
    if (errno == EEXIST || errno == ENOTEMPTY) continue;  // somebody was faster: a newer owner
    const int failure = errno;
    remove_path(draft);
    fail_errno(claim.folder, "cannot create the folder", failure);
  }
  // A slow start may have taken a number that was already another's past.
  const auto leave_if_overtaken = [&] {
    const auto owners = owners_of(checkpoints_);
    if (owners.empty() || owners.back() > claim.number) leave(claim.folder);
  };
  try {
    sync_directory(checkpoints_);
    leave_if_overtaken();
    remove_predecessors(checkpoints_, claim.number);
  } catch (const Refused&) {
    throw;
  } catch (const Error&) {
    leave_if_overtaken();
    throw;
  }
  return claim;
}

std::string Fence::folder() const {
  const std::lock_guard lock(mutex_);
  return claim_.folder;
}

bool Fence::lost() const {
  const std::lock_guard lock(mutex_);
  return lost_now();
}

bool Fence::lost_now() const {
  if (lost_ || claim_.number == 0) return lost_;
  struct stat found = {};
  if (::stat(claim_.folder.c_str(), &found) == 0) {
    // All owners' folders were removed by hand, and another start has the same number now.
    const std::string text = text_of(claim_.folder + "/claim");
    lost_ = !text.empty() && text != claim_.text;
  } else if (errno == ENOENT || errno == ESTALE) {
    // Only "not there" is an answer; a server that does not reply is none. And only together with a
    // successor: a file system that is gone, or a folder that somebody has removed, is a save that
    // fails and not the end of the run.
    const auto owners = owners_of(checkpoints_);
    lost_ = !owners.empty() && owners.back() > claim_.number;
  }
  return lost_;
}

void Fence::require() const {
  const std::lock_guard lock(mutex_);
  if (claim_.number == 0) claim_ = take();
  if (!lost_now()) return;
  const auto owners = owners_of(checkpoints_);
  const Attempt successor = owners.empty() ? Attempt{} : claim_of(checkpoints_, owners.back());
  fail("this run was replaced: {} belongs to {} now: nothing more is saved or removed here",
       checkpoints_, describe(successor));
}

std::string temporary_path(const std::string& checkpoints, const std::string& name,
                           const Fence* fence) {
  if (fence != nullptr) return fmt::format("{}/{}.tmp", fence->folder(), name);
  return fmt::format("{}/.{}.tmp", checkpoints, name);
}

}  // namespace longspan::io
