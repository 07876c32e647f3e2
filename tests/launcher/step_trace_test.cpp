// timeout: 120
/// log.trace: the file of one step, as Perfetto reads it.
#include "launcher/step_trace.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "support/process.hpp"
#include "support/sample_text.hpp"
#include "support/temporary_directory.hpp"

namespace longspan::launcher {
namespace {

using testing_support::launch_tiny;
using testing_support::longspan;
using Json = nlohmann::json;

constexpr double kRounding = 0.0021;  // microseconds: both ends are rounded to a nanosecond

double begin_of(const Json& e) {
  return e["ts"];
}
double end_of(const Json& e) {
  return e["ts"].get<double>() + e["dur"].get<double>();
}

/// One rank of a file.
struct Rank {
  std::map<int, std::string> tracks;                 ///< tid -> name
  std::map<std::string, std::vector<Json>> spans;    ///< of a track, "X"
  std::map<std::string, std::vector<Json>> flights;  ///< of a track: "b", with "end" beside
  std::string process;
};

std::map<int, Rank> read_trace(const std::string& path) {
  Json file;
  std::ifstream(path) >> file;
  std::map<int, Rank> ranks;
  for (const Json& e : file["traceEvents"]) {
    Rank& rank = ranks[e["pid"].get<int>()];
    if (e["name"] == "process_name") rank.process = e["args"]["name"];
    if (e["name"] == "thread_name") rank.tracks[e["tid"].get<int>()] = e["args"]["name"];
  }
  std::map<std::string, Json> open;
  for (const Json& e : file["traceEvents"]) {
    Rank& rank = ranks[e["pid"].get<int>()];
    const std::string kind = e["ph"];
    if (kind == "X") rank.spans[rank.tracks.at(e["tid"].get<int>())].push_back(e);
    if (kind == "b") open[e["id"].get<std::string>()] = e;
    if (kind == "e") {
      Json flight = open.at(e["id"].get<std::string>());
      flight["end"] = e["ts"];
      rank.flights[rank.tracks.at(e["tid"].get<int>())].push_back(flight);
      open.erase(e["id"].get<std::string>());
    }
  }
  EXPECT_TRUE(open.empty());
  return ranks;
}

/// Spans of one track lie inside or behind each other.
void expect_nested(std::vector<Json> spans, const std::string& where) {
  std::stable_sort(spans.begin(), spans.end(), [](const Json& a, const Json& b) {
    return begin_of(a) != begin_of(b) ? begin_of(a) < begin_of(b) : end_of(a) > end_of(b);
  });
  std::vector<Json> around;
  for (const Json& span : spans) {
    while (!around.empty() && end_of(around.back()) <= begin_of(span) + kRounding)
      around.pop_back();
    if (!around.empty()) {
      EXPECT_LE(end_of(span), end_of(around.back()) + kRounding)
          << where << ": " << span << " reaches out of " << around.back();
    }
    around.push_back(span);
  }
}

class StepTraceRuns : public testing::Test {
 protected:
  void SetUp() override {
    std::ofstream(folder_.file("text.txt")) << testing_support::sample_text(60'000);
    ASSERT_EQ(longspan({"prepare", "--kind", "text", "--output", folder_.file("d.h5"),
                        folder_.file("text.txt")})
                  .status,
              0);
  }
  testing_support::ProcessResult train(const std::string& settings) const {
    return longspan(launch_tiny(2, folder_.file("d.h5"), folder_.file("run"), settings));
  }
  const testing_support::TemporaryDirectory folder_;
};

TEST_F(StepTraceRuns, HasTheStepOfBothRanks) {
  const std::string file = folder_.file("trace.json");
  const auto r = train(
      "--mesh.context 2 --attention.scheme ring --train.steps 4 --train.validate-every 0 " +
      std::string("--checkpoint.every 3 --checkpoint.overlap off --log.profile on --log.trace ") +
      file);
  ASSERT_EQ(r.status, 0) << r.err;
  EXPECT_NE(r.out.find("the trace of step 3 is in " + file), std::string::npos) << r.out;
  auto ranks = read_trace(file);
  ASSERT_EQ(ranks.size(), 2u);
  EXPECT_EQ(ranks[1].process, "rank 1 (cpu)");
  for (auto& [number, rank] : ranks) {
    SCOPED_TRACE(number);
    for (const auto& [track, spans] : rank.spans) expect_nested(spans, track);
    // The step is one span, and its phases follow each other without a gap to its end.
    const auto& training = rank.spans["training"];
    std::vector<Json> steps, phases;
    const std::set<std::string> phase_names = {"data", "forward and backward", "optimizer",
                                               "metrics", "save"};
    for (const Json& e : training) {
      if (e["name"] == "step 3") steps.push_back(e);
      if (phase_names.count(e["name"].get<std::string>()) != 0) phases.push_back(e);
    }
    ASSERT_EQ(steps.size(), 1u);
    ASSERT_EQ(phases.size(), phase_names.size());
    for (std::size_t i = 0; i + 1 < phases.size(); ++i)
      EXPECT_NEAR(end_of(phases[i]), begin_of(phases[i + 1]), kRounding);
    const double covered = end_of(phases.back()) - begin_of(phases.front());
    EXPECT_GT(covered, 0.5 * steps[0]["dur"].get<double>());
    for (const Json& e : training) {
      EXPECT_GE(begin_of(e), begin_of(steps[0]) - kRounding) << e;
      EXPECT_LE(begin_of(e), end_of(steps[0]) + kRounding) << e;
    }
    // What travels: in flight until it has been waited for, carried out by a thread.
    const auto& keys = rank.flights["communication: context"];
    ASSERT_FALSE(keys.empty());
    EXPECT_FALSE(rank.flights["communication: replicas"].empty());
    for (const Json& e : keys) {
      EXPECT_EQ(e["name"], "send-receive");
      EXPECT_GT(e["args"]["bytes"].get<double>(), 0);
      const auto waited = std::find_if(training.begin(), training.end(), [&](const Json& w) {
        return w["name"] == "wait for send-receive (context)" &&
               end_of(w) <= e["end"].get<double>() + kRounding && begin_of(w) >= begin_of(e);
      });
      EXPECT_NE(waited, training.end()) << e;
    }
    EXPECT_EQ(rank.spans["transfers: context"].size(), keys.size());
    // The checkpoint of step 3, in line.
    const auto written = std::find_if(training.begin(), training.end(), [](const Json& e) {
      return e["name"] == "write the checkpoint";
    });
    ASSERT_NE(written, training.end());
    EXPECT_GE(begin_of(*written), begin_of(phases.back()) - kRounding);
  }

  // Its operations are those of log.profile, as many and with the same FLOPs.
  Json profile;
  std::ifstream(folder_.file("run") + "/profile.json") >> profile;
  std::map<std::string, std::pair<int, double>> traced, profiled;
  for (const Json& e : ranks[0].spans["training"]) {
    const std::string name = e["name"];
    if (!e["args"].contains("bytes") || name.ends_with(")")) continue;  // "all-reduce (world)"
    auto& [calls, flops] = traced[name];
    ++calls, flops += e["args"].value("flops", 0.0);
  }
  for (const Json& o : profile["operations"])
    profiled[o["name"]] = {o["calls"].get<int>() / profile["steps"].get<int>(),
                           o["flops"].get<double>() / profile["steps"].get<double>()};
  EXPECT_EQ(traced, profiled);
}

TEST_F(StepTraceRuns, SaysWhatKeptItFromBeingWritten) {
  auto r = train("--train.steps 2 --log.trace " + folder_.file("trace.json"));
  EXPECT_EQ(r.status, 0) << r.err;
  EXPECT_NE((r.out + r.err).find("this start made 2 steps, log.trace-step is 3"), std::string::npos)
      << r.out << r.err;
  EXPECT_FALSE(std::ifstream(folder_.file("trace.json")));
  r = train("--train.steps 4 --log.trace-step 1 --log.trace " + folder_.file("no/trace.json"));
  EXPECT_EQ(r.status, 0) << r.err;
  EXPECT_NE((r.out + r.err).find("trace.json: cannot be written: No such file or directory"),
            std::string::npos)
      << r.out << r.err;
  r = train("--log.trace-step 0");
  EXPECT_EQ(r.status, 2);
  EXPECT_NE(r.err.find("log.trace-step=0"), std::string::npos) << r.err;
}

TEST(TraceRecorder, RecordsOnlyWhileItIsOn) {
  trace::Recorder& recorder = trace::recorder();
  { const trace::Span before("before"); }
  trace::Span across("across");  // began when nobody looked
  recorder.start();
  across.end();
  {
    const trace::Span outer("outer", {{"bytes", 12}});
    const trace::Span inner("inner");
    std::thread([] {
      trace::name_thread("other");
      const trace::Span span("beside");
    }).join();
  }
  recorder.enter("one");
  recorder.enter("two");
  trace::Span open("open");
  const auto events = recorder.stop();
  open.end();  // after the end: of no recording
  std::vector<std::string> names;
  for (const auto& e : events) names.push_back(e.name);
  EXPECT_EQ(names, (std::vector<std::string>{"outer", "inner", "beside", "one", "two", "open"}));
  EXPECT_EQ(events[0].numbers, (trace::Numbers{{"bytes", 12}}));
  EXPECT_EQ(events[2].track.name, "other");
  EXPECT_EQ(events[3].end, events[4].begin);
  EXPECT_GE(events[0].end, events[1].end);
  EXPECT_EQ(events[4].end, events[5].end);
  recorder.start();
  EXPECT_TRUE(recorder.stop().empty());
}

}  // namespace
}  // namespace longspan::launcher
