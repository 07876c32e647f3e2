/// Signals that ask a run to stop: SIGTERM, SIGINT, SIGUSR1 and SIGHUP (the terminal is gone;
/// ignored under nohup) set a flag, and the step in flight is finished first.
///
/// A thread of its own takes them. They must never reach a thread that computes: oneDNN's sgemm
/// (2.6.3) uses the stack pointer as an ordinary register, so that the kernel writes the signal's
/// frame into the heap. Measured: a loop of sgemm with a signal every 0.2 ms dies of heap
/// corruption within a second; on an alternate stack it takes 75000 of them.
#pragma once

namespace longspan::slurm {

/// Catches these signals from now on. Call it before the threads that compute exist: this
/// thread and those that it starts later do not take them any more. A second SIGINT ends the
/// process at once (the default action).
void catch_stop_signals();
/// The first signal caught since then, 0 = none. Cheap to read.
int stop_signal();
/// "SIGTERM" etc.
const char* signal_name(int signal);

}  // namespace longspan::slurm
