"""What the processes that load data do about signals."""

import signal


def leave_stopping_to_training(worker: int) -> None:
    """Has a worker of a loader ignore SIGTERM, which schedulers send to each process of a job.

    Training needs its workers to finish the step, and ends them then; one whose training is gone ends by itself.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
