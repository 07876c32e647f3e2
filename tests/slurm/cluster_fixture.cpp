#include "slurm/cluster_fixture.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <sstream>
#include <stdexcept>
#include <thread>

namespace longspan::testing_support {
namespace {

using Clock = std::chrono::steady_clock;
constexpr const char* kScript = LONGSPAN_SOURCE_DIR "/tests/slurm/cluster";

/// Empty if a cluster can be started here.
std::string why_not() {
  if (::geteuid() != 0) return "namespaces and slurmd take root";
  const ProcessResult tools =
      run_process({"sh", "-c",
                   "for c in slurmctld slurmd munged sbatch ip unshare nsenter mpirun; do "
                   "command -v $c >/dev/null || echo $c; done"});
  if (!tools.out.empty()) {
    std::istringstream words(tools.out);
    std::string missing;
    for (std::string word; words >> word;) missing += " " + word;
    return "not installed:" + missing + " (launcher/install_dependencies.sh --with-tests)";
  }
  const ProcessResult spaces =
      run_process({"unshare", "--net", "--uts", "--ipc", "--mount", "--pid", "--fork", "sh", "-c",
                   "ip link add name a type veth peer name b && mount -t proc proc /proc"});
  if (spaces.status != 0) return "the kernel refuses namespaces: " + spaces.err;
  return "";
}

/// One per program.
class Cluster {
 public:
  static Cluster& here() {
    static Cluster cluster;
    return cluster;
  }
  const std::string& why_not() const { return why_not_; }
  /// tests/slurm/cluster with these arguments.
  ProcessResult run(std::vector<std::string> arguments) const {
    arguments.insert(arguments.begin(), {"env", "TEST_CLUSTER_DIR=" + state_, kScript});
    return run_process(arguments);
  }

 private:
  Cluster() : state_("/tmp/longspan-slurm-" + std::to_string(::getpid())) {
    why_not_ = testing_support::why_not();
    if (!why_not_.empty()) {
      std::cout << "no Slurm cluster here: " << why_not_ << std::endl;  // ctest reads this line
      return;
    }
    start_guardian();
    const ProcessResult up = run({"up", "--nodes", "4"});
    if (up.status != 0) throw std::runtime_error("the Slurm cluster did not start: " + up.err);
  }
  ~Cluster() {
    if (guardian_ < 0) return;
    ::close(guardian_);
    // The program's end is the cluster's, so that the next one need not share the machine.
    const auto end = Clock::now() + std::chrono::seconds(20);
    while (::access(state_.c_str(), F_OK) == 0 && Clock::now() < end)
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }

  /// Takes the cluster down when this program is no more, by SIGKILL of its whole tree too: it is
  /// nobody's child, and reads a pipe whose only writer is this program.
  void start_guardian() {
    int ends[2];
    if (::pipe2(ends, O_CLOEXEC) != 0) throw std::runtime_error("no pipe");
    const pid_t child = ::fork();
    if (child == 0) {
      ::setsid();
      if (::fork() != 0) ::_exit(0);
      const int null = ::open("/dev/null", O_RDWR);
      ::dup2(ends[0], 0), ::dup2(null, 1), ::dup2(null, 2);
      ::setenv("TEST_CLUSTER_DIR", state_.c_str(), 1);
      // dup2 has left descriptor 0 open for exec; the writing end closes there.
      ::execl("/bin/sh", "sh", "-c", "read -r _; exec \"$0\" down", kScript, nullptr);
      ::_exit(127);
    }
    ::waitpid(child, nullptr, 0);
    ::close(ends[0]);
    guardian_ = ends[1];
  }

  std::string state_, why_not_;
  int guardian_ = -1;
};

/// Calls `is_so` until it is, or the time is over.
template <class Condition>
bool wait_until(std::chrono::seconds within, Condition is_so) {
  const auto end = Clock::now() + within;
  while (!is_so()) {
    if (Clock::now() > end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
  return true;
}

}  // namespace

void ClusterTest::SetUp() {
  const std::string& why_not = Cluster::here().why_not();
  if (!why_not.empty()) GTEST_SKIP() << why_not;
  // Jobs of any user, and the nodes' own views of it.
  ::chmod(folder_.path().c_str(), 0755);
}

void ClusterTest::TearDown() {
  if (!Cluster::here().why_not().empty()) return;
  if (HasFailure())
    for (const auto& entry : std::filesystem::directory_iterator(folder_.path()))
      if (entry.path().extension() == ".log")
        std::cout << "== " << entry.path().filename().string() << "\n" << read(entry.path());
  head({"scancel", "--signal=KILL", "--state=RUNNING"});
  head({"scancel", "--user=root"});
  for (const char* name : {"n1", "n2", "n3", "n4"}) node("restore-node", name);
  head({"scontrol", "update", "nodename=n[1-4]", "state=resume"});
  EXPECT_TRUE(wait_until(std::chrono::seconds(60),
                         [&] {
                           if (head({"sinfo", "-h", "-p", "main", "-o", "%T"}).out == "idle\n")
                             return true;
                           // A node that had jobs when it went is down until somebody says
                           // otherwise.
                           head({"scontrol", "update", "nodename=n[1-4]", "state=resume"});
                           return false;
                         }))
      << "the nodes did not become idle: " << head({"sinfo", "-N"}).out;
}

ProcessResult ClusterTest::head(std::vector<std::string> command) const {
  return on("head", std::move(command));
}

ProcessResult ClusterTest::on(const std::string& node, std::vector<std::string> command) const {
  command.insert(command.begin(), {"exec", node, "env", "-C", folder_.path()});
  return Cluster::here().run(command);
}

void ClusterTest::node(const std::string& what, const std::string& name) const {
  const ProcessResult r = Cluster::here().run({what, name});
  ASSERT_EQ(r.status, 0) << what << " " << name << ": " << r.err;
}

std::string ClusterTest::submit(const std::string& script, std::vector<std::string> options) const {
  std::ofstream(file("job.sh")) << script;
  options.insert(options.begin(), {"sbatch", "--parsable"});
  options.push_back("job.sh");
  const ProcessResult r = head(options);
  EXPECT_EQ(r.status, 0) << r.err;
  return r.out.substr(0, r.out.find('\n'));
}

std::map<std::string, std::string> ClusterTest::job(const std::string& id) const {
  std::map<std::string, std::string> fields;
  std::istringstream words(head({"scontrol", "-o", "show", "job", id}).out);
  for (std::string word; words >> word;)
    if (const auto at = word.find('='); at != std::string::npos)
      fields[word.substr(0, at)] = word.substr(at + 1);
  return fields;
}

testing::AssertionResult ClusterTest::reached(const std::string& id,
                                              const std::vector<std::string>& states,
                                              std::chrono::seconds within) const {
  std::map<std::string, std::string> last;
  const bool there = wait_until(within, [&] {
    last = job(id);
    return std::find(states.begin(), states.end(), last["JobState"]) != states.end();
  });
  if (there) return testing::AssertionSuccess();
  return testing::AssertionFailure()
         << "job " << id << " is " << last["JobState"] << " (" << last["Reason"] << ", exit "
         << last["ExitCode"] << ", restarts " << last["Restarts"] << ") after " << within.count()
         << " s, not " << testing::PrintToString(states);
}

testing::AssertionResult ClusterTest::says(const std::string& file, const std::string& text,
                                           std::chrono::seconds within) const {
  if (wait_until(within, [&] { return read(file).find(text) != std::string::npos; }))
    return testing::AssertionSuccess();
  return testing::AssertionFailure()
         << file << " does not say '" << text << "' after " << within.count() << " s:\n"
         << read(file);
}

std::string ClusterTest::read(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), {}};
}

}  // namespace longspan::testing_support
