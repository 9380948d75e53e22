"""The parts of a run that prunes during `fit`: schedule, guard, sampling, backup and messages."""
