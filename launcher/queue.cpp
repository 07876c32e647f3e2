#include "launcher/queue.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <sstream>

#include "io/file.hpp"
#include "parallel/error.hpp"

namespace longspan::launcher {
namespace {

using Clock = std::chrono::steady_clock;

struct Ends {
  io::Descriptor read, write;
};

bool open_pipe(Ends& ends) {
  std::array<int, 2> both;
  if (::pipe2(both.data(), O_CLOEXEC) != 0) return false;
  ends.read = io::Descriptor(both[0]);
  ends.write = io::Descriptor(both[1]);
  return true;
}

std::string trimmed(std::string text) {
  while (!text.empty() && (text.back() == '\n' || text.back() == ' ')) text.pop_back();
  return text;
}

}  // namespace

std::optional<Answer> ask(const std::vector<std::string>& words,
                          std::chrono::milliseconds patience) {
  Ends out, errors;
  if (!open_pipe(out) || !open_pipe(errors)) return std::nullopt;
  std::vector<char*> argv;
  for (const std::string& word : words) argv.push_back(const_cast<char*>(word.c_str()));
  argv.push_back(nullptr);
  const pid_t child = ::fork();
  if (child < 0) return std::nullopt;
  if (child == 0) {
    if (const int null = ::open("/dev/null", O_RDONLY); null >= 0) ::dup2(null, STDIN_FILENO);
    ::dup2(out.write.get(), STDOUT_FILENO);
    ::dup2(errors.write.get(), STDERR_FILENO);
    ::execvp(argv[0], argv.data());
    ::_exit(127);
  }
  out.write.reset();
  errors.write.reset();
  Answer answer;
  const auto end = Clock::now() + patience;
  const std::array<std::pair<io::Descriptor*, std::string*>, 2> streams = {
      std::pair{&out.read, &answer.out}, std::pair{&errors.read, &answer.errors}};
  while (out.read || errors.read) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(end - Clock::now());
    if (left.count() <= 0) break;
    std::array<pollfd, 2> polled = {pollfd{out.read.get(), POLLIN, 0},
                                    pollfd{errors.read.get(), POLLIN, 0}};
    if (::poll(polled.data(), polled.size(), static_cast<int>(left.count())) < 0 && errno != EINTR)
      break;
    for (std::size_t i = 0; i < streams.size(); ++i) {
      if (polled[i].revents == 0) continue;
      std::array<char, 65536> text;
      const ssize_t got = ::read(streams[i].first->get(), text.data(), text.size());
      if (got > 0)
        streams[i].second->append(text.data(), static_cast<std::size_t>(got));
      else if (got == 0 || errno != EINTR)
        streams[i].first->reset();
    }
  }
  const bool answered = !out.read && !errors.read;
  if (!answered) ::kill(child, SIGKILL);
  int status = 0;
  ::waitpid(child, &status, 0);
  constexpr int kNotThere = 127;
  if (!answered || !WIFEXITED(status) || WEXITSTATUS(status) == kNotThere) return std::nullopt;
  answer.status = WEXITSTATUS(status);
  return answer;
}

double parse_slurm_duration(const std::string& text) {
  if (text.empty() || text.find_first_not_of("0123456789:-") != std::string::npos) return -1;
  double days = 0;
  std::string rest = text;
  if (const std::size_t dash = text.find('-'); dash != std::string::npos) {
    days = std::atof(text.substr(0, dash).c_str());
    rest = text.substr(dash + 1);
  }
  double seconds = 0;
  std::istringstream parts(rest);
  for (std::string part; std::getline(parts, part, ':');)
    seconds = 60 * seconds + std::atof(part.c_str());
  return 86400 * days + seconds;
}

std::map<std::string, QueuedJob> parse_squeue(const std::string& text) {
  std::map<std::string, QueuedJob> jobs;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    std::istringstream fields(line);
    std::string id, state, left, reason;
    if (!std::getline(fields, id, '|') || !std::getline(fields, state, '|')) continue;
    std::getline(fields, left, '|');
    std::getline(fields, reason);
    jobs[id] = {state, parse_slurm_duration(left), reason};
  }
  return jobs;
}

Queue ask_queue(std::vector<std::string> jobs) {
  std::sort(jobs.begin(), jobs.end());
  jobs.erase(std::unique(jobs.begin(), jobs.end()), jobs.end());
  constexpr std::chrono::seconds kPatience(10);
  const auto answer = ask({"squeue", "--noheader", "--format=%A|%T|%L|%r",
                           fmt::format("--jobs={}", fmt::join(jobs, ","))},
                          kPatience);
  if (!answer) return std::nullopt;
  // Asked for one job that it has forgotten, squeue fails; asked for several, it leaves it out.
  if (answer->status != 0 && answer->errors.find("Invalid job id") == std::string::npos)
    return std::nullopt;
  return parse_squeue(answer->out);
}

void cancel_pending_job(const std::string& job) {
  constexpr std::chrono::seconds kPatience(30);
  const auto answer = ask({"scancel", "--state=PENDING", job}, kPatience);
  if (!answer) fail("scancel {}: there is no answer: is Slurm reachable from here?", job);
  if (answer->status != 0) fail("scancel {}: {}", job, trimmed(answer->errors));
}

}  // namespace longspan::launcher
