/// Signals that ask a run to stop: SIGTERM, SIGINT and SIGUSR1 set a flag, and the step in flight is finished first.
#pragma once

namespace longspan::slurm {

/// Catches the three signals from now on. A second SIGINT ends the process at once (the default action).
void catch_stop_signals();
/// The first signal caught since then, 0 = none. Async-signal safe to set, cheap to read.
int stop_signal();
/// "SIGTERM" etc.
const char* signal_name(int signal);

}  // namespace longspan::slurm
