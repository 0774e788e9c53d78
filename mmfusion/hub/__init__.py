"""Models on the Hub: publishing and loading them, their cards and their checkpoints."""
