"""What a training run adds to the steps: what is watched, judged, sampled, remembered and told."""
