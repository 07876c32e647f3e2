/// launch: which mpirun command, what the user sees of it, which status comes back, and what a
/// signal does. The ranks are shell scripts here; what the program itself does with a signal is in
/// cli_test.cpp.
#include "launcher/launch_ranks.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>
#include <thread>

#include "launcher/command.hpp"
#include "parallel/error.hpp"
#include "support/temporary_directory.hpp"

namespace longspan::launcher {
namespace {

using Clock = std::chrono::steady_clock;

std::string read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// run_and_watch in a process of its own, its stdout and stderr in files.
class Watched {
 public:
  Watched(const testing_support::TemporaryDirectory& directory, const MpirunCommand& command)
      : out_(directory.file("out")), err_(directory.file("err")) {
    std::filesystem::remove(out_), std::filesystem::remove(err_);
    process_ = ::fork();
    if (process_ != 0) return;
    ::dup2(::open(out_.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600), 1);
    ::dup2(::open(err_.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600), 2);
    int status = 99;
    try {
      status = run_and_watch(command);
    } catch (const std::exception& e) {
      std::fprintf(stderr, "%s\n", e.what());
    }
    std::fflush(nullptr);
    ::_exit(status);
  }
  ~Watched() {
    if (process_ > 0) ::kill(process_, SIGKILL), ::waitpid(process_, nullptr, 0);
  }
  Watched(const Watched&) = delete;
  Watched& operator=(const Watched&) = delete;

  void send(int signal) const { ::kill(process_, signal); }
  /// Whether stdout had `times` times `text` within 20 s.
  bool wait_for(const std::string& text, int times = 1) const {
    const auto end = Clock::now() + std::chrono::seconds(20);
    for (;;) {
      const std::string out = read(out_);
      int found = 0;
      for (std::size_t at = 0; (at = out.find(text, at)) != std::string::npos; at += text.size())
        ++found;
      if (found >= times) return true;
      if (Clock::now() > end) return false;
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
  }
  int status() {
    int status = 0;
    ::waitpid(std::exchange(process_, -1), &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }
  std::string out() const { return read(out_); }
  std::string err() const { return read(err_); }

 private:
  std::string out_, err_;
  pid_t process_ = -1;
};

class Launch : public testing::Test {
 protected:
  /// `script` as the program of so many ranks, by mpirun.
  static MpirunCommand ranks(int count, const std::string& script) {
    return mpirun_command(count, {.cores = usable_cores(), .root = ::geteuid() == 0}, "/bin/sh",
                          {"-c", script});
  }
  /// `script` in mpirun's place.
  static MpirunCommand instead(const std::string& script) {
    return {{}, {"/bin/sh", "-c", script}};
  }
  testing_support::TemporaryDirectory directory_;
};

/// Saves and leaves when it is told to, as a rank does.
constexpr const char* kObedient =
    "trap 'echo told; exit 75' USR1; echo ready; for i in $(seq 200); do sleep 0.1; done; exit 9";

std::string joined(const MpirunCommand& command) {
  return shell_text(command);
}

std::string printed(const std::vector<std::string>& arguments) {
  testing::internal::CaptureStdout();
  EXPECT_EQ(launch_command(arguments), ExitStatus::kDone);
  std::fflush(stdout);
  return testing::internal::GetCapturedStdout();
}

TEST_F(Launch, TheCommandFitsTheMachine) {
  const auto on_two_cores = [](int ranks) {
    return joined(
        mpirun_command(ranks, {.cores = {2, true}, .root = true}, "/bin/longspan", {"train"}));
  };
  EXPECT_EQ(on_two_cores(1),
            "OMPI_MCA_opal_signal= OMPI_MCA_pml=ob1 OMPI_MCA_btl=self,vader mpirun "
            "--allow-run-as-root --mca "
            "odls_base_sigkill_timeout 0 --tag-output "
            "--map-by slot:PE=2 --bind-to core -n 1 /bin/longspan train");
  EXPECT_NE(on_two_cores(2).find("--map-by slot:PE=1 --bind-to core -n 2 "), std::string::npos);
  const std::string four = on_two_cores(4);
  EXPECT_NE(four.find("--oversubscribe --map-by core --bind-to core:overload-allowed -n 4 "),
            std::string::npos)
      << four;
  EXPECT_NE(four.find("OMPI_MCA_mpi_yield_when_idle=1"), std::string::npos) << four;
  const std::string uneven = on_two_cores(3);
  EXPECT_NE(uneven.find("--oversubscribe --bind-to none -n 3 "), std::string::npos) << uneven;
  EXPECT_EQ(on_two_cores(2).find("yield"), std::string::npos);
  EXPECT_NE(joined(mpirun_command(3, {.cores = {16, true}}, "p", {})).find("slot:PE=5 "),
            std::string::npos);
  EXPECT_EQ(joined(mpirun_command(1, {.cores = {2, true}}, "p", {})).find("root"),
            std::string::npos);
  // A mask that mpirun does not know about: it must not bind outside of it.
  const std::string masked = joined(mpirun_command(1, {.cores = {2, false}}, "p", {}));
  EXPECT_NE(masked.find("--bind-to none"), std::string::npos) << masked;
  EXPECT_EQ(masked.find("--map-by"), std::string::npos) << masked;
  // Several nodes: shared memory alone would not reach them, and mpirun knows their cores.
  EXPECT_EQ(joined(mpirun_command(64, {.cores = {2, true}, .several_nodes = true}, "p", {"a b"})),
            "OMPI_MCA_opal_signal= OMPI_MCA_hwloc_base_binding_policy=none mpirun --mca "
            "odls_base_sigkill_timeout 0 --tag-output -n 64 p 'a b'");
}

TEST_F(Launch, HostsAndAllocationsAreMpirunsToReach) {
  const Cores two = {2, true};
  EXPECT_EQ(joined(mpirun_command(4,
                                  {.cores = two,
                                   .several_nodes = true,
                                   .slots = 4,
                                   .hostfile = "my hosts",
                                   .forwarded = {"LONGSPAN_RESTART", "OMP_PROC_BIND"}},
                                  "p", {})),
            "OMPI_MCA_opal_signal= OMPI_MCA_hwloc_base_binding_policy=none mpirun --mca "
            "odls_base_sigkill_timeout 0 --tag-output --hostfile 'my hosts' -x LONGSPAN_RESTART -x "
            "OMP_PROC_BIND -n 4 p");
  // More ranks than tasks: the cores are there.
  const std::string tasks = joined(mpirun_command(2, {.cores = two, .slots = 1}, "p", {}));
  EXPECT_NE(tasks.find("--oversubscribe --bind-to none -n 2"), std::string::npos) << tasks;
  EXPECT_EQ(tasks.find("yield"), std::string::npos) << tasks;
  const std::string nodes =
      joined(mpirun_command(8, {.cores = two, .several_nodes = true, .slots = 4}, "p", {}));
  EXPECT_NE(nodes.find("--oversubscribe"), std::string::npos) << nodes;
}

TEST_F(Launch, OtherHostsSeeTheThreadSettings) {
  ::setenv("OMP_PROC_BIND", "true", 1);
  const auto names = variables_for_other_hosts();
  ::unsetenv("OMP_PROC_BIND");
  for (const char* name : {"LONGSPAN_RESTART", "OMP_PROC_BIND"})
    EXPECT_EQ(std::count(names.begin(), names.end(), name), 1) << name;
  EXPECT_EQ(std::count(names.begin(), names.end(), "HOME"), 0);
}

TEST_F(Launch, TheAllocationSaysHowMany) {
  for (const auto& [name, value] :
       {std::pair{"SLURM_JOB_ID", "7"}, {"SLURM_NTASKS", "6"}, {"SLURM_JOB_NODELIST", "n[1-2]"}})
    ::setenv(name, value, 1);
  const std::string text = printed({"--print"});
  for (const char* name : {"SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_JOB_NODELIST"}) ::unsetenv(name);
  EXPECT_NE(text.find(" -n 6 "), std::string::npos) << text;
  EXPECT_EQ(text.find("btl"), std::string::npos) << "shared memory does not reach: " << text;
}

TEST_F(Launch, CoresOutsideTheMaskDoNotCount) {
  cpu_set_t all;
  ASSERT_EQ(::sched_getaffinity(0, sizeof all, &all), 0);
  const Cores before = usable_cores();
  EXPECT_GE(before.count, 1);
  EXPECT_LE(before.count, CPU_COUNT(&all));
  if (CPU_COUNT(&all) < 2) GTEST_SKIP() << "one processor";
  int first = 0;
  while (!CPU_ISSET(first, &all)) ++first;
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(first, &one);
  ASSERT_EQ(::sched_setaffinity(0, sizeof one, &one), 0);
  const Cores masked = usable_cores();
  ASSERT_EQ(::sched_setaffinity(0, sizeof all, &all), 0);
  EXPECT_EQ(masked.count, 1);
  EXPECT_FALSE(masked.all);
}

TEST_F(Launch, EveryRankGetsItsShareOfTheCores) {
  const Cores cores = usable_cores();
  if (!cores.all) GTEST_SKIP() << "not all processors are ours";
  Watched one(directory_, ranks(1, "echo cpus $(nproc)"));
  EXPECT_EQ(one.status(), 0) << one.err();
  EXPECT_EQ(one.out(), "cpus " + std::to_string(::sysconf(_SC_NPROCESSORS_ONLN)) + "\n");
  Watched many(directory_, ranks(2 * cores.count, "echo rank $OMPI_COMM_WORLD_RANK"));
  EXPECT_EQ(many.status(), 0) << many.err();
  const std::string out = many.out();
  EXPECT_EQ(std::count(out.begin(), out.end(), '\n'), 2 * cores.count) << out;
}

TEST_F(Launch, TheStatusOfTheRanksComesBackAndOnlyTheirOwnWords) {
  for (const int status : {0, 1, 2, 3, 75}) {
    Watched launch(
        directory_,
        ranks(2, "test $OMPI_COMM_WORLD_RANK = 0 && echo longspan: no >&2; sleep 0.2; exit " +
                     std::to_string(status)));
    EXPECT_EQ(launch.status(), status);
    EXPECT_EQ(launch.err(), "longspan: no\n") << status;
    EXPECT_EQ(launch.out(), "") << status;
  }
}

TEST_F(Launch, ARankThatASignalEndedIsNamed) {
  Watched launch(directory_, ranks(2, "test $OMPI_COMM_WORLD_RANK = 1 && kill -KILL $$; sleep 10"));
  EXPECT_EQ(launch.status(), 128 + SIGKILL);
  const std::string err = launch.err();
  EXPECT_EQ(std::count(err.begin(), err.end(), '\n'), 1) << err;
  // mpirun does not always say which rank it was.
  EXPECT_TRUE(err.rfind("longspan: rank 1 (", 0) == 0 || err.rfind("longspan: a rank: ", 0) == 0)
      << err;
  EXPECT_NE(err.find("ended by signal 9 (Killed)"), std::string::npos) << err;
  EXPECT_NE(err.find("memory.keep"), std::string::npos) << err;
}

TEST_F(Launch, ARankThatLeavesWithoutAWordIsNamed) {
  const StopSignals signals;
  RankOutput output;
  EXPECT_EQ(run_and_watch(ranks(2, "test $OMPI_COMM_WORLD_RANK = 1 && exit 7; sleep 10"), signals,
                          output),
            7);
  // mpirun does not always say which rank it was.
  const std::string failure = output.first_failure();
  EXPECT_TRUE(failure == "longspan: rank 1: left with status 7 and said nothing" ||
              failure == "longspan: a rank: left with status 7 and said nothing")
      << failure;
}

TEST_F(Launch, LinesOfRanksDoNotMix) {
  // Each line in two pieces, both ranks at the same time.
  Watched launch(directory_,
                 ranks(2,
                       "for i in 1 2 3 4 5 6; do printf \"rank $OMPI_COMM_WORLD_RANK \"; sleep "
                       "0.05; echo line $i; done"));
  EXPECT_EQ(launch.status(), 0) << launch.err();
  std::istringstream lines(launch.out());
  int seen = 0;
  for (std::string line; std::getline(lines, line); ++seen)
    EXPECT_TRUE(line.starts_with("rank 0 line ") || line.starts_with("[1] rank 1 line ")) << line;
  EXPECT_EQ(seen, 12);
}

TEST_F(Launch, WhatMpirunCannotDoIsNotHidden) {
  MpirunCommand command = ranks(1, "exit 0");
  *std::find(command.words.begin(), command.words.end(), "/bin/sh") = "/bin/no-such-program";
  Watched launch(directory_, command);
  EXPECT_NE(launch.status(), 0);
  EXPECT_NE(launch.err().find("no-such-program"), std::string::npos) << launch.err();
}

TEST_F(Launch, AStopSignalLetsTheRanksFinish) {
  // mpirun alone would kill them on SIGTERM and SIGINT, and return 1.
  for (const int signal : {SIGTERM, SIGINT}) {
    Watched launch(directory_, ranks(2, kObedient));
    ASSERT_TRUE(launch.wait_for("ready", 2)) << launch.err();
    launch.send(signal);
    EXPECT_EQ(launch.status(), 75) << signal;
    EXPECT_NE(launch.out().find("told"), std::string::npos);
    EXPECT_EQ(launch.err().find("mpirun"), std::string::npos) << launch.err();
  }
}

TEST_F(Launch, EveryStopSignalIsPassedOnAsOne) {
  for (const int signal : {SIGTERM, SIGINT, SIGHUP, SIGUSR1}) {
    Watched launch(directory_, instead(kObedient));
    ASSERT_TRUE(launch.wait_for("ready"));
    launch.send(signal);
    EXPECT_EQ(launch.status(), 75) << signal;
    EXPECT_NE(launch.out().find("told"), std::string::npos) << signal;
  }
}

TEST_F(Launch, ASignalThatComesTooEarlyIsNotLost) {
  // mpirun drops it until it has started the ranks, and kills a rank that does not know it yet.
  for (const int milliseconds : {0, 15, 40}) {
    Watched launch(directory_, ranks(2, kObedient));
    std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds));
    launch.send(SIGTERM);
    const int status = launch.status();
    // Before launch has begun to listen, the signal has its usual effect.
    EXPECT_TRUE(status == 75 || (milliseconds == 0 && status == 128 + SIGTERM))
        << milliseconds << ": " << status << launch.err();
  }
}

TEST_F(Launch, ASignalThatWasSwallowedIsSentAgain) {
  // Deaf for its first second, like mpirun before it has ranks.
  Watched launch(directory_,
                 instead("trap '' USR1; echo ready; sleep 0.7; " + std::string(kObedient)));
  ASSERT_TRUE(launch.wait_for("ready"));
  launch.send(SIGTERM);
  EXPECT_EQ(launch.status(), 75);
}

TEST_F(Launch, ASecondInterruptEndsTheRanksForGood) {
  Watched launch(
      directory_,
      ranks(2, "trap '' USR1 TERM; echo ready; for i in $(seq 200); do sleep 0.1; done"));
  ASSERT_TRUE(launch.wait_for("ready", 2)) << launch.err();
  const auto begin = Clock::now();
  launch.send(SIGINT);
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  launch.send(SIGINT);
  EXPECT_EQ(launch.status(), 128 + SIGINT);
  EXPECT_LT(Clock::now() - begin, std::chrono::seconds(10));
}

TEST_F(Launch, TwoTerminationsAreNotAnInterrupt) {
  // Slurm sends SIGTERM twice.
  Watched launch(directory_, instead("trap 'trap : USR1; sleep 0.5; exit 75' USR1; echo ready; for "
                                     "i in $(seq 200); do sleep 0.1; done"));
  ASSERT_TRUE(launch.wait_for("ready"));
  launch.send(SIGTERM);
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  launch.send(SIGTERM);
  EXPECT_EQ(launch.status(), 75);
}

TEST_F(Launch, IfItIsKilledTheRanksAreTold) {
  const std::string note = directory_.file("note");
  Watched launch(directory_,
                 instead("trap 'echo told > " + note +
                         "; exit 75' USR1; echo ready; for i in $(seq 100); do sleep 0.1; done"));
  ASSERT_TRUE(launch.wait_for("ready"));
  launch.send(SIGKILL);
  EXPECT_EQ(launch.status(), 128 + SIGKILL);
  const auto end = Clock::now() + std::chrono::seconds(10);
  while (!std::filesystem::exists(note) && Clock::now() < end)
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  EXPECT_TRUE(std::filesystem::exists(note));
}

TEST_F(Launch, TheTerminalIsNotForTheRanks) {
  // A process group of its own, and nothing to read.
  Watched launch(directory_, instead("echo group $(($(cut -d' ' -f5 /proc/self/stat) == $$)); read "
                                     "line || echo nothing to read"));
  EXPECT_EQ(launch.status(), 0) << launch.err();
  EXPECT_EQ(launch.out(), "group 1\nnothing to read\n");
}

TEST_F(Launch, TheEnvironmentOfTheUserWins) {
  ::setenv("LONGSPAN_TEST_SET", "mine", 1);
  MpirunCommand command = instead("echo $LONGSPAN_TEST_SET $LONGSPAN_TEST_UNSET");
  command.environment = {{"LONGSPAN_TEST_SET", "ours"}, {"LONGSPAN_TEST_UNSET", "ours"}};
  Watched launch(directory_, command);
  EXPECT_EQ(launch.status(), 0);
  EXPECT_EQ(launch.out(), "mine ours\n");
  ::unsetenv("LONGSPAN_TEST_SET");
}

TEST_F(Launch, AMissingMpirunSaysWhatToInstall) {
  try {
    run_and_watch({{}, {"/no/such/mpirun"}});
    FAIL() << "no error";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("/no/such/mpirun"), std::string::npos) << e.what();
    EXPECT_NE(std::string(e.what()).find("openmpi-bin"), std::string::npos) << e.what();
  }
}

std::string refusal(const std::vector<std::string>& arguments) {
  try {
    launch_command(arguments);
  } catch (const Error& e) {
    EXPECT_EQ(e.status(), ExitStatus::kUsage);
    return e.what();
  }
  return "";
}

TEST_F(Launch, PrintShowsTheWholeCommand) {
  const std::string path = directory_.file("a b.ini");
  std::ofstream(path) << "[model]\nlayers = 2\n";
  const std::string text =
      printed({"--ranks", "1", "--config", path, "--train.steps=5", "--print"});
  EXPECT_NE(text.find("mpirun "), std::string::npos) << text;
  EXPECT_NE(text.find(" -n 1 " + std::filesystem::read_symlink("/proc/self/exe").string() +
                      " train --config '" + path + "' --train.steps 5\n"),
            std::string::npos)
      << text;
  EXPECT_NE(printed({"--help"}).find("longspan launch"), std::string::npos);
}

TEST_F(Launch, WhatIsWrongIsSaidBeforeAnythingStarts) {
  EXPECT_NE(refusal({}).find("--ranks N"), std::string::npos);
  EXPECT_NE(refusal({"--ranks", "0"}).find("--ranks 0"), std::string::npos);
  EXPECT_NE(refusal({"--ranks", "two"}).find("whole number"), std::string::npos);
  EXPECT_NE(refusal({"--ranks", "2", "--max-restarts", "-1"}).find("--max-restarts -1"),
            std::string::npos);
  EXPECT_NE(refusal({"--hostfile", "/no/such/hosts"}).find("/no/such/hosts"), std::string::npos);
  EXPECT_NE(refusal({"--ranks", "2", "--model.layer", "3"}).find("model.layers"),
            std::string::npos);
  EXPECT_NE(refusal({"--ranks", "2", "--mesh.data", "3"}).find("mesh.data=3"), std::string::npos);
  EXPECT_NE(refusal({"--ranks", "2", "--config", directory_.file("none.ini")}).find("none.ini"),
            std::string::npos);
}

const std::string kDashes = std::string(74, '-') + "\n";

TEST(BannerFilter, DropsWhatTheRanksHaveSaidThemselves) {
  const std::string noise =
      kDashes +
      "Primary job  terminated normally, but 1 process returned\n"
      "a non-zero exit code. Per user-direction, the job has been aborted.\n" +
      kDashes + kDashes +
      "mpirun detected that one or more processes exited with non-zero status, thus causing\n"
      "the job to be terminated. The first process to do so was:\n\n"
      "  Process name: [[24351,1],0]\n  Exit code:    75\n" +
      kDashes + kDashes +
      "MPI_ABORT was invoked on rank 1 in communicator MPI_COMM_WORLD\nwith errorcode 3.\n" +
      kDashes +
      "[vm:14672] 1 more process has sent help message help-mpi-api.txt / mpi-abort\n"
      "[vm:14672] Set MCA parameter \"orte_base_help_aggregate\" to 0 to see all help / error "
      "messages\n";
  const std::string text = "longspan: one\n" + noise + "longspan: two\n";
  BannerFilter whole;
  EXPECT_EQ(whole.take(text) + whole.finish(), "longspan: one\nlongspan: two\n");
  // However the pipe cuts it.
  for (const std::size_t piece : {1, 7, 100}) {
    BannerFilter pieces;
    std::string shown;
    for (std::size_t at = 0; at < text.size(); at += piece)
      shown += pieces.take(text.substr(at, piece));
    EXPECT_EQ(shown + pieces.finish(), "longspan: one\nlongspan: two\n") << piece;
  }
}

TEST(BannerFilter, KeepsWhatNobodyElseSays) {
  const std::string other =
      kDashes + "There are not enough slots available in the system to satisfy the 4\n" + kDashes;
  BannerFilter filter;
  EXPECT_EQ(filter.take("a\n" + other + "b"), "a\n" + other);
  EXPECT_EQ(filter.finish(), "b");
  BannerFilter open;
  EXPECT_EQ(open.take(kDashes + "a frame that does not end\n"), "");
  EXPECT_EQ(open.finish(), kDashes + "a frame that does not end\n");
}

TEST(BannerFilter, MakesOneLineOfADeathBySignal) {
  BannerFilter filter;
  EXPECT_EQ(filter.take(kDashes +
                        "mpirun noticed that process rank 11 with PID 0 on node n2 exited on "
                        "signal 11 (Segmentation fault).\n" +
                        kDashes),
            "longspan: rank 11 (n2): ended by signal 11 (Segmentation fault)\n");
}

}  // namespace
}  // namespace longspan::launcher
