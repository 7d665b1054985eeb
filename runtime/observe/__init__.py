"""What a run shows of itself: trace, metrics, progress, report."""
