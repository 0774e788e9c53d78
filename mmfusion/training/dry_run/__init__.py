"""What a training will need, said in its first minute: a step with its largest batch, and the plan."""

from mmfusion.training.dry_run.rehearsal import OutOfMemoryError, preflight

__all__ = ["OutOfMemoryError", "preflight"]
