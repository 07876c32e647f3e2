/// Hostfiles: what mpirun reads is read, what it would stumble over is named with its line.
#include "launcher/hostfile.hpp"

#include <gtest/gtest.h>

#include "parallel/error.hpp"

namespace longspan::launcher {
namespace {

std::string problems(const std::string& text) {
  try {
    parse_hostfile(text, "hosts");
  } catch (const Error& e) {
    EXPECT_EQ(e.status(), ExitStatus::kUsage);
    return e.what();
  }
  return "";
}

TEST(Hostfile, TheUsualFormsAreRead) {
  const auto hosts = parse_hostfile(
      "# the cluster\n"
      "node01 slots=4\n"
      "\n"
      "me@node02 slots = 2 max_slots=8  # two\n"
      "10.0.0.3 slots=1 max-slots=1\n",
      "hosts");
  ASSERT_EQ(hosts.size(), 3u);
  EXPECT_EQ(hosts[0].name, "node01");
  EXPECT_EQ(hosts[1].name, "node02");
  EXPECT_EQ(hosts[1].slots, 2);
  EXPECT_EQ(total_slots(hosts), 7);
  EXPECT_FALSE(all_local(hosts));
}

TEST(Hostfile, SlotsThatNobodyKnowsAreNotMadeUp) {
  EXPECT_EQ(total_slots(parse_hostfile("a slots=4\nb\n", "h")), 0);
  // One line for each rank, as mpirun has it.
  EXPECT_EQ(total_slots(parse_hostfile("a\nb slots=3\na\n", "h")), 5);
}

TEST(Hostfile, ThisMachineIsLocal) {
  EXPECT_TRUE(all_local(parse_hostfile("localhost\n127.0.0.1\n", "h")));
  EXPECT_FALSE(all_local(parse_hostfile("localhost\nnode77.example\n", "h")));
}

TEST(Hostfile, EveryMistakeIsNamedWithItsLine) {
  const std::string all = problems(
      "a slot=4\n"
      "b slots=0\n"
      "c slots=4 max_slots=2\n"
      "d slots\n"
      "e,f slots=1\n"
      "g slots=2\n"
      "g slots=2\n"
      "h slots=many\n"
      "i colour=red\n");
  EXPECT_NE(all.find("hosts:1: 'slot' is not known here: did you mean slots?"), std::string::npos)
      << all;
  EXPECT_NE(all.find("hosts:2: slots=0: it needs a whole number"), std::string::npos) << all;
  EXPECT_NE(all.find("hosts:3: slots=4 is more than max_slots=2"), std::string::npos) << all;
  EXPECT_NE(all.find("hosts:4: slots: it needs"), std::string::npos) << all;
  EXPECT_NE(all.find("hosts:5: 'e,f' is no name of a host"), std::string::npos) << all;
  EXPECT_EQ(all.find("hosts:6:"), std::string::npos) << all;
  EXPECT_NE(all.find("hosts:7: g stands in line 6 already"), std::string::npos) << all;
  EXPECT_NE(all.find("hosts:8: slots=many: it needs"), std::string::npos) << all;
  EXPECT_NE(all.find("hosts:9: 'colour' is not known here"), std::string::npos) << all;
  EXPECT_NE(problems("# nothing\n").find("names no host"), std::string::npos);
  EXPECT_THROW(read_hostfile("/no/such/hostfile"), Error);
}

}  // namespace
}  // namespace longspan::launcher
