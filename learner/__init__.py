"""The learner: draws sequences, trains, publishes weights, keeps the run."""
