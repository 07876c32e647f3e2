#include "support/process.hpp"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>
#include <stdexcept>

namespace longspan::testing_support {

ProcessResult run_process(const std::vector<std::string>& arguments,
                          const std::string& interrupt_when, int signal) {
  int out[2], err[2];
  if (::pipe(out) != 0 || ::pipe(err) != 0) throw std::runtime_error("pipe failed");
  const pid_t child = ::fork();
  if (child == 0) {
    ::dup2(out[1], 1), ::dup2(err[1], 2);
    for (int fd : {out[0], out[1], err[0], err[1]}) ::close(fd);
    const int null = ::open("/dev/null", O_RDONLY);
    ::dup2(null, 0);
    std::vector<char*> argv;
    for (const auto& a : arguments) argv.push_back(const_cast<char*>(a.c_str()));
    argv.push_back(nullptr);
    ::execvp(argv[0], argv.data());
    ::_exit(127);
  }
  ::close(out[1]), ::close(err[1]);
  ProcessResult result;
  bool sent = interrupt_when.empty();
  pollfd open[2] = {{out[0], POLLIN, 0}, {err[0], POLLIN, 0}};
  for (int left = 2; left > 0;) {
    ::poll(open, 2, -1);
    for (int i = 0; i < 2; ++i) {
      if (open[i].fd < 0 || open[i].revents == 0) continue;
      char text[4096];
      const ssize_t got = ::read(open[i].fd, text, sizeof text);
      if (got <= 0) {
        ::close(open[i].fd);
        open[i].fd = -1;
        --left;
      } else {
        (i == 0 ? result.out : result.err).append(text, static_cast<std::size_t>(got));
      }
    }
    if (!sent && result.out.find(interrupt_when) != std::string::npos) {
      ::kill(child, signal);
      sent = true;
    }
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  result.status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return result;
}

std::vector<std::string> launch_tiny(int ranks, const std::string& data, const std::string& run,
                                     const std::string& settings,
                                     const std::vector<std::string>& more) {
  std::vector<std::string> all = {"launch",
                                  "--ranks",
                                  std::to_string(ranks),
                                  "--config",
                                  LONGSPAN_SOURCE_DIR "/configs/tiny.ini",
                                  "--data.path",
                                  data,
                                  "--run.directory",
                                  run,
                                  "--data.sequence-length",
                                  "64"};
  std::istringstream words(settings);
  for (std::string word; words >> word;) all.push_back(word);
  all.insert(all.end(), more.begin(), more.end());
  return all;
}

std::string longspan_path() {
  return LONGSPAN_BINARY_DIR "/longspan";
}

ProcessResult longspan(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), longspan_path());
  return run_process(arguments);
}

std::vector<pid_t> processes_of(const std::string& command, const std::string& word) {
  std::vector<pid_t> found;
  for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
    const std::string name = entry.path().filename();
    pid_t pid = 0;
    if (std::from_chars(name.data(), name.data() + name.size(), pid).ec != std::errc()) continue;
    std::ifstream file(entry.path() / "cmdline", std::ios::binary);
    const std::string line{std::istreambuf_iterator<char>(file), {}};
    // mpirun has the same words in its own command line: ours begins with the program.
    if (line.starts_with(longspan_path() + '\0' + command + '\0') &&
        line.find('\0' + word + '\0') != std::string::npos)
      found.push_back(pid);
  }
  return found;
}

int count_lines(const std::string& text) {
  return static_cast<int>(std::count(text.begin(), text.end(), '\n'));
}

}  // namespace longspan::testing_support
