"""What a training run adds to the steps: what is watched, judged, tapped and told to others."""
